"""What the plugin and `lightbackbones doctor` know about Ultralytics' export formats: one row for each.

A format that is not in the table is exported as well: as a row with the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from yolo_lightbackbones.plugin import readback

UNMEASURED = 64
"""`Format.matrix_from` of formats that cannot be timed on Linux: such maps won in every runtime but NCNN."""


@dataclass(frozen=True)
class Format:
    """An export format.

    Args:
        name: Ultralytics' name, as in `yolo export format=NAME`.
        aliases: other names that Ultralytics' exporter keeps for it while it exports.
        steps: formats whose `export_NAME` methods the exporter calls, the last of them last; only its own if empty.
        extra: the extra of this package that installs what the format needs; None if there is none.
        packages: distributions that write and run it, for `lightbackbones doctor`.
        instead: distributions that may stand for one of `packages`, by its name.
        any_size: whether `dynamic=True` was tested with our modules.
        matrix_from: length of a map from which circular convolutions are exported as matrix products. A matrix is as
            many times larger than the kernel as the map is long, so it has to take less than three quarters of the
            time (`benchmarks/circular.py`; its table of maps of 20, 40 and 80 is in docs/exports.md).
        matrix_in_int8: whether INT8 exports of the format may have such products.
        float_expectation: whether INT8 rounds the bin numbers of `exporting.expected_distances`, unless that is used.
        emptied: ending of the folder that Ultralytics empties before it writes the format; empty if it writes a file,
            or beside what is in the folder.
        unreadable: finds written files of a folder that cannot be read back; None for converters that notice a full
            disk themselves.
        silenced: modules of the converter that install packages or call home when imported, and the names that the
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
    emptied: str = ""
    unreadable: Callable[[Path], Iterable[Path]] | None = None
    silenced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def matrices_from(self, *, int8: bool) -> int | None:
        """The length for `recording.record_for`; None if an export must not have such products."""
        return self.matrix_from if self.matrix_in_int8 or not int8 else None

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods of Ultralytics' exporter that write the format, in the order of their calls."""
        return tuple(f"export_{step}" for step in self.steps or (self.name,))


_ROWS = (
    Format("torchscript", any_size=True, matrix_from=20),
    Format(
        "onnx",
        extra="export",
        packages=("onnx", "onnxruntime", "onnxslim"),
        instead={"onnxruntime": ("onnxruntime-gpu",)},
        any_size=True,
        matrix_from=40,
        float_expectation=True,
    ),
    Format("openvino", extra="export", packages=("openvino", "nncf"), any_size=True, matrix_from=20),
    Format(
        "ncnn",
        extra="export",
        packages=("ncnn",),
        matrix_from=128,  # up to 40 long, a convolution is faster there
        unreadable=readback.unreadable_ncnn,
    ),
    Format(
        "mnn",
        extra="export",
        packages=("MNN",),
        matrix_from=40,
        unreadable=readback.unreadable_mnn,
        # It keeps statistics that conversion does not need. Imported without `aliyun-log-python-sdk`, it runs `pip
        # install` for it, which brings an older protobuf that the installed onnx may not work with; imported with it,
        # it contacts MNN's makers.
        silenced={"MNN.tools.utils.log": ("mnn_logger",)},
    ),
    Format("executorch", extra="executorch", packages=("executorch",), matrix_from=40),
    Format("coreml", aliases=("mlmodel",), extra="coreml", packages=("coremltools",)),
    Format(
        "litert",
        extra="litert",
        packages=("litert-torch", "ai-edge-litert"),
        matrix_from=20,
        matrix_in_int8=False,  # it multiplies a matrix of integers with floats only from the right
        float_expectation=True,
    ),
    Format("saved_model", extra="tensorflow", packages=("tensorflow",), emptied="_saved_model"),
    Format("pb", steps=("saved_model", "pb"), extra="tensorflow", packages=("tensorflow",)),
    Format("edgetpu", steps=("saved_model", "edgetpu")),
    Format("paddle", extra="paddle", packages=("paddlepaddle",)),
    Format("engine", packages=("tensorrt",), any_size=True),  # made from an ONNX file for any size
    Format("axelera", emptied="_axelera_model"),
    Format("hailo", emptied="_hailo_model"),
    Format("xilinx", emptied="_xilinx_model"),
)

FORMATS = {row.name: row for row in _ROWS}


def find(name: str) -> Format:
    """The row of a format, by its name or an alias; of one that is not in the table, a row with the defaults."""
    aliases = {alias: row for row in FORMATS.values() for alias in row.aliases}
    return FORMATS.get(name) or aliases.get(name) or Format(name)


def any_size() -> list[str]:
    """Names of the formats in which `dynamic=True` was tested."""
    return [row.name for row in FORMATS.values() if row.any_size]


def emptied_folders() -> tuple[str, ...]:
    """Endings of the folders that Ultralytics empties first; into other folders it writes beside what is there."""
    return tuple(row.emptied for row in FORMATS.values() if row.emptied)


def packages() -> dict[str, tuple[str, ...]]:
    """Every package of the table, and the distributions that bring it."""
    return {name: (name, *row.instead.get(name, ())) for row in FORMATS.values() for name in row.packages}


def silenced_modules() -> dict[str, tuple[str, ...]]:
    """`Format.silenced` of the whole table."""
    return {module: names for row in FORMATS.values() for module, names in row.silenced.items()}
