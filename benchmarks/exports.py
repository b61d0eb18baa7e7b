"""The export matrix: every family in every format that can be produced on Linux, with its error and speed.

    python benchmarks/exports.py [--images FOLDER] [--weights edgevit=best.pt ...] [--imgsz 320]

The figures in docs/exports.md are of detectors trained for minutes, EdgeViT's by `make demo`, the others' by

    yolo train model=yolov5n_repvit.yaml data=digits.yaml imgsz=96 epochs=4 batch=8 nbs=8 optimizer=AdamW lr0=0.002 \\
        warmup_epochs=1 warmup_bias_lr=0 mosaic=0 scale=0.2 fliplr=0 workers=0 amp=False

Writes docs/exports.md and docs/exports.json. Detectors without weights of their own get random ones that react to the
image. A format whose packages do not go with each other's gets them in an overlay: a folder of its own under `.export`,
put in front of the environment's packages. Each export runs in a process of its own; a failed one is a row as well.

Error: over all images, the worst difference of a box coordinate (pixels of the letterboxed image) and of a class score
from the unfused PyTorch model in float32. Time: median of interleaved runs, as a ratio to the fused PyTorch model.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OVERLAYS = ROOT / ".export"
FAMILIES = ("edgevit", "parcnet", "repvit", "conv2former")
IMAGES = 8
ROUNDS = 15


@dataclass(frozen=True)
class Format:
    """One row kind: what `yolo export` is given, and what it needs beyond the environment."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    """The ones to name versions of in the table."""
    overlay: tuple[str, ...] = ()
    runs: bool = True
    note: str = ""

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])


_LITERT = (
    "litert-torch==0.10.*",
    "ai-edge-litert==2.3.*",
    "ai-edge-quantizer==0.10.*",
    "litert-converter==0.5.*",
    "litert-lm-builder",
    "backports.strenum",
    "immutabledict",
    "multipledispatch",
    "transformers",
    "kagglehub",
    "kagglesdk",
    "jax",
    "jaxlib",
    "jaxtyping",
    "wadler-lindig",
    "fire",
    "termcolor",
    "flatbuffers",
    "absl-py",
    "ml_dtypes",
    "opt_einsum",
    "torchao",
)
_PADDLE = ("paddlepaddle==3.2.2", "x2paddle==1.6.0", "six", "opt_einsum", "astor", "decorator", "httpx", "anyio")
_RKNN = (
    "rknn-toolkit2==2.3.2",
    "onnx==1.18.0",
    "numpy==1.26.4",
    "protobuf==4.25.*",
    "fast-histogram",
    "setuptools<81",  # the last with pkg_resources
)

FORMATS = (
    Format("torchscript", packages=("torch",)),
    Format("onnx", packages=("onnx", "onnxruntime")),
    Format("onnx", {"dynamic": True}, packages=("onnx", "onnxruntime")),
    Format("onnx", {"quantize": 16}, packages=("onnx", "onnxruntime")),
    Format(
        "openvino",
        packages=("openvino",),
        note="Ultralytics lets it compute in bfloat16 on CPUs that have it; with INFERENCE_PRECISION_HINT=f32, as in "
        "examples/edge, boxes are within 0.01 px (tests/test_exports.py)",
    ),
    Format("ncnn", packages=("ncnn", "pnnx")),
    Format("mnn", packages=("MNN",)),
    Format("executorch", packages=("executorch",), overlay=()),
    Format("litert", packages=("litert-torch", "ai-edge-litert"), overlay=_LITERT),
    Format("paddle", packages=("paddlepaddle", "x2paddle"), overlay=_PADDLE),
    Format(
        "coreml",
        packages=("coremltools",),
        overlay=("numpy==2.3.5",),
        runs=False,
        note="converts on Linux, runs on Apple devices",
    ),
    Format(
        "rknn", packages=("rknn-toolkit2",), overlay=_RKNN, runs=False, note="converts here, runs on Rockchip devices"
    ),
)


# --- one export, in a process of its own ------------------------------------------------------------------------------


def measure(family: str, chosen: Format, weights: str | None, images: list[str], imgsz: int) -> dict[str, Any]:
    """Export one detector and compare it with PyTorch."""
    import torch
    from ultralytics import YOLO
    from ultralytics.nn.autobackend import AutoBackend

    detector = YOLO(weights) if weights else _awake_detector(family)
    with tempfile.TemporaryDirectory() as folder:
        detector.save(checkpoint := Path(folder, "model.pt"))
        file = Path(str(YOLO(checkpoint).export(format=chosen.name, imgsz=imgsz, verbose=False, **chosen.arguments)))
        result: dict[str, Any] = {"megabytes": round(_size(file) / 1e6, 1)}
        if not chosen.runs:
            return result
        plain = YOLO(checkpoint).model.float().eval()
        fused = YOLO(checkpoint).model.float().eval().fuse(verbose=False)
        exported = AutoBackend(str(file), device=torch.device("cpu"))
        inputs = [_letterboxed(image, imgsz) for image in images]
        boxes = scores = 0.0
        with torch.inference_mode():
            for x in inputs:
                difference = (_output(exported(x)) - _output(plain(x))).abs()
                boxes = max(boxes, float(difference[:, :4].max()))
                scores = max(scores, float(difference[:, 4:].max()))
            pairs = [(_ms(exported, inputs[0]), _ms(fused, inputs[0])) for _ in range(ROUNDS + 2)][2:]
    return result | {
        "box_px": boxes,
        "score": scores,
        "ms": round(statistics.median(ms for ms, _ in pairs), 1),
        "ratio": round(statistics.median(ms / reference for ms, reference in pairs), 2),
    }


def _awake_detector(family: str) -> Any:
    sys.path.insert(0, str(ROOT / "tests"))
    from detectors import awake_detector

    return awake_detector(f"yolov5n_{family}.yaml")


def _letterboxed(path: str, imgsz: int) -> Any:
    import cv2
    import torch
    from ultralytics.data.augment import LetterBox

    picture = LetterBox((imgsz, imgsz), auto=False)(image=cv2.imread(path))
    # Contiguous, since some runtimes are handed the address of the values.
    return torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)[None].contiguous().float() / 255


def _output(out: Any) -> Any:
    import torch

    return torch.as_tensor(out[0] if isinstance(out, tuple | list) else out).float()


def _ms(model: Callable[[Any], Any], x: Any) -> float:
    begin = time.perf_counter()
    model(x)
    return (time.perf_counter() - begin) * 1e3


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


# --- the matrix -------------------------------------------------------------------------------------------------------


def overlay_of(chosen: Format) -> Path | None:
    """The folder with a format's own packages, installed on first use."""
    if not chosen.overlay:
        return None
    folder = OVERLAYS / chosen.name
    wanted = "\n".join(chosen.overlay)
    stamp = folder / ".requirements"
    if not stamp.is_file() or stamp.read_text() != wanted:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, *chosen.overlay], check=True)
        stamp.write_text(wanted)
    return folder


def run_apart(family: str, chosen: Format, weights: str | None, images: list[str], imgsz: int) -> dict[str, Any]:
    """`measure` in a new process; what went wrong there is a result, too."""
    overlay = overlay_of(chosen)
    job = json.dumps([family, FORMATS.index(chosen), weights, images, imgsz])
    paths = [str(p) for p in (overlay, os.environ.get("PYTHONPATH")) if p]
    environment = {**os.environ, "YOLO_AUTOINSTALL": "false", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, __file__, "--job", job]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        reason = (process.stderr.strip() or process.stdout.strip() or "no output").splitlines()[-1]
        return {"failed": reason[:200]}
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def versions(chosen: Format) -> str:
    path = [str(folder) for folder in [overlay_of(chosen)] if folder] + sys.path
    found = []
    for package in chosen.packages:
        distribution = next(iter(importlib.metadata.distributions(name=package, path=path)), None)
        found.append(f"{package} {distribution.version if distribution else '(missing)'}")
    return ", ".join(found)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| format | family | size, MB | worst box, px | worst score | time, ms | time / PyTorch | versions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            cells = [f"failed: {row['failed'].replace('|', '/')}", "", "", "", ""]
        elif "box_px" in row:
            cells = [row["megabytes"], f"{row['box_px']:.1e}", f"{row['score']:.1e}", row["ms"], row["ratio"]]
        else:
            cells = [row["megabytes"], "converted", "", "", ""]
        lines.append("| " + " | ".join(map(str, [row["format"], row["family"], *cells, row["versions"]])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of pictures; without it, the digits data set's")
    parser.add_argument("--weights", nargs="*", default=[], metavar="FAMILY=FILE", help="trained detectors")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--only", nargs="*", metavar="FORMAT", help="formats by name; the other rows stay")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        family, number, weights, images, imgsz = json.loads(arguments.job)
        print("RESULT " + json.dumps(measure(family, FORMATS[number], weights, images, imgsz)))
        return

    trained = dict(entry.split("=", 1) for entry in arguments.weights)
    folder = arguments.images or _digits()
    images = [str(path) for path in sorted(folder.iterdir()) if path.suffix in {".jpg", ".png"}][:IMAGES]
    results = _earlier_results() if arguments.only else {}
    for chosen in FORMATS:
        if arguments.only and chosen.name not in arguments.only:
            continue
        for family in FAMILIES:
            result = run_apart(family, chosen, trained.get(family), images, arguments.imgsz)
            row = {
                "format": chosen.label,
                "family": family,
                "note": chosen.note,
                **result,
                "versions": versions(chosen),
            }
            results[chosen.label, family] = row
            print(table([row]).splitlines()[-1], flush=True)
            every = [(chosen.label, family) for chosen in FORMATS for family in FAMILIES]
            rows = [results[key] for key in every if key in results]
            write(rows, images, arguments.imgsz, trained)  # each time: the whole matrix takes long


def _earlier_results() -> dict[tuple[str, str], dict[str, Any]]:
    file = ROOT / "docs" / "exports.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    return {(row["format"], row["family"]): row for row in rows}


def _digits() -> Path:
    from yolo_lightbackbones.digits import build_digits

    return build_digits(OVERLAYS / "digits", train_images=8, val_images=IMAGES) / "images" / "val"


def write(rows: list[dict[str, Any]], images: list[str], imgsz: int, trained: dict[str, str]) -> None:
    docs = ROOT / "docs"
    docs.mkdir(exist_ok=True)
    notes = "\n".join(dict.fromkeys(f"- {row['format']}: {row['note']}." for row in rows if row["note"]))
    (docs / "exports.json").write_text(json.dumps(rows, indent=1) + "\n")
    given = f" --weights {' '.join(f'{family}=best.pt' for family in trained)}" if trained else ""
    command = f"python benchmarks/exports.py --imgsz {imgsz}{given}"
    random = [family for family in FAMILIES if family not in trained]
    weights = "; ".join(
        [f"trained for minutes: {', '.join(trained)}"] * bool(trained)
        + [f"random weights that react to the image: {', '.join(random)}"] * bool(random)
    )
    machine = (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    )
    text = f"""# Exports

Made by `{command}`, which says what the columns mean: YOLOv5n on every family,
{weights}; {imgsz} x {imgsz}, {len(images)} images. {machine}.

{table(rows)}

{notes}

Not here: TensorFlow SavedModel (not tried yet); TensorRT, Edge TPU, Axelera, Hailo, Ascend and IMX, whose tools or
devices were not at hand.
"""
    (docs / "exports.md").write_text(text)


if __name__ == "__main__":
    main()
