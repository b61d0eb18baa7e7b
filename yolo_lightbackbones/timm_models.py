"""What the backbone `Timm` asks of timm (PyTorch Image Models): names, feature maps, models, weights; knows no family.

timm is imported when something is asked for, not before. Models are built and run on the meta device to learn what they
offer, because what timm says of a model may be wrong.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from yolo_lightbackbones.input_norm import InputConvention
from yolo_lightbackbones.layers.feature_pyramid import check_plain
from yolo_lightbackbones.messages import did_you_mean, listed, quoted
from yolo_lightbackbones.options import Options

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


def find(short: str, *, like: str) -> str:
    """Return the name of a model as timm has it: `ResNet18` -> `resnet18`.

    Args:
        short: a name, with or without the tag of weights.
        like: a name for examples.

    Raises:
        ModuleNotFoundError: if timm is not installed.
        ValueError: for an unknown name or tag, with the closest match.
    """
    models = part("models")
    model, _, tag = short.partition(".")
    known = models.list_models(include_tags=False)
    if not models.is_model(model):
        model = next((other for other in known if other == model.lower().replace("-", "_")), model)
    if not models.is_model(model):
        hint = did_you_mean(model.lower(), known)
        raise ValueError(f"timm has no model {quoted(short)}.{hint} Allowed: a name of timm, such as {like}.")
    tags = [full.partition(".")[2] for full in models.list_pretrained(f"{model}.*")]
    if tag and tag not in tags:
        raise ValueError(
            f"timm has no weights {quoted(tag)} of {model}.{did_you_mean(tag, tags)} "
            f"Allowed: {model}{f', or with one of the tags {listed(tags)}' if tags else ' without a tag'}."
        )
    return f"{model}.{tag}" if tag else model


def part(name: str) -> ModuleType:
    """Import a module of timm.

    Raises:
        ModuleNotFoundError: if timm is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(f"timm.{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Timm rows and timm/NAME backbones need the package timm. Run: pip install 'timm>=1.0.16'",
            name=error.name,
        ) from error


def sides(imgsz: Any) -> tuple[int, int] | None:
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
    create = part("models").create_model
    try:
        with _Rates() if torch.empty(0).is_meta else contextlib.nullcontext():
            model = create(name, **arguments)
            return model if hasattr(model, "forward_intermediates") else create(name, features_only=True, **arguments)
    except TypeError:
        raise
    except Exception as error:  # timm's models raise nearly anything
        raise ValueError(f"timm cannot build {name}: {_reason(error)}.") from error


class _Rates(TorchFunctionMode):
    """Gives `torch.linspace` values on the meta device, too; many of timm's models need them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return func(*args, **({"device": "cpu", **given} if func is torch.linspace else given))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0][:200] if lines else type(error).__name__).rstrip(".")


def _accepted(name: str, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Build a model with those of these arguments that it takes; return it and them."""
    while True:
        try:
            return _create(name, arguments), arguments
        except TypeError as error:
            kept = {key: value for key, value in arguments.items() if key not in _unexpected(error)}
            if kept == arguments:
                raise ValueError(f"timm cannot build {name}: {_reason(error)}.") from error
            arguments = kept


def _unexpected(error: TypeError) -> list[str]:
    """The arguments that a call did not expect, by Python's error or timm's."""
    return re.findall(r"'(\w+)'", str(error)) if "unexpected keyword argument" in str(error) else []


@functools.lru_cache(maxsize=256)
def survey(name: str, size: tuple[int, int] | None, *, plain: bool = False) -> Survey:
    """Build and run a model of timm on the meta device.

    Args:
        name: its name.
        size: height and width for a model that is built for one size.
        plain: whether the model must have maps at one reduction only, for a pyramid.

    Raises:
        ValueError: if it cannot be a backbone, or not for this size.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        net, arguments = _accepted(name, dict(ANY_SIZE))
        infos = _infos(net)
        reductions = [int(info["reduction"]) for info in infos]
        if plain:
            check_plain(name, reductions)
        levels = _levels(infos)
        if not levels:
            found = ", ".join(map(str, dict.fromkeys(reductions)))
            raise ValueError(f"{name} has maps at reductions of {found}; a backbone needs reductions of 4, 8, 16, 32.")
        if len(infos) > 1 and len(set(reductions)) == 1 and not plain:
            raise ValueError(
                f"{name} has only maps at a reduction of {reductions[0]}; a backbone needs several. Make them from it "
                "with the option pyramid: simple."
            )
        own = tuple(net.pretrained_cfg.get("input_size") or (3, 224, 224))[1:]
        least = max(32, *(2 ** int(tap[1:]) for tap in levels))
        divisor = _divisor(name, net, levels, least)
        if divisor is not None and size is not None:
            raise ValueError(f"{name} takes images of any size; leave imgsz out.")
        if divisor is None:
            divisor = least
            net, arguments = _of_one_size(name, arguments, levels, size, own=own, divisor=divisor)
    return Survey(levels, arguments, size, divisor, _convention(net.pretrained_cfg))


def _divisor(name: str, net: Any, levels: Mapping[str, tuple[int, int]], least: int) -> int | None:
    """What height and width must be multiples of, `least` or twice that; None for a model of one size.

    MobileViTv2 cuts its maps at 1/32 into patches of 2 x 2, and so gives larger ones for odd sizes.

    Raises:
        ValueError: if the maps have other shapes than timm says.
    """
    misfits = []
    for divisor in (least, 2 * least):
        try:
            for sides in ((3 * divisor, 5 * divisor), (5 * divisor, 2 * divisor)):
                _check_maps(name, net, levels, sides)
        except _OneSizeError:
            return None
        except ValueError as error:
            misfits.append(error)
        else:
            return divisor
    raise misfits[0]


def _of_one_size(
    name: str,
    arguments: dict[str, Any],
    levels: Mapping[str, tuple[int, int]],
    size: tuple[int, int] | None,
    *,
    own: tuple[int, ...],
    divisor: int,
) -> tuple[Any, dict[str, Any]]:
    """Build a model for images of one size; return it and its arguments.

    Args:
        name: its name.
        arguments: the other arguments that it takes.
        levels: tap -> (index, channels).
        size: height and width; None to have the error say which size to write.
        own: height and width of the variant.
        divisor: what height and width must be multiples of.

    Raises:
        ValueError: if there is no size, or a wrong one.
    """
    height, width = size or (-(-own[0] // divisor) * divisor, -(-own[1] // divisor) * divisor)
    if height % divisor or width % divisor:
        raise ValueError(
            f"imgsz is {height} x {width}; {name} needs multiples of {divisor}, and its own is {own[0]} x {own[1]}."
        )
    net, arguments = _accepted(name, {**arguments, OTHER_SIZE: (height, width)})
    try:
        _check_maps(name, net, levels, (height, width))
    except _OneSizeError as error:
        if size is None or size == own:
            raise ValueError(
                f"{name} cannot be a backbone: it is built for images of {own[0]} x {own[1]}, and gives no maps for "
                f"{height} x {width}, the next multiples of {divisor}."
            ) from error
        raise ValueError(
            f"imgsz is {height} x {width}; {name} does not work with it. Its own is {own[0]} x {own[1]}."
        ) from error
    if size is None:
        raise ValueError(f"{name} is built for images of one size; say which: imgsz: {height}.")
    return net, arguments


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


def maps(model: Any, x: Tensor, indices: Any) -> list[Tensor]:
    """The feature maps (B, C, H, W) of a model of timm at some of its indices."""
    if not hasattr(model, "forward_intermediates"):
        return [feature for index, feature in enumerate(model(x)) if index in indices]
    maps: list[Tensor] = model.forward_intermediates(x, indices=indices, output_fmt="NCHW", intermediates_only=True)
    return maps


class _OneSizeError(Exception):
    """A model cannot run on an image of some size."""


def _check_maps(name: str, model: Any, levels: Mapping[str, tuple[int, int]], size: tuple[int, int]) -> None:
    """Run a model on an image of some height and width, and compare its maps with what timm says of them.

    Raises:
        _OneSizeError: if it cannot run.
        ValueError: if the maps have other shapes than timm says.
    """
    height, width = size
    try:
        given = maps(model.eval(), torch.zeros(1, 3, height, width), [index for index, _ in levels.values()])
    except Exception as error:  # timm's models raise nearly anything
        raise _OneSizeError from error
    for (tap, (_, channels)), feature in zip(levels.items(), given, strict=True):
        reduction = 2 ** int(tap[1:])
        wanted = (channels, height // reduction, width // reduction)
        if tuple(feature.shape[1:]) != wanted:
            raise ValueError(
                f"{name} cannot be a backbone: for an image of {height} x {width}, its map {tap} is "
                f"{' x '.join(map(str, feature.shape[1:]))}, and not {' x '.join(map(str, wanted))}, as timm says."
            )


def _convention(cfg: Mapping[str, Any]) -> InputConvention:
    mean, std = (tuple(map(float, cfg.get(key) or ())) for key in ("mean", "std"))
    return InputConvention(
        mean=mean if len(mean) == 3 and any(mean) else None,
        std=std if len(std) == 3 and set(std) != {1.0} else None,
    )


def build(name: str, options: Options, survey: Survey, taps: tuple[str, ...]) -> tuple[Any, Any]:
    """Build a model for some taps; return it without the layers that they do not need, and the indices of its maps."""
    arguments, indices = dict(survey.arguments), [survey.levels[tap][0] for tap in taps]
    if options.in_channels != 3:
        arguments["in_chans"] = options.in_channels
    if options.drop_path_rate is not None:
        arguments["drop_path_rate"] = options.drop_path_rate
    try:
        model = _create(name, arguments)
    except TypeError as error:
        refused = _unexpected(error) or [_reason(error)]
        what = {"in_chans": "in_channels"}.get(refused[0], refused[0])
        raise ValueError(f"{name} does not take {what}; leave it out.") from error
    if hasattr(model, "prune_intermediate_layers"):
        indices = model.prune_intermediate_layers(indices, prune_norm=True)
    return model, indices


def _address(cfg: Any) -> str:
    if not cfg.hf_hub_id:
        return str(cfg.url)
    return f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/{cfg.hf_hub_filename or 'model.safetensors'}"


@functools.lru_cache(maxsize=16)
def names(name: str) -> frozenset[str]:
    """Names in the state dict of the whole classification model."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return frozenset(part("models").create_model(name).state_dict())


def published(name: str, survey: Survey, in_channels: int) -> tuple[dict[str, Tensor], str]:
    """The weights that timm publishes for a model, by timm's names, and where they are from, with their licence.

    Raises:
        ValueError: if there are none.
        OSError: if they cannot be fetched; the message says how to get them by hand.
    """
    cfg = part("models").get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise ValueError(f"timm has no published weights of {name}; leave pretrained out.")
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            model = part("models").create_model(name, pretrained=True, in_chans=in_channels, **survey.arguments)
    except Exception as error:  # of the hub's client, its HTTP library, the system, and timm
        raise OSError(
            f"the weights of {name} could not be fetched: {_reason(error)}. Fetch {_address(cfg)} where there is a "
            "network, and give the path of that file instead: pretrained: PATH."
        ) from error
    source = f"huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else str(cfg.url)
    return model.state_dict(), f"weights of {source}, licence {cfg.license or 'not stated'}"
