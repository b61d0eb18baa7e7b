"""Checks rows of blocks in a model YAML: `[from, repeats, block, [out channels, {option: value}]]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.messages import flow, quoted
from yolo_lightbackbones.options import MOST_CHANNELS
from yolo_lightbackbones.plugin import limits
from yolo_lightbackbones.plugin.row import Row, modules, parse
from yolo_lightbackbones.plugin.scales import scale_of


def names_block(config: Mapping[str, Any], blocks: Mapping[str, type[BlockRow]]) -> bool:
    """Whether a model config has a row of blocks. Never raises: other configs are left to Ultralytics."""
    return any(module in blocks for module in modules(config))


def check_blocks(config: Mapping[str, Any], blocks: Mapping[str, type[BlockRow]]) -> Row:
    """Check all rows of blocks in a model config that has at least one; return the first.

    Args:
        config: a model YAML as Ultralytics loaded it, with `scale` filled in.
        blocks: name in the YAML -> the class that such a row builds.

    Raises:
        ConfigError: with the row, the value, what is allowed and what to do.
    """
    limits.check_bounds(config)
    rows = [row for row in parse(config) if row.module in blocks]
    for row in rows:
        scale_of(row, config)
        _check_block(row, blocks[row.module])
    return rows[0]


def _check_block(row: Row, block: type[BlockRow]) -> None:
    """Check a row `[from, repeats, block, [out channels, {option: value}]]`."""
    if isinstance(row.source, list):
        raise row.error(f"'from' is {flow(row.source)}; {row.module} takes one map: put a row Concat between them.")
    earliest = -1 if row.number == 0 else -row.number  # in Ultralytics, -1 means the image only in row 0
    if not is_whole(row.source) or not earliest <= row.source < row.number:
        raise row.error(
            f"'from' is {quoted(row.source)}; it must be the number of an earlier row, or -1 for the one before."
        )
    if not is_whole(row.repeats) or row.repeats < 1:
        raise row.error(f"repeats is {quoted(row.repeats)}; it must be a whole number, at least 1.")
    names = ", ".join(block.options)
    if not 1 <= len(row.args) <= 2:
        raise row.error(
            f"{len(row.args)} arguments; {row.module} takes its output channels and then at most one mapping of "
            f"options ({names}), for example [256] or [256, {{drop_path: 0.1}}]."
        )
    if not is_whole(row.args[0]) or not 1 <= row.args[0] <= MOST_CHANNELS:
        raise row.error(
            f"the output channels are {quoted(row.args[0])}; they must be a whole number, at least 1 and at most "
            f"{MOST_CHANNELS}, before the scaling by width."
        )
    options = row.args[1] if len(row.args) == 2 else {}
    if not isinstance(options, Mapping):
        raise row.error(f"the second argument is {quoted(options)}; it must be a mapping of options: {names}.")
    try:
        block.check_options(options)
    except ValueError as error:
        raise row.error(str(error)) from None
