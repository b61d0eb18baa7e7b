"""The whole workflow, in minutes and without a GPU: train a detector, validate it, export it, and run it without torch.

    python examples/demo.py

No test runs this: it takes minutes. Each step is an ordinary command, which is printed before it runs.
Everything is saved in runs/demo in the current folder. The data set is generated in Ultralytics' data set folder at
first use.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import cv2
import numpy as np

from yolo_lightbackbones.writing import write_bytes

OUTPUT = Path("runs/demo")
EDGE = Path(__file__).parents[1] / "edge" / "src"  # a package of its own, which need not be installed
IMGSZ = 128  # pixels; the digits are enlarged scans of 8 x 8, so little is lost from the pictures of 320 pixels
GOAL = 0.5  # mAP50 on the val split; below it, the demo has failed
SHOWN = 6  # pictures of the val split, two rows of three

# Settings for a short run on two CPU cores; not meant for long runs.
TRAINING = {
    "epochs": 7,
    "batch": 8,
    "nbs": 8,  # update after each batch; by default Ultralytics collects the gradients of 64 images first
    "optimizer": "AdamW",
    "lr0": 0.0025,
    "warmup_epochs": 1,
    "warmup_bias_lr": 0,
    "mosaic": 0,  # strong augmentation helps only in long runs
    "scale": 0.2,
    "fliplr": 0,  # a mirrored digit is not a digit
    "workers": 1,
    "amp": False,  # on a GPU, its self-test would download a model
    "val": False,  # validate only after the last epoch
    "plots": False,
}


def main() -> int:
    check_requirements()
    started = time.perf_counter()
    print("From nothing to a detector that runs without torch: about 5 minutes on two quiet CPU cores.")

    yolo("train", model="yolov5n_edgevit.yaml", data="digits.yaml", imgsz=IMGSZ, **TRAINING, **saved_as("train"))
    weights = OUTPUT / "train" / "weights" / "best.pt"
    training_seconds = time.perf_counter() - started

    report = yolo("val", model=weights, data="digits.yaml", imgsz=IMGSZ, plots=False, **saved_as("val"))
    map50 = read_map50(report)

    yolo("export", model=weights, format="onnx", imgsz=IMGSZ)
    samples = copy_samples(OUTPUT / "samples")
    drawn = OUTPUT / "edge"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(EDGE), os.environ.get("PYTHONPATH")]))
    run([sys.executable, "-m", "lightbackbones_edge", weights.with_suffix(".onnx"), samples, "--out", drawn])
    picture = join_pictures([drawn / sample.name for sample in sorted(samples.iterdir())], OUTPUT / "detections.png")

    print(f"\nmAP50 on the val split: {map50:.3f} (at least {GOAL} expected)")
    print(f"Time: {training_seconds:.0f} s to train, {time.perf_counter() - started:.0f} s in all")
    print(f"Boxes drawn without torch: {picture.resolve()}")
    if map50 < GOAL:
        print(
            f"error: mAP50 is {map50:.3f}, below {GOAL}: the detector has not learned what it should.", file=sys.stderr
        )
        return 1
    return 0


def check_requirements() -> None:
    """Stop now, not after minutes of training, if a package is missing."""
    needed = {"sklearn": "scikit-learn", "onnx": "onnx", "onnxslim": "onnxslim", "onnxruntime": "onnxruntime"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f'error: the demo needs {", ".join(missing)}: pip install ".[demo]" in a clone')


def saved_as(name: str) -> dict[str, object]:
    # An absolute path: Ultralytics resolves a relative one from its own runs folder.
    return {"project": OUTPUT.resolve(), "name": name, "exist_ok": True}


def yolo(mode: str, **options: object) -> str:
    """Run the stock `yolo` command; return its output."""
    scripts = sysconfig.get_path("scripts")
    command = shutil.which("yolo", path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))
    if command is None:
        sys.exit(f"error: there is no `yolo` command in {scripts}: pip install ultralytics")
    return run([command, mode, *(f"{key}={value}" for key, value in options.items())])


def run(command: list[object]) -> str:
    """Print a command and run it; print and return its output. A failure ends the demo."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join([Path(words[0]).name, *words[1:]])}", flush=True)
    said = b""
    # Read bytes, not lines: progress bars end in a carriage return, so that they stay on their line.
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:  # nosec B603 # ours, no shell
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 65536):
            said += chunk
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    if process.returncode:
        sys.exit(f"error: this command failed with exit code {process.returncode}: {shlex.join(words)}")
    return said.decode(errors="replace")


def read_map50(report: str) -> float:
    """Read mAP50 from the row of `yolo val` for all classes.

    Its numbers are images, instances, precision, recall, mAP50, mAP50-95.
    """
    number = r"\s+([\d.]+)"
    rows = re.findall(rf"\ball{number * 6}\s*$", report, re.MULTILINE)
    if not rows:
        sys.exit("error: `yolo val` printed no row with the mAP of all classes.")
    return float(rows[-1][4])


def copy_samples(folder: Path) -> Path:
    """Copy the first pictures of the val split into a new folder."""
    from ultralytics.data.utils import check_det_dataset

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for picture in sorted(Path(check_det_dataset("digits.yaml")["val"]).iterdir())[:SHOWN]:
        shutil.copy(picture, folder)
    return folder


def join_pictures(files: list[Path], target: Path) -> Path:
    """Join pictures in two rows of one picture, and write it."""
    pictures = [cv2.imread(str(file)) for file in files]
    half = len(pictures) // 2
    joined = np.vstack([np.hstack(pictures[:half]), np.hstack(pictures[half:])])
    write_bytes(target, cv2.imencode(target.suffix, joined)[1].data)
    return target


if __name__ == "__main__":
    sys.exit(main())
