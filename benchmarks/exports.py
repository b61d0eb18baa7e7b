"""The export matrix: every family in every format that can be produced on Linux, with its accuracy, error and speed.

    python benchmarks/exports.py --train [--images FOLDER] [--imgsz 160] [--only onnx ...] [--families repvit ...]
    python benchmarks/exports.py --weights edgevit=best.pt ... --data data.yaml [--imgsz 320]

No test runs these: they take hours.

Writes docs/exports.json and docs/exports.md. Each export runs in a process of its own; a failed one is a row as well.
`--train` first trains the detectors that `.export` does not hold yet on the digits, 10 to 30 minutes each on a CPU.
Detectors without weights get random ones that react to the image, and no mAP.

Worst box, worst score: over all images, the largest difference of a box coordinate (pixels of the letterboxed image)
and of a class score from the unfused PyTorch model in float32, all boxes before NMS.
mAP50-95: on the val split of `--data`, minus that of the PyTorch model there.
ms: median of interleaved runs of one image, and the same as a ratio to the fused PyTorch model's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from formats import FORMATS, OVERLAYS, Format, run_apart, versions
from pages import with_part

from yolo_lightbackbones.plugin.proof import LIMITS
from yolo_lightbackbones.writing import write_text

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("edgevit", "parcnet", "repvit", "conv2former")
IMAGES = 8
ROUNDS = 15
ALL_BOXES = -1.0
"""A floor below every score."""
Row = dict[str, Any]


TRAINING = {
    "data": "digits.yaml",
    "imgsz": 128,
    "epochs": 12,
    "batch": 8,
    "nbs": 8,
    "optimizer": "AdamW",
    "lr0": 0.0025,
    "warmup_epochs": 1,
    "warmup_bias_lr": 0,
    "mosaic": 0,
    "scale": 0.2,
    "fliplr": 0,
    "workers": 0,
    "amp": False,
    "val": False,
    "plots": False,
}


def train(families: Sequence[str]) -> dict[str, str]:
    """Checkpoints of detectors that have learned the digits, kept in `.export`."""
    from ultralytics import YOLO

    weights = {}
    for family in families:
        file = OVERLAYS / "detectors" / family / "weights" / "best.pt"
        if not file.is_file():
            YOLO(f"yolov5n_{family}.yaml").train(
                project=str(OVERLAYS / "detectors"), name=family, exist_ok=True, **TRAINING
            )
        weights[family] = str(file)
    return weights


# --- one export, in a process of its own ------------------------------------------------------------------------------


def measure(family: str, chosen: Format, weights: str | None, *, images: list[str], imgsz: int, data: str) -> Row:
    """Export one detector and compare it with PyTorch."""
    import torch
    from ultralytics import YOLO

    from yolo_lightbackbones.plugin import detections, proof

    detector = YOLO(weights) if weights else _awake_detector(family)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # onnx2tf looks for its file there, and some exporters leave things behind
        detector.save(checkpoint := Path(folder, "model.pt"))
        options = {**chosen.arguments, **({"data": data} if chosen.calibrates else {})}
        file = Path(str(YOLO(checkpoint).export(format=chosen.name, imgsz=imgsz, verbose=False, **options)))
        result: Row = {"megabytes": round(proof.megabytes(file), 1)}
        if chosen.runs == "converts":
            return result
        plain = YOLO(checkpoint).model.float().eval()
        fused = YOLO(checkpoint).model.float().eval().fuse(verbose=False)
        simulated = chosen.runs == "in a simulator"
        on_board = chosen.name == "rknn"  # its file runs on the board, and the simulator takes the ONNX file
        exported: Any = _simulated(checkpoint.with_suffix(".onnx"), plain.names) if on_board else proof.backend(file)
        size = (imgsz, imgsz)
        inputs = [proof.letterboxed(Path(image), size) for image in images]
        head, worst = detections.Head("detect", len(plain.names), size), detections.Difference()
        with torch.inference_mode():
            for x in inputs:
                seen, expected = (detections.read(model(x), head) for model in (exported, plain))
                worst = worst.and_(detections.difference(seen, expected, ALL_BOXES))
        result |= {"box_px": worst.box_px, "score": worst.score}
        if not simulated:
            latency, ratio = proof.latencies(exported, fused, inputs[0], ROUNDS)
            result |= {"ms": round(latency.median, 1), "ratio": round(ratio, 2)}
        if weights:
            like = YOLO(checkpoint)
            models = (exported if simulated else proof.opened(file, like), like)
            result["map"], result["reference_map"] = (proof.validate(model, data, imgsz) for model in models)
    return result


def _simulated(onnx_file: Path, names: dict[int, str]) -> Any:
    """Rockchip's simulator of the chip that Ultralytics exports for by default, as a module that can be validated."""
    import torch
    from rknn.api import RKNN

    rknn = RKNN(verbose=False)
    rknn.config(mean_values=[[0, 0, 0]], std_values=[[255, 255, 255]], target_platform="rk3588")
    for failed in (rknn.load_onnx(model=str(onnx_file)), rknn.build(do_quantization=False), rknn.init_runtime()):
        if failed:
            raise RuntimeError(f"rknn-toolkit2 gives up with the code {failed}")

    class Simulator(torch.nn.Module):
        stride = torch.tensor([8, 16, 32])

        def __init__(self) -> None:
            super().__init__()
            self.names = names

        def forward(self, x: Any, *_args: Any, **_options: Any) -> Any:
            picture = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
            return torch.from_numpy(rknn.inference(inputs=[picture], data_format=["nhwc"])[0])

    return Simulator()


def _awake_detector(family: str) -> Any:
    sys.path.insert(0, str(ROOT / "tests"))
    from detectors import awake_detector

    return awake_detector(f"yolov5n_{family}.yaml")


# --- the matrix -------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    lines = [
        "| format | family | size, MB | worst box, px | worst score | mAP50-95 | ms | ms / PyTorch's | versions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = dict.fromkeys(("megabytes", "box", "score", "map", "ms", "ratio"), "") | row
        if "failed" in row:
            cells["megabytes"] = f"failed: {row['failed'].replace('|', '/')}"
        elif "box_px" in row:
            cells |= {"box": f"{row['box_px']:.1e}", "score": f"{row['score']:.1e}"}
        else:
            cells["box"] = "converted"
        if "map" in row:
            change = row["map"] - row["reference_map"]
            cells["map"] = f"**{change:+.4f}**" if missed(row) else f"{change:+.4f}"
        order = ("format", "family", "megabytes", "box", "score", "map", "ms", "ratio", "versions")
        lines.append("| " + " | ".join(str(cells[key]) for key in order) + " |")
    return "\n".join(lines)


def missed(row: Row) -> bool:
    """Whether the export changes mAP50-95 by more than its precision may."""
    return "map" in row and round(abs(row["map"] - row["reference_map"]), 4) > LIMITS[row["precision"]].map


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of pictures; without it, the digits data set's")
    parser.add_argument("--weights", nargs="*", default=[], metavar="FAMILY=FILE", help="trained detectors")
    parser.add_argument("--train", action="store_true", help="train them here, where that has not been done")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--data", default="digits.yaml", help="what the detectors were trained on: calibration, mAP")
    parser.add_argument(
        "--only", nargs="*", metavar="FORMAT", help="formats as the table has them; the other rows stay"
    )
    parser.add_argument("--families", nargs="*", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        number, *job = json.loads(arguments.job)
        family, weights, options = job
        print("RESULT " + json.dumps(measure(family, FORMATS[number], weights, **options)))
        return

    trained = train(arguments.families) if arguments.train else {}
    trained |= dict(entry.split("=", 1) for entry in arguments.weights)
    folder = arguments.images or _digits()
    images = [str(path) for path in sorted(folder.iterdir()) if path.suffix in {".jpg", ".png"}][:IMAGES]
    options = {"images": images, "imgsz": arguments.imgsz, "data": arguments.data}
    given = ["--train"] if arguments.train else []
    given += ["--weights FAMILY=best.pt ..."] if arguments.weights else []
    given += [f"--data {Path(arguments.data).name}"] if arguments.data != parser.get_default("data") else []
    given += ["--images FOLDER"] if arguments.images else []
    where = {
        "data": Path(arguments.data).stem,
        "command": " ".join(["python benchmarks/exports.py", *given]),
        "pictures": f"{len(images)} {'images of a folder' if arguments.images else 'images of the digits'}",
        "imgsz": arguments.imgsz,
    }
    results = _earlier_results()
    for chosen in FORMATS:
        if arguments.only and chosen.label not in arguments.only:
            continue
        for family in arguments.families:
            result = run_apart(__file__, chosen, FORMATS.index(chosen), family, trained.get(family), options)
            own = {"format": chosen.label, "family": family, "precision": chosen.precision, "note": chosen.note}
            row = {**where, **own, **result, "versions": versions(chosen)}
            results[_key(row)] = row
            print(table([row]).splitlines()[-1], flush=True)
            write(results)  # each time: the whole matrix takes long


def _key(row: Row) -> tuple[str, str, str]:
    return row["data"], row["format"], row["family"]


def _earlier_results() -> dict[tuple[str, str, str], Row]:
    file = ROOT / "docs" / "exports.json"
    rows: list[Row] = json.loads(file.read_text()) if file.is_file() else []
    return {_key(row): row for row in rows}


def _digits() -> Path:
    from yolo_lightbackbones.datasets.digits import build_digits

    return build_digits(OVERLAYS / "digits", train_images=8, val_images=IMAGES) / "images" / "val"


def write(results: dict[tuple[str, str, str], Row]) -> None:
    """The rows, in the order of FORMATS and FAMILIES, as JSON and as a table per data set on the page."""
    docs = ROOT / "docs"
    data_sets = sorted({data for data, _, _ in results}, reverse=True)
    order = [(data, chosen.label, family) for data in data_sets for chosen in FORMATS for family in FAMILIES]
    rows = [results[key] for key in order if key in results]
    write_text(docs / "exports.json", json.dumps(rows, indent=1) + "\n")
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    limits = ", ".join(f"{limit.map} for {precision}" for precision, limit in LIMITS.items())
    head = [
        f"`benchmarks/exports.py` says what the columns mean. YOLOv5n on every family, trained for minutes. {machine}.",
        f"mAP50-95 is the change that the export makes, in bold where it is more than {limits}.",
    ]
    page = docs / "exports.md"
    write_text(page, with_part(page.read_text(), "matrix", "\n".join([*head, tables(rows)])))


def tables(rows: list[Row]) -> str:
    """A table per data set and the notes, of rows in the order of docs/exports.json."""
    parts = []
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        references = {row["family"]: row["reference_map"] for row in own if "map" in row}
        reference = ", ".join(f"{value:.3f} for {family}" for family, value in references.items())
        parts += [
            f"\n### Detectors trained on {data}\n",
            f"`{own[0]['command']}`, {own[0]['imgsz']} x {own[0]['imgsz']} pixels, errors over {own[0]['pictures']}.",
            f"mAP50-95 of PyTorch itself: {reference or 'not measured'}.\n",
            table(own),
        ]
    notes = "\n".join(dict.fromkeys(f"- {row['format']}: {row['note']}." for row in rows if row["note"]))
    return "\n".join([*parts, f"\n{notes}"])


if __name__ == "__main__":
    main()
