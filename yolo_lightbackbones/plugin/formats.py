"""What our modules need to know about Ultralytics' export formats: one row for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

UNMEASURED = 64
"""`Format.matrix_from` of formats that cannot be timed on Linux: such maps won in every runtime but NCNN."""


@dataclass(frozen=True)
class Format:
    """An export format.

    Args:
        name: Ultralytics' name, as in `yolo export format=NAME`.
        extra: the extra of this package that installs what the format needs; None if there is none.
        packages: distributions that write and run it, for `lightbackbones doctor`.
        any_size: whether `dynamic=True` was tested with our modules.
        matrix_from: length of a map from which circular convolutions are exported as matrix products. A matrix is as
            many times larger than the kernel as the map is long, so it has to take less than three quarters of the
            time (`benchmarks/circular.py`; its table of maps of 20, 40 and 80 is in docs/exports.md).
        matrix_in_int8: whether INT8 exports of the format may have such products.
        float_expectation: whether INT8 rounds the bin numbers of `exporting.expected_distances`, unless that is used.
    """

    name: str
    extra: str | None = None
    packages: tuple[str, ...] = ()
    any_size: bool = False
    matrix_from: int = UNMEASURED
    matrix_in_int8: bool = True
    float_expectation: bool = False

    def matrices_from(self, *, int8: bool) -> int | None:
        """The length for `recording.record_for`; None if an export must not have such products."""
        return self.matrix_from if self.matrix_in_int8 or not int8 else None


_ROWS = (
    Format("torchscript", any_size=True, matrix_from=20),
    Format(
        "onnx",
        extra="export",
        packages=("onnx", "onnxruntime", "onnxslim"),
        any_size=True,
        matrix_from=40,
        float_expectation=True,
    ),
    Format("openvino", extra="export", packages=("openvino", "nncf"), any_size=True, matrix_from=20),
    Format("ncnn", extra="export", packages=("ncnn",), matrix_from=128),  # up to 40 long, a convolution is faster there
    Format("mnn", extra="export", packages=("MNN",), matrix_from=40),
    Format("executorch", extra="executorch", packages=("executorch",), matrix_from=40),
    Format("coreml", extra="coreml", packages=("coremltools",)),
    Format(
        "litert",
        extra="litert",
        packages=("litert-torch", "ai-edge-litert"),
        matrix_from=20,
        matrix_in_int8=False,  # it multiplies a matrix of integers with floats only from the right
        float_expectation=True,
    ),
    Format("saved_model", extra="tensorflow", packages=("tensorflow",)),
    Format("pb", extra="tensorflow", packages=("tensorflow",)),
    Format("paddle", extra="paddle", packages=("paddlepaddle",)),
    Format("engine", packages=("tensorrt",), any_size=True),  # made from an ONNX file for any size
)

FORMATS = {row.name: row for row in _ROWS}


def find(name: str) -> Format:
    """The row of a format; of one that is not in the table, a row with the defaults."""
    return FORMATS.get(name) or Format(name)


def any_size() -> list[str]:
    """Names of the formats in which `dynamic=True` was tested."""
    return [row.name for row in _ROWS if row.any_size]


def packages() -> Iterator[str]:
    """Every package of the table, once."""
    yield from dict.fromkeys(package for row in _ROWS for package in row.packages)
