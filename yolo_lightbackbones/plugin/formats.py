"""The table of Ultralytics' export formats, for the plugin and `lightbackbones doctor`: one row per format.

A format that is not in the table is exported, too, with the defaults of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from yolo_lightbackbones.plugin import readback

UNMEASURED = 64
"""`Format.matrix_from` of formats that cannot be timed on Linux: here the matrix won in all runtimes except NCNN."""


@dataclass(frozen=True)
class Format:
    """An export format.

    Args:
        name: Ultralytics' name, as in `yolo export format=NAME`.
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
        float_expectation: whether INT8 exports must use `decoding.expected_distances`, because the format would
            round the bin numbers otherwise.
        raw_heads: whether exports with raw heads were tested, and their outputs can be told apart.
        emptied: ending of the folder that Ultralytics empties before it writes the format; empty if it writes a file,
            or keeps the files that are in the folder.
        unreadable: finds written files in a folder that cannot be read back; None for converters that notice a full
            disk themselves.
        silenced: modules of the converter that install packages or call home when imported -> the names that the
            converter imports from them.
    """

    name: str
    aliases: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    extra: str | None = None
    packages: tuple[str, ...] = ()
    instead: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    any_size: bool = False
    matrix_from: int = UNMEASURED
    matrix_in_int8: bool = True
    float_expectation: bool = False
    raw_heads: bool = False
    emptied: str = ""
    unreadable: Callable[[Path], Iterable[Path]] | None = None
    silenced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def matrices_from(self, *, int8: bool) -> int | None:
        """The `matrix_from` for `recording.record_for`; None if an export must not contain matrix products."""
        return self.matrix_from if self.matrix_in_int8 or not int8 else None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods of Ultralytics' exporter that write the format, in the order of their calls."""
        return tuple(f"export_{step}" for step in self.steps or (self.name,))


_ROWS = (
    Format("torchscript", any_size=True, matrix_from=20, raw_heads=True),
    Format(
        "onnx",
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
        extra="export",
        packages=("openvino", "nncf"),
        any_size=True,
        matrix_from=20,
        raw_heads=True,
    ),
    Format(
        "ncnn",
        extra="export",
        packages=("ncnn",),
        matrix_from=128,  # up to a length of 40, the convolution is faster
        raw_heads=True,
        unreadable=readback.unreadable_ncnn,
    ),
    Format(
        "mnn",
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
    Format("executorch", extra="executorch", packages=("executorch",), matrix_from=40),
    Format("coreml", aliases=("mlmodel",), extra="coreml", packages=("coremltools",)),
    Format(
        "litert",
        extra="litert",
        packages=("litert-torch", "ai-edge-litert"),
        matrix_from=20,
        matrix_in_int8=False,  # the runtime takes an integer matrix only as the right factor of a product with floats
        float_expectation=True,
        raw_heads=True,
    ),
    Format("saved_model", extra="tensorflow", packages=("tensorflow",), emptied="_saved_model"),
    Format("pb", steps=("saved_model", "pb"), extra="tensorflow", packages=("tensorflow",)),
    Format("edgetpu", steps=("saved_model", "edgetpu")),
    Format("paddle", extra="paddle", packages=("paddlepaddle",)),
    Format("rknn", raw_heads=True),
    Format("engine", packages=("tensorrt",), any_size=True),  # made from an ONNX file that accepts any size
    Format("axelera", emptied="_axelera_model"),
    Format("hailo", emptied="_hailo_model"),
    Format("xilinx", emptied="_xilinx_model"),
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
