"""Model-YAML rows -> rows that Ultralytics' own parser understands; plain data in, plain data out.

A row is `[from, repeats, module, args]`. Two kinds of rows are translated:

    [-1, 1, EdgeViT, [{n: xxs, s: xs}]]  ->  [-1, 1, EdgeViT, [edgevit_xxs, 3, (P2, P3, P4, P5), None, auto, ...]]
    [0, 1, Tap, [P3]]                    ->  [0, 1, Index, [72, 1]]

Variants are resolved here because the parser replaces a string argument that equals one of its local variables (`n`,
`m`, ...) and evaluates others (`m0.9` is a syntax error there). Everything a user can get wrong in such a row is an
error here, before anything is built or written.

Rows of blocks, `[-1, 3, RepViTBlock, [256, {mlp_ratio: 4}]]`, are checked and pass as they are, like all others: the
parser leaves what is in a mapping alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yolo_lightbackbones.backbone import INIT_MODES, INPUT_NORM_MODES, TAP_NORM_MODES, TAPS, Backbone
from yolo_lightbackbones.blocks import BlockRow

TAP = "Tap"
INDEX = "Index"
MODES: Mapping[str, Collection[str]] = {
    "input_norm": INPUT_NORM_MODES,
    "init": INIT_MODES,
    "tap_norm": TAP_NORM_MODES,
}
OPTIONS = ("drop_path_rate", *MODES)


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
        return ConfigError(f"{self.where}row {self.number} {_flow(row)}: {message}")


def names_backbone(config: Mapping[str, Any], families: Mapping[str, type[Backbone]]) -> bool:
    """Whether a model config has a backbone or a tap. Never raises: a config without one is none of our business."""
    return any(module == TAP or module in families for module in _modules(config))


def names_block(config: Mapping[str, Any], blocks: Mapping[str, type[BlockRow]]) -> bool:
    """Whether a model config has a row of blocks. Never raises: a config without one is none of our business."""
    return any(module in blocks for module in _modules(config))


def explain_unknown(config: Mapping[str, Any], module: str, ours: Collection[str]) -> None:
    """Say what a module that nobody knows was meant to be, if it is nearly one of ours.

    Raises:
        ConfigError: naming the row and the module that is meant.
    """
    if (meant := _meant(module, ours)) is None or module not in _modules(config):
        return
    for row in _parse_rows(config):
        if row.module == module:
            raise UnknownModuleError(str(row.error(meant)))


def translate(config: Mapping[str, Any], in_channels: int, families: Mapping[str, type[Backbone]]) -> dict[str, Any]:
    """A copy of a model config whose rows Ultralytics' parser understands.

    Args:
        config: a model YAML as Ultralytics loaded it, with `scale` filled in.
        in_channels: channels of the image.
        families: name in the YAML -> backbone class.

    Raises:
        ConfigError: naming the row, the value, what is allowed and what to do.
    """
    rows = _parse_rows(config)
    backbone = _backbone_row(rows, families)
    family = families[backbone.module]
    variant, options = _backbone_args(backbone, family, config)
    taps, channels = _offered_taps(family, variant, in_channels)

    positions = {row.number: _tap_position(row, backbone, taps, channels) for row in rows[1:]}
    used = [position for position in positions.values() if position is not None]
    if not used:
        raise backbone.error(f"nothing uses this backbone. Add rows such as [0, 1, Tap, [{taps[-1]}]].")

    # Stages behind the deepest tap that is used would be built, trained by nobody, and computed for nothing.
    needed = taps[: max(used) + 1]
    translated: list[list[Any]] = []
    for row in rows:
        position = positions.get(row.number)
        if row is backbone:
            args = [variant, in_channels, needed, options.get("drop_path_rate"), options.get("input_norm", "auto")]
            init = options.get("init", family.row_init)
            normed = options.get("tap_norm", family.row_tap_norm) == "batch"
            # A family with a constructor of its own may not know these; where nothing else is asked for, it need not.
            if normed:  # the taps that nobody uses would have norms that nobody trains
                args += [init, tuple(tap for number, tap in enumerate(taps) if number in used)]
            elif init != "published":
                args.append(init)
            translated.append([row.source, row.repeats, row.module, args])
        elif position is not None:
            translated.append([row.source, row.repeats, INDEX, [channels[position], position]])
        else:
            translated.append([row.source, row.repeats, row.module, row.args])
    split = len(_listed(config.get("backbone")))
    return {**config, "backbone": translated[:split], "head": translated[split:]}


def check_blocks(config: Mapping[str, Any], blocks: Mapping[str, type[BlockRow]]) -> Row:
    """Check all rows of blocks in a model config that has some; return the first.

    Args:
        config: a model YAML as Ultralytics loaded it, with `scale` filled in.
        blocks: name in the YAML -> what such a row builds.

    Raises:
        ConfigError: naming the row, the value, what is allowed and what to do.
    """
    rows = [row for row in _parse_rows(config) if row.module in blocks]
    for row in rows:
        _scale(row, config)
        _check_block(row, blocks[row.module])
    return rows[0]


def _parse_rows(config: Mapping[str, Any]) -> list[Row]:
    where = f"{config['yaml_file']}, " if config.get("yaml_file") else ""
    for part in ("backbone", "head"):
        if not isinstance(config.get(part), list | tuple):
            raise ConfigError(f"{where}{part!r} is {_flow(config.get(part))}; it must be a list of rows.")
    rows = []
    for number, row in enumerate([*_listed(config.get("backbone")), *_listed(config.get("head"))]):
        well_formed = isinstance(row, list | tuple) and len(row) == 4
        if not well_formed or not isinstance(row[2], str) or not isinstance(row[3], list):
            raise ConfigError(f"{where}row {number} {_flow(row)}: a row is [from, repeats, module, [arguments]].")
        rows.append(Row(where, number, *row))
    return rows


def _backbone_row(rows: Sequence[Row], families: Mapping[str, type[Backbone]]) -> Row:
    """The one backbone row, which has to be the first."""
    for row in rows:
        if row.module in families and row.number > 0:
            raise row.error(f"{row.module} takes the image, so it must be the first row (row 0) of the model.")
    first = rows[0]
    if first.module not in families:
        if meant := _meant(first.module, families):
            raise first.error(meant)
        tap = next(row for row in rows if row.module == TAP)
        raise tap.error(
            f"Tap takes its input from a backbone, and this model has none. "
            f"Make row 0 one of {', '.join(families)}, for example [-1, 1, EdgeViT, [xxs]]."
        )
    if not _is_whole(first.source) or first.source != -1:
        raise first.error(f"'from' is {first.source!r}; a backbone takes the image: write -1.")
    if not _is_whole(first.repeats) or first.repeats != 1:
        raise first.error(f"repeats is {first.repeats!r}; a backbone cannot be repeated: write 1.")
    return first


def _backbone_args(row: Row, family: type[Backbone], config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Variant and options of a backbone row: `[variant or {scale letter: variant}, {option: value}]`."""
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
        if unknown := [letter for letter in letters if letter in OPTIONS]:
            raise row.error(
                f"{unknown[0]!r} is an option; the variant comes first: [{example[1:-1]}, {{{unknown[0]}: ...}}]."
            )
        if scale not in letters:
            if scale is None:
                raise row.error(
                    f"the variant depends on the scale letter ({', '.join(letters) or 'none'}), and this model has no "
                    f"'scales'. Give one variant, {example}, or add scales."
                )
            raise row.error(
                f"no variant for scale {scale!r}. Allowed: {', '.join(letters) or 'none'}. "
                f"Name the model with one of these letters (as in yolov5{next(iter(letters), 'n')}_...yaml), "
                f"or add {scale!r} to the mapping."
            )
        wanted = letters[scale]
    if not isinstance(wanted, str):
        raise row.error(f"the variant is {wanted!r}; it must be a name out of {', '.join(family.variants)}.")
    try:
        variant = family.resolve_variant(wanted)
    except ValueError as error:
        raise row.error(str(error)) from None
    return f"{family.family}_{variant}", _options(row)


def _scale(row: Row, config: Mapping[str, Any]) -> str | None:
    """The model's scale letter: Ultralytics takes the first of `scales` where the file name has none."""
    scales = config.get("scales")
    if not scales:
        return config.get("scale") or None
    if not isinstance(scales, Mapping) or not all(_is_scale(factors) for factors in scales.values()):
        raise row.error(
            f"'scales' is {_flow(scales)}; it must map letters to [depth, width, largest number of channels]."
        )
    scale = str(config.get("scale") or next(iter(scales)))
    if scale not in map(str, scales):
        raise row.error(f"no scale {scale!r} in this model's 'scales'. Allowed: {', '.join(map(str, scales))}.")
    return scale


def _is_scale(factors: Any) -> bool:
    return (
        isinstance(factors, list | tuple)
        and len(factors) == 3
        and all(isinstance(factor, int | float) and not isinstance(factor, bool) for factor in factors)
    )


def _options(row: Row) -> dict[str, Any]:
    options = row.args[1] if len(row.args) == 2 else {}
    if not isinstance(options, Mapping):
        raise row.error(f"the second argument is {options!r}; it must be a mapping of options: {', '.join(OPTIONS)}.")
    for name, value in options.items():
        if name not in OPTIONS:
            raise row.error(f"unknown option {name!r}. Allowed: {', '.join(OPTIONS)}.")
        if name == "drop_path_rate" and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1
        ):
            raise row.error(f"drop_path_rate is {value!r}; it must be a number, at least 0 and below 1.")
        if name in MODES and value not in MODES[name]:
            raise row.error(f"{name} is {value!r}; it must be one of {', '.join(MODES[name])}.")
    return dict(options)


def _check_block(row: Row, block: type[BlockRow]) -> None:
    """Check a row `[from, repeats, block, [out channels, {option: value}]]`."""
    if isinstance(row.source, list):
        raise row.error(f"'from' is {_flow(row.source)}; {row.module} takes one map: put a row Concat between them.")
    earliest = -1 if row.number == 0 else -row.number  # in Ultralytics' count the image is -1 of row 0 alone
    if not _is_whole(row.source) or not earliest <= row.source < row.number:
        raise row.error(f"'from' is {row.source!r}; it must be the number of an earlier row, or -1 for the one before.")
    if not _is_whole(row.repeats) or row.repeats < 1:
        raise row.error(f"repeats is {row.repeats!r}; it must be a whole number, at least 1.")
    names = ", ".join(block.options)
    if not 1 <= len(row.args) <= 2:
        raise row.error(
            f"{len(row.args)} arguments; {row.module} takes its output channels and then at most one mapping of "
            f"options ({names}), for example [256] or [256, {{drop_path: 0.1}}]."
        )
    if not _is_whole(row.args[0]) or row.args[0] < 1:
        raise row.error(
            f"the output channels are {row.args[0]!r}; they must be a whole number, at least 1, before the scaling "
            f"by width."
        )
    options = row.args[1] if len(row.args) == 2 else {}
    if not isinstance(options, Mapping):
        raise row.error(f"the second argument is {options!r}; it must be a mapping of options: {names}.")
    try:
        block.check_options(options)
    except ValueError as error:
        raise row.error(str(error)) from None


def _offered_taps(family: type[Backbone], variant: str, in_channels: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """All taps of a variant and their channels, from the backbone itself, built without memory."""
    with torch.device("meta"):
        backbone = family(variant, in_channels, TAPS)
    return backbone.taps, backbone.out_channels


def _tap_position(row: Row, backbone: Row, taps: tuple[str, ...], channels: tuple[int, ...]) -> int | None:
    """Which of the backbone's outputs a row takes; None for a row that takes none."""
    takes_backbone = backbone.number in row.sources
    if row.module in (TAP, INDEX) and row.sources == [backbone.number] and not _is_whole(row.source):
        raise row.error(f"'from' is {_flow(row.source)}; write {backbone.number}.")
    if row.module == TAP:
        if row.sources != [backbone.number]:
            raise row.error(
                f"Tap takes its input from row {row.source!r}, which is not a backbone. "
                f"Write [{backbone.number}, 1, Tap, {_flow(row.args)}]."
            )
        if not _is_whole(row.repeats) or row.repeats != 1:
            raise row.error(f"repeats is {row.repeats!r}; a tap cannot be repeated: write 1.")
        if len(row.args) != 1 or row.args[0] not in taps:
            given = _flow(row.args[0]) if len(row.args) == 1 else _flow(row.args)
            raise row.error(f"{backbone.module} has no tap {given}. Allowed, one of: {', '.join(taps)}.")
        return taps.index(row.args[0])
    if not takes_backbone:
        return None
    if row.module != INDEX or row.sources != [backbone.number]:
        if meant := _meant(row.module, [TAP]):
            raise row.error(meant)
        raise row.error(
            f"{row.module} takes its input from the backbone (row {backbone.number}), which gives a list of maps. "
            f"Put a row [{backbone.number}, 1, Tap, [{taps[-1]}]] between them, and take its input from there."
        )
    return _index_position(row, taps, channels)


def _index_position(row: Row, taps: tuple[str, ...], channels: tuple[int, ...]) -> int:
    """Check an `Index` row on the backbone: Ultralytics trusts its channel number, we know it."""
    if not _is_whole(row.repeats) or row.repeats != 1:
        raise row.error(f"repeats is {row.repeats!r}; an index cannot be repeated: write 1.")
    written, position = (*row.args, 0)[:2] if row.args else (None, 0)
    if isinstance(position, bool) or not isinstance(position, int) or not -len(taps) <= position < len(taps):
        raise row.error(f"index {position!r} is out of range; the backbone gives {len(taps)} maps: {', '.join(taps)}.")
    position %= len(taps)
    if written != channels[position]:
        raise row.error(
            f"the channel number is {written!r}, but {taps[position]} has {channels[position]}. "
            f"Write {channels[position]}, or [{row.source}, 1, Tap, [{taps[position]}]], which needs no number."
        )
    return position


def _modules(config: Mapping[str, Any]) -> list[str]:
    """What the rows of a model config call their modules, as far as they are rows."""
    rows = [row for part in ("backbone", "head") for row in _listed(config.get(part))]
    return [row[2] for row in rows if isinstance(row, list | tuple) and len(row) > 2 and isinstance(row[2], str)]


def _meant(module: str, ours: Collection[str]) -> str | None:
    """What to say of a module that is called nearly like one of ours."""
    by_letters = {name.lower(): name for name in ours}
    close = difflib.get_close_matches(module.lower(), by_letters, n=1, cutoff=0.8)
    return f"unknown module {module!r}. Did you mean {by_letters[close[0]]!r}?" if close else None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(rows: Any) -> list[Any]:
    return list(rows) if isinstance(rows, list | tuple) else []


def _flow(value: Any) -> str:
    """A value as a YAML user writes it: no quotes around words."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {_flow(v)}' for k, v in value.items())}}}"
    return str(value)
