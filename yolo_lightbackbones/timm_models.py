"""What the backbone `Timm` asks of timm (PyTorch Image Models): names, feature maps, models, weights; knows no family.

timm is imported when something is asked for, not before. Models are built and run on the meta device to learn what they
offer, because what timm says of a model may be wrong.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from yolo_lightbackbones.input_norm import InputConvention
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
            "Timm rows and timm/NAME backbones need the package timm. Install it: pip install "
            "'yolo-lightbackbones[timm]'",
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
def survey(name: str, size: tuple[int, int] | None) -> Survey:
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


def maps(model: Any, x: Tensor, indices: Any) -> list[Tensor]:
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
        given = maps(net.eval(), torch.zeros(1, 3, height, width), indices)
    except Exception as error:  # timm's models raise nearly anything
        return _reason(error)
    for (tap, (_, channels)), feature in zip(levels.items(), given, strict=True):
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
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        what = {"in_chans": "in_channels"}.get(refused[1], refused[1]) if refused else _reason(error)
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
