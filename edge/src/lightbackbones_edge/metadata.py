"""What Ultralytics writes about a model into or beside its export, read without the library that wrote it.

A device with numpy, OpenCV and one runtime has no PyYAML and no onnx. So the few values that matter are read here, by
two small readers that are strict: what they do not know is refused, never guessed, and nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import json
import re
import reprlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

KEYS = {
    *("task", "head", "imgsz", "names", "channels", "end2end", "args"),
    *("raw_head", "raw_strides", "raw_reg_max", "raw_end2end", "raw_max_det"),
}
"""What is read of a metadata.yaml; the rest of the file is skipped unread."""
ARGUMENTS = {"nms", "quantize"}
"""What is read of `args`, the arguments of the export."""

_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_ESCAPED = dict(zip('0abtnvfre"\\/ _NLP', '\0\a\b\t\n\v\f\r\x1b"\\/ \xa0\x85\u2028\u2029', strict=True))


def from_yaml(path: Path) -> dict[str, Any]:
    """Read `KEYS` from the ``metadata.yaml`` of an export; an absent file has none.

    This is no YAML reader: it knows what PyYAML's dumper makes of a number, a string, a list of numbers, a mapping
    from numbers to strings and the `ARGUMENTS`, which is all that `KEYS` hold.
    """
    if not path.exists():
        return {}
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line[:1] not in ("", " ", "-", "#"):  # a key at the left margin opens a section; lists start there as well
            key, _, rest = line.partition(":")
            lines = sections.setdefault(key, [rest])
        else:
            lines.append(line)
    return {key: _value(path, key, lines) for key, lines in sections.items() if key in KEYS}


def _value(path: Path, key: str, lines: list[str]) -> Any:
    first, *rest = lines
    try:
        if first.strip() or not "".join(rest).strip():
            return _literal(_scalar(lines)) if key not in ("task", "head") else _scalar(lines)
        if key == "args":
            found = {name.strip(): text for name, text in _entries(rest)}
            return {name: _literal_or_text(_scalar(found[name])) for name in sorted(ARGUMENTS & found.keys())}
        if key != "names":
            return [int(line.removeprefix("-")) for line in (line.strip() for line in rest) if line]
        return {int(number): _scalar(text) for number, text in _entries(rest)}
    except (ValueError, SyntaxError):
        raise ValueError(f"{path} is damaged at {key!r}.") from None


def _literal(text: str) -> Any:
    return {"true": True, "false": False, "null": None}[text] if text in ("true", "false", "null") else int(text)


def _literal_or_text(text: str) -> Any:
    try:
        return _literal(text)
    except ValueError:
        return text


def _entries(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Split ``key: text`` lines; deeper or empty lines continue the text."""
    number, text = "", list[str]()
    for line in lines:
        if line.startswith("  ") and not line.startswith("   "):
            if number:
                yield number, text
            number, _, first = line.partition(":")
            text = [first]
        elif number:
            text.append(line)
        elif line.strip():
            raise ValueError(line)
    if number:
        yield number, text


def _scalar(lines: list[str]) -> str:
    """A string over one or more lines: a line break is a space, and n empty lines are n line breaks."""
    text = lines[0].strip(" ")
    quote = text[:1] if text[:1] in ("'", '"') else ""
    breaks = 0
    for line in (line.strip(" ") for line in lines[1:]):
        if not line:
            breaks += 1
        else:
            escaped = quote == '"' and re.search(r"(?<!\\)(\\\\)*\\$", text)  # a backslash joins without a space
            text = (text[:-1] if escaped else text) + ("\n" * breaks or ("" if escaped else " ")) + line
            breaks = 0
    if any(rare in text for rare in "\x85\u2028\u2029"):  # line breaks of a kind that few readers agree on
        raise ValueError(text)
    if not quote:
        if text[:1] in tuple("[]{}&*!|>%@`#"):
            raise ValueError(text)
        return text
    if len(text) < 2 or not text.endswith(quote):
        raise ValueError(text)
    body = text[1:-1]
    return body.replace("''", "'") if quote == "'" else _ESCAPE.sub(_unescape, body)


def _unescape(found: re.Match[str]) -> str:
    code = found[1]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    if code not in _ESCAPED:
        raise ValueError(code)
    return _ESCAPED[code]


def literal(metadata: Mapping[str, Any], key: str, read: Callable[[Any], T], default: T) -> T:
    """Read a value, or the Python that stands for it; literal_eval, for opening a model file must never run code.

    Raises:
        ValueError: `read` cannot make anything of it.
    """
    if key not in metadata:
        return default
    value = metadata[key]
    try:
        return read(ast.literal_eval(value) if isinstance(value, str) else value)
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        raise ValueError(f"The model's metadata are damaged: {key}={reprlib.repr(value)}.") from None


def argument(metadata: Mapping[str, Any], name: str) -> Any:
    """Value of an argument that the model was exported with; None if that is not told."""
    return literal(metadata, "args", lambda arguments: arguments.get(name), None)


def from_json(text: str | bytes) -> dict[str, Any]:
    """Read metadata written as JSON; what is no JSON object (another exporter's note) holds none."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def from_zip(path: Path) -> dict[str, Any]:
    """Read what Ultralytics appends to a ``.tflite`` file as a zip archive; a file without one holds none."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "metadata.json" in names:
            return from_json(archive.read("metadata.json"))
        for name in names:  # older releases: one text file, a Python literal
            try:
                values = ast.literal_eval(archive.read(name).decode())
            except (ValueError, SyntaxError):
                continue
            if isinstance(values, dict):
                return values
    return {}


def from_onnx(path: Path) -> dict[str, str]:
    """Read the ``metadata_props`` of an ``.onnx`` file, for runtimes that do not hand them out.

    Raises:
        ValueError: the file is not ONNX.
    """
    try:
        properties = [dict(_fields(entry)) for number, entry in _fields(path.read_bytes()) if number == 14]
        return {item[1].decode(): item.get(2, b"").decode() for item in properties}
    except (IndexError, KeyError, UnicodeDecodeError):
        raise ValueError(f"{path} is not an ONNX file.") from None


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of a protobuf message's strings and messages; its plain numbers are stepped over."""
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            varint()
        elif tag & 7 == 2:
            length = varint()
            if at + length > len(message):
                raise IndexError
            yield tag >> 3, message[at : at + length]
            at += length
        else:  # ONNX has no others at these levels
            raise IndexError
