"""The formats of weights files: finds the tensors of a file, and the places of their values.

There are three formats: the zip archives of `torch.save`, its format before torch 1.6, and safetensors. A file is
opened once, so that the checked content is the content used. No code of the file runs: see `pickles`.

Sources: `torch/serialization.py` and `torch/csrc/jit/serialization/pickler` (the archive's records).
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from yolo_lightbackbones.checkpoints.inert import MalformedError, StorageRef, TensorRef
from yolo_lightbackbones.checkpoints.pickles import Interpreter
from yolo_lightbackbones.messages import printable, quoted

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""First bytes of a file of `torch.save`: now, and before torch 1.6."""

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""Values of the first two pickles of the older format."""

EXPANSION = 4
"""Largest size of all tensors, as a multiple of the file's size: some share memory, a constant may be one number."""

FREE_BYTES = 1 << 26
"""Bytes that the tensors of any file may have in addition to that."""

_BYTE_SIZED = (
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "complex64", "complex128"),
    *("float16", "bfloat16", "float32", "float64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)
"""Data types whose values torch can read as plain bytes."""

AGAIN = "Download or copy it again."


class UnreadableError(Exception):
    """The file is not a weights file, or is damaged; the message continues the file's name: "is empty."."""


class ForeignError(Exception):
    """The file needs classes or functions that weights do not need; `names` has them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names


@dataclass(frozen=True)
class Span:
    """A part of a file in bytes; `crc` is its CRC-32 if the file has one."""

    start: int
    size: int
    crc: int | None = None


@dataclass
class Contents:
    """The content of a weights file.

    Args:
        file: the file, open for reading.
        size: its size in bytes.
        value: mappings, lists and so on, with `TensorRef`s for tensors; for a safetensors file, the tensors themselves.
        spans: name of a storage -> its place in the file.
    """

    file: BinaryIO
    size: int
    value: Any
    spans: Mapping[str, Span]
    _buffers: dict[str, bytearray] = field(default_factory=dict)

    def tensors(self, found: Mapping[str, TensorRef | Tensor]) -> dict[str, Tensor]:
        """Read the values of tensors; those without values in the file become tensors on the meta device.

        Raises:
            UnreadableError: if a tensor lies outside the file or its storage, or all of them would need far more memory
                than the file has bytes.
        """
        refs = {name: ref for name, ref in found.items() if isinstance(ref, TensorRef)}
        dtypes = {name: _plain_dtype(ref) for name, ref in refs.items()}
        needed = sum(math.prod(refs[name].shape) * dtype.itemsize for name, dtype in dtypes.items() if dtype)
        check_size(needed, self.size)
        try:
            return {
                name: self._tensor(ref, dtypes[name]) if isinstance(ref, TensorRef) else ref
                for name, ref in found.items()
            }
        finally:
            self._buffers.clear()

    def _tensor(self, ref: TensorRef, dtype: torch.dtype | None) -> Tensor:
        if math.prod(ref.shape) >= 1 << 60:
            raise UnreadableError(f"declares a tensor of {quoted(ref.shape)}, which no machine can hold.")
        if dtype is None or ref.storage is None:
            return torch.empty(ref.shape, device="meta")
        if 0 in ref.shape:
            return torch.empty(ref.shape, dtype=dtype, device="cpu")
        buffer = self._buffer(ref.storage)
        elements = len(buffer) // dtype.itemsize
        last = ref.offset + sum((side - 1) * step for side, step in zip(ref.shape, ref.strides, strict=True))
        if last >= elements:
            raise UnreadableError(f"is damaged: a tensor of {quoted(ref.shape)} lies outside its memory. {AGAIN}")
        return torch.frombuffer(buffer, dtype=dtype, count=elements).as_strided(ref.shape, ref.strides, ref.offset)

    def _buffer(self, storage: StorageRef) -> bytearray:
        if storage.key not in self._buffers:
            span = self.spans.get(storage.key)
            if span is None or span.size < storage.elements * storage.itemsize:
                raise UnreadableError(f"is damaged: values that it names are missing. {AGAIN}")
            self._buffers[storage.key] = bytearray(read_span(self.file, span))
        return self._buffers[storage.key]


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a folder, a pipe or a device, which could block or have no end, is refused.

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableError: if it is not a regular file, or cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        _check_kind(path.stat().st_mode)
        file = os.fdopen(os.open(path, flags), "rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a name with a NUL
        raise FileNotFoundError(str(error)) from error
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}.") from error
    try:
        _check_kind(os.fstat(file.fileno()).st_mode)  # it may have been replaced since
    except UnreadableError:
        file.close()
        raise
    return file


def _check_kind(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UnreadableError("is a folder.")
    if not stat.S_ISREG(mode):
        raise UnreadableError("is no regular file but a pipe, a device or the like.")


def read(file: BinaryIO, *, safetensors: bool) -> Contents:
    """Read an open file, without the values of its tensors.

    Raises:
        UnreadableError: if it is not a weights file, or is damaged.
        ForeignError: if it needs classes or functions that weights do not need.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(4) if size else b""
    file.seek(0)
    if safetensors:
        return _safetensors(file, size)
    if start == ZIP:
        return _zip(file, size)
    if start.startswith(PICKLE):
        return _old(file, size)
    kind = "an empty file" if not start else f"not a checkpoint (it starts with {start!r})"
    raise UnreadableError(f"is {kind}. Give weights saved by torch.save or as safetensors.")


def read_span(file: BinaryIO, span: Span) -> bytes:
    """Read the bytes of a part of the file.

    Raises:
        UnreadableError: if the file is too short, or the bytes do not match their checksum.
    """
    file.seek(span.start)
    content = file.read(span.size)
    if len(content) != span.size:
        raise UnreadableError(f"is damaged or cut off. {AGAIN}")
    if span.crc is not None and zlib.crc32(content) != span.crc:
        raise UnreadableError(f"is damaged: the checksum of a part of it is wrong. {AGAIN}")
    return content


# --- torch.save -------------------------------------------------------------------------------------------------------


def interpreter(file: BinaryIO, span: Span, size: int) -> Interpreter:
    """Make an interpreter for the pickle in a part of a file of `size` bytes."""
    return Interpreter(io.BytesIO(read_span(file, span)), size)


def check_size(needed: int, size: int) -> None:
    """Refuse a file of `size` bytes whose tensors need `needed` bytes of memory, if that is far more.

    Raises:
        UnreadableError: if it is more than `EXPANSION` times the size, plus `FREE_BYTES`.
    """
    if needed > EXPANSION * size + FREE_BYTES:
        raise UnreadableError(
            f"has {size:,} bytes and declares tensors of {quoted(needed)} bytes, which it cannot hold. "
            "Save it again where it was made, with every tensor contiguous."
        )


def _zip(file: BinaryIO, size: int) -> Contents:
    records = zip_records(file, size)
    reader = interpreter(file, records["data.pkl"], size)
    try:
        value = reader.load()
    except MalformedError as error:
        raise _cannot(error, reader) from error
    if reader.foreign:
        raise ForeignError(tuple(reader.foreign))
    order = read_span(file, records["byteorder"]) if "byteorder" in records else b"little"
    _check_order(order == b"little")
    spans = {name.removeprefix("data/"): span for name, span in records.items() if name.startswith("data/")}
    return Contents(file, size, value, spans)


def zip_records(file: BinaryIO, size: int) -> dict[str, Span]:
    """Find the records of a `torch.save` archive: name inside its only folder -> place in the file.

    Raises:
        UnreadableError: if it is another archive, is damaged, or has records that are compressed or overlap.
    """
    try:
        whole = zipfile.is_zipfile(file)
        entries = zipfile.ZipFile(file).infolist() if whole else []
    except Exception as error:  # damaged directories make both raise nearly anything
        raise UnreadableError(f"is damaged: its directory cannot be read. {AGAIN}") from error
    if not whole:
        raise UnreadableError(f"is damaged or cut off ({size:,} bytes). {AGAIN}")
    folders = {name.partition("/")[0] for entry in entries if (name := entry.filename).endswith("/data.pkl")}
    if len(folders) != 1:
        raise UnreadableError("is not a checkpoint but some other zip archive. Give weights saved by torch.save.")
    (folder,) = folders
    if f"{folder}/constants.pkl" in (entry.filename for entry in entries):
        raise UnreadableError(
            "is a TorchScript archive, a program rather than a checkpoint. "
            "Give the .pth, .pt or .safetensors file it was exported from."
        )
    records: dict[str, Span] = {}
    checked = any(entry.CRC for entry in entries)  # torch can be told to leave checksums out; then all of them are 0
    for entry in entries:
        name = entry.filename.removeprefix(f"{folder}/")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            raise UnreadableError(
                "is compressed or encrypted, which torch.save never does. Unpack it; if it is a checkpoint that was "
                "packed anew, load and save it where it was made."
            )
        inside = 0 <= entry.header_offset < size
        file.seek(entry.header_offset if inside else size)
        header = file.read(30)
        if len(header) != 30 or header[:4] != ZIP or name in records:
            raise UnreadableError(f"is damaged: its directory and its records differ. {AGAIN}")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        records[name] = Span(start, entry.file_size, entry.CRC if checked else None)
    if "data.pkl" not in records or sum(span.size for span in records.values()) > size:
        raise UnreadableError(f"is damaged: its records are larger than itself. {AGAIN}")
    return records


def _old(file: BinaryIO, size: int) -> Contents:
    """Read the format before torch 1.6: five pickles, then per storage its number of elements (8 bytes) and values."""
    reader = Interpreter(file, size)
    try:
        magic = reader.load()
        if reader.foreign:
            raise ForeignError(tuple(reader.foreign))
        if magic != MAGIC:
            raise UnreadableError(
                "is a pickle that torch.save has not written. Give weights saved by torch.save or as safetensors."
            )
        protocol, system, value, keys = (reader.load() for _ in range(4))
    except MalformedError as error:
        raise _cannot(error, reader, size) from error
    if reader.foreign:
        raise ForeignError(tuple(reader.foreign))
    if protocol != PROTOCOL or type(system) is not dict or type(keys) is not list:
        raise UnreadableError(f"is damaged. {AGAIN}")
    spans = {}
    position = file.tell()
    for key in keys:
        if not isinstance(key, str) or key not in reader.storages:
            raise UnreadableError(f"is damaged: it has values that nothing names. {AGAIN}")
        (elements,) = struct.unpack("<q", read_span(file, Span(position, 8)))
        length = elements * reader.storages[key].itemsize
        if not 0 <= length <= size - position - 8:
            raise UnreadableError(f"is damaged or cut off ({size:,} bytes). {AGAIN}")
        spans[key] = Span(position + 8, length)
        position += 8 + length
    _check_order(system.get("little_endian", True) is True)
    return Contents(file, size, value, spans)


def _check_order(little: bool) -> None:
    if little != (sys.byteorder == "little"):
        raise UnreadableError("was written on a machine with another byte order. Convert it there to safetensors.")


def _cannot(error: MalformedError, reader: Interpreter, size: int | None = None) -> UnreadableError | ForeignError:
    if reader.foreign:
        return ForeignError(tuple(reader.foreign))
    if size is not None and str(error) == "cut off":
        return UnreadableError(f"is damaged or cut off ({size:,} bytes). {AGAIN}")
    return UnreadableError(f"is damaged, or holds more than weights: {error}. {AGAIN}")


# --- safetensors ------------------------------------------------------------------------------------------------------


def _safetensors(file: BinaryIO, size: int) -> Contents:
    """Read a safetensors file with the format's own library, which checks that every tensor lies within the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        value = dict(sorted(load(file.read()).items()))  # the library gives them in any order
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:  # KeyError: a type that torch lacks
        raise UnreadableError(
            f"is not a safetensors file, or it is damaged or cut off ({size:,} bytes): {printable(str(error))[:200]}. "
            f"{AGAIN}"
        ) from error
    return Contents(file, size, value, {})


def _plain_dtype(ref: TensorRef) -> torch.dtype | None:
    """The dtype of a tensor; None if its values are not read."""
    if ref.storage is None or ref.dtype not in _BYTE_SIZED or ref.storage.dtype not in _BYTE_SIZED:
        return None
    dtype: torch.dtype | None = getattr(torch, ref.dtype, None)
    return dtype
