"""The patch on Ultralytics' parser: our rows are translated, then the original `parse_model` runs."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

from yolo_lightbackbones import registry
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.layers import Channels
from yolo_lightbackbones.plugin import block_rows, classes, hints, parser, pretrained, releases, rows, sizes
from yolo_lightbackbones.plugin.inputs import Range
from yolo_lightbackbones.plugin.models import MARKS
from yolo_lightbackbones.plugin.patching import unpatched
from yolo_lightbackbones.plugin.row import TAP, Row

NO_BLOCKS = "no rows of blocks in model YAMLs"


def parse_model(original: Callable[..., Any], tasks: ModuleType, publish: Callable[[], None]) -> Callable[..., Any]:
    """Replace `ultralytics.nn.tasks.parse_model` by one that translates our rows first.

    Args:
        original: the function to replace.
        tasks: its module.
        publish: makes families known to the parser that were registered since its last call.
    """

    def parse_model(d: dict[str, Any], ch: int, *args: Any, **kwargs: Any) -> Any:
        families = classes.families(tasks)
        wanted: dict[int, tuple[Row, bool | str]] = {}
        has_backbone = rows.names_backbone(d, families)
        has_block = block_rows.names_block(d, blocks := classes.block_rows(tasks))
        parse = _parser_of_blocks(original, d, blocks) if has_block else original
        with _activation_restored(tasks) if has_backbone or has_block else contextlib.nullcontext():
            if has_backbone:
                publish()
                count = functools.partial(_count_channels, parse, tasks, d, ch)
                d, wanted = rows.translate(d, ch, families, count), rows.pretrained(d, families)
            try:
                built = parse(d, ch, *args, **kwargs)
            except KeyError as error:  # raised by the parser for a module that it does not know
                hints.explain_unknown(d, str(error.args[0]), [*families, TAP, *blocks])
                if has_backbone:
                    hints.explain_lacking(d, str(error.args[0]))
                raise
        if not has_backbone:
            return built
        pretrained.load(wanted, built[0])
        sizes.allow_measuring(built[0])
        return _with_channels(built)

    return parse_model


def _with_channels(parsed: tuple[Any, Any]) -> tuple[Any, Any]:
    """Replace the layers that stand for `Channels` rows; the parser's marks stay."""
    layers, save = parsed
    for number, layer in enumerate(layers):
        chosen = getattr(layer, "index", None)
        if isinstance(chosen, Range):
            ours = Channels(chosen.start, chosen.stop)
            for mark in MARKS:
                setattr(ours, mark, getattr(layer, mark, None))
            setattr(ours, "type", f"{Channels.__module__}.{Channels.__name__}")  # noqa: B010
            layers[number] = ours
    return layers, save


def _count_channels(
    parse: Callable[..., Any],
    tasks: ModuleType,
    config: Mapping[str, Any],
    image_channels: int,
    rows_before: Sequence[list[Any]],
) -> int:
    """Channels of the last row's output, found by building these rows and running an image through them.

    Both is done on the meta device, without memory. Only the parser knows how it scales the channels of its modules.
    """
    start = {**config, "backbone": copy.deepcopy([*rows_before]), "head": []}
    with torch.device("meta"), torch.no_grad():
        net = tasks.BaseModel()
        net.model, net.save = _with_channels(parse(start, image_channels, verbose=False))
        output = net.eval()(torch.zeros(1, image_channels, 256, 256))
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        raise TypeError("it does not give one feature map")
    return output.shape[1]


def misfit_of_blocks(parse_model: Callable[..., Any]) -> str | None:
    """Explain why this parser cannot be extended with our rows of blocks; None if it can."""
    try:
        parser.with_rows(unpatched(parse_model), registry.block_rows())
    except parser.MisfitError as error:
        return f"parse_model {error}"
    return None


@contextlib.contextmanager
def _activation_restored(tasks: ModuleType) -> Iterator[None]:
    """Limit the activation that a YAML asks for (`activation:`) to its model.

    The parser sets it for the whole process. If a build fails, and in releases that never reset it, the next model
    would silently get it.
    """
    conv: Any = getattr(tasks, "Conv", None)
    before = getattr(conv, "default_act", None)
    try:
        yield
    finally:
        if before is not None:
            conv.default_act = before


def _parser_of_blocks(
    original: Callable[..., Any], config: dict[str, Any], blocks: Mapping[str, type[BlockRow]]
) -> Callable[..., Any]:
    """Extend Ultralytics' parser for a model with rows of blocks.

    Raises:
        ConfigError: for a mistake in such a row, and if the parser cannot be extended.
    """
    first = block_rows.check_blocks(config, blocks)
    try:
        return parser.with_rows(original, blocks)
    except parser.MisfitError as error:
        raise first.error(
            f"rows of {', '.join(blocks)} are not available with Ultralytics {releases.version()}: its parse_model "
            f"{error}. Tested with {releases.TESTED_VERSIONS}; install that, or take another module for this row. "
            f"Everything else of yolo_lightbackbones works."
        ) from error
