"""What a pickle is read into: plain data that stands for classes, calls, and the memory of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


class MalformedError(Exception):
    """The bytes are not a pickle, or not one that `torch.save` writes; the message says why."""


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or a function by its full name."""

    name: str


@dataclass(eq=False, slots=True)
class Instance:
    """The record of a call that was not made: the function, its arguments, and the states set afterwards.

    `called` is False if the object is created without its constructor, as most are.
    """

    of: str
    arguments: Any = None
    called: bool = True
    states: list[Any] = field(default_factory=list)


@dataclass(frozen=True, eq=False, slots=True)
class StorageRef:
    """The memory of tensors: its name in the file, and the dtype, number and size in bytes of its elements."""

    key: str
    dtype: str
    elements: int
    itemsize: int


@dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """A tensor: shape, strides and offset in elements of `dtype`.

    `storage` is None if the values cannot be used directly: the tensor is on the meta device, sparse or quantised.
    """

    shape: tuple[int, ...]
    dtype: str = ""
    storage: StorageRef | None = None
    strides: tuple[int, ...] = ()
    offset: int = 0


def kind_of(value: Any) -> str:
    """The name of the type of a value that was read."""
    if type(value) is Instance:
        return value.of
    if type(value) is Global:
        return f"reference to {value.name}"
    return {TensorRef: "Tensor", StorageRef: "storage"}.get(type(value), type(value).__name__)


def walk(value: Any) -> Iterator[Any]:
    """Yield every object inside a value once, without numbers and texts."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) in _LEAVES or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if type(value) is dict:
            waiting.extend(value.values())
        elif type(value) in (list, tuple):
            waiting.extend(value)
        elif type(value) is Instance:
            waiting.append(value.arguments)
            waiting.extend(value.states)


_LEAVES = (str, int, float, bool, bytes, type(None))
