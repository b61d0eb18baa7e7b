"""Checks rows that take one map of a backbone: `[0, 1, Tap, [P3]]`, or Ultralytics' own `[0, 1, Index, [72, 1]]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.messages import flow, quoted
from yolo_lightbackbones.plugin import hints
from yolo_lightbackbones.plugin.row import INDEX, TAP, Row


@dataclass(frozen=True)
class Offer:
    """What a backbone row offers to the rows behind it.

    Args:
        number: number of the backbone's row.
        name: name of the backbone for error messages.
        taps: all taps, shallow to deep.
        channels: channels of each tap.
        hint: a sentence to add to the error about a tap that it does not have, or an empty text.
    """

    number: int
    name: str
    taps: tuple[str, ...]
    channels: tuple[int, ...]
    hint: str


def tap_position(row: Row, backbone: Offer) -> int | None:
    """Index of the output of a backbone that a row takes; None for a row that takes none of it.

    Raises:
        ConfigError: for a tap that the backbone lacks, and for a row that takes all of its maps.
    """
    if backbone.number not in row.sources:
        return None
    if row.module in (TAP, INDEX) and not is_whole(row.source):
        raise row.error(f"'from' is {flow(row.source)}; write {backbone.number}.")
    if row.module == TAP:
        if not is_whole(row.repeats) or row.repeats != 1:
            raise row.error(f"repeats is {quoted(row.repeats)}; a tap cannot be repeated: write 1.")
        if len(row.args) != 1 or row.args[0] not in backbone.taps:
            given = flow(row.args[0] if len(row.args) == 1 else row.args)
            raise row.error(
                f"{backbone.name} has no tap {given}. Allowed, one of: {', '.join(backbone.taps)}.{backbone.hint}"
            )
        return backbone.taps.index(row.args[0])
    if row.module != INDEX or row.sources != [backbone.number]:
        if meant := hints.spelt(row.module, [TAP]):
            raise row.error(meant)
        raise row.error(
            f"{flow(row.module, 80)} takes its input from the backbone (row {backbone.number}), which gives a list of "
            f"maps. Put a row [{backbone.number}, 1, Tap, [{backbone.taps[-1]}]] between them, and take its input from "
            "there."
        )
    return _index_position(row, backbone.taps, backbone.channels)


def _index_position(row: Row, taps: Sequence[str], channels: Sequence[int]) -> int:
    """Check an `Index` row on the backbone; return the tap's index. Ultralytics itself does not check the channels."""
    if not is_whole(row.repeats) or row.repeats != 1:
        raise row.error(f"repeats is {quoted(row.repeats)}; an index cannot be repeated: write 1.")
    if not 1 <= len(row.args) <= 2:
        raise row.error(f"{len(row.args)} arguments; an Index takes a channel number and an index, as in [64, 1].")
    written, position = row.args[0], row.args[1] if len(row.args) == 2 else 0
    if not is_whole(position) or not -len(taps) <= position < len(taps):
        raise row.error(
            f"index {quoted(position)} is out of range; the backbone gives {len(taps)} maps: {', '.join(taps)}."
        )
    position = int(position) % len(taps)
    if written != channels[position]:
        raise row.error(
            f"the channel number is {quoted(written)}, but {taps[position]} has {channels[position]}. "
            f"Write {channels[position]}, or [{row.source}, 1, Tap, [{taps[position]}]], which needs no number."
        )
    return position
