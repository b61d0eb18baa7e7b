"""Makes Ultralytics' own model parser treat our classes like `C2f`. The parser is an argument; nothing is imported.

The parser decides by membership in two sets which rows get their input channels, scaled output channels and repeats. It
builds the sets anew in every call, as `frozenset({..., C2f, ...})`, and looks up `frozenset` among its global names. So
a copy of the function is made with its own global names. In them our classes have names, and `frozenset` adds them to
every set that contains `C2f`. The code and the arithmetic are still the parser's, and the original is not changed.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

LIKE = "C2f"
"""The class of Ultralytics with the same arguments as ours: input channels, output channels, repeats, then others."""


class MisfitError(Exception):
    """The parser cannot be extended with our classes. The message continues a sentence that starts with the parser."""


class _Probe(nn.Module):
    """A layer that records its constructor arguments."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.arguments = args


def with_rows(parser: Callable[..., Any], classes: Mapping[str, type[nn.Module]]) -> Callable[..., Any]:
    """Return a copy of the parser that builds these classes, by these names, like `C2f(c1, c2, repeats, *others)`.

    The copy is tried out first on two rows: its results count, not how its code looks.

    Raises:
        MisfitError: if a result is wrong, or the parser is not a plain function (another package may have wrapped it).
    """
    _try_out(_with_names(parser, {"Probe": _Probe}))
    return _with_names(parser, classes)


def _with_names(parser: Callable[..., Any], classes: Mapping[str, type[nn.Module]]) -> Callable[..., Any]:
    if not isinstance(parser, types.FunctionType):
        raise MisfitError(f"is no plain function, but {parser!r}")
    if "frozenset" not in parser.__code__.co_names or LIKE not in parser.__globals__:
        raise MisfitError(f"makes no frozenset of classes such as {LIKE}; another package may have wrapped it")
    like = parser.__globals__[LIKE]

    def with_ours(items: Iterable[Any] = ()) -> frozenset[Any]:
        made = frozenset(items)
        return made.union(classes.values()) if like in made else made

    names = {**parser.__globals__, **classes, "frozenset": with_ours}
    own = types.FunctionType(parser.__code__, names, parser.__name__, parser.__defaults__, parser.__closure__)
    own.__kwdefaults__ = parser.__kwdefaults__
    return own


def _try_out(parser: Callable[..., Any]) -> None:
    """Parse two rows whose result is known, and compare.

    Raises:
        MisfitError: if parsing fails, or the result differs.
    """
    rows = [[-1, 4, "Probe", [128, {"n": "n"}]], [-1, 1, "Probe", [24]]]
    # depth 0.5, width 0.25, at most 64 channels before that, then rounded up to a multiple of 8
    config = {"nc": 1, "scales": {"n": [0.5, 0.25, 64]}, "scale": "n", "backbone": rows, "head": []}
    expected = [(3, 16, 2, {"n": "n"}), (16, 8, 1)]
    try:
        seen = [module.arguments for module in parser(config, 3, verbose=False)[0]]
    except Exception as error:
        raise MisfitError(f"fails on rows of ours with {error!r}") from error
    if seen != expected:
        raise MisfitError(f"builds rows of ours with {seen} where {expected} was expected")
