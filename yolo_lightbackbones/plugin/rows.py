"""Translates rows of a model YAML into rows that Ultralytics' own parser understands; plain data in, plain data out.

A row is `[from, repeats, module, args]`. Two kinds of rows are translated:

    [-1, 1, EdgeViT, [{n: xxs, s: xs}]]  ->  [-1, 1, EdgeViT, [edgevit_xxs, Options(...)]]
    [0, 1, Tap, [P3]]                    ->  [0, 1, Index, [72, 1]]

Variants are resolved here because the parser replaces a string argument that equals one of its local variables (`n`,
`m`, ...) and evaluates others (`m0.9` is a syntax error there). Every mistake that a user can make in such a row is
reported here, before anything is built or written.

Rows of blocks, `[-1, 3, RepViTBlock, [256, {mlp_ratio: 4}]]`, are checked, but not changed, because the parser does not
touch the values in a mapping. All other rows stay as they are.

`hints` suggests the row that was meant by an unknown name. `limits` refuses a model that would take an unbounded amount
of memory or time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolo_lightbackbones import registry
from yolo_lightbackbones.backbone import Backbone, Options
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.bounds import is_number, is_whole
from yolo_lightbackbones.messages import flow, listed, quoted
from yolo_lightbackbones.options import MOST_CHANNELS, Option
from yolo_lightbackbones.plugin import hints, limits
from yolo_lightbackbones.plugin.row import INDEX, TAP, Row, as_list, modules, parse

_WEIGHTS_OPTIONS = ("pretrained", "pretrain", "weights", "checkpoint", "ckpt")
"""Names of the option for published weights in other projects."""


def names_backbone(config: Mapping[str, Any], families: Mapping[str, type[Backbone]]) -> bool:
    """Whether a model config has a backbone or a tap. Never raises: other configs are left to Ultralytics."""
    return any(module == TAP or module in families for module in modules(config))


def names_block(config: Mapping[str, Any], blocks: Mapping[str, type[BlockRow]]) -> bool:
    """Whether a model config has a row of blocks. Never raises: other configs are left to Ultralytics."""
    return any(module in blocks for module in modules(config))


def translate(config: Mapping[str, Any], in_channels: int, families: Mapping[str, type[Backbone]]) -> dict[str, Any]:
    """Return a copy of a model config whose rows Ultralytics' parser understands.

    Args:
        config: a model YAML as Ultralytics loaded it, with `scale` filled in.
        in_channels: channels of the image.
        families: name in the YAML -> backbone class.

    Raises:
        ConfigError: with the row, the value, what is allowed and what to do.
    """
    limits.check_bounds(config)
    rows = parse(config)
    backbone = _backbone_row(rows, families)
    family = families[backbone.module]
    variant, options = _backbone_args(backbone, families, config)
    offered = _offered_taps(backbone, family, variant, _resolve(backbone, family, options))
    taps, channels = tuple(offered), tuple(offered.values())

    positions = {row.number: _tap_position(row, backbone, taps, channels) for row in rows[1:]}
    used = [position for position in positions.values() if position is not None]
    if not used:
        raise backbone.error(f"nothing uses this backbone. Add rows such as [0, 1, Tap, [{taps[-1]}]].")

    # Do not build stages behind the deepest tap that is used, nor norms of unused taps: they would never be trained.
    needed, normed = taps[: max(used) + 1], [tap for number, tap in enumerate(taps) if number in used]
    resolved = _resolve(backbone, family, options, in_channels=in_channels, taps=needed, normed_taps=normed)
    translated: list[list[Any]] = []
    for row in rows:
        position = positions.get(row.number)
        if row is backbone:
            translated.append([row.source, row.repeats, row.module, [variant, resolved]])
        elif position is not None:
            translated.append([row.source, row.repeats, INDEX, [channels[position], position]])
        else:
            translated.append([row.source, row.repeats, row.module, row.args])
    split = len(as_list(config.get("backbone")))
    return {**config, "backbone": translated[:split], "head": translated[split:]}


def pretrained(config: Mapping[str, Any], families: Mapping[str, type[Backbone]]) -> dict[int, tuple[Row, bool | str]]:
    """Rows of a model config that ask for pretrained weights: number -> row and option.

    Args:
        config: a model YAML that `translate` takes.
        families: name in the YAML -> backbone class.
    """
    if config.get("pretrained") is False:
        return {}
    given = {
        row.number: (row, _backbone_args(row, families, config)[1].get("pretrained", False))
        for row in parse(config)
        if row.module in families
    }
    return {number: (row, value) for number, (row, value) in given.items() if value}


def _resolve(row: Row, family: type[Backbone], given: Mapping[str, Any], **known: Any) -> Options:
    """Combine the options of a row, the defaults of its family, and the image channels and taps of the model."""
    options = {"init": family.row_init, **known, **given}
    options.pop("pretrained", None)  # weights come in when all rows are built
    if options.pop("tap_norm", family.row_tap_norm) == "none":
        options.pop("normed_taps", None)
    try:
        return Options(**options)
    except ValueError as error:
        raise row.error(str(error)) from None


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
        _scale(row, config)
        _check_block(row, blocks[row.module])
    return rows[0]


def _backbone_row(rows: Sequence[Row], families: Mapping[str, type[Backbone]]) -> Row:
    """Return the backbone row; there must be exactly one, and it must be the first row."""
    for row in rows:
        if row.module in families and row.number > 0:
            raise row.error(f"{row.module} takes the image, so it must be the first row (row 0) of the model.")
    first = rows[0]
    if first.module not in families:
        if meant := hints.meant(first, rows, families, families):
            raise first.error(meant)
        for row in rows:
            if registry.recognise(row.module, families) and (meant := hints.meant(row, rows, families, families)):
                raise row.error(meant)
        tap = next(row for row in rows if row.module == TAP)
        raise tap.error(
            f"Tap takes its input from a backbone, and this model has none. "
            f"Make row 0 one of {', '.join(families)}, for example [-1, 1, EdgeViT, [xxs]]."
        )
    if not is_whole(first.source) or first.source != -1:
        raise first.error(f"'from' is {quoted(first.source)}; a backbone takes the image: write -1.")
    if not is_whole(first.repeats) or first.repeats != 1:
        raise first.error(f"repeats is {quoted(first.repeats)}; a backbone cannot be repeated: write 1.")
    return first


def _backbone_args(
    row: Row, families: Mapping[str, type[Backbone]], config: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Read variant and options of a backbone row: `[variant or {scale letter: variant}, {option: value}]`."""
    family = families[row.module]
    example = f"[{family.example()}]"
    if not 1 <= len(row.args) <= 2:
        raise row.error(
            f"{len(row.args)} arguments; {row.module} takes a variant, or a mapping from scale letter to variant, "
            f"and then at most one mapping of options, for example {example}."
        )
    wanted = row.args[0]
    scale = _scale(row, config)
    if isinstance(wanted, Mapping):
        letters = {str(letter): value for letter, value in wanted.items()}
        if unknown := [letter for letter in letters if letter in family.row_options]:
            raise row.error(
                f"{unknown[0]!r} is an option; the variant comes first: [{example[1:-1]}, {{{unknown[0]}: ...}}]."
            )
        if scale not in letters:
            if scale is None:
                raise row.error(
                    f"the variant depends on the scale letter ({listed(letters) or 'none'}), and this model has no "
                    f"'scales'. Give one variant, {example}, or add scales."
                )
            raise row.error(
                f"no variant for scale {quoted(scale)}. Allowed: {listed(letters) or 'none'}. "
                f"Name the model with one of these letters (as in yolov5{flow(next(iter(letters), 'n'), 20)}_...yaml), "
                f"or add {quoted(scale)} to the mapping."
            )
        wanted = letters[scale]
    if not isinstance(wanted, str):
        raise row.error(f"the variant is {quoted(wanted)}; it must be a name out of {family.choices()}.")
    try:
        variant = family.resolve_variant(wanted)
    except ModuleNotFoundError as error:  # of an open family
        raise row.error(str(error)) from error
    except ValueError as error:
        raise row.error(f"{error}{hints.variant_meant(wanted, family, families)}") from None
    return family.full_name(variant), _options(row, family.row_options)


def _scale(row: Row, config: Mapping[str, Any]) -> str | None:
    """Return the scale letter of the model; if the file name has none, Ultralytics takes the first of `scales`."""
    scales, scale = config.get("scales"), config.get("scale")
    if scale is not None and not isinstance(scale, str | int):
        raise row.error(f"the scale is {flow(scale)}; it must be a letter.")
    if not scales:
        return str(scale) if scale else None
    if not isinstance(scales, Mapping) or not all(_is_scale(factors) for factors in scales.values()):
        raise row.error(
            f"'scales' is {flow(scales)}; it must map letters to [depth, width, largest number of channels], depth "
            f"and width above 0 and at most {limits.LARGEST_FACTOR}."
        )
    scale = scale or next(iter(scales))
    if scale not in scales:
        raise row.error(f"no scale {quoted(scale)} in this model's 'scales'. Allowed: {listed(scales)}.")
    return str(scale)


def _is_scale(factors: Any) -> bool:
    if not isinstance(factors, list | tuple) or len(factors) != 3 or not all(map(is_number, factors)):
        return False
    depth, width, channels = factors
    return bool(0 < depth <= limits.LARGEST_FACTOR and 0 < width <= limits.LARGEST_FACTOR and channels >= 1)


def _options(row: Row, allowed: Mapping[str, Option]) -> dict[str, Any]:
    options = row.args[1] if len(row.args) == 2 else {}
    if not isinstance(options, Mapping):
        raise row.error(
            f"the second argument is {quoted(options)}; it must be a mapping of options: {', '.join(allowed)}."
        )
    for name, value in options.items():
        if name not in allowed:
            hint = "" if name not in _WEIGHTS_OPTIONS else " Published weights come in with `lightbackbones convert`."
            raise row.error(f"unknown option {quoted(name)}.{hint} Allowed: {', '.join(allowed)}.")
        try:
            allowed[name].check(name, value)
        except ValueError as error:
            raise row.error(str(error)) from None
    return dict(options)


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


def _offered_taps(row: Row, family: type[Backbone], variant: str, options: Options) -> dict[str, int]:
    """All taps that a variant offers with the options of its row: tap -> channels.

    Finding them takes up to half a second, and a process may parse a model many times. So the result is kept while the
    class and the config of the variant stay the same objects.
    """
    config, key = family.config_of(variant.removeprefix(family.full_name(""))), (family, variant, options)
    known = _known_taps.get(key)
    if known is None or known[0] is not config:
        try:
            known = (config, family.offered_taps(variant, options))
        except ValueError as error:
            raise row.error(str(error)) from error
        _known_taps[key] = known
    return known[1]


_known_taps: dict[tuple[type[Backbone], str, Options], tuple[Any, dict[str, int]]] = {}


def _tap_position(row: Row, backbone: Row, taps: tuple[str, ...], channels: tuple[int, ...]) -> int | None:
    """Index of the backbone output that a row takes; None for a row that takes none."""
    takes_backbone = backbone.number in row.sources
    if row.module in (TAP, INDEX) and row.sources == [backbone.number] and not is_whole(row.source):
        raise row.error(f"'from' is {flow(row.source)}; write {backbone.number}.")
    if row.module == TAP:
        if row.sources != [backbone.number]:
            raise row.error(
                f"Tap takes its input from row {quoted(row.source)}, which is not a backbone. "
                f"Write [{backbone.number}, 1, Tap, {flow(row.args)}]."
            )
        if not is_whole(row.repeats) or row.repeats != 1:
            raise row.error(f"repeats is {quoted(row.repeats)}; a tap cannot be repeated: write 1.")
        if len(row.args) != 1 or row.args[0] not in taps:
            given = flow(row.args[0] if len(row.args) == 1 else row.args)
            raise row.error(f"{backbone.module} has no tap {given}. Allowed, one of: {', '.join(taps)}.")
        return taps.index(row.args[0])
    if not takes_backbone:
        return None
    if row.module != INDEX or row.sources != [backbone.number]:
        if meant := hints.spelt(row.module, [TAP]):
            raise row.error(meant)
        raise row.error(
            f"{flow(row.module, 80)} takes its input from the backbone (row {backbone.number}), which gives a list of "
            f"maps. Put a row [{backbone.number}, 1, Tap, [{taps[-1]}]] between them, and take its input from there."
        )
    return _index_position(row, taps, channels)


def _index_position(row: Row, taps: tuple[str, ...], channels: tuple[int, ...]) -> int:
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
