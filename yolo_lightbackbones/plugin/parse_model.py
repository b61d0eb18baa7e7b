"""The patch on Ultralytics' parser: our rows are translated, then the original `parse_model` runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from yolo_lightbackbones import registry
from yolo_lightbackbones.plugin import hints, parser, pretrained, releases, rows, sizes
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
        families = registry.families()
        wanted: dict[int, tuple[Row, bool | str]] = {}
        if has_backbone := rows.names_backbone(d, families):
            d, wanted = rows.translate(d, ch, families), rows.pretrained(d, families)
            publish()
        has_block = rows.names_block(d, block_rows := registry.block_rows())
        parse = _parser_of_blocks(original, d) if has_block else original
        with _activation_restored(tasks) if has_backbone or has_block else contextlib.nullcontext():
            try:
                built = parse(d, ch, *args, **kwargs)
            except KeyError as error:  # raised by the parser for a module that it does not know
                hints.explain_unknown(d, str(error.args[0]), [*families, TAP, *block_rows])
                raise
        if has_backbone:
            pretrained.load(wanted, built[0])
            sizes.allow_measuring(built[0])
        return built

    return parse_model


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


def _parser_of_blocks(original: Callable[..., Any], config: dict[str, Any]) -> Callable[..., Any]:
    """Extend Ultralytics' parser for a model with rows of blocks.

    Raises:
        ConfigError: for a mistake in such a row, and if the parser cannot be extended.
    """
    block_rows = registry.block_rows()
    first = rows.check_blocks(config, block_rows)
    try:
        return parser.with_rows(original, block_rows)
    except parser.MisfitError as error:
        raise first.error(
            f"rows of {', '.join(block_rows)} are not available with Ultralytics {releases.version()}: its parse_model "
            f"{error}. Tested with {releases.TESTED_VERSIONS}; install that, or take another module for this row. "
            f"Everything else of yolo_lightbackbones works."
        ) from error
