"""What an export of our modules needs besides Ultralytics' own exporter, which this module does not know.

An export is all or nothing: a failed one leaves no file behind that looks like a finished one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from yolo_lightbackbones import fusion

ANY_SIZE_FORMATS = ("torchscript", "onnx", "openvino", "engine")
"""Formats that `dynamic=True` was tested in, and TensorRT, whose engines are made from the ONNX file."""

FLOAT_EXPECTATION_FORMATS = ("onnx", "litert")
"""Formats whose INT8 quantisation would round the bin numbers of `expected_distances`."""

INT8 = (8, "w8a16", "w8a32")
"""Ultralytics' values of `quantize=` that make integers of weights, activations or both."""

_EXTRAS = {
    **dict.fromkeys(("onnx", "openvino", "ncnn", "mnn"), "export"),
    "executorch": "executorch",
    "coreml": "coreml",
    "litert": "litert",
    "paddle": "paddle",
    **dict.fromkeys(("saved_model", "pb"), "tensorflow"),
}
"""Format -> the extra of this package that installs what it needs."""

_ENDINGS = (
    *(".torchscript", ".onnx", ".engine", ".mlpackage", ".mlmodel", ".aimodel", ".pb", ".tflite", ".mnn", ".om"),
    *("_openvino_model", "_saved_model", "_paddle_model", "_ncnn_model", "_rknn_model", "_executorch_model"),
    *("_imx_model", "_axelera_model", "_deepx_model", "_hailo_model", "_ascend_model", "_xilinx_model"),
)
"""Of the names of what Ultralytics' exporter writes beside a checkpoint."""


def refuse_misfits(model: nn.Module, format: str, *, dynamic: bool) -> None:
    """Raise for what could be written but would not be right.

    Raises:
        ValueError: for `dynamic=True` in a format in which our modules have not been seen to follow the size.
    """
    if dynamic and format not in ANY_SIZE_FORMATS and fusion.is_size_bound(model):
        raise ValueError(
            f"dynamic=True is given for format={format}, but layers of this model can be exported for any size "
            f"only as {', '.join(ANY_SIZE_FORMATS)}. Leave dynamic out, and give the size you need: imgsz=height,width."
        )


@contextlib.contextmanager
def all_or_nothing(checkpoint: Path, format: str) -> Iterator[None]:
    """Whatever is exported from `checkpoint` inside this block is removed again when the block fails.

    Raises:
        ModuleNotFoundError: where the block does, with the way to install what is missing.
    """
    before = _artifacts(checkpoint)
    try:
        yield
    except BaseException as error:  # an interruption as well
        for path, state in _artifacts(checkpoint).items():
            if before.get(path) != state:
                path.unlink(missing_ok=True)
        _remove_empty_folders(checkpoint)
        if isinstance(error, ModuleNotFoundError):
            raise ModuleNotFoundError(_how_to_install(format, error), name=error.name) from error
        raise


def expected_distances(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected bin number per side of a box, as a sum instead of the convolution that detection heads write.

    Quantisers give convolutions 8-bit weights, and the bin numbers 0 to 15 are then off by up to 0.06: for EdgeViT
    on the digits, mAP50-95 fell by 0.038 in ONNX Runtime with the convolution and by 0.003 without.

    Args:
        logits: (B, 4 * bins, N), those of one side next to each other.
        bins: (bins,), their numbers.

    Returns:
        (B, 4, N)
    """
    batch, _, places = logits.shape
    shares = logits.view(batch, 4, bins.shape[0], places).softmax(2)
    return (shares * bins.view(1, 1, -1, 1)).sum(2)


def _artifacts(checkpoint: Path) -> dict[Path, tuple[int, int]]:
    """Every file that an export of this checkpoint may have written, with what changes when it is written again."""
    files: dict[Path, tuple[int, int]] = {}
    for path in _exports(checkpoint):
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                stat = file.stat()
                files[file] = stat.st_mtime_ns, stat.st_size
    return files


def _exports(checkpoint: Path) -> list[Path]:
    name = checkpoint.stem
    beside = [path for path in checkpoint.parent.iterdir() if path.name.startswith((f"{name}.", f"{name}_"))]
    return [path for path in beside if path.name.endswith(_ENDINGS)]


def _remove_empty_folders(checkpoint: Path) -> None:
    for path in _exports(checkpoint):
        if path.is_dir():
            folders = [folder for folder in path.rglob("*") if folder.is_dir()]
            for folder in [*sorted(folders, reverse=True), path]:  # the innermost first
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()


def _how_to_install(format: str, error: ModuleNotFoundError) -> str:
    extra = _EXTRAS.get(format)
    how = (
        f'install what it needs with: pip install "yolo-lightbackbones[{extra}]"'
        if extra
        else "docs/exports.md says which packages it was tested with"
    )
    own = "" if extra in (None, "export") else ", best in an environment of its own"
    return f"format={format} needs the package {error.name}, which is not installed; {how}{own}."
