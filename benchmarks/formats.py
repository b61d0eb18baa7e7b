"""The export formats that the matrix runs, and how each gets the packages it needs.

    python benchmarks/formats.py litert    # installs them into .export/litert

No test runs this: the packages come from the network.

A format whose packages do not go with the others' gets them in an overlay: a folder of its own under `.export`, put in
front of the environment's packages.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from yolo_lightbackbones.plugin.proof import Precision

OVERLAYS = Path(__file__).resolve().parent.parent / ".export"


@dataclass(frozen=True)
class Format:
    """One row kind: what `yolo export` is given, and what it needs beyond the environment."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    """The ones to name versions of in the table."""
    overlay: tuple[str, ...] = ()
    precision: Precision = "float"
    calibrates: bool = False
    """Whether `yolo export` takes a data set to calibrate with."""
    runs: Literal["here", "in a simulator", "elsewhere"] = "here"
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

_SAVED_MODEL = (
    "tensorflow==2.19.*",
    "onnx2tf==1.28.8",
    "tf_keras==2.19.*",
    "keras==3.12.*",
    "sng4onnx",
    "onnx_graphsurgeon",
    "ai-edge-litert==2.3.*",
    "numpy==2.1.*",
    "ml_dtypes==0.5.*",
    "protobuf==5.29.*",
    "onnx==1.20.*",
    "h5py",
    "absl-py",
    "astunparse",
    "flatbuffers",
    "gast",
    "google-pasta",
    "libclang",
    "opt_einsum",
    "termcolor",
    "wrapt",
    "grpcio",
    "namex",
    "optree",
    "tensorboard",
    "tensorboard-data-server",
    "werkzeug",
    "markdown",
    "wheel",
    "psutil",
    "simple_onnx_processing_tools",
    "six",
    "backports.strenum",
)

_ONNX = ("onnx", "onnxruntime")
_BF16 = (
    "Ultralytics lets it compute in bfloat16 on CPUs that have it; with INFERENCE_PRECISION_HINT=f32, as in "
    "edge/, boxes are within 0.01 px (tests/test_exports.py)"
)

FORMATS = (
    Format("torchscript", packages=("torch",)),
    Format("onnx", packages=_ONNX),
    Format("onnx", {"dynamic": True}, packages=_ONNX),
    Format("openvino", packages=("openvino",), note=_BF16),
    Format("ncnn", packages=("ncnn", "pnnx")),
    Format("mnn", packages=("MNN",)),
    Format("executorch", packages=("executorch",)),
    Format("litert", packages=("litert-torch", "ai-edge-litert"), overlay=_LITERT),
    Format("saved_model", packages=("tensorflow", "onnx2tf"), overlay=_SAVED_MODEL),
    Format("paddle", packages=("paddlepaddle", "x2paddle"), overlay=_PADDLE),
    Format(
        "coreml",
        packages=("coremltools",),
        overlay=("numpy==2.3.5",),
        runs="elsewhere",
        note="converts on Linux, runs on Apple devices",
    ),
    Format(
        "rknn",
        packages=("rknn-toolkit2",),
        overlay=_RKNN,
        precision="half",
        runs="in a simulator",
        note="run in Rockchip's simulator of an RK3588, which computes in float16",
    ),
    Format("onnx", {"quantize": 16}, packages=_ONNX, precision="half"),
    Format("openvino", {"quantize": 16}, packages=("openvino",), precision="half"),
    Format("ncnn", {"quantize": 16}, packages=("ncnn", "pnnx"), precision="half"),
    Format("mnn", {"quantize": 16}, packages=("MNN",), precision="half"),
    Format("onnx", {"quantize": 8}, packages=_ONNX, precision="int8", calibrates=True),
    Format("openvino", {"quantize": 8}, packages=("openvino", "nncf"), precision="int8", calibrates=True),
    Format("mnn", {"quantize": 8}, packages=("MNN",), precision="int8", note="8-bit weights, float activations"),
    Format(
        "litert",
        {"quantize": "w8a32"},
        packages=("litert-torch", "ai-edge-quantizer"),
        overlay=_LITERT,
        precision="int8",
        note="8-bit weights, float activations",
    ),
    Format(
        "litert",
        {"quantize": "w8a16"},
        packages=("litert-torch", "ai-edge-quantizer"),
        overlay=_LITERT,
        precision="int8",
        calibrates=True,
        note="8-bit weights, 16-bit activations",
    ),
    Format(
        "litert",
        {"quantize": 8},
        packages=("litert-torch", "ai-edge-quantizer"),
        overlay=_LITERT,
        precision="int8",
        calibrates=True,
    ),
)


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


def versions(chosen: Format) -> str:
    path = [str(folder) for folder in [overlay_of(chosen)] if folder] + sys.path
    found = []
    for package in chosen.packages:
        distribution = next(iter(importlib.metadata.distributions(name=package, path=path)), None)
        found.append(f"{package} {distribution.version if distribution else '(missing)'}")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Install a format's own packages into its overlay.")
    overlays = {chosen.name: chosen for chosen in FORMATS if chosen.overlay}
    parser.add_argument("format", choices=overlays)
    print(overlay_of(overlays[parser.parse_args().format]))


if __name__ == "__main__":
    main()
