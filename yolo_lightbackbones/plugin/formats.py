"""The table of Ultralytics' export formats, for the plugin and `lightbackbones doctor`: one row per format.

A format that is not in the table is exported, too, with the defaults of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from yolo_lightbackbones.plugin import readback

UNMEASURED = 64
"""`Format.matrix_from` of formats that cannot be timed on Linux: here the matrix won in all runtimes except NCNN."""


Runs = Literal["here", "in a simulator", "converts", "not obtainable here"]


@dataclass(frozen=True)
class Format:
    """An export format.

    Args:
        name: Ultralytics' name, as in `yolo export format=NAME`.
        title: the name that people know.
        on: what it is for: devices or programs.
        runs: what was tried on Linux x86-64: the file was exported and run, run by a simulator of the device, or only
            exported; or the tools could not be had.
        reason: why it was not run here; empty if it was.
        bound: whether Ultralytics runs the files only on the devices `on`, and not on any computer.
        aliases: other names that Ultralytics' exporter uses for the format while it exports.
        steps: formats whose `export_NAME` methods the exporter calls, in this order; only its own if empty.
        extra: the extra of this package that installs what the format needs; None if there is none.
        packages: distributions that write and run the format, for `lightbackbones doctor`.
        instead: name of one of `packages` -> distributions that can replace it.
        any_size: whether `dynamic=True` was tested with our modules.
        matrix_from: map length, along the axis of a circular convolution, from which the convolution is exported as a
            matrix product. The matrix is larger than the kernel by a factor of this length, so it must take less than
            three quarters of the time (`benchmarks/circular.py`; its table for 20, 40 and 80 is in docs/exports.md).
        matrix_in_int8: whether INT8 exports of the format may contain such matrix products.
        elementwise_norms: whether a LayerNorm over channels is exported as elementwise operations, and not as a
            normalisation between two transpositions; set where that is faster (`benchmarks/NOTES.md`). INT8 exports
            have the latter in every format.
        float_expectation: whether INT8 exports must use `decoding.expected_distances`, because the format would
            round the bin numbers otherwise.
        raw_heads: whether exports with raw heads were tested, and their outputs can be told apart.
        emptied: ending of the folder that Ultralytics empties before it writes the format; empty if it writes a file,
            or keeps the files that are in the folder.
        unreadable: finds written files in a folder that cannot be read back; None for converters that notice a full
            disk themselves.
        silenced: modules of the converter that install packages or call home when imported -> the names that the
            converter imports from them.
        supplied: file that the converter would download to the current folder -> the function that writes one there.
        scratch: files in the current folder that the converter, or Ultralytics after it, overwrites or deletes.
    """

    name: str
    title: str = ""
    on: str = ""
    runs: Runs = "here"
    reason: str = ""
    bound: bool = False
    aliases: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    extra: str | None = None
    packages: tuple[str, ...] = ()
    instead: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    any_size: bool = False
    matrix_from: int = UNMEASURED
    matrix_in_int8: bool = True
    elementwise_norms: bool = False
    float_expectation: bool = False
    raw_heads: bool = False
    emptied: str = ""
    unreadable: Callable[[Path], Iterable[Path]] | None = None
    silenced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    supplied: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    scratch: tuple[str, ...] = ()

    def matrices_from(self, *, int8: bool) -> int | None:
        """The `matrix_from` for `recording.record_for`; None if an export must not contain matrix products."""
        return self.matrix_from if self.matrix_in_int8 or not int8 else None

    def norms_elementwise(self, *, int8: bool) -> bool:
        """The `elementwise_norms` for `recording.record_for`."""
        return self.elementwise_norms and not int8

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods of Ultralytics' exporter that write the format, in the order of their calls."""
        return tuple(f"export_{step}" for step in self.steps or (self.name,))


def _write_noise(file: Path) -> None:
    """Write 20 images of noise as onnx2tf wants them: it tries its translation of some operations out on them."""
    import numpy as np  # the command's help does without it

    np.save(file, np.random.default_rng(0).random((20, 128, 128, 3), dtype=np.float32))


_FOR_ONNX2TF = {"calibration_image_sample_data_20x128x128x3_float32.npy": _write_noise}

_ROWS = (
    Format(
        "torchscript",
        title="TorchScript",
        on="PyTorch, LibTorch",
        packages=("torch",),
        any_size=True,
        matrix_from=20,
        raw_heads=True,
    ),
    Format(
        "onnx",
        title="ONNX",
        on="CPUs, phones, `cv2.dnn`",
        extra="export",
        packages=("onnx", "onnxruntime", "onnxslim"),
        instead={"onnxruntime": ("onnxruntime-gpu",)},
        any_size=True,
        matrix_from=40,
        float_expectation=True,
        raw_heads=True,
    ),
    Format(
        "openvino",
        title="OpenVINO",
        on="Intel CPUs, GPUs, NPUs",
        extra="export",
        packages=("openvino", "nncf"),
        any_size=True,
        matrix_from=20,
        elementwise_norms=True,
        raw_heads=True,
    ),
    Format(
        "ncnn",
        title="NCNN",
        on="phones",
        extra="export",
        packages=("ncnn", "pnnx"),
        matrix_from=128,  # up to a length of 40, the convolution is faster
        raw_heads=True,
        unreadable=readback.unreadable_ncnn,
        scratch=("debug.bin", "debug.param", "debug2.bin", "debug2.param"),
    ),
    Format(
        "mnn",
        title="MNN",
        on="phones",
        extra="export",
        packages=("MNN",),
        matrix_from=40,
        raw_heads=True,
        unreadable=readback.unreadable_mnn,
        # This module collects statistics that conversion does not need. Without `aliyun-log-python-sdk`, its import
        # runs `pip install` for that package, which brings an older protobuf that the installed onnx may not work with.
        # With the package, it contacts the makers of MNN.
        silenced={"MNN.tools.utils.log": ("mnn_logger",)},
    ),
    Format(
        "executorch",
        title="ExecuTorch",
        on="phones",
        extra="executorch",
        packages=("executorch",),
        matrix_from=40,
        raw_heads=True,
    ),
    Format(
        "coreml",
        title="CoreML",
        on="Apple devices",
        bound=True,
        aliases=("mlmodel",),
        extra="coreml",
        packages=("coremltools",),
        runs="converts",
        reason="its runtime is part of macOS and iOS",
    ),
    Format(
        "litert",
        title="LiteRT",
        on="phones, microcontrollers",
        extra="litert",
        packages=("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
        matrix_from=20,
        matrix_in_int8=False,  # the runtime takes an integer matrix only as the right factor of a product with floats
        float_expectation=True,
        raw_heads=True,
    ),
    Format(
        "saved_model",
        title="SavedModel",
        on="TensorFlow",
        extra="tensorflow",
        packages=("tensorflow", "onnx2tf"),
        emptied="_saved_model",
        supplied=_FOR_ONNX2TF,
    ),
    Format(
        "pb",
        title="GraphDef",
        on="TensorFlow",
        steps=("saved_model", "pb"),
        extra="tensorflow",
        packages=("tensorflow", "onnx2tf"),
        supplied=_FOR_ONNX2TF,
    ),
    Format(
        "paddle",
        title="PaddlePaddle",
        on="Paddle Inference",
        extra="paddle",
        packages=("paddlepaddle", "x2paddle"),
    ),
    Format(
        "rknn",
        title="RKNN",
        on="Rockchip NPUs",
        bound=True,
        packages=("rknn-toolkit2",),
        runs="in a simulator",
        reason="the toolkit wants an older torch, and simulates the NPU",
        raw_heads=True,
    ),
    Format(
        "qnn",
        title="Qualcomm QNN",
        on="Qualcomm's Hexagon NPUs",
        packages=("onnxruntime-qnn",),
        runs="in a simulator",
        reason="Qualcomm's library simulates the NPU, a minute per image",
    ),
    Format(
        "xilinx",
        title="AMD Xilinx",
        on="AMD's Versal AI Edge NPUs",
        packages=("amd-quark",),
        emptied="_xilinx_model",
        runs="in a simulator",
        reason="ONNX Runtime computes on the CPU what the NPU would",
    ),
    Format(
        "deepx",
        title="DEEPX",
        on="DEEPX NPUs",
        bound=True,
        packages=("dx-com",),
        runs="converts",
        reason="the file holds a binary for the NPU",
    ),
    Format(
        "coreai",
        title="Core AI",
        on="Apple devices",
        bound=True,
        packages=("coreai-torch",),
        runs="converts",
        reason="its runtime is part of macOS and iOS",
    ),
    Format(
        "engine",
        title="TensorRT",
        on="NVIDIA GPUs",
        packages=("tensorrt",),
        any_size=True,  # made from an ONNX file that accepts any size
        runs="not obtainable here",
        reason="an engine is built on the GPU that it is for",
    ),
    Format(
        "edgetpu",
        title="Edge TPU",
        on="Coral Edge TPUs",
        bound=True,
        steps=("saved_model", "edgetpu"),
        supplied=_FOR_ONNX2TF,
        runs="not obtainable here",
        reason="Google's compiler is on no package index",
    ),
    Format(
        "imx",
        title="IMX500",
        on="Sony's camera sensors",
        bound=True,
        packages=("imx500-converter",),
        runs="not obtainable here",
        reason="the converter needs Java, and Ultralytics exports only YOLOv8n and YOLO11n to it",
    ),
    Format(
        "axelera",
        title="Axelera AI",
        on="Axelera's Metis",
        bound=True,
        packages=("axelera-devkit",),
        emptied="_axelera_model",
        runs="not obtainable here",
        reason="the compiler is on an index of Axelera's own",
    ),
    Format(
        "hailo",
        title="Hailo",
        on="Hailo NPUs",
        bound=True,
        emptied="_hailo_model",
        runs="not obtainable here",
        reason="the compiler needs an account, and Ultralytics exports only some stock models to it",
    ),
    Format(
        "ascend",
        title="Huawei Ascend",
        on="Ascend NPUs",
        bound=True,
        runs="not obtainable here",
        reason="the compiler `atc` is part of Huawei's CANN toolkit",
    ),
)

FORMATS = {row.name: row for row in _ROWS}


def find(name: str) -> Format:
    """Find the row of a format by its name or an alias; a format that is not in the table gets a row of defaults."""
    aliases = {alias: row for row in FORMATS.values() for alias in row.aliases}
    return FORMATS.get(name) or aliases.get(name) or Format(name)


def any_size() -> list[str]:
    """Names of the formats in which `dynamic=True` was tested."""
    return [row.name for row in FORMATS.values() if row.any_size]


def with_raw_heads() -> list[str]:
    """Names of the formats in which models can have raw heads."""
    return [row.name for row in FORMATS.values() if row.raw_heads]


def emptied_folders() -> tuple[str, ...]:
    """Endings of the folders that Ultralytics empties first; in other folders it keeps the files that are there."""
    return tuple(row.emptied for row in FORMATS.values() if row.emptied)


def packages() -> dict[str, tuple[str, ...]]:
    """Package of the table -> the distributions that provide it."""
    return {name: (name, *row.instead.get(name, ())) for row in FORMATS.values() for name in row.packages}


def silenced_modules() -> dict[str, tuple[str, ...]]:
    """All entries of `Format.silenced` in the table: module -> names."""
    return {module: names for row in FORMATS.values() for module, names in row.silenced.items()}
