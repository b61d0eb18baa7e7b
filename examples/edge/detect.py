"""Run an exported detector on pictures or videos, without torch and without Ultralytics.

    python examples/edge/detect.py best.onnx street.jpg
    python examples/edge/detect.py best_ncnn_model folder/ --conf 0.4 --out runs/edge
    python examples/edge/detect.py best.onnx clip.mp4 --runtime opencv

Each picture's boxes are printed; the pictures with the boxes drawn in are saved in the `--out` folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import runtimes
from detection import Detections, Image, Runtime, detect, draw

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {".avi", ".mkv", ".mov", ".mp4", ".webm"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run an exported detector on pictures or videos, without torch.")
    parser.add_argument("model", type=Path, help=f"exported model ({', '.join(runtimes.SUFFIXES)}), or its folder")
    parser.add_argument("source", type=Path, help="picture, video, or a folder of them")
    parser.add_argument("--runtime", choices=runtimes.RUNTIMES, help="what to run it with (by default, by its file)")
    parser.add_argument("--conf", type=share, default=0.25, help="lowest score to show, 0..1 (default: %(default)s)")
    parser.add_argument("--iou", type=share, default=0.7, help="overlap at which boxes are one, 0..1 (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/edge"), help="folder to save in (%(default)s)")
    args = parser.parse_args()
    try:
        files = find_sources(args.source, args.out)
        runtime = runtimes.load(args.model, args.runtime)
        args.out.mkdir(parents=True, exist_ok=True)
        for file in files:
            process = process_video if file.suffix.lower() in VIDEO_SUFFIXES else process_picture
            process(runtime, file, args.out, args.conf, args.iou)
    except (OSError, ImportError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return value


def find_sources(source: Path, out: Path) -> list[Path]:
    """The pictures and videos that `source` stands for."""
    if not source.exists():
        raise FileNotFoundError(f"There is no picture, video or folder {source}.")
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    candidates = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [file for file in candidates if file.suffix.lower() in suffixes]
    if not files:
        raise ValueError(f"{source} has no picture or video (looked for {', '.join(sorted(suffixes))}).")
    if files[0].resolve().parent == out.resolve():
        raise ValueError(f"--out {out} is where the pictures come from: they would be overwritten.")
    return files


def process_picture(runtime: Runtime, file: Path, out: Path, conf: float, iou: float) -> None:
    image = cv2.imread(str(file))
    if image is None:
        raise ValueError(f"{file} is not a picture that OpenCV can read.")
    started = time.perf_counter()
    found = detect(runtime, image, conf=conf, iou=iou)
    milliseconds = (time.perf_counter() - started) * 1000
    target = out / file.name
    save(target, draw(image, found, runtime.info))
    print(f"{file}: {len(found.scores)} found in {milliseconds:.1f} ms, saved as {target}")
    for line in describe(found, runtime):
        print(f"  {line}")


def process_video(runtime: Runtime, file: Path, out: Path, conf: float, iou: float) -> None:
    video = cv2.VideoCapture(str(file))
    target = out / f"{file.stem}.mp4"
    writer, started, count = cv2.VideoWriter(), time.perf_counter(), 0
    try:
        for frame in frames(video):
            if not count:
                rate = video.get(cv2.CAP_PROP_FPS) or 25.0  # 0 where the file does not say
                codec = cv2.VideoWriter.fourcc(*"mp4v")
                if not writer.open(str(target), codec, rate, (frame.shape[1], frame.shape[0])):
                    raise OSError(f"This OpenCV cannot write the video {target}.")
            writer.write(draw(frame, detect(runtime, frame, conf=conf, iou=iou), runtime.info))
            count += 1
    finally:
        video.release()
        writer.release()
    if not count:
        raise ValueError(f"{file} is not a video that OpenCV can read.")
    print(f"{file}: {count} frames, {count / (time.perf_counter() - started):.1f} a second, saved as {target}")


def frames(video: cv2.VideoCapture) -> Iterator[Image]:
    while True:
        read, frame = video.read()
        if not read:
            return
        yield frame


def save(target: Path, image: Image) -> None:
    encoded, content = cv2.imencode(target.suffix, image)
    if not encoded:
        raise OSError(f"This OpenCV cannot write the picture {target}.")
    try:
        target.write_bytes(content.tobytes())  # cv2.imwrite does not say why it could not
    except OSError as error:
        raise OSError(f"{target} could not be written: {error.strerror}.") from error


def describe(found: Detections, runtime: Runtime) -> Iterator[str]:
    for box, score, class_id in zip(*found, strict=True):
        corners = " ".join(f"{value:7.1f}" for value in box)
        yield f"{runtime.info.name(int(class_id)):<12} {score:.3f}  {corners}"


if __name__ == "__main__":
    main()
