"""Reads a pickle without running it.

Pickles are programs: Python's own unpickler imports and calls whatever they name. Here their instructions are followed
with plain data only. A class or a function becomes a `Global`, which is just its name. A call of one that this module
does not know becomes an `Instance`. A tensor becomes a `TensorRef`, which says where its values are. Nothing is
imported or called, and no state of the process is read or changed, not even torch's list of allowed classes.

Sources: the comments of CPython's `pickletools`; `torch/serialization.py` and `torch/_utils.py` for what `torch.save`
writes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from yolo_lightbackbones.checkpoints.inert import Global, Instance, MalformedError, StorageRef, TensorRef, kind_of
from yolo_lightbackbones.checkpoints.known import (
    CALLS,
    MAX_SIDE,
    NAMES,
    dictionary_key,
    is_torch_word,
    storage_kind,
)

MAX_INSTRUCTIONS = 2_000_000
"""Most instructions in the pickles of one file; the largest backbone with its optimizer has a twentieth of it."""


class Interpreter:
    """Reads the pickles of one file, one after the other.

    Args:
        file: read from its current position on.
        size: bytes in the file; no string can be longer.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.foreign: dict[str, None] = {}
        """Names of classes and functions that no file of weights needs, in order."""
        self.instances: list[Instance] = []
        """Records of all calls of unknown classes and functions, in order, even if the result is not kept."""
        self.storages: dict[str, StorageRef] = {}
        self._read_some = file.read
        self._readline = file.readline
        self._size = size
        self._instructions = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Read the next pickle.

        Raises:
            MalformedError: if it ends early, is damaged, or has instructions that weights do not need.
        """
        self._stack, self._marks, self._memo = [], [], {}
        left = MAX_INSTRUCTIONS - self._instructions
        read = self._read_some
        try:
            for number in range(left):
                code = read(1)
                if code == b".":
                    self._instructions += number + 1
                    return self._stack.pop()
                _INSTRUCTIONS[code](self)
        except KeyError:
            raise MalformedError("cut off" if not code else f"unknown instruction {code!r}") from None
        except (IndexError, TypeError, AttributeError, ValueError, struct.error) as error:
            # The stack is empty or holds nothing that the instruction can use, or a text cannot be decoded.
            raise MalformedError(f"instruction {code!r}: {error}") from None
        raise MalformedError(f"more than {MAX_INSTRUCTIONS:,} instructions")

    # --- reading ---

    def _read(self, count: int) -> bytes:
        if count > self._size:
            raise MalformedError("cut off")
        content = self._read_some(count)
        if len(content) != count:
            raise MalformedError("cut off")
        return content

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._read(struct.calcsize(kind)))[0]

    def _sized(self, kind: str) -> bytes:
        return self._read(self._number(kind))

    def _line(self) -> str:
        line = self._readline(1000)
        if not line.endswith(b"\n"):
            raise MalformedError("cut off")
        return line[:-1].decode()

    # --- the stack ---

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) < count:
            raise MalformedError("an empty stack")
        items = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        return items

    def _fetch(self, index: int) -> None:
        if index not in self._memo:
            raise MalformedError(f"nothing is remembered as {index}")
        self._push(self._memo[index])

    def _remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    # --- containers ---

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Instance:  # somebody's subclass of a list
            raise MalformedError(f"items for a {kind_of(target)}")
        else:
            target.states.append(items)

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if len(items) % 2:
            raise MalformedError("a key without a value")
        if type(target) is dict:
            target.update((dictionary_key(items[i]), items[i + 1]) for i in range(0, len(items), 2))
        elif type(target) is Instance:  # somebody's subclass of a dict
            target.states.append(items)
        else:
            raise MalformedError(f"entries for a {kind_of(target)}")

    def _add(self) -> None:
        self._to_mark()  # sets hold no weights
        if type(self._stack[-1]) is not Instance:
            raise MalformedError(f"members for a {kind_of(self._stack[-1])}")

    # --- objects ---

    def _global(self, module: str, name: str) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise MalformedError("a name that is no text")
        module = "builtins" if module == "__builtin__" else module
        full = f"{module}.{name}"
        if full not in CALLS and full not in NAMES and storage_kind(full) is None and not is_torch_word(full):
            self.foreign[full] = None
        self._push(Global(full))

    def _call(self, function: Any, arguments: Any, *, called: bool = True) -> None:
        if type(function) is not Global or type(arguments) is not tuple:
            raise MalformedError(f"a call of a {kind_of(function)}")
        known = CALLS.get(function.name)
        if known is None:
            self.instances.append(Instance(function.name, arguments, called))
        self._push(known(arguments) if known else self.instances[-1])

    def _build(self) -> None:
        target, state = self._last(2)
        if type(target) is Instance:
            target.states.append(state)
        elif type(target) not in (dict, TensorRef):  # weights need no attributes of these
            raise MalformedError(f"attributes for a {kind_of(target)}")
        self._push(target)

    def _persistent(self) -> None:
        """Push a storage: ("storage", class, key, device, elements); old files add None or a view, which is refused."""
        match self._stack.pop():
            case ("storage", Global(name=name), str() as key, _, int() as size, *rest) if rest in ([], [None]):
                pass
            case _:
                raise MalformedError("a reference to something else than the memory of a tensor")
        kind = storage_kind(name)
        if kind is None or not 0 <= size < MAX_SIDE:
            raise MalformedError("a tensor's memory of no known kind or size")
        known = self.storages.setdefault(key, StorageRef(key, kind[0], size, kind[1]))
        if (known.dtype, known.elements) != (kind[0], size):
            raise MalformedError("two memories of one name")
        self._push(known)


_INSTRUCTIONS: dict[bytes, Callable[[Interpreter], Any]] = {
    b"\x80": lambda m: m._read(1),  # PROTO
    b"\x95": lambda m: m._read(8),  # FRAME
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._number("<B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"\x8a": lambda m: m._push(int.from_bytes(m._sized("<B"), "little", signed=True)),
    b"\x8b": lambda m: m._push(int.from_bytes(m._sized("<I"), "little", signed=True)),
    b"G": lambda m: m._push(m._number(">d")),
    b"U": lambda m: m._push(m._sized("<B").decode()),  # texts of Python 2
    b"T": lambda m: m._push(m._sized("<I").decode()),
    b"C": lambda m: m._push(m._sized("<B")),
    b"B": lambda m: m._push(m._sized("<I")),
    b"\x8e": lambda m: m._push(m._sized("<Q")),
    b"\x96": lambda m: m._push(m._sized("<Q")),
    b"X": lambda m: m._push(m._sized("<I").decode("utf-8", "surrogatepass")),
    b"\x8c": lambda m: m._push(m._sized("<B").decode("utf-8", "surrogatepass")),
    b"\x8d": lambda m: m._push(m._sized("<Q").decode("utf-8", "surrogatepass")),
    b"(": lambda m: m._mark(),
    b"0": lambda m: m._last(1),  # POP
    b"1": lambda m: m._to_mark(),  # POP_MARK
    b"2": lambda m: m._push(m._stack[-1]),  # DUP
    b"h": lambda m: m._fetch(m._number("<B")),
    b"j": lambda m: m._fetch(m._number("<I")),
    b"q": lambda m: m._remember(m._number("<B")),
    b"r": lambda m: m._remember(m._number("<I")),
    b"\x94": lambda m: m._remember(len(m._memo)),
    b")": lambda m: m._push(()),
    b"\x85": lambda m: m._push(m._last(1)),
    b"\x86": lambda m: m._push(m._last(2)),
    b"\x87": lambda m: m._push(m._last(3)),
    b"t": lambda m: m._push(tuple(m._to_mark())),
    b"]": lambda m: m._push([]),
    b"a": lambda m: m._extend(list(m._last(1))),
    b"e": lambda m: m._extend(m._to_mark()),
    b"}": lambda m: m._push({}),
    b"s": lambda m: m._update(list(m._last(2))),
    b"u": lambda m: m._update(m._to_mark()),
    b"\x8f": lambda m: m._push(Instance("set")),
    b"\x90": lambda m: m._add(),
    b"\x91": lambda m: m._push(Instance("frozenset", m._to_mark())),
    b"c": lambda m: m._global(m._line(), m._line()),
    b"\x93": lambda m: m._global(*m._last(2)),
    b"R": lambda m: m._call(*m._last(2)),
    b"\x81": lambda m: m._call(*m._last(2), called=False),  # NEWOBJ
    b"b": lambda m: m._build(),
    b"Q": lambda m: m._persistent(),
}
"""Instruction -> its effect. Those that only protocol 0 writes, or that look up classes in other ways, are refused."""
