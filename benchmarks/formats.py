"""The exports that the matrix runs, and how each format gets the packages it needs.

    python benchmarks/formats.py litert    # installs them into .export/litert
    python benchmarks/formats.py --page    # writes the list of formats in docs/exports.md

No test runs these: the packages come from the network. A test compares the page with the table.

What a format is, is said in the plugin's table (`yolo_lightbackbones/plugin/formats.py`). A format whose packages do
not go with the others' gets them in an overlay: a folder of its own under `.export`, put in front of the environment's
packages.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pages import with_part

from yolo_lightbackbones.plugin import formats as table
from yolo_lightbackbones.plugin.proof import Precision
from yolo_lightbackbones.writing import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "exports.md"
OVERLAYS = ROOT / ".export"


@dataclass(frozen=True)
class Format:
    """One row kind: what `yolo export` is given, and what it needs beyond the environment.

    What is left out of `packages`, `runs` and `note` is that of the plugin's table.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    """The ones to name versions of in the matrix."""
    overlay: tuple[str, ...] = ()
    precision: Precision = "float"
    calibrates: bool = False
    """Whether `yolo export` takes a data set to calibrate with."""
    runs: table.Runs | None = None
    note: str = ""

    def __post_init__(self) -> None:
        row = table.find(self.name)
        for attribute, value in (("packages", row.packages), ("runs", row.runs), ("note", row.reason)):
            object.__setattr__(self, attribute, getattr(self, attribute) or value)

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

_QNN = ("onnxruntime-qnn==2.7.*", "coloredlogs", "humanfriendly", "flatbuffers")
_XILINX = (
    *("amd-quark==0.13.*", "onnx==1.21.*", "onnxscript", "onnx_ir", "evaluate", "datasets", "dill", "multiprocess"),
    *("xxhash", "pyarrow", "plotly", "narwhals", "sentencepiece", "zstandard", "ninja", "pandas", "pytz", "tzdata"),
)
_DEEPX = (
    *("dx_com==2.5.*", "pybind11==2.13.*", "onnx2torch==1.5.*", "onnxruntime_extensions==0.13.*"),
    *("pycryptodome==3.20.*", "ordered_set==4.1.*", "sortedcontainers==2.4.*", "Rtree==1.3.*", "cloudpickle==3.1.*"),
)
_COREAI = ("coreai-torch==0.4.3", "coreai-core==1.0.0b3", "strenum", "yuvio")
_BF16 = (
    "Ultralytics lets it compute in bfloat16 on CPUs that have it; with INFERENCE_PRECISION_HINT=f32, as in "
    "edge/, boxes are within 0.01 px (tests/test_exports.py)"
)

FORMATS = (
    Format("torchscript"),
    Format("onnx"),
    Format("onnx", {"dynamic": True}),
    Format("openvino", note=_BF16),
    Format("ncnn"),
    Format("mnn"),
    Format("executorch"),
    Format("litert", overlay=_LITERT),
    Format("saved_model", overlay=_SAVED_MODEL),
    Format("paddle", overlay=_PADDLE),
    Format("coreml", overlay=("numpy==2.3.5",)),
    Format("coreai", overlay=_COREAI),
    Format(
        "rknn",
        overlay=_RKNN,
        precision="half",
        note="run in Rockchip's simulator of an RK3588, which computes in float16",
    ),
    Format("onnx", {"quantize": 16}, precision="half"),
    Format("openvino", {"quantize": 16}, precision="half"),
    Format("ncnn", {"quantize": 16}, precision="half"),
    Format("mnn", {"quantize": 16}, precision="half"),
    Format("onnx", {"quantize": 8}, precision="int8", calibrates=True),
    Format("openvino", {"quantize": 8}, precision="int8", calibrates=True),
    Format("mnn", {"quantize": 8}, precision="int8", note="8-bit weights, float activations"),
    Format(
        "litert",
        {"quantize": "w8a32"},
        overlay=_LITERT,
        precision="int8",
        note="8-bit weights, float activations",
    ),
    Format(
        "litert",
        {"quantize": "w8a16"},
        overlay=_LITERT,
        precision="int8",
        calibrates=True,
        note="8-bit weights, 16-bit activations",
    ),
    Format(
        "litert",
        {"quantize": 8},
        overlay=_LITERT,
        precision="int8",
        calibrates=True,
    ),
    Format("qnn", overlay=_QNN, precision="half", calibrates=True),
    Format("xilinx", {"fraction": 0.1}, overlay=_XILINX, precision="int8", calibrates=True),
    Format("deepx", overlay=_DEEPX, precision="int8", calibrates=True),
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


def run_apart(script: str, chosen: Format, *job: Any) -> dict[str, Any]:
    """Run `script --job JOB` in a new process with the packages of a format; what went wrong there is a result, too.

    Args:
        script: prints a line "RESULT " and an object of JSON.
        chosen: the format.
        job: what the script is given, as JSON.
    """
    paths = [str(path) for path in (overlay_of(chosen), ROOT, os.environ.get("PYTHONPATH")) if path]
    environment = {**os.environ, "YOLO_AUTOINSTALL": "false", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, script, "--job", json.dumps(job)]
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


def listed() -> str:
    """The list of formats for the page, of the plugin's table."""
    lines = ["| format | `format=` | install | for | tried on Linux x86-64 |", "|---|---|---|---|---|"]
    alone = {table.find(chosen.name).extra for chosen in FORMATS if chosen.overlay} | {None}
    tried = {"here": "exported and run", "in a simulator": "exported, run in a simulator", "converts": "exported"}
    for row in table.FORMATS.values():
        how = f'`pip install ".[{row.extra}]"`' if row.extra else f"`pip install {' '.join(row.packages)}`"
        if row.runs == "not obtainable here" and row.name not in {chosen.name for chosen in FORMATS}:
            how = "as its maker says"
        elif row.packages == ("torch",):
            how = "nothing more"
        elif row.extra in alone:
            how += ", in an environment of its own"
        seen = tried.get(row.runs, "not run") + (f": {row.reason}" if row.reason else "")
        lines.append(f"| {row.title} | `{row.name}` | {how} | {row.on} | {seen} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Install a format's own packages into its overlay, or write its row.")
    overlays = {chosen.name: chosen for chosen in FORMATS if chosen.overlay}
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("format", nargs="?", choices=overlays)
    what.add_argument("--page", action="store_true", help=f"write the list of formats in docs/{PAGE.name}")
    arguments = parser.parse_args()
    if arguments.page:
        write_text(PAGE, with_part(PAGE.read_text(encoding="utf-8"), "formats", listed()))
    else:
        print(overlay_of(overlays[arguments.format]))


if __name__ == "__main__":
    main()
