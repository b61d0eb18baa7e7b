"""Translates rows of a model YAML into rows that Ultralytics' own parser understands; plain data in, plain data out.

A row is `[from, repeats, module, args]`. Three kinds of rows are translated:

    [-1, 1, EdgeViT, [{n: xxs, s: xs}]]  ->  [-1, 1, EdgeViT, [edgevit_xxs, Options(...)]]
    [0, 1, Tap, [P3]]                    ->  [0, 1, Index, [72, 1]]                           (tap_rows.py)
    [0, 1, Channels, [3, 6]]             ->  [0, 1, Index, [3, channels 3 to 5]]              (inputs.py)

A model may have several backbones, and rows before them. A backbone that takes feature maps, not the image, gets their
channel number (`inputs.py`) and no input norm.

Variants are resolved here because the parser replaces a string argument that equals one of its local variables (`n`,
`m`, ...) and evaluates others (`m0.9` is a syntax error there). Every mistake that a user can make in such a row is
reported here, before anything is built or written.

Rows of blocks, `[-1, 3, RepViTBlock, [256, {mlp_ratio: 4}]]`, are checked, but not changed, because the parser does not
touch the values in a mapping (`block_rows.py`). All other rows stay as they are.

`hints` suggests the row that was meant by an unknown name. `limits` refuses a model that would take an unbounded amount
of memory or time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yolo_lightbackbones import registry
from yolo_lightbackbones.backbone import Backbone, Options
from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.messages import flow, listed, quoted
from yolo_lightbackbones.options import Option
from yolo_lightbackbones.plugin import hints, limits, tap_rows
from yolo_lightbackbones.plugin.inputs import CHANNELS, Inputs, check_source
from yolo_lightbackbones.plugin.row import INDEX, TAP, Row, as_list, modules, parse
from yolo_lightbackbones.plugin.scales import scale_of

_WEIGHTS_OPTIONS = ("pretrained", "pretrain", "weights", "checkpoint", "ckpt")
"""Names of the option for published weights in other projects."""


def names_backbone(config: Mapping[str, Any], families: Mapping[str, type[Backbone]]) -> bool:
    """Whether a model config has a backbone or a tap. Never raises: other configs are left to Ultralytics."""
    return any(module == TAP or module in families for module in modules(config))


def translate(
    config: Mapping[str, Any],
    in_channels: int,
    families: Mapping[str, type[Backbone]],
    count: Callable[[Sequence[list[Any]]], int] | None = None,
) -> dict[str, Any]:
    """Return a copy of a model config whose rows Ultralytics' parser understands.

    Args:
        config: a model YAML as Ultralytics loaded it, with `scale` filled in.
        in_channels: channels of the image.
        families: name in the YAML -> backbone class.
        count: takes translated rows and returns the channels of the last one's output; only needed for a backbone
            behind a row whose channels are not written in the YAML. None: such a row is refused.

    Raises:
        ConfigError: with the row, the value, what is allowed and what to do.
    """
    limits.check_bounds(config)
    rows = parse(config)
    translated: list[list[Any]] = []
    inputs = Inputs(rows, in_channels, None if count is None else lambda number: count(translated[: number + 1]))
    backbones = {
        row.number: _Backbone(row, families[row.module], *_backbone_args(row, families, config))
        for row in _backbone_rows(rows, families)
    }
    positions = _positions(rows, backbones)
    for row in rows:
        if row.number in backbones:
            backbone = backbones[row.number]
            translated.append([row.source, row.repeats, row.module, _resolved(backbone, inputs)])
        elif row.number in positions:
            backbone, position = positions[row.number]
            channels = backbone.channels[position]
            inputs.set_channels(row.number, channels)
            translated.append([row.source, row.repeats, INDEX, [channels, backbone.built.index(position)]])
        elif row.module == CHANNELS:
            translated.append(inputs.select(row))
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


class _Backbone:
    """A backbone row, its variant and options, the taps on offer, and the positions of those in use."""

    def __init__(self, row: Row, family: type[Backbone], variant: str, options: Mapping[str, Any]) -> None:
        offered = _offered_taps(row, family, variant, _resolve(row, family, variant, options))
        self.row, self.family, self.variant, self.options = row, family, variant, options
        self.taps, self.channels = tuple(offered), tuple(offered.values())
        hint = family.pyramid_hint(self.taps, options.get("pyramid", "none"))
        name = variant if family.is_open else row.module  # "Timm has no tap P3" would blame all of its models
        self.offer = tap_rows.Offer(row.number, name, self.taps, self.channels, hint)
        self.used: set[int] = set()

    @property
    def built(self) -> list[int]:
        """Positions of the taps that are built: no stages behind the deepest one in use, no unused level of a pyramid.

        Nothing would ever train these.
        """
        return sorted(self.used) if self.options.get("pyramid") == "simple" else list(range(max(self.used) + 1))


def _positions(rows: Sequence[Row], backbones: Mapping[int, _Backbone]) -> dict[int, tuple[_Backbone, int]]:
    """For each row that takes a map of a backbone: that backbone, and the index of the map."""
    found = {}
    for row in rows:
        for backbone in backbones.values():
            position = tap_rows.tap_position(row, backbone.offer)
            if position is not None:
                found[row.number] = backbone, position
                backbone.used.add(position)
        if row.module == TAP and row.number not in found:
            numbers = [number for number in backbones if number < row.number] or [*backbones]
            raise row.error(
                f"Tap takes its input from row {quoted(row.source)}, which is not a backbone. "
                f"Write [{' or '.join(map(str, numbers))}, 1, Tap, {flow(row.args)}]."
            )
    for number, backbone in backbones.items():
        if not backbone.used:
            raise backbone.row.error(
                f"nothing uses this backbone. Add rows such as [{number}, 1, Tap, [{backbone.taps[-1]}]]."
            )
    return found


def _resolved(backbone: _Backbone, inputs: Inputs) -> list[Any]:
    """Variant and options of a backbone for the input that it gets."""
    row, given = backbone.row, inputs.of(backbone.row)
    options = dict(backbone.options)
    if not given.is_image:
        options["input_norm"] = "none"  # the published mean and std are those of images
    needed, normed = (
        [backbone.taps[number] for number in numbers] for numbers in (backbone.built, sorted(backbone.used))
    )
    resolved = _resolve(
        row,
        backbone.family,
        backbone.variant,
        options,
        in_channels=given.channels,
        taps=needed,
        normed_taps=normed,
    )
    return [backbone.variant, resolved]


def _resolve(row: Row, family: type[Backbone], variant: str, given: Mapping[str, Any], **known: Any) -> Options:
    """Combine the options of a row, the defaults of its family, and the image channels and taps of the model."""
    options = {"init": family.row_init, **known, **given}
    options.pop("pretrained", None)  # weights come in when all rows are built
    if options.pop("tap_norm", family.default_tap_norm(variant, given.get("pyramid", "none"))) == "none":
        options.pop("normed_taps", None)
    try:
        return Options(**options)
    except ValueError as error:
        raise row.error(str(error)) from None


def _backbone_rows(rows: Sequence[Row], families: Mapping[str, type[Backbone]]) -> list[Row]:
    """Return the backbone rows; there must be at least one if anything takes a tap."""
    found = [row for row in rows if row.module in families]
    if not found:
        first = rows[0]
        if meant := hints.meant(first, rows, families, families):
            raise first.error(meant)
        for row in rows:
            if registry.recognise(row.module, families) and (meant := hints.meant(row, rows, families, families)):
                raise row.error(meant)
        tap = next((row for row in rows if row.module == TAP), None)
        if tap is not None:
            raise tap.error(
                f"Tap takes its input from a backbone, and this model has none. "
                f"Make row 0 one of {', '.join(families)}, for example [-1, 1, EdgeViT, [xxs]]."
            )
    for row in found:
        check_source(row)
        if not is_whole(row.repeats) or row.repeats != 1:
            raise row.error(f"repeats is {quoted(row.repeats)}; a backbone cannot be repeated: write 1.")
    return found


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
    scale = scale_of(row, config)
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
