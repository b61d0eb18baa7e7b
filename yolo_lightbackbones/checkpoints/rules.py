"""Layouts of parameter names, their rules, and the conversion of a file's keys with them; knows no family.

A layout converts the keys of a file to ours in two steps. First, the leading section of a key is replaced by our name
for that section. Then, at most one `Rename` or `Drop` matches the whole key. The order of the rules does not matter. A
key that no rule matches keeps its name, and the engine reports it if we have no such name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Rename:
    """Renames keys: a whole key, such as `example`, that matches `pattern` becomes `replacement`, as in `re.sub`."""

    pattern: str
    replacement: str
    example: str


@dataclass(frozen=True)
class Drop:
    """Drops keys that we do not need: classifier heads and copies. `pattern` matches a whole key, such as `example`."""

    pattern: str
    example: str


@dataclass(frozen=True)
class Transform:
    """Applies `function` to tensors whose whole key, such as `example`, matches `pattern`, renamed or not."""

    pattern: str
    function: Callable[[Tensor], Tensor]
    example: str


Rule = Rename | Drop | Transform

Sections = Callable[[Collection[str]], Mapping[str, str]]
"""Gives `{section: our section}` for all keys of a file, for names that depend on which other keys there are."""


def no_sections(keys: Collection[str]) -> Mapping[str, str]:
    """Replace no section: for files whose sections have our names."""
    return {}


@dataclass(frozen=True)
class Layout:
    """One naming of a family's parameters in files.

    Args:
        name: its name in reports.
        rules: their patterns and examples are for keys whose section has been replaced already.
        sections: gives our names for the sections of a file.
        prefix: start of all keys of the backbone. Keys without it belong to the rest of a larger model and are dropped.
        blocks_behind_tap: number of blocks at the end of every stage, except the last stage, that this implementation
            counts as part of the next downsampling. Its feature maps are taken before these blocks.
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
    """A file's tensors under our names; a name has several tensors if keys collide."""

    layout: Layout
    placed: dict[str, list[tuple[str, Tensor]]] = field(default_factory=dict)
    """Our key -> (the file's key, tensor)."""
    dropped: list[str] = field(default_factory=list)
    """The file's keys that the layout expects but does not need."""


def convert(layout: Layout, state: Mapping[str, Tensor]) -> Converted:
    """Rename, drop and transform the tensors of a file by the rules of a layout."""
    inside = {key.removeprefix(layout.prefix): key for key in state if key.startswith(layout.prefix)}
    sections = layout.sections(inside.keys())
    converted = Converted(layout, dropped=[key for key in state if not key.startswith(layout.prefix)])
    known = _any_pattern(layout.rules)
    for inner, key in inside.items():
        moved = _move(inner, sections)
        if not known.fullmatch(moved):  # shortcut: a file may have any number of keys that no rule matches
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
    """A pattern for every key that one of the rules matches; it matches nothing if there are no rules."""
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
    """Reshape the weight (out, in) of a linear layer to that of the equivalent 1x1 convolution, (out, in, 1, 1)."""
    return weight[:, :, None, None] if weight.ndim == 2 else weight
