"""Exported files with raw heads: what their metadata say, and the seam through which Ultralytics reads them.

docs/raw-heads.md lists the keys. Values are flat: numbers, strings and lists of numbers, because they are also read
where there is no YAML. Two keys of Ultralytics' own differ, and get their values back before anything reads them:

- `batch` is a sentence where Ultralytics expects a number. Without this plugin, loading the file ends with it.
- `end2end` is always true, because Ultralytics' converters to LiteRT and RKNN rescale the first output otherwise.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.messages import listed, quoted
from yolo_lightbackbones.plugin.decoding import EXTRAS, Layout, decode

HOME = "ultralytics.nn.backends.base"
"""The module of Ultralytics that the seam is in."""

VERSION = 1
KEY = "raw_head"

UNREADABLE = "no reading of exported files with raw heads"

WITHOUT_US = (
    "this file holds the raw maps of a detection head, which Ultralytics cannot decode: "
    "install yolo-lightbackbones to run it"
)
"""Stands for the batch in the metadata. Ultralytics converts it by `int`, whose error quotes 200 characters."""


class RawHeadError(ValueError):
    """A raw head that cannot be exported, or a file with one that cannot be read. The message is one sentence."""


def to_metadata(layout: Layout, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a file with that raw head, from those that Ultralytics would write."""
    return {
        **metadata,
        "batch": WITHOUT_US,
        "end2end": True,
        KEY: VERSION,
        "raw_strides": list(layout.strides),
        "raw_reg_max": layout.reg_max,
        "raw_extra": layout.extra,
        "raw_end2end": int(layout.end2end),
        "raw_max_det": layout.max_det,
        "raw_batch": int(metadata["batch"]),
    }


def from_metadata(metadata: Mapping[str, Any]) -> tuple[Layout, dict[str, Any]]:
    """Read the metadata of a file with a raw head; formats that keep only text have every value as text.

    Returns:
        What its outputs are, and the metadata without the changes that keep others from reading the file.

    Raises:
        RawHeadError: for another version, or for keys that are missing or damaged.
    """
    version = _value(metadata, KEY, is_whole)
    if version != VERSION:
        raise RawHeadError(
            f"This file holds raw head maps of version {quoted(version)}, and this yolo_lightbackbones reads version "
            f"{VERSION}. Install the release that exported it, or export it again."
        )
    extra = _value(metadata, "raw_extra", EXTRAS.__contains__)
    points = _value(metadata, "kpt_shape", _is_shape_of_points) if extra.startswith("keypoints") else (0, 0)
    layout = Layout(
        tuple(_value(metadata, "raw_strides", _are_counts)),
        _value(metadata, "raw_reg_max", _is_count),
        len(_value(metadata, "names", lambda names: isinstance(names, Mapping | Sequence) and len(names) > 0)),
        extra,
        (points[0], points[1]),
        bool(_value(metadata, "raw_end2end", is_whole)),
        _value(metadata, "raw_max_det", _is_count),
    )
    return layout, {**metadata, "batch": _value(metadata, "raw_batch", _is_count), "end2end": layout.end2end}


def apply_metadata(original: Callable[..., None]) -> Callable[..., None]:
    """Replace `BaseBackend.apply_metadata`: from now on, the backend of a file with a raw head decodes its outputs."""

    def apply_metadata(self: Any, metadata: dict[str, Any] | None, *args: Any, **kwargs: Any) -> None:
        if not metadata or KEY not in metadata:
            return original(self, metadata, *args, **kwargs)
        layout, repaired = from_metadata(metadata)
        original(self, repaired, *args, **kwargs)
        run = self.forward

        def forward(*inputs: Any, **options: Any) -> list[Tensor]:
            maps = [torch.as_tensor(value).float() for value in _in_order(self, run(*inputs, **options), layout)]
            if problem := layout.problem(maps):
                raise RawHeadError(
                    f"This file cannot be decoded: its metadata describe a raw head, but {problem}. Export it again."
                )
            return decode(maps, layout)

        self.forward = forward
        return None

    return apply_metadata


def misfit() -> str | None:
    """Explain why this Ultralytics cannot read files with raw heads through `apply_metadata`; None if it can."""
    try:
        backend = importlib.import_module(HOME).BaseBackend
    except (ImportError, AttributeError) as error:
        return f"{HOME}.BaseBackend is gone: {error}"
    return misfit_of_backends(getattr(backend, "apply_metadata", None))


def misfit_of_backends(apply: Any) -> str | None:
    """Explain why `BaseBackend.apply_metadata` cannot be replaced by ours; None if it can."""
    if not callable(apply):
        return f"{HOME}.BaseBackend.apply_metadata is gone"
    signature = inspect.signature(apply)
    fits = list(signature.parameters)[:2] == ["self", "metadata"]
    return None if fits else f"BaseBackend.apply_metadata{signature} does not start with (self, metadata)"


# --- the order of outputs ---------------------------------------------------------------------------------------------


def _in_order(backend: Any, outputs: Sequence[Any], layout: Layout) -> Sequence[Any]:
    """Bring the outputs of a backend into the order of `Layout.names`, by their names where the runtime has names.

    TorchScript, OpenVINO and RKNN keep the order of the exported model.
    """
    find = _NAMED.get(type(backend).__name__)
    if find is None:
        return outputs
    named = find(backend, outputs, layout)
    missing = [name for name in layout.names if name not in named]
    if missing or len(named) != len(layout.names):
        raise RawHeadError(
            f"This file cannot be decoded: its metadata describe a raw head with the outputs {listed(layout.names)}, "
            f"but it gives {listed(named)}. Export it again."
        )
    return [named[name] for name in layout.names]


def _of_onnx(backend: Any, outputs: Sequence[Any], layout: Layout) -> dict[str, Any]:
    if backend.format == "dnn":  # OpenCV gives names of layers
        given = [name.rpartition("!")[2] for name in backend.net.getUnconnectedOutLayersNames()]
    else:
        given = backend.output_names
    return dict(zip(given, outputs, strict=False))


def _of_mnn(backend: Any, outputs: Sequence[Any], layout: Layout) -> dict[str, Any]:
    return dict(zip(backend.net.get_info()["outputNames"], outputs, strict=False))


def _of_ncnn(backend: Any, outputs: Sequence[Any], layout: Layout) -> dict[str, Any]:
    """PNNX calls them out0, out1, ..., and Ultralytics sorts the names as texts, out10 before out2."""
    numbered = {f"out{number}": name for number, name in enumerate(layout.names)}
    given = sorted(backend.net.output_names())
    return dict(zip([numbered.get(name, name) for name in given], outputs, strict=False))


def _of_litert(backend: Any, outputs: Sequence[Any], layout: Layout) -> dict[str, Any]:
    """The signature numbers them, output_0 and so on. Ultralytics' backend drops outputs of segmentation models."""
    if not hasattr(backend, "interpreter"):  # of a device of Intel's, whose outputs have no names
        raise RawHeadError("LiteRT files with raw heads run on the CPU only, not on device=intel. Leave device out.")
    details = backend.interpreter.get_signature_runner().get_output_details()
    found = {}
    for name, detail in details.items():
        value = torch.as_tensor(backend.interpreter.get_tensor(detail["index"]))
        if not value.is_floating_point():
            scale, zero = detail["quantization"]
            value = (value.float() - zero) * scale
        found[name] = value
    return {name: found.get(f"output_{number}") for number, name in enumerate(layout.names)}


_NAMED: dict[str, Callable[[Any, Sequence[Any], Layout], dict[str, Any]]] = {
    "ONNXBackend": _of_onnx,
    "MNNBackend": _of_mnn,
    "NCNNBackend": _of_ncnn,
    "LiteRTBackend": _of_litert,
}
"""Class of a backend -> finds its outputs by their names."""


def _value(metadata: Mapping[str, Any], key: str, fits: Callable[[Any], bool]) -> Any:
    given = metadata.get(key)
    value = given
    if isinstance(given, str) and key != "raw_extra":
        try:
            value = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            value = None
    if value is None or not fits(value):
        found = f"has {key}={quoted(given)}" if key in metadata else f"lacks {key}"
        raise RawHeadError(f"The metadata of this file describe a raw head, but it {found}. Export it again.")
    return value


def _is_count(value: Any) -> bool:
    return is_whole(value) and value > 0


def _is_shape_of_points(value: Any) -> bool:
    return _are_counts(value) and len(value) == 2 and value[1] in (2, 3)


def _are_counts(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(map(_is_count, value))
