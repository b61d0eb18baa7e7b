"""Files of weights written byte by byte, and what reading one must leave alone."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch


def process_state() -> tuple[Any, ...]:
    """What belongs to the whole process, and reading a file must leave alone."""
    allowed = {getattr(entry, "__name__", str(entry)) for entry in torch.serialization.get_safe_globals()}
    return allowed, list(warnings.filters), torch.get_default_dtype(), torch.get_rng_state().sum().item()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(content: Any, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def archive(pickled: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A `torch.save` archive with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in (records or {}).items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def safetensors(header: Any, values: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values
