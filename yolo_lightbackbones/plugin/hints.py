"""Hints for unknown modules and variants in a model YAML: the row that the user probably meant."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from yolo_lightbackbones import registry
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.bounds import LONGEST_TEXT, is_whole
from yolo_lightbackbones.configs import necks
from yolo_lightbackbones.messages import flow, quoted
from yolo_lightbackbones.plugin import releases
from yolo_lightbackbones.plugin.row import TAP, Row, UnknownModuleError, modules, parse

_OTHER_BLOCKS = {"edgevitblock": "LGLBlock", "parcnetblock": "ParCBlock", "conv2formerblock": "ConvModBlock"}
"""Name that users derive from a family's -> its block. RepViT is not here, because its paper says RepViTBlock."""

_ENDINGS = ("", "block", "blocks")


def explain_unknown(config: Mapping[str, Any], module: str, ours: Collection[str]) -> None:
    """Raise an error with a hint if an unknown module has nearly the name of one of ours.

    Raises:
        UnknownModuleError: with the row, and the row to write instead.
    """
    if module not in modules(config):
        return
    rows = parse(config)
    families = {name: cls for name, cls in registry.families().items() if name in ours}
    for row in rows:
        if row.module == module and (hint := meant(row, rows, families, ours)):
            raise UnknownModuleError(str(row.error(hint)))


def explain_lacking(config: Mapping[str, Any], module: str) -> None:
    """Raise an error if an unknown module is one of Ultralytics' that the imported release does not have.

    Raises:
        UnknownModuleError: with the row, and the releases that have the module.
    """
    if module in necks.modules() and (row := next((row for row in parse(config) if row.module == module), None)):
        raise UnknownModuleError(str(row.error(releases.lacks(module))))


def meant(row: Row, rows: Sequence[Row], families: Mapping[str, type[Backbone]], ours: Collection[str]) -> str | None:
    """Suggest a row for an unknown module whose name is close to one of ours, or is what another project calls it."""
    taps = any(other.module == TAP for other in rows)
    block = _block_meant(row.module, families)
    if block is not None:
        source = row.source if is_whole(row.source) else -1
        repeats = row.repeats if is_whole(row.repeats) else 1
        channels = next((value for value in row.args if is_whole(value)), 256)
        backbone = f", or for the taps a backbone: {_example(next(iter(families.values())))}"
        return (
            f"unknown module {quoted(row.module)}. Did you mean {block!r}? "
            f"Write [{source}, {repeats}, {block}, [{channels}]]{backbone if taps and families else ''}."
        )
    found = registry.recognise(row.module, families)
    close = spelt(row.module, ours)
    if found is None:
        return close
    start = close if close and found[1] is None else f"unknown module {quoted(row.module)}."
    behind = "" if taps else ", and rows such as [0, 1, Tap, [P5]] behind it"
    return f"{start} Write row 0 as {_example(*found, row.args)}{behind}."


def variant_meant(wanted: str, family: type[Backbone], families: Mapping[str, type[Backbone]]) -> str:
    """A hint for a variant that the family does not have: a space and a sentence, or an empty text."""
    own = {family.__name__: family}
    found = registry.recognise(wanted, own) or registry.recognise(f"{family.family}_{wanted}", own)
    if found is None or found[1] is None:
        found = registry.recognise(wanted, families)
        if found is None or found[1] is None or found[0] is family:
            return ""
        return f" Write {_example(*found)}."
    if _letters(wanted) in {_letters(found[1]), _letters(f"{family.family}{found[1]}")}:
        return f" Write {_example(*found)}."
    return f" Write {_example(*found)}; published weights come in with `lightbackbones convert`."


def spelt(module: str, ours: Collection[str]) -> str | None:
    """A hint for a module that is spelt nearly like one of ours; None for any other."""
    by_letters = {name.lower(): name for name in ours}
    close = (
        difflib.get_close_matches(module.lower(), by_letters, n=1, cutoff=0.8) if len(module) <= LONGEST_TEXT else []
    )
    return f"unknown module {quoted(module)}. Did you mean {by_letters[close[0]]!r}?" if close else None


def _block_meant(module: str, families: Mapping[str, type[Backbone]]) -> str | None:
    letters = _letters(module)
    if letters in map(_letters, families):
        return None
    ours = registry.block_rows()
    names = _OTHER_BLOCKS | {_letters(name).removesuffix("block") + end: name for name in ours for end in _ENDINGS}
    return names.get(letters)


def _example(family: type[Backbone], variant: str | None = None, args: Sequence[Any] = ()) -> str:
    """A correct backbone row; it keeps the variant of the wrong row (`args`) if the family has that variant."""
    first: Any = variant or family.example()
    if variant is None and args:
        with contextlib.suppress(ValueError):
            first = args[0] if isinstance(args[0], Mapping) else family.resolve_variant(str(args[0]))
    return f"[-1, 1, {family.__name__}, [{flow(first)}]]"


def _letters(name: str) -> str:
    """Normalise a name for comparison, without case and punctuation: `RepViT-M0.9` -> `repvitm09`."""
    return re.sub(r"[\W_]+", "", name[:LONGEST_TEXT].lower())
