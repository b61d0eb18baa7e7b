"""What INT8 spoils: the same export with one part of the graph after the other kept in float.

    python benchmarks/int8.py onnx edgevit=best.pt [--cases none head]
    PYTHONPATH=.export/litert python benchmarks/int8.py litert edgevit=best.pt [--quantize 8]

No test runs these: they take hours, and LiteRT's packages come from the network (`benchmarks/formats.py litert`).

Prints the change of mAP50-95 on the digits at 128 px against the same detector in PyTorch. The parts of an ONNX graph
are told apart by the names of its nodes, those of a LiteRT graph by the names of what they compute. The plugin's own
exception, the expectation over a box's distances, is switched off for ONNX, where it is one of the cases, and on for
LiteRT. LiteRT is calibrated on a quarter of the images.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolo_lightbackbones.plugin import exporting

IMGSZ, DATA = 128, "digits.yaml"
WEIGHTED = {"Conv", "Gemm", "MatMul"}

# Layer 0 is the backbone; {head} is the number of the last layer.
LITERT = {
    "none": None,
    "decoding": r"Detect_{head};|_NormalizeCoords;|DFL",
    "head": r"Detect_{head}",
    "backbone": r"backbones\.",
    "head and backbone": r"Detect_{head}|_NormalizeCoords;|backbones\.",
    "head, backbone and neck": r"Detect_{head}|_NormalizeCoords;|backbones\.|C3_|SPPF|modules\.conv",
    "output": r"serving_default_output",
    "head and output": r"Detect_{head}|_NormalizeCoords;|serving_default_output",
}


def layer_of(node: Any) -> int:
    found = re.match(r"/model\.(\d+)/", node.name)
    return int(found[1]) if found else -1


def is_depthwise(node: Any) -> bool:
    return node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)


def onnx_cases(last: int) -> dict[str, Callable[[Any], bool]]:
    """Name -> which of the nodes with weights stay in float."""
    return {
        "none": lambda _: False,
        "head": lambda node: layer_of(node) == last,
        "expectation": lambda node: layer_of(node) == last and "dfl" in node.name,
        "neck": lambda node: 0 < layer_of(node) < last,
        "backbone": lambda node: layer_of(node) == 0,
        "depthwise": lambda node: layer_of(node) == 0 and is_depthwise(node),
        "products": lambda node: layer_of(node) == 0 and node.op_type == "MatMul",
        "stem": lambda node: layer_of(node) == 0 and "stem" in node.name,
        "per channel": lambda _: False,
    }


def val(model: Path) -> float:
    from ultralytics import YOLO

    options = {"data": DATA, "imgsz": IMGSZ, "batch": 1, "rect": False, "plots": False, "verbose": False, "workers": 0}
    return float(YOLO(model, task="detect").val(project=str(model.parent / "val"), exist_ok=True, **options).box.map)


def run_onnx(checkpoint: Path, cases: list[str], report: Callable[[str, Path], None]) -> None:
    import onnx
    from onnxruntime.quantization import quantize_static
    from ultralytics import YOLO
    from ultralytics.utils.export import onnx as quantising

    exporting.FLOAT_EXPECTATION_FORMATS = ()  # type: ignore[assignment, unused-ignore]

    def quantise(source: Any, target: str, dataset: Any, transform: Any, **_: Any) -> str:
        nodes = onnx.load(source).graph.node
        other = [node.name for node in nodes if node.op_type not in WEIGHTED]
        weighted = [node for node in nodes if node.op_type in WEIGHTED]
        for case, stays in onnx_cases(max(map(layer_of, weighted))).items():
            if not cases or case in cases:
                kept = other + [node.name for node in weighted if stays(node)]
                reader = quantising.onnx_calibration_reader(dataset, transform)
                quantize_static(source, target, reader, nodes_to_exclude=kept, per_channel=case == "per channel")
                report(case, Path(target))
        return target

    quantising.onnx_int8_quantize = quantise
    YOLO(checkpoint).export(format="onnx", imgsz=IMGSZ, quantize=8, data=DATA, verbose=False)


def run_litert(checkpoint: Path, cases: list[str], quantize: int | str, report: Callable[[str, Path], None]) -> None:
    from ai_edge_quantizer import qtyping, quantizer, recipe
    from ultralytics import YOLO

    head = len(YOLO(checkpoint).model.model) - 1
    original = quantizer.Quantizer.load_quantization_recipe
    for case, pattern in LITERT.items():
        if cases and case not in cases:
            continue

        def load(self: Any, chosen: Any, pattern: str | None = pattern) -> None:
            original(self, chosen)
            if pattern is not None:
                self.update_quantization_recipe(
                    regex=pattern.replace("{head}", str(head)),
                    operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
                    algorithm_key=recipe.AlgorithmName.NO_QUANTIZE,
                )

        quantizer.Quantizer.load_quantization_recipe = load
        options = {"quantize": quantize, "data": DATA, "fraction": 0.25, "verbose": False}
        report(case, Path(str(YOLO(checkpoint).export(format="litert", imgsz=IMGSZ, **options))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=("onnx", "litert"))
    parser.add_argument("weights", metavar="FAMILY=FILE")
    parser.add_argument("--cases", nargs="*", default=[], help="all of them if none is given")
    parser.add_argument("--quantize", default="8", choices=("8", "w8a16"), help="for LiteRT")
    arguments = parser.parse_args()
    family, _, file = arguments.weights.partition("=")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(file, checkpoint := Path(folder, "model.pt"))
        reference = val(checkpoint)

        def report(case: str, exported: Path) -> None:
            print(f"RESULT {family}, in float: {case}: {val(exported) - reference:+.4f}", flush=True)

        if arguments.format == "onnx":
            run_onnx(checkpoint, arguments.cases, report)
        else:
            quantize = int(arguments.quantize) if arguments.quantize.isdigit() else arguments.quantize
            run_litert(checkpoint, arguments.cases, quantize, report)


if __name__ == "__main__":
    main()
