"""What can be said of timm's models before one is chosen: names, levels, parameters, weights and their licences.

Names are read from timm's source files, so that a shell completes them without an import of torch. Other functions
import timm.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

MOST_BUILT = 60
"""Most models that a listing builds, a tenth of a second each; of more, it gives only the names and licences."""

_REGISTERED = re.compile(r"^@register_model(?:\(\))?\s*\n(?:@.*\n)*def (\w+)", re.MULTILINE)


def names_in_sources() -> list[str]:
    """Names of all models of the installed timm, in order, found without an import of it; none without timm."""
    spec = importlib.util.find_spec("timm")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [file for place in places for file in sorted(Path(place, "models").glob("*.py"))]
    return sorted({name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))})


def matching(pattern: str) -> list[str]:
    """Names of timm's models that match a pattern with `*` and `?`; a pattern without them may be anywhere in a name.

    Raises:
        ModuleNotFoundError: if timm is not installed; the message says how to install it.
    """
    from yolo_lightbackbones import timm_models

    wanted = pattern.strip().lower().removeprefix("timm/")
    wanted = wanted if re.search(r"[*?\[]", wanted) else f"*{wanted}*"
    return sorted(fnmatch.filter(timm_models.part("models").list_models(include_tags=False), wanted))


def describe(name: str, *, built: bool = True) -> dict[str, Any]:
    """What timm says of a model: parameters with the classifier, levels, weights.

    Args:
        name: a name of timm, without a tag.
        built: whether to build it without memory, which its parameters and levels need.
    """
    from yolo_lightbackbones import timm_models

    models = timm_models.part("models")
    found: dict[str, Any] = {"name": f"timm/{name}", "parameters": None, "taps": {}, "reductions": []}
    if built:
        net = without_values(name)
        infos = reported(net)
        taps = {f"P{info['reduction'].bit_length() - 1}": int(info["num_chs"]) for info in infos}
        found["parameters"] = sum(parameter.numel() for parameter in net.parameters())
        found["taps"] = {tap: taps[tap] for tap in sorted(taps) if tap in ("P2", "P3", "P4", "P5", "P6")}
        found["reductions"] = [info["reduction"] for info in infos]
    tags = [full.partition(".")[2] for full in models.list_pretrained(f"{name}.*")]
    licences = {}
    for tag in tags:
        cfg = models.get_pretrained_cfg(f"{name}.{tag}")
        licences[tag] = (cfg.license if cfg is not None else None) or None
    return {**found, "weights": licences}


def without_values(name: str, **options: Any) -> nn.Module:
    """Build a model of timm without memory, and without the time that drawing random weights takes."""
    import torch
    from torch.overrides import TorchFunctionMode

    from yolo_lightbackbones import timm_models

    draws = {getattr(torch.Tensor, f"{draw}_") for draw in ("uniform", "normal", "erfinv", "mul", "add", "clamp")}

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in draws else func(*args, **(kwargs or {}))

    with torch.device("meta"), Undrawn():
        net: nn.Module = timm_models.part("models").create_model(name, **options)
    return net


def reported(net: nn.Module) -> list[Mapping[str, Any]]:
    """What timm says of each intermediate map of a model: `num_chs`, `reduction`, a power of 2; shallow to deep."""
    infos: Any = getattr(net, "feature_info", None) or []
    listed = list(getattr(infos, "info", infos))
    whole = [{**info, "reduction": int(info["reduction"])} for info in listed if isinstance(info.get("reduction"), int)]
    return [info for info in whole if info["reduction"] & (info["reduction"] - 1) == 0]


def image_side(name: str) -> int:
    """Side of the images for which the weights of a model were trained, a multiple of 32; 224 if timm does not say."""
    from yolo_lightbackbones import timm_models

    cfg = timm_models.part("models").get_pretrained_cfg(name)
    side = cfg.input_size[1] if cfg is not None and cfg.input_size else 224
    return -(-int(side) // 32) * 32
