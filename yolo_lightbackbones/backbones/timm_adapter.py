"""Any model of timm (PyTorch Image Models) as a backbone, by its own name: `timm/mobilenetv4_conv_small`.

Source: github.com/huggingface/pytorch-image-models (Apache-2.0); its weights have licences of their own. The layers are
timm's. This file chooses the feature maps, keeps the published norms, normalises the image, and folds. timm is imported
when a variant is asked about, not before.

A pickle of such a backbone has the name of the variant, its options and its weights, and none of timm's classes: it is
built again when it is loaded. So restricted loading needs to know only this class, and timm may move its own.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from yolo_lightbackbones import fusion, layers, recording, timm_models
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.card import Card
from yolo_lightbackbones.input_norm import InputConvention, InputNorm
from yolo_lightbackbones.inspection import Part
from yolo_lightbackbones.layers.feature_pyramid import PYRAMID, SimpleFeaturePyramid, pyramid_taps
from yolo_lightbackbones.messages import quoted
from yolo_lightbackbones.observing import Observation
from yolo_lightbackbones.options import FURTHER_OPTIONS, ROW_OPTIONS, Option, Options
from yolo_lightbackbones.tap_norms import TAP_NORMS, TapNorm, TapNorms

BODY = "body"
"""First part of the names of timm's layers in a state dict; the rest is timm's own name."""

OPTIONS, TENSORS, TIMM = "options_given", "tensors", "timm_version"
"""Entries of a pickle: the options that are not default, the state dict, and the release of timm that built it."""


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
        **{name: option for name, option in FURTHER_OPTIONS.items() if name != "checkpoint"},
    }

    def __init__(self, variant: str, options: Options | None = None, **named: Any) -> None:
        super().__init__()
        self.options = Options.of(options, named)
        self.options.check_offered(self.row_options, type(self).__name__)
        self.variant = self.resolve_variant(variant)
        plain = self.options.pyramid == "simple"
        survey = timm_models.survey(self.variant, timm_models.sides(self.options.imgsz), plain=plain)
        self.size_divisibility, self.image_size = survey.divisor, survey.image_size
        offered = pyramid_taps() if plain else survey.channels
        self.set_taps(offered, self.options)

        prepared = self.options.input_norm == "auto" and self.options.in_channels == 3
        self._convention = survey.convention if prepared else InputConvention()
        as_it_is = self._convention == InputConvention()
        self.input_norm: nn.Module = nn.Identity() if as_it_is else InputNorm(self._convention)
        levels = tuple(survey.levels) if plain else self.taps
        self.body, self._indices = timm_models.build(self.variant, self.options, survey, levels)
        _keep_published_norms(self.body)
        resizes = "dynamic_img_size" in survey.arguments  # its position embeddings
        self.resizes = recording.FixedResizes() if resizes else None
        self.pyramid: SimpleFeaturePyramid | None = None
        if plain:
            ((tap, (_, dim)),) = survey.levels.items()
            self.pyramid = SimpleFeaturePyramid(dim, 2 ** int(tap[1:]), self.taps)
        self.tap_norms = TapNorms({tap: TapNorm(offered[tap]) for tap in self.taps if tap in self.options.normed_taps})
        self._structure = _structure(self)
        if isinstance(self.options.pretrained, str):
            raise ValueError(
                f"pretrained is {quoted(self.options.pretrained)}; in Python, load a file of weights with "
                "load_weights(backbone, file)."
            )
        if self.options.pretrained and not next(self.parameters()).is_meta:
            self.load_published()

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.measures_next:
            self.measures_next = False
            if self.image_size not in (None, tuple(x.shape[-2:])) and not x.any():
                return self._black_maps(x)
        self.check_size(x)
        x = self.input_norm(x)
        maps = self._maps(x) if self.resizes is None else self.resizes.run(self._maps, x)
        if self.pyramid is not None:
            maps = self.pyramid(maps[0])
        return [self.tap_norms.norm(tap, feature) for tap, feature in zip(self.taps, maps, strict=True)]

    def _maps(self, x: Tensor) -> list[Tensor]:
        return timm_models.maps(self.body, x, self._indices)

    # --- pickles and copies -------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Variant, options and tensors, without timm's objects; all objects if somebody has changed the layers."""
        if self._structure != _structure(self):
            return dict(vars(self))
        plain = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "options"}
        changed = {name: value for name, value in vars(self.options).items() if value != getattr(Options, name)}
        tensors = dict(self.state_dict(keep_vars=True))
        return {**plain, OPTIONS: changed, TENSORS: tensors, TIMM: timm_models.part("version").__version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if TENSORS not in state:
            super().__setstate__(state)  # type: ignore[no-untyped-call]
            return
        state = dict(state)
        options, tensors, version = Options(**state.pop(OPTIONS)), state.pop(TENSORS), state.pop(TIMM)
        trainable = {name: tensor.requires_grad for name, tensor in tensors.items()}
        like = next(tensor for tensor in tensors.values() if tensor.is_floating_point())
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            built: nn.Module = type(self)(state["variant"], replace(options, pretrained=False))
            if state.get("folded"):
                built = fusion.fuse(built)
        built.to(device=like.device, dtype=like.dtype)
        try:
            built.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"This checkpoint has a {state['variant']} of timm {version}, and the installed timm "
                f"{timm_models.part('version').__version__} builds another one. Install timm {version} to load it."
            ) from error
        for name, parameter in built.named_parameters():
            parameter.requires_grad_(trainable[name])
        vars(self).update(vars(built))
        vars(self).update(state, options=options)
        self.train(self.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> Timm:
        """Copy all objects: a copy in the same process keeps hooks, masks and layers that somebody has put in."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        vars(new).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return new

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
        return timm_models.find(name.strip().removeprefix(f"{cls.family}/"), like=cls.example())

    def load_published(self) -> None:
        """Fill this backbone with the weights that timm publishes for its variant; the hub's cache may have them.

        Says once where they come from, and their licence.
        """
        plain = self.pyramid is not None
        survey = timm_models.survey(self.variant or "", self.image_size, plain=plain)
        given, source = timm_models.published(self.variant or "", survey, self.options.in_channels)
        self.body.load_state_dict({name: given[name] for name in self.body.state_dict()})
        _say_once(f"{self.variant}: {source}")

    # --- folding ------------------------------------------------------------------------------------------------------

    def fold(self) -> Timm:
        first = next(self.body.parameters())
        dtype, exact = first.dtype, first.dtype if first.device.type == "mps" else torch.float64
        with _NewTensors(exact):  # timm's folded layers have the default one
            reparameterize = timm_models.part("utils.model").reparameterize_model
            self.body = reparameterize(self.body.to(exact), inplace=True).eval()
        _forget_biases(self.body)
        height, width = self.image_size or (3 * self.size_divisibility, 5 * self.size_divisibility)
        image = torch.zeros(1, self.options.in_channels, height, width, dtype=exact, device=first.device)
        seen = Observation(lambda: timm_models.maps(self.body, image, self._indices))
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
        _forget_biases(self.body)
        self.input_norm = self.input_norm.to(dtype)
        self.tap_norms.fold()
        self._structure = _structure(self)
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
        inside += [Part(PYRAMID, PYRAMID)] if self.pyramid is not None else []
        return [*inside, *(Part(f"{TAP_NORMS}.{tap}", "tap norms") for tap in self.tap_norms)]

    @classmethod
    def is_extra(cls, name: str) -> bool:
        return name.startswith((f"{TAP_NORMS}.", f"{PYRAMID}."))

    def is_unbuilt(self, name: str) -> bool:
        theirs = name.removeprefix(f"{BODY}.")
        if theirs == name or theirs not in timm_models.names(self.variant or ""):
            return False
        module, _, leaf = name.rpartition(".")
        try:  # the state of one module: this is asked about every name
            return leaf not in self.get_submodule(module).state_dict()
        except AttributeError:
            return True

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: those that timm lists, and vectors such as layer scales."""
        named: set[str] = getattr(self.body, "no_weight_decay", set)()
        vectors = {name for name, parameter in self.body.named_parameters() if parameter.ndim < 2}
        return {f"{BODY}.{name}" for name in {*named, *vectors}}


def _structure(module: nn.Module) -> tuple[Any, ...]:
    """Names and classes of all layers, and shapes of their tensors."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in module.state_dict(keep_vars=True).items())
    return tuple((name, type(child)) for name, child in module.named_modules()), shapes


@functools.lru_cache(maxsize=256)
def _say_once(text: str) -> None:
    """Print a line on stderr; the workers of a distributed training leave that to the first."""
    if os.environ.get("RANK", "-1") in ("-1", "0"):
        print(text, file=sys.stderr)


def _keep_published_norms(body: nn.Module) -> None:
    """Turn every norm that is exactly torch's BatchNorm2d into the subclass whose eps Ultralytics does not change."""
    for module in body.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = layers.BatchNorm2d


# --- folding ----------------------------------------------------------------------------------------------------------


class _NewTensors(TorchFunctionMode):
    """Makes new layers in a dtype, in this thread; torch's default dtype is that of all threads.

    Args:
        dtype: of their tensors.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and given.get("dtype") is None:
            given["dtype"] = self.dtype
        return func(*args, **given)


def _forget_biases(body: nn.Module) -> None:
    """Empty the caches of attention biases, which keep the dtype that they were computed in."""
    for module in body.modules():
        if isinstance(cache := getattr(module, "attention_bias_cache", None), dict):
            cache.clear()


def _is_linear(conv: nn.Conv2d) -> bool:
    """Whether a convolution multiplies with its weight as it is: torch's own, or timm's with TensorFlow's padding."""
    return type(conv) in (nn.Conv2d, timm_models.part("layers").Conv2dSame)


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
    if type(norm) is timm_models.part("layers").BatchNormAct2d:
        return cast(nn.Module, norm.act)
    return nn.Identity() if type(norm) in (nn.BatchNorm2d, layers.BatchNorm2d) else None


def _affine(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """The norm without what it does after it has scaled and shifted."""
    plain = copy.copy(norm)
    plain.__class__ = layers.BatchNorm2d
    return plain
