"""What a layout of parameter names is made of, and how it is applied to a file's keys; knows no family.

A layout turns the keys of a file into ours in two steps, neither of which depends on the order of its rules: the
leading section of a key is replaced by where that section lives here, and then at most one `Rename` or `Drop` matches
the whole key. What nothing matches keeps its name, and the engine reports it if we have no such name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Rename:
    """`pattern` matches a whole key and becomes `replacement`, both as in `re.sub`; `example` is a key it matches."""

    pattern: str
    replacement: str
    example: str


@dataclass(frozen=True)
class Drop:
    """Whole keys that we have no use for: classifier heads and copies. `example` is a key it matches."""

    pattern: str
    example: str


@dataclass(frozen=True)
class Transform:
    """`function` is applied to the tensors whose whole key matches `pattern`, whatever they are called here."""

    pattern: str
    function: Callable[[Tensor], Tensor]
    example: str


Rule = Rename | Drop | Transform

Sections = Callable[[Collection[str]], Mapping[str, str]]
"""From all keys of a file to `{section: our section}`, for names that depend on which others there are."""


def no_sections(keys: Collection[str]) -> Mapping[str, str]:
    """Sections of a layout whose names do not depend on which others there are."""
    return {}


@dataclass(frozen=True)
class Layout:
    """One way in which the parameters of a family are named in files.

    Args:
        name: what the report calls it.
        rules: patterns see a key after its section has been replaced; their examples are written that way, too.
        sections: where the sections of a file live here.
        prefix: what all keys of the backbone start with. Keys without it belong to the rest of a larger model and are
            dropped.
        blocks_behind_tap: how many blocks of a stage, but for the last stage, this implementation counts to the
            downsampling behind it: its feature maps are taken before them.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    sections: Sections = no_sections
    prefix: str = ""
    blocks_behind_tap: int = 0


OURS = Layout("yolo_lightbackbones")
"""The names of our own modules: every key stays as it is."""


@dataclass
class Converted:
    """A file's tensors under our names; a name has two tensors where keys collide."""

    layout: Layout
    placed: dict[str, list[tuple[str, Tensor]]] = field(default_factory=dict)
    """Our key -> (the file's key, tensor)."""
    dropped: list[str] = field(default_factory=list)
    """The file's keys that the layout expects and has no use for."""


def convert(layout: Layout, state: Mapping[str, Tensor]) -> Converted:
    """Put every tensor of `state` where `layout` says it belongs."""
    inside = {key.removeprefix(layout.prefix): key for key in state if key.startswith(layout.prefix)}
    sections = layout.sections(inside.keys())
    converted = Converted(layout, dropped=[key for key in state if not key.startswith(layout.prefix)])
    known = _any_pattern(layout.rules)
    for inner, key in inside.items():
        moved = _move(inner, sections)
        if not known.fullmatch(moved):  # a file may have any number of names that no rule is for
            converted.placed.setdefault(moved, []).append((key, state[key]))
            continue
        if any(isinstance(rule, Drop) and re.fullmatch(rule.pattern, moved) for rule in layout.rules):
            converted.dropped.append(key)
            continue
        name, tensor = moved, state[key]
        for rule in layout.rules:
            match = re.fullmatch(rule.pattern, moved)
            if match and isinstance(rule, Rename):
                name = match.expand(rule.replacement)
            elif match and isinstance(rule, Transform):
                tensor = rule.function(tensor)
        converted.placed.setdefault(name, []).append((key, tensor))
    return converted


@functools.cache
def _any_pattern(rules: tuple[Rule, ...]) -> re.Pattern[str]:
    """Matches what any of the rules is for; with none, nothing."""
    return re.compile("|".join(f"(?:{rule.pattern})" for rule in rules) or "(?!)")


def _move(key: str, sections: Mapping[str, str]) -> str:
    """Replace the longest section that the key starts with: `blocks1.0.mlp` by `{"blocks1": "stages.0.blocks"}`."""
    head = key
    while head:
        if head in sections:
            return sections[head] + key[len(head) :]
        head = head.rpartition(".")[0]
    return key


def linear_to_conv1x1(weight: Tensor) -> Tensor:
    """The weight (out, in) of a linear layer as that of the equal 1x1 convolution, (out, in, 1, 1)."""
    return weight[:, :, None, None] if weight.ndim == 2 else weight
