"""Quotes values in messages, short and printable, and suggests similar names.

Errors quote files of unknown origin. A few hundred bytes of YAML aliases can stand for millions of values, and a name
can contain line breaks or terminal codes. So a quotation has a limited length and depth, stops where a value contains
itself, and escapes characters that cannot be printed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import PurePath
from typing import Any

CUT = "..."

_DEPTH = 8
_LONGEST_NUMBER = 256  # bits; Python itself refuses to print integers of more than 4300 digits


def quoted(value: Any, limit: int = 120) -> str:
    """`value` as Python writes it, at most about `limit` characters: `'m0_9'`, `[1, 2, ...`."""
    return _joined(_pieces(value, as_python=True), limit)


def flow(value: Any, limit: int = 200) -> str:
    """`value` as a YAML user writes it in one line, without quotes: `[-1, 1, RepViT, [m0_9]]`."""
    return _joined(_pieces(value, as_python=False), limit)


def listed(values: Iterable[Any], limit: int = 12) -> str:
    """The first `limit` values, separated by commas, and how many more there are. Texts are not quoted."""
    values = iter(values)
    shown = ", ".join(flow(value, 80) for value in islice(values, limit))
    more = sum(1 for _ in values)
    return f"{shown}, {CUT} ({more:,} more)" if more else shown


def did_you_mean(given: str, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The closest of `names` as a hint to add to a sentence, `" Did you mean 'repvit'?"`; empty if none is close.

    Args:
        given: the unknown name; only its first 200 characters are compared.
        names: the allowed names.
        cutoff: smallest similarity of a close name, 0..1.
    """
    close = difflib.get_close_matches(given[:200], names, n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def printable(text: str) -> str:
    """`text` with escapes for line breaks, terminal codes, and halves of surrogate pairs."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _joined(pieces: Iterator[str], limit: int) -> str:
    parts: list[str] = []
    length = 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length > limit:
            return "".join(parts)[:limit] + CUT
    return "".join(parts)


def _pieces(value: Any, *, as_python: bool, inside: tuple[int, ...] = ()) -> Iterator[str]:
    """Yield a quotation piece by piece, so that the part of a huge one that is cut off is never made."""
    if isinstance(value, Mapping | Sequence | Set) and not isinstance(value, str | bytes | bytearray):
        opening, closing = _brackets(value, as_python)
        if id(value) in inside or len(inside) == _DEPTH:
            yield f"{opening}{CUT}{closing}"
            return
        within = (*inside, id(value))
        yield opening
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item, as_python=as_python, inside=within)
            if isinstance(value, Mapping):
                yield ": "
                yield from _pieces(value[item], as_python=as_python, inside=within)
        yield f",{closing}" if as_python and isinstance(value, tuple) and len(value) == 1 else closing
    else:
        yield _single(value, as_python)


def _brackets(value: Any, as_python: bool) -> tuple[str, str]:
    if isinstance(value, Mapping | Set):
        return "{", "}"
    return ("(", ")") if as_python and isinstance(value, tuple) else ("[", "]")


def _single(value: Any, as_python: bool) -> str:
    if isinstance(value, str):
        start = value[:1000]
        return repr(start) if as_python else printable(start)
    if isinstance(value, bytes | bytearray):
        return repr(bytes(value[:1000]))
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _LONGEST_NUMBER:
        return f"<a whole number of {value.bit_length()} bits>"
    if isinstance(value, int | float | complex | PurePath | None):
        return printable(str(value))
    return f"<{printable(type(value).__name__)}>"
