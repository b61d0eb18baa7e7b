"""Any model of timm (PyTorch Image Models) as a backbone, by its own name: `timm/mobilenetv4_conv_small`.

Source: github.com/huggingface/pytorch-image-models (Apache-2.0); its weights have licences of their own. The layers are
timm's. This file chooses the feature maps, keeps the published norms, normalises the image, and folds. timm is imported
when a variant is asked about, not before.

A pickle of such a backbone has the name of the variant, its options and its weights, and none of timm's classes: it is
built again when it is loaded. So restricted loading needs to know only this class, and timm may move its own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion, layers
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.card import Card
from yolo_lightbackbones.input_norm import InputConvention, InputNorm
from yolo_lightbackbones.inspection import Part
from yolo_lightbackbones.messages import did_you_mean, listed, quoted
from yolo_lightbackbones.observing import Observation
from yolo_lightbackbones.options import FURTHER_OPTIONS, ROW_OPTIONS, Option, Options
from yolo_lightbackbones.tap_norms import TAP_NORMS, TapNorm, TapNorms

BODY = "body"
"""First part of the names of timm's layers in a state dict; the rest is timm's own name."""

ANY_SIZE = {"strict_img_size": False, "dynamic_img_size": True}
"""Arguments that make some of timm's models take images of any size."""

OTHER_SIZE = "img_size"
"""Argument that builds some of timm's models for another size."""


@dataclass(frozen=True)
class Survey:
    """What a model of timm offers, found by building and running it on the meta device.

    Args:
        levels: tap -> (index of the feature map in timm, channels), shallow to deep.
        arguments: arguments for the size of the image that the model takes.
        image_size: the only height and width that it takes; None for any.
        divisor: height and width must be multiples of it.
        convention: preprocessing that the weights of the variant expect.
    """

    levels: Mapping[str, tuple[int, int]]
    arguments: Mapping[str, Any]
    image_size: tuple[int, int] | None
    divisor: int
    convention: InputConvention

    @property
    def channels(self) -> dict[str, int]:
        """Tap -> channels."""
        return {tap: channels for tap, (_, channels) in self.levels.items()}


class Timm(Backbone, fusion.Fusible):
    """A model of timm: image (B, C, H, W) -> the feature maps at its taps, (B, channels, H / reduction, W / reduction).

    Args:
        variant: a name of timm, with or without the tag of its weights: `"resnet18"`, `"resnet18.a1_in1k"`.
        options: the options of the backbone. They can also be given by name: `Timm("resnet18", taps=("P3",))`.

    Raises:
        ModuleNotFoundError: if timm is not installed.
        TypeError: for an unknown option, and for options given both as a value and by name.
        ValueError: for an unknown name, for an option that the model cannot have, and for a model without two
            dimensional maps at reductions of 2^k.
    """

    family = "timm"
    is_open = True
    variants = {}
    card = Card(
        title="timm",
        repository="github.com/huggingface/pytorch-image-models",
        licence="Apache-2.0",
        by_hand="Weights of timm's models come in with the option `pretrained` of a Timm row.",
        layouts="yolo_lightbackbones.checkpoints.layouts.timm_names",
    )
    row_options: ClassVar[Mapping[str, Option]] = {
        **{name: option for name, option in ROW_OPTIONS.items() if name != "init"},
        **FURTHER_OPTIONS,
    }

    def __init__(self, variant: str, options: Options | None = None, **named: Any) -> None:
        super().__init__()
        self.options = Options.of(options, named)
        self.options.check_offered(self.row_options, type(self).__name__)
        self.variant = self.resolve_variant(variant)
        survey = _survey(self.variant, _sides(self.options.imgsz))
        self.size_divisibility, self.image_size = survey.divisor, survey.image_size
        self.set_taps(survey.channels, self.options)

        prepared = self.options.input_norm == "auto" and self.options.in_channels == 3
        self._convention = survey.convention if prepared else InputConvention()
        plain = self._convention == InputConvention()
        self.input_norm: nn.Module = nn.Identity() if plain else InputNorm(self._convention)
        self.body, self._indices = _build(self.variant, self.options, survey, self.taps)
        _keep_published_norms(self.body)
        self.tap_norms = TapNorms(
            {tap: TapNorm(survey.channels[tap]) for tap in self.taps if tap in self.options.normed_taps}
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.measures_next:
            self.measures_next = False
            if self.image_size not in (None, tuple(x.shape[-2:])) and not x.any():
                return self._black_maps(x)
        self.check_size(x)
        maps = _maps(self.body, self.input_norm(x), self._indices)
        return [self.tap_norms.norm(tap, feature) for tap, feature in zip(self.taps, maps, strict=True)]

    def _black_maps(self, x: Tensor) -> list[Tensor]:
        """Maps of zeros of the sizes that belong to an image of another size than the model takes."""
        height, width = x.shape[-2:]
        return [
            x.new_zeros(len(x), channels, height // reduction, width // reduction)
            for channels, reduction in zip(self.out_channels, self.reductions, strict=True)
        ]

    # --- names of variants --------------------------------------------------------------------------------------------

    @classmethod
    def full_name(cls, variant: str) -> str:
        return f"{cls.family}/{variant}"

    @classmethod
    def example(cls) -> str:
        return "mobilenetv4_conv_small"

    @classmethod
    def choices(cls) -> str:
        return "NAME, a model of timm"

    @classmethod
    def config_of(cls, variant: str) -> str:
        return variant

    @classmethod
    def resolve_variant(cls, name: str) -> str:
        """Return the name of a model as timm has it: `timm/ResNet18` -> `resnet18`.

        Raises:
            ModuleNotFoundError: if timm is not installed.
            ValueError: for an unknown name or tag, with the closest match.
        """
        models = _timm("models")
        short = name.strip().removeprefix(f"{cls.family}/")
        model, _, tag = short.partition(".")
        known = models.list_models(include_tags=False)
        if not models.is_model(model):
            model = next((other for other in known if other == model.lower().replace("-", "_")), model)
        if not models.is_model(model):
            hint = did_you_mean(model.lower(), known)
            raise ValueError(
                f"timm has no model {quoted(short)}.{hint} Allowed: {cls.choices()}, such as {cls.example()}."
            )
        tags = [full.partition(".")[2] for full in models.list_pretrained(f"{model}.*")]
        if tag and tag not in tags:
            raise ValueError(
                f"timm has no weights {quoted(tag)} of {model}.{did_you_mean(tag, tags)} "
                f"Allowed: {model}{f', or with one of the tags {listed(tags)}' if tags else ' without a tag'}."
            )
        return f"{model}.{tag}" if tag else model

    # --- folding ------------------------------------------------------------------------------------------------------

    def fold(self) -> Timm:
        first = next(self.body.parameters())
        dtype, exact = first.dtype, first.dtype if first.device.type == "mps" else torch.float64
        with _default_dtype(exact):  # timm's folded layers have the default one
            self.body = _timm("utils.model").reparameterize_model(self.body.to(exact), inplace=True).eval()
        height, width = self.image_size or (3 * self.size_divisibility, 5 * self.size_divisibility)
        image = torch.zeros(1, self.options.in_channels, height, width, dtype=exact, device=first.device)
        seen = Observation(lambda: _maps(self.body, image, self._indices))
        paths = {module: name for name, module in self.body.named_modules()}
        for conv, norm in seen.behind_convs(nn.BatchNorm2d):
            behind = _behind(norm)
            if behind is not None and norm.running_mean is not None and _is_linear(conv):
                folded = fusion.fold_norm_behind(_as_torch(conv), _affine(norm))
                self.body.set_submodule(paths[conv], _as_before(folded, conv))
                self.body.set_submodule(paths[norm], behind)
        first_conv = seen.conv_on(image)
        if isinstance(self.input_norm, InputNorm) and first_conv is not None and _is_linear(first_conv):
            conv = cast(nn.Conv2d, self.body.get_submodule(paths[first_conv]))
            self.input_norm, folded = self.input_norm.fold_into(_as_torch(conv))
            self.body.set_submodule(paths[first_conv], _as_before(folded, conv))
        self.body = self.body.to(dtype)
        self.input_norm = self.input_norm.to(dtype)
        self.tap_norms.fold()
        return self

    # --- for tables, transfers and checkpoints ------------------------------------------------------------------------

    def applied_convention(self) -> InputConvention:
        return self._convention

    def parts(self) -> list[Part]:
        """List timm's layers in the order of their names, and the norms behind the taps."""
        inside = [
            Part(f"{BODY}.{name}.{within}", f"{name}.{within}") if within else Part(f"{BODY}.{name}", name)
            for name, child in self.body.named_children()
            for within in ([w for w, _ in child.named_children()] if type(child) is nn.Sequential else [""])
        ]
        return [*inside, *(Part(f"{TAP_NORMS}.{tap}", "tap norms") for tap in self.tap_norms)]

    @classmethod
    def is_extra(cls, name: str) -> bool:
        return name.startswith(f"{TAP_NORMS}.")

    def is_unbuilt(self, name: str) -> bool:
        theirs = name.removeprefix(f"{BODY}.")
        return theirs != name and theirs in _names(self.variant or "") and name not in self.state_dict()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: those that timm lists, and vectors such as layer scales."""
        named: set[str] = getattr(self.body, "no_weight_decay", set)()
        vectors = {name for name, parameter in self.body.named_parameters() if parameter.ndim < 2}
        return {f"{BODY}.{name}" for name in {*named, *vectors}}


def _timm(module: str) -> ModuleType:
    """Import a module of timm.

    Raises:
        ModuleNotFoundError: if timm is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(f"timm.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Timm rows and timm/NAME backbones need the package timm. Install it: pip install "
            "'yolo-lightbackbones[timm]'",
            name=error.name,
        ) from error


def _sides(imgsz: Any) -> tuple[int, int] | None:
    """Height and width of the option `imgsz`."""
    if imgsz is None:
        return None
    height, width = imgsz if isinstance(imgsz, tuple) else (imgsz, imgsz)
    return height, width


def _create(name: str, arguments: Mapping[str, Any]) -> Any:
    """Build timm's classification model, or its model with intermediate maps if the former cannot give them.

    Raises:
        ValueError: if timm cannot build it like this; the message has timm's reason.
    """
    create = _timm("models").create_model
    try:
        model = create(name, **arguments)
        return model if hasattr(model, "forward_intermediates") else create(name, features_only=True, **arguments)
    except TypeError:
        raise
    except Exception as error:  # timm's models raise nearly anything
        raise ValueError(f"timm cannot build {name}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0][:200] if lines else type(error).__name__).rstrip(".")


def _accepted(name: str, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Build a model with those of these arguments that it takes; return it and them."""
    while True:
        try:
            return _create(name, arguments), arguments
        except TypeError as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused is None or refused[1] not in arguments:
                raise ValueError(f"timm cannot build {name}: {_reason(error)}.") from error
            arguments = {key: value for key, value in arguments.items() if key != refused[1]}


@functools.lru_cache(maxsize=256)
def _survey(name: str, size: tuple[int, int] | None) -> Survey:
    """Build and run a model of timm on the meta device.

    Args:
        name: its name.
        size: height and width for a model that is built for one size.

    Raises:
        ValueError: if it cannot be a backbone, or not for this size.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        net, arguments = _accepted(name, dict(ANY_SIZE))
        infos = _infos(net)
        levels = _levels(infos)
        if not levels:
            found = ", ".join(map(str, dict.fromkeys(info["reduction"] for info in infos)))
            raise ValueError(f"{name} has maps at reductions of {found}; a backbone needs reductions of 4, 8, 16, 32.")
        divisor = max(32, *(2 ** int(tap[1:]) for tap in levels))
        problem = _misfit(net, levels, (3 * divisor, 5 * divisor)) or _misfit(net, levels, (5 * divisor, 2 * divisor))
        own = tuple(net.pretrained_cfg.get("input_size") or (3, 224, 224))[1:]
        if problem is None and size is not None:
            raise ValueError(f"{name} takes images of any size; leave imgsz out.")
        if problem is not None:
            if size is None:
                raise ValueError(f"{name} is built for images of one size; say which: imgsz: {own[0]}.")
            if size[0] % divisor or size[1] % divisor:
                raise ValueError(f"imgsz is {size[0]} x {size[1]}; {name} needs multiples of {divisor}.")
            net, arguments = _accepted(name, {**arguments, OTHER_SIZE: size})
            if OTHER_SIZE not in arguments and size != own:
                raise ValueError(f"imgsz is {size[0]} x {size[1]}; {name} can only be built for {own[0]} x {own[1]}.")
            if problem := _misfit(net, levels, size):
                raise ValueError(f"{name} does not work with imgsz {size[0]} x {size[1]}: {problem}.")
    return Survey(levels, arguments, size, divisor, _convention(net.pretrained_cfg))


def _infos(model: Any) -> list[dict[str, Any]]:
    """What timm says of each intermediate map of a model."""
    infos = getattr(model, "feature_info", [])
    return list(getattr(infos, "info", infos))


def _levels(infos: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Tap -> (index, channels) of the deepest map at each reduction of 2^k, from 4 on."""
    found = {}
    for index, info in enumerate(infos):
        reduction = info["reduction"]
        if reduction >= 4 and reduction == 2 ** (int(reduction).bit_length() - 1):
            found[f"P{int(reduction).bit_length() - 1}"] = (index, int(info["num_chs"]))
    return found


def _maps(model: Any, x: Tensor, indices: Any) -> list[Tensor]:
    """The feature maps (B, C, H, W) of a model of timm at some of its indices."""
    if not hasattr(model, "forward_intermediates"):
        return [feature for index, feature in enumerate(model(x)) if index in indices]
    maps: list[Tensor] = model.forward_intermediates(x, indices=indices, output_fmt="NCHW", intermediates_only=True)
    return maps


def _misfit(net: Any, levels: Mapping[str, tuple[int, int]], size: tuple[int, int]) -> str | None:
    """Run a model on an image of some size; say how its maps differ from what timm says of them, None if they fit."""
    height, width = size
    indices = [index for index, _ in levels.values()]
    try:
        maps = _maps(net.eval(), torch.zeros(1, 3, height, width), indices)
    except Exception as error:  # timm's models raise nearly anything
        return _reason(error)
    for (tap, (_, channels)), feature in zip(levels.items(), maps, strict=True):
        reduction = 2 ** int(tap[1:])
        wanted = (1, channels, height // reduction, width // reduction)
        if tuple(feature.shape) != wanted:
            return f"its map {tap} is {tuple(feature.shape)}, and should be {wanted}"
    return None


def _convention(cfg: Mapping[str, Any]) -> InputConvention:
    mean, std = (tuple(map(float, cfg.get(key) or ())) for key in ("mean", "std"))
    return InputConvention(
        mean=mean if len(mean) == 3 and any(mean) else None,
        std=std if len(std) == 3 and set(std) != {1.0} else None,
    )


def _build(name: str, options: Options, survey: Survey, taps: tuple[str, ...]) -> tuple[Any, Any]:
    """Build a model for some taps; return it without the layers that they do not need, and the indices of its maps."""
    arguments, indices = dict(survey.arguments), [survey.levels[tap][0] for tap in taps]
    if options.in_channels != 3:
        arguments["in_chans"] = options.in_channels
    if options.drop_path_rate is not None:
        arguments["drop_path_rate"] = options.drop_path_rate
    try:
        model = _create(name, arguments)
    except TypeError as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        what = {"in_chans": "in_channels"}.get(refused[1], refused[1]) if refused else _reason(error)
        raise ValueError(f"{name} does not take {what}; leave it out.") from error
    if hasattr(model, "prune_intermediate_layers"):
        indices = model.prune_intermediate_layers(indices, prune_norm=True)
    return model, indices


@functools.lru_cache(maxsize=16)
def _names(name: str) -> frozenset[str]:
    """Names in the state dict of the whole classification model."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return frozenset(_timm("models").create_model(name).state_dict())


def _keep_published_norms(body: nn.Module) -> None:
    """Turn every norm that is exactly torch's BatchNorm2d into the subclass whose eps Ultralytics does not change."""
    for module in body.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = layers.BatchNorm2d


# --- folding ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _is_linear(conv: nn.Conv2d) -> bool:
    """Whether a convolution multiplies with its weight as it is: torch's own, or timm's with TensorFlow's padding."""
    return type(conv) in (nn.Conv2d, _timm("layers").Conv2dSame)


def _as_torch(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution as the folding algebra knows it; TensorFlow's padding is declared as padding."""
    if type(conv) is nn.Conv2d:
        return conv
    plain = copy.copy(conv)  # shallow: parameters are replaced, never written to
    plain.__class__ = nn.Conv2d
    plain.padding = "same"
    return plain


def _as_before(folded: nn.Conv2d, conv: nn.Conv2d) -> nn.Conv2d:
    """The folded convolution with the class and the padding that it had."""
    folded.__class__, folded.padding = type(conv), conv.padding
    return folded


def _behind(norm: nn.BatchNorm2d) -> nn.Module | None:
    """What a norm does after it has scaled and shifted; None for a norm that does something else."""
    if type(norm) is _timm("layers").BatchNormAct2d:
        return cast(nn.Module, norm.act)
    return nn.Identity() if type(norm) in (nn.BatchNorm2d, layers.BatchNorm2d) else None


def _affine(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """The norm without what it does after it has scaled and shifted."""
    plain = copy.copy(norm)
    plain.__class__ = layers.BatchNorm2d
    return plain
