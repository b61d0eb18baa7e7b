"""The names of torch and Python that a pickle of weights uses, and what a call of each stands for.

Sources: `torch/serialization.py` and `torch/_utils.py`, which write and rebuild tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from yolo_lightbackbones.checkpoints.inert import Global, Instance, MalformedError, StorageRef, TensorRef, kind_of

MAX_DIMENSIONS = 32
MAX_SIDE = 1 << 48

STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexDoubleStorage": ("complex128", 16),
    "ComplexFloatStorage": ("complex64", 8),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
    "UntypedStorage": ("uint8", 1),
}
"""Name of a storage class -> name of its dtype, and bytes of an element."""


def dictionary_key(key: Any) -> Any:
    """A key of a dictionary; one that could be slow to look up is replaced by the name of its type.

    Keys of weights are texts, those of optimizers small numbers. Nested tuples could take forever to hash, and numbers
    chosen to have equal hashes could take forever to look up.
    """
    if isinstance(key, str | float | bytes | None) or (isinstance(key, int) and key.bit_length() <= 60):
        return key
    return f"<{kind_of(key)}>"


def storage_kind(full: str) -> tuple[str, int] | None:
    """Name of the dtype and bytes per element of a storage class; None for any other name."""
    module, _, name = full.rpartition(".")
    return STORAGES.get(name) if module in {"torch", "torch.storage", "torch.cuda"} else None


def is_torch_word(full: str) -> bool:
    """Whether a name is a data type, a memory layout or the like: `torch.float32`, `torch.strided`; no functions."""
    return _TORCH_WORD.fullmatch(full) is not None


_TORCH_WORD = re.compile(
    r"torch\.(bool|b?float\d+(_\w+)?|u?int\d+|complex\d+|qu?int\d+(x\d)?|bits\d+(x\d)?|strided|sparse_(coo|[cb]s[rc])"
    r"|per_(tensor|channel)_\w+)"
)


def _integers(value: Any, limit: int = MAX_SIDE) -> tuple[int, ...]:
    """Check a shape or strides, and return them as a tuple."""
    if type(value) not in (tuple, list) or len(value) > MAX_DIMENSIONS:
        raise MalformedError("a tensor without a proper shape")
    if not all(type(side) is int and 0 <= side < limit for side in value):
        raise MalformedError("a tensor of an impossible shape")
    return tuple(value)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None) -> TensorRef:
    if type(storage) is not StorageRef:
        raise MalformedError("a tensor without memory")
    sides = _integers(shape)
    steps = _integers(strides)
    (start,) = _integers((offset,))
    if len(sides) != len(steps):
        raise MalformedError("a tensor with more sides than strides")
    return TensorRef(sides, dtype or storage.dtype, storage, steps, start)


def _rebuild(arguments: tuple[Any, ...]) -> TensorRef:
    """Take (storage, offset, shape, strides, requires_grad, hooks, metadata), the last ones optional."""
    storage, offset, shape, strides, *rest = arguments
    return _unless_lazy(_tensor(storage, offset, shape, strides), rest[2:])


def _rebuild_with_dtype(arguments: tuple[Any, ...]) -> TensorRef:
    """Take (storage, offset, shape, strides, requires_grad, hooks, dtype, metadata), the last one optional."""
    storage, offset, shape, strides, _, _, dtype, *metadata = arguments
    if type(dtype) is not Global or not is_torch_word(dtype.name):
        raise MalformedError("a tensor of no data type")
    return _unless_lazy(_tensor(storage, offset, shape, strides, dtype.name.removeprefix("torch.")), metadata)


def _unless_lazy(tensor: TensorRef, metadata: list[Any]) -> TensorRef:
    """Drop the values of a tensor marked as negated or conjugated: those in the file are not its own."""
    return TensorRef(tensor.shape) if any(metadata) else tensor


def _rebuild_quantised(arguments: tuple[Any, ...]) -> TensorRef:
    return TensorRef(_integers(arguments[2]))


def _rebuild_meta(arguments: tuple[Any, ...]) -> TensorRef:
    return TensorRef(_integers(arguments[1]))


def _rebuild_sparse(arguments: tuple[Any, ...]) -> TensorRef:
    """Take (layout, (indices..., values, shape, ...))."""
    shapes = [part for part in arguments[1] if type(part) in (tuple, list)]
    return TensorRef(_integers(shapes[0]))


def _first_tensor(arguments: tuple[Any, ...]) -> TensorRef:
    """The tensor inside a parameter, or inside a copy from another device."""
    if type(arguments[0]) is not TensorRef:
        raise MalformedError("a parameter without a tensor")
    return arguments[0]


def _rebuild_from_type(arguments: tuple[Any, ...]) -> Any:
    """Take (function, class, arguments, attributes)."""
    function, _, inner, *_ = arguments
    known = _TENSORS.get(function.name)
    if type(inner) is not tuple or known is None:
        raise MalformedError("a tensor of no known kind")
    return known(inner)


def _mapping(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    match arguments:
        case ():
            return {}
        case (dict() as entries,):
            return entries  # no copy: a pickle could ask for a million of them
    raise MalformedError("a dictionary made of something else")


def _shape(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    return _integers(arguments[0])


def _inert(of: str) -> Callable[[tuple[Any, ...]], Instance]:
    return lambda arguments: Instance(of)


_TENSORS: dict[str, Callable[[tuple[Any, ...]], TensorRef]] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_with_dtype,
    "torch._utils._rebuild_parameter": _first_tensor,
    "torch._utils._rebuild_parameter_with_state": _first_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first_tensor,
    "torch._utils._rebuild_qtensor": _rebuild_quantised,
    "torch._utils._rebuild_sparse_tensor": _rebuild_sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _rebuild_meta,
}

CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _shape,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    **{
        name: _inert(name.rpartition(".")[2])
        for name in (
            "argparse.Namespace",  # the command line, in RepViT's official files
            "builtins.set",
            "builtins.complex",
            "builtins.bytearray",
            "_codecs.encode",  # bytes
            "torch.device",
            "torch.serialization._get_layout",
        )
    },
}
"""Known functions: those that `torch.load(weights_only=True)` always allows, and the class of a command line."""

NAMES = {"torch.Tensor", "torch.nn.parameter.Parameter"}
"""Classes that are named beside a tensor and never called."""
