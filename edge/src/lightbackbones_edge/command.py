"""The command: an exported detector on pictures or videos.

    lightbackbones-edge best.onnx street.jpg
    lightbackbones-edge best_ncnn_model folder/ --conf 0.4 --out runs/edge
    lightbackbones-edge best.onnx clip.mp4 --runtime opencv

Each picture's boxes are printed; the pictures with the boxes drawn in are saved in the `--out` folder.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightbackbones_edge import __version__, runtimes
from lightbackbones_edge.boxes import Detections, Image
from lightbackbones_edge.detector import Detector
from lightbackbones_edge.drawing import draw
from lightbackbones_edge.opencv import cv2

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
VIDEO_SUFFIXES = {".avi", ".mkv", ".mov", ".mp4", ".webm"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    parser = argparse.ArgumentParser(
        prog="lightbackbones-edge", description="Run an exported detector on pictures or videos, without torch."
    )
    parser.add_argument("model", type=Path, help=f"exported model ({', '.join(runtimes.SUFFIXES)}), or its folder")
    parser.add_argument("source", type=Path, help="picture, video, or a folder of them")
    parser.add_argument("--runtime", choices=runtimes.RUNTIMES, help="what to run it with (by default, by its file)")
    parser.add_argument("--conf", type=share, default=0.25, help="lowest score to show, 0..1 (default: %(default)s)")
    parser.add_argument("--iou", type=share, default=0.7, help="overlap at which boxes are one, 0..1 (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/edge"), help="folder to save in (%(default)s)")
    parser.add_argument("--version", action="version", version=__version__)
    args = parser.parse_args(arguments)
    try:
        files = find_sources(args.source, args.out)
        detector = Detector(args.model, runtime=args.runtime)
        args.out.mkdir(parents=True, exist_ok=True)
        for file in files:
            process = process_video if file.suffix.lower() in VIDEO_SUFFIXES else process_picture
            process(detector, file, args.out, args.conf, args.iou)
    except (OSError, ImportError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


def share(text: str) -> float:
    """Read a number in 0..1."""
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
        raise ValueError(
            f"{source} is not a picture, a video or a folder with some (known: {', '.join(sorted(suffixes))})."
        )
    if out.resolve() in {folder.resolve() for file in files for folder in (file.parent, file.resolve().parent)}:
        raise ValueError(f"--out {out} is where the pictures come from: they would be overwritten.")
    names = Counter(target_of(file, out) for file in files)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"Two files of {source} would be saved as {twice}. Rename one of them.")
    return files


def target_of(file: Path, out: Path) -> Path:
    """Where a picture or video with its boxes goes; all videos become MP4."""
    return out / (f"{file.stem}.mp4" if file.suffix.lower() in VIDEO_SUFFIXES else file.name)


def process_picture(detector: Detector, file: Path, out: Path, conf: float, iou: float) -> None:
    """Find objects in a picture, print and save them."""
    image = cv2.imread(str(file))
    if image is None:
        raise ValueError(f"{file} is not a picture that OpenCV can read.")
    started = time.perf_counter()
    found = detector(image, conf=conf, iou=iou)
    milliseconds = (time.perf_counter() - started) * 1000
    target = target_of(file, out)
    save(target, draw(image, found, detector.info))
    print(f"{file}: {len(found.scores)} found in {milliseconds:.1f} ms, saved as {target}")
    for line in describe(found, detector):
        print(f"  {line}")


def process_video(detector: Detector, file: Path, out: Path, conf: float, iou: float) -> None:
    """Find objects in each frame of a video, and save it."""
    video = cv2.VideoCapture(str(file))
    target = target_of(file, out)
    writer, started, count = cv2.VideoWriter(), time.perf_counter(), 0
    with whole(target) as unfinished:
        try:
            for frame in frames(video):
                if not count:
                    rate = video.get(cv2.CAP_PROP_FPS) or 25.0  # 0 where the file does not say
                    codec = cv2.VideoWriter.fourcc(*"mp4v")
                    if not writer.open(str(unfinished), codec, rate, (frame.shape[1], frame.shape[0])):
                        raise OSError(f"This OpenCV cannot write the video {target}.")
                writer.write(draw(frame, detector(frame, conf=conf, iou=iou), detector.info))
                count += 1
        finally:
            video.release()
            writer.release()
        if not count:
            raise ValueError(f"{file} is not a video that OpenCV can read.")
    print(f"{file}: {count} frames, {count / (time.perf_counter() - started):.1f} a second, saved as {target}")


def frames(video: cv2.VideoCapture) -> Iterator[Image]:
    """Read a video to its end."""
    while True:
        read, frame = video.read()
        if not read:
            return
        yield frame


def save(target: Path, image: Image) -> None:
    """Write a picture, all of it or nothing."""
    encoded, content = cv2.imencode(target.suffix, image)
    if not encoded:
        raise OSError(f"This OpenCV cannot write the picture {target}.")
    with whole(target) as unfinished:
        unfinished.write_bytes(content.tobytes())  # cv2.imwrite does not say why it could not


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `target` at the end, or is removed if that fails."""
    unfinished = target.with_name(f".unfinished-{target.name}")
    try:
        yield unfinished
        unfinished.replace(target)
    except OSError as error:
        if error.strerror is None:  # ours, in whole sentences
            raise
        raise OSError(f"{target} could not be written: {error.strerror}.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def describe(found: Detections, detector: Detector) -> Iterator[str]:
    """One line per box: class, score, corners."""
    for box, score, class_id in zip(*found, strict=True):
        corners = " ".join(f"{value:7.1f}" for value in box)
        yield f"{detector.info.name(int(class_id)):<12} {score:.3f}  {corners}"
