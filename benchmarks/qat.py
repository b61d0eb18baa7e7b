"""INT8 after quantisation-aware training: what it costs in PyTorch, and in the ONNX file that is made of it.

    python benchmarks/qat.py bccd.yaml 128 bccd/yolov5n_repvit/weights/best.pt [more checkpoints]
    python benchmarks/qat.py --table

No test runs these: they train, minutes to hours. They need nvidia-modelopt (extra `qat`), onnx and onnxruntime.

Every checkpoint is validated, trained with cfg/recipes/finetune_qat.yaml, validated again, exported to ONNX and
validated in ONNX Runtime, all on the val split at one image size. The row goes to docs/qat.json, one per model and data
set; the table of all rows goes to docs/int8.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pages

from yolo_lightbackbones.writing import write_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
ROWS, PAGE = DOCS / "qat.json", DOCS / "int8.md"
RECIPE = "finetune_qat.yaml"
NODES = ("Conv", "BatchNormalization", "QuantizeLinear")
HEADER = """\
| model | data | px | float | QAT | QAT - float | ONNX - QAT | Conv (quantised) | BatchNormalization |
|---|---|---|---|---|---|---|---|---|"""


def measure(checkpoint: Path, data: str, imgsz: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """One row: mAP50-95 in float, after the training, and of the ONNX file, with its nodes."""
    from ultralytics import YOLO

    def val(model: str | Path) -> float:
        options = {"data": data, "imgsz": imgsz, "batch": 1, "rect": False, "workers": 0, "plots": False}
        found = YOLO(model, task="detect").val(project=folder, name="val", exist_ok=True, verbose=False, **options)
        return round(float(found.box.map), 4)

    with tempfile.TemporaryDirectory() as folder:
        model = YOLO(checkpoint)
        name = Path(model.model.yaml["yaml_file"]).stem
        before = val(checkpoint)
        common = {"data": data, "imgsz": imgsz, "workers": 0, "amp": False, "plots": False, "verbose": False, "seed": 0}
        model.train(cfg=RECIPE, project=folder, name="qat", **common, **overrides)
        trained = Path(folder, "qat", "weights", "last.pt")  # the best of a few epochs is the best by chance
        after = val(trained)
        file = YOLO(trained).export(format="onnx", imgsz=imgsz, verbose=False)
        row = {
            "model": name,
            "data": Path(data).stem,
            "imgsz": imgsz,
            "float": before,
            "qat": after,
            "onnx": val(file),
            **count(file),
            "others": overrides,
            "epochs": model.trainer.epochs,
            "lr0": model.trainer.args.lr0,
        }
    return row


def count(file: str) -> dict[str, int]:
    """Nodes of a graph, and its convolutions with dequantised weights and inputs."""
    import onnx

    graph = onnx.load(file).graph
    kinds = Counter(node.op_type for node in graph.node)
    dequantised = {out for node in graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    return {**{kind: kinds[kind] for kind in NODES}, "quantised": sum(set(c.input[:2]) <= dequantised for c in convs)}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, by data set and model; bold where QAT loses over 0.010 or ONNX differs by over 0.003."""

    def change(value: float, *, missed: bool) -> str:
        return f"**{value:+.4f}**" if missed else f"{value:+.4f}"

    lines = [
        f"| {row['model']} | {row['data']} | {row['imgsz']} | {row['float']:.4f} | {row['qat']:.4f} "
        f"| {change(gain := round(row['qat'] - row['float'], 4), missed=gain < -0.010)} "
        f"| {change(gap := round(row['onnx'] - row['qat'], 4), missed=abs(gap) > 0.003)} "
        f"| {row['Conv']} ({row['quantised']}) | {row['BatchNormalization']} |"
        for row in sorted(rows, key=lambda row: (row["data"], row["model"]))
    ]
    return "\n".join([HEADER, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("imgsz", type=int, nargs="?")
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other arguments than the recipe's")
    arguments = parser.parse_args()
    if not arguments.table and not arguments.checkpoints:
        parser.error("Give a data set, an image size and at least one checkpoint, or --table.")
    rows = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.is_file() else []
    overrides = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in arguments.set)}
    for checkpoint in arguments.checkpoints:
        row = measure(checkpoint, arguments.data, arguments.imgsz, overrides)
        rows = [old for old in rows if (old["model"], old["data"]) != (row["model"], row["data"])] + [row]
        rows.sort(key=lambda row: (row["data"], row["model"]))
        write_text(ROWS, json.dumps(rows, indent=1) + "\n")
        print("RESULT", row, flush=True)
    write_text(PAGE, pages.with_part(PAGE.read_text(encoding="utf-8"), "qat", table(rows)))


if __name__ == "__main__":
    main()
