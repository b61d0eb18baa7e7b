"""Model-YAML rows -> rows that Ultralytics' own parser understands; plain data in, plain data out.

A row is `[from, repeats, module, args]`. Two kinds of rows are translated:

    [-1, 1, EdgeViT, [{n: xxs, s: xs}]]  ->  [-1, 1, EdgeViT, [edgevit_xxs, Options(...)]]
    [0, 1, Tap, [P3]]                    ->  [0, 1, Index, [72, 1]]

Variants are resolved here because the parser replaces a string argument that equals one of its local variables (`n`,
`m`, ...) and evaluates others (`m0.9` is a syntax error there). Everything a user can get wrong in such a row is an
error here, before anything is built or written.

Rows of blocks, `[-1, 3, RepViTBlock, [256, {mlp_ratio: 4}]]`, are checked and pass as they are, like all others: the
parser leaves what is in a mapping alone.

A YAML can come from anybody. A few aliases in it stand for millions of values, and a number in it is how often a layer
is built. `check_bounds` refuses such a model before anything is built of it.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolo_lightbackbones import registry
from yolo_lightbackbones.backbone import Backbone, Options
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.bounds import LONGEST_TEXT, MOST_VALUES, BoundsError, check_scalar, extent, is_number, is_whole
from yolo_lightbackbones.messages import flow, listed, quoted
from yolo_lightbackbones.options import MOST_CHANNELS, ROW_OPTIONS

TAP = "Tap"
INDEX = "Index"
_WEIGHTS_OPTIONS = ("pretrained", "pretrain", "weights", "checkpoint", "ckpt")
"""Option names that other projects use for published weights."""

_MOST_REPEATS = 200
_LARGEST_FACTOR = 10  # of the depth and the width of a scale
_NUMBERS = ("nc", "reg_max", "kpt_shape", "ne", "channels", "depth_multiple", "width_multiple")
"""Keys besides the rows and `scales` from which Ultralytics reads numbers."""

_OTHER_BLOCKS = {"edgevitblock": "LGLBlock", "parcnetblock": "ParCBlock", "conv2formerblock": "ConvModBlock"}
"""Blocks called after their family; RepViT's has that name in its paper."""


class ConfigError(ValueError):
    """A mistake in a model YAML: says where, what was given, what is allowed and what to do."""


class UnknownModuleError(ConfigError, KeyError):
    """A module that nobody knows and that is called nearly like one of ours; a `KeyError`, as Ultralytics' own."""

    __str__ = ValueError.__str__  # a KeyError would put its message in quotation marks


@dataclass(frozen=True)
class Row:
    """One row of a model YAML and what error messages call it."""

    where: str
    number: int
    source: Any
    repeats: Any
    module: Any
    args: list[Any]

    @property
    def sources(self) -> list[int]:
        """Absolute numbers of the rows this one takes its input from; -1 is the image."""
        sources = self.source if isinstance(self.source, list) else [self.source]
        return [self.number + s if isinstance(s, int) and s < 0 else s for s in sources]

    def error(self, message: str) -> ConfigError:
        row = [self.source, self.repeats, self.module, self.args]
        return ConfigError(f"{self.where}row {self.number} {flow(row)}: {message}")


def names_backbone(config: Mapping[str, Any], families: Mapping[str, type[Backbone]]) -> bool:
    """Whether a model config has a backbone or a tap. Never raises: a config without one is none of our business."""
    return any(module == TAP or module in families for module in modules(config))


def names_block(config: Mapping[str, Any], blocks: Mapping[str, type[BlockRow]]) -> bool:
    """Whether a model config has a row of blocks. Never raises: a config without one is none of our business."""
    return any(module in blocks for module in modules(config))


def explain_unknown(config: Mapping[str, Any], module: str, ours: Collection[str]) -> None:
    """Say what a module that nobody knows was meant to be, if it is nearly one of ours.

    Raises:
        ConfigError: naming the row and what to write there.
    """
    if module not in modules(config):
        return
    rows = _parse_rows(config)
    families = {name: cls for name, cls in registry.families().items() if name in ours}
    for row in rows:
        if row.module == module and (meant := _meant(row, rows, families, ours)):
            raise UnknownModuleError(str(row.error(meant)))


def check_bounds(config: Mapping[str, Any]) -> None:
    """Refuse a model config that would take memory or time without end; rows of all kinds, ours or not.

    Raises:
        ConfigError: for aliases that stand for very many values, for values that contain themselves or are nested very
            deeply, and for numbers and texts in rows that are too large, naming the row or the key.
    """
    where, depth = _where(config), max(_factors(config))
    seen: dict[int, tuple[int, int] | None] = {}
    total = number = 0
    for part in ("backbone", "head"):
        for row in _listed(config.get(part)):
            try:
                total += extent(row, seen, check_scalar)[0]
                _check_repeats(row, depth)
            except BoundsError as error:
                raise ConfigError(f"{where}row {number} {flow(row)}: {error}") from None
            number += 1
    for key, value in config.items():
        if key in ("backbone", "head") and isinstance(value, list | tuple):
            continue
        try:
            total += extent(value, seen, check_scalar if key in _NUMBERS else None)[0]
        except BoundsError as error:
            raise ConfigError(f"{where}{quoted(key)} is {flow(value)}: {error}") from None
    if total > MOST_VALUES:
        raise ConfigError(f"{where}the model has {total:,} values; at most {MOST_VALUES:,} are taken.")


def translate(config: Mapping[str, Any], in_channels: int, families: Mapping[str, type[Backbone]]) -> dict[str, Any]:
    """A copy of a model config whose rows Ultralytics' parser understands.

    Args:
        config: a model YAML as Ultralytics loaded it, with `scale` filled in.
        in_channels: channels of the image.
        families: name in the YAML -> backbone class.

    Raises:
        ConfigError: naming the row, the value, what is allowed and what to do.
    """
    check_bounds(config)
    rows = _parse_rows(config)
    backbone = _backbone_row(rows, families)
    family = families[backbone.module]
    variant, options = _backbone_args(backbone, families, config)
    offered = _offered_taps(backbone, family, variant)
    taps, channels = tuple(offered), tuple(offered.values())

    positions = {row.number: _tap_position(row, backbone, taps, channels) for row in rows[1:]}
    used = [position for position in positions.values() if position is not None]
    if not used:
        raise backbone.error(f"nothing uses this backbone. Add rows such as [0, 1, Tap, [{taps[-1]}]].")

    # Stages behind the deepest tap that is used would be built, trained by nobody, and computed for nothing, and taps
    # that nobody uses would have norms that nobody trains.
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
    split = len(_listed(config.get("backbone")))
    return {**config, "backbone": translated[:split], "head": translated[split:]}


def _resolve(row: Row, family: type[Backbone], given: Mapping[str, Any], **known: Any) -> Options:
    """The options of a row and the defaults of its family, with what the model says of the image and the taps."""
    options = {"init": family.row_init, **known, **given}
    if options.pop("tap_norm", family.row_tap_norm) == "none":
        del options["normed_taps"]
    try:
        return Options(**options)
    except ValueError as error:
        raise row.error(str(error)) from None


def check_blocks(config: Mapping[str, Any], blocks: Mapping[str, type[BlockRow]]) -> Row:
    """Check all rows of blocks in a model config that has some; return the first.

    Args:
        config: a model YAML as Ultralytics loaded it, with `scale` filled in.
        blocks: name in the YAML -> what such a row builds.

    Raises:
        ConfigError: naming the row, the value, what is allowed and what to do.
    """
    check_bounds(config)
    rows = [row for row in _parse_rows(config) if row.module in blocks]
    for row in rows:
        _scale(row, config)
        _check_block(row, blocks[row.module])
    return rows[0]


def _where(config: Mapping[str, Any]) -> str:
    """Start of a message: the file, if the model comes from one."""
    return f"{flow(config['yaml_file'], 400)}, " if config.get("yaml_file") else ""


def _parse_rows(config: Mapping[str, Any]) -> list[Row]:
    where = _where(config)
    for part in ("backbone", "head"):
        if not isinstance(config.get(part), list | tuple):
            raise ConfigError(f"{where}{part!r} is {flow(config.get(part))}; it must be a list of rows.")
    rows = []
    for number, row in enumerate([*_listed(config.get("backbone")), *_listed(config.get("head"))]):
        well_formed = isinstance(row, list | tuple) and len(row) == 4
        if not well_formed or not isinstance(row[2], str) or not isinstance(row[3], list):
            raise ConfigError(f"{where}row {number} {flow(row)}: a row is [from, repeats, module, [arguments]].")
        rows.append(Row(where, number, *row))
    return rows


def _backbone_row(rows: Sequence[Row], families: Mapping[str, type[Backbone]]) -> Row:
    """The one backbone row, which has to be the first."""
    for row in rows:
        if row.module in families and row.number > 0:
            raise row.error(f"{row.module} takes the image, so it must be the first row (row 0) of the model.")
    first = rows[0]
    if first.module not in families:
        if meant := _meant(first, rows, families, families):
            raise first.error(meant)
        for row in rows:
            if registry.recognise(row.module, families) and (meant := _meant(row, rows, families, families)):
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
    """Variant and options of a backbone row: `[variant or {scale letter: variant}, {option: value}]`."""
    family = families[row.module]
    example = f"[{next(iter(family.variants))}]"
    if not 1 <= len(row.args) <= 2:
        raise row.error(
            f"{len(row.args)} arguments; {row.module} takes a variant, or a mapping from scale letter to variant, "
            f"and then at most one mapping of options, for example {example}."
        )
    wanted = row.args[0]
    scale = _scale(row, config)
    if isinstance(wanted, Mapping):
        letters = {str(letter): value for letter, value in wanted.items()}
        if unknown := [letter for letter in letters if letter in ROW_OPTIONS]:
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
        raise row.error(f"the variant is {quoted(wanted)}; it must be a name out of {', '.join(family.variants)}.")
    try:
        variant = family.resolve_variant(wanted)
    except ValueError as error:
        raise row.error(f"{error}{_variant_meant(wanted, family, families)}") from None
    return f"{family.family}_{variant}", _options(row)


def _variant_meant(wanted: str, family: type[Backbone], families: Mapping[str, type[Backbone]]) -> str:
    """A hint on a variant that the family does not have: a sentence after a space, or nothing."""
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


def _scale(row: Row, config: Mapping[str, Any]) -> str | None:
    """The model's scale letter: Ultralytics takes the first of `scales` where the file name has none."""
    scales, scale = config.get("scales"), config.get("scale")
    if scale is not None and not isinstance(scale, str | int):
        raise row.error(f"the scale is {flow(scale)}; it must be a letter.")
    if not scales:
        return str(scale) if scale else None
    if not isinstance(scales, Mapping) or not all(_is_scale(factors) for factors in scales.values()):
        raise row.error(
            f"'scales' is {flow(scales)}; it must map letters to [depth, width, largest number of channels], depth "
            f"and width above 0 and at most {_LARGEST_FACTOR}."
        )
    scale = scale or next(iter(scales))
    if scale not in scales:
        raise row.error(f"no scale {quoted(scale)} in this model's 'scales'. Allowed: {listed(scales)}.")
    return str(scale)


def _is_scale(factors: Any) -> bool:
    if not isinstance(factors, list | tuple) or len(factors) != 3 or not all(map(is_number, factors)):
        return False
    depth, width, channels = factors
    return bool(0 < depth <= _LARGEST_FACTOR and 0 < width <= _LARGEST_FACTOR and channels >= 1)


def _options(row: Row) -> dict[str, Any]:
    options = row.args[1] if len(row.args) == 2 else {}
    if not isinstance(options, Mapping):
        raise row.error(
            f"the second argument is {quoted(options)}; it must be a mapping of options: {', '.join(ROW_OPTIONS)}."
        )
    for name, value in options.items():
        if name not in ROW_OPTIONS:
            hint = "" if name not in _WEIGHTS_OPTIONS else " Published weights come in with `lightbackbones convert`."
            raise row.error(f"unknown option {quoted(name)}.{hint} Allowed: {', '.join(ROW_OPTIONS)}.")
        try:
            ROW_OPTIONS[name].check(name, value)
        except ValueError as error:
            raise row.error(str(error)) from None
    return dict(options)


def _check_block(row: Row, block: type[BlockRow]) -> None:
    """Check a row `[from, repeats, block, [out channels, {option: value}]]`."""
    if isinstance(row.source, list):
        raise row.error(f"'from' is {flow(row.source)}; {row.module} takes one map: put a row Concat between them.")
    earliest = -1 if row.number == 0 else -row.number  # in Ultralytics' count the image is -1 of row 0 alone
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


def _offered_taps(row: Row, family: type[Backbone], variant: str) -> dict[str, int]:
    """Tap -> channels of all taps that a variant offers.

    Asking takes up to half a second, and every row of a model that is wrong costs another parse, so the answer is kept
    for as long as the class and the config of the variant are the same ones.
    """
    config, key = family.variants[variant.removeprefix(f"{family.family}_")], (family, variant)
    known = _known_taps.get(key)
    if known is None or known[0] is not config:
        try:
            known = (config, family.offered_taps(variant))
        except ValueError as error:
            raise row.error(str(error)) from error
        _known_taps[key] = known
    return known[1]


_known_taps: dict[tuple[type[Backbone], str], tuple[Any, dict[str, int]]] = {}


def _tap_position(row: Row, backbone: Row, taps: tuple[str, ...], channels: tuple[int, ...]) -> int | None:
    """Which of the backbone's outputs a row takes; None for a row that takes none."""
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
        if meant := _spelt(row.module, [TAP]):
            raise row.error(meant)
        raise row.error(
            f"{flow(row.module, 80)} takes its input from the backbone (row {backbone.number}), which gives a list of "
            f"maps. Put a row [{backbone.number}, 1, Tap, [{taps[-1]}]] between them, and take its input from there."
        )
    return _index_position(row, taps, channels)


def _index_position(row: Row, taps: tuple[str, ...], channels: tuple[int, ...]) -> int:
    """Check an `Index` row on the backbone: Ultralytics trusts its channel number, we know it."""
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


def modules(config: Mapping[str, Any]) -> list[str]:
    """What the rows of a model config call their modules, as far as they are rows."""
    rows = [row for part in ("backbone", "head") for row in _listed(config.get(part))]
    return [row[2] for row in rows if isinstance(row, list | tuple) and len(row) > 2 and isinstance(row[2], str)]


def _meant(row: Row, rows: Sequence[Row], families: Mapping[str, type[Backbone]], ours: Collection[str]) -> str | None:
    """The row to write for an unknown module whose name is like one of ours, or is another project's name for it."""
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
    close = _spelt(row.module, ours)
    if found is None:
        return close
    start = close if close and found[1] is None else f"unknown module {quoted(row.module)}."
    behind = "" if taps else ", and rows such as [0, 1, Tap, [P5]] behind it"
    return f"{start} Write row 0 as {_example(*found, row.args)}{behind}."


def _block_meant(module: str, families: Mapping[str, type[Backbone]]) -> str | None:
    letters = _letters(module)
    if letters in map(_letters, families):
        return None
    ours = registry.block_rows()
    names = _OTHER_BLOCKS | {_letters(name).removesuffix("block") + end: name for name in ours for end in _ENDINGS}
    return names.get(letters)


_ENDINGS = ("", "block", "blocks")


def _example(family: type[Backbone], variant: str | None = None, args: Sequence[Any] = ()) -> str:
    """A backbone row as it should be; its variant from the row at hand where that has one."""
    first: Any = variant or next(iter(family.variants))
    if variant is None and args:
        with contextlib.suppress(ValueError):
            first = args[0] if isinstance(args[0], Mapping) else family.resolve_variant(str(args[0]))
    return f"[-1, 1, {family.__name__}, [{flow(first)}]]"


def _spelt(module: str, ours: Collection[str]) -> str | None:
    """A hint on a module that is spelt nearly like one of ours."""
    by_letters = {name.lower(): name for name in ours}
    close = (
        difflib.get_close_matches(module.lower(), by_letters, n=1, cutoff=0.8) if len(module) <= LONGEST_TEXT else []
    )
    return f"unknown module {quoted(module)}. Did you mean {by_letters[close[0]]!r}?" if close else None


def _letters(name: str) -> str:
    """A name without what people write differently: `RepViT-M0.9` -> `repvitm09`."""
    return re.sub(r"[\W_]+", "", name[:LONGEST_TEXT].lower())


def _check_repeats(row: Any, depth: float) -> None:
    """Refuse what Ultralytics would build without end: it rounds the repeats of a row times the depth."""
    repeats = row[1] if isinstance(row, list | tuple) and len(row) > 1 else 1
    if is_number(repeats) and repeats > 1 and repeats * depth > _MOST_REPEATS:
        times = f" times a depth of {quoted(depth)}" if depth != 1 else ""
        raise BoundsError(f"repeats is {quoted(repeats)}{times}; at most {_MOST_REPEATS:,} are built.")


def _factors(config: Mapping[str, Any]) -> list[float]:
    """All depths that a model may be built at, 1 among them."""
    scales = config.get("scales")
    factors = (
        [value[0] for value in scales.values() if isinstance(value, list | tuple) and value]
        if (isinstance(scales, Mapping))
        else []
    )
    return [1, *(value for value in (*factors, config.get("depth_multiple")) if is_number(value) and value > 1)]


def _listed(rows: Any) -> list[Any]:
    return list(rows) if isinstance(rows, list | tuple) else []
