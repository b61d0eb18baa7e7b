"""Describes the parts of a backbone or a model, and their cost, as plain data, which `info --json` prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from yolo_lightbackbones.cli.models import quiet_ultralytics
from yolo_lightbackbones.cli.targets import Target

if TYPE_CHECKING:  # they import torch, which `lightbackbones --help` does without
    from yolo_lightbackbones.backbone import Backbone
    from yolo_lightbackbones.measure.cost import Cost, Costs


def backbone_document(target: Target, size: tuple[int, int]) -> dict[str, Any]:
    """Describe a backbone, for an image of this height and width."""
    backbone, figures = target.module, target.figures
    costs = target.count(size, _part_names(backbone))
    return {
        "name": target.name,
        "kind": target.kind,
        "note": target.note,
        "module": type(backbone).__name__,
        "imgsz": size,
        "taps": dict(zip(backbone.taps, backbone.out_channels, strict=True)),
        "size_divisibility": backbone.size_divisibility,
        "input": _input(backbone),
        "stages": _stages(backbone, costs, size),
        **_numbers(costs.total),
        "published": asdict(figures) if figures else None,
    }


def model_document(target: Target, size: tuple[int, int]) -> dict[str, Any]:
    """Describe a model of Ultralytics, with or without a backbone of ours, for an image of this height and width."""
    net = target.module
    backbones = _backbones(net)
    rows = [f"model.{number}" for number in range(len(net.model))]
    stages = [name for row, backbone in backbones.items() for name in _part_names(backbone, f"model.{row}.")]
    costs = target.count(size, [*rows, *stages])
    used = [_used_backbone(net, row, backbone, costs, size) for row, backbone in backbones.items()]
    described = _rows(net, costs)
    return {
        "name": target.name,
        "kind": target.kind,
        "imgsz": size,
        "task": getattr(net, "task", None) or _task(net),
        "scale": net.yaml.get("scale") or None,
        "classes": net.yaml.get("nc"),
        "image_channels": target.channels,
        "backbone": used[0] if used else None,
        "backbones": used,
        "rows": described,
        "parts": _parts(described),
        **_numbers(costs.total),
        "gflops": costs.total.flops / 1e9,
    }


def _backbones(net: Any) -> dict[int, Backbone]:
    """Our backbones in a model: row -> backbone."""
    from yolo_lightbackbones.backbone import Backbone

    return {row: module for row, module in enumerate(net.model) if isinstance(module, Backbone)}


def _used_backbone(net: Any, row: int, backbone: Backbone, costs: Costs, size: tuple[int, int]) -> dict[str, Any]:
    from yolo_lightbackbones.checkpoints import identify

    offered = dict(zip(backbone.taps, backbone.out_channels, strict=True))
    used = {
        backbone.taps[module.index]
        for number, module in enumerate(net.model)
        if type(module).__name__ == "Index" and module.f in (row, [row], row - number, [row - number])
    }
    return {
        "module": type(backbone).__name__,
        "variants": [str(variant) for variant in identify.matching_variants(backbone)],
        "row": row,
        "taps": {tap: channels for tap, channels in offered.items() if tap in used},
        "size_divisibility": backbone.size_divisibility,
        "input": _input(backbone),
        "stages": _stages(backbone, costs, size, f"model.{row}."),
    }


def _part_names(backbone: Backbone, prefix: str = "") -> list[str]:
    return [f"{prefix}{part.path}" for part in backbone.parts()]


def _stages(backbone: Backbone, costs: Costs, size: tuple[int, int], prefix: str = "") -> list[dict[str, Any]]:
    """The parts of a backbone in the order in which an image passes them; those with the same title are added up."""
    taps = dict(zip(backbone.reductions, backbone.taps, strict=True))
    found: dict[str, dict[str, Any]] = {}
    for part in backbone.parts():
        cost = costs.parts[f"{prefix}{part.path}"]
        if part.title in found:
            for key, value in _numbers(cost).items():
                found[part.title][key] += value
            continue
        channels, reduction = part.channels, part.reduction
        if not found and channels is None:  # the stem does not say its channels; its output does
            _, channels, height, _ = cost.output or (None, None, None, None)
            reduction = None if height is None else size[0] // height
        found[part.title] = {
            "name": part.title,
            "blocks": part.blocks,
            "channels": channels,
            "reduction": reduction,
            "tap": taps.get(part.reduction) if part.reduction is not None and part.tapped else None,
            **_numbers(cost),
        }
    return list(found.values())


def _numbers(cost: Cost) -> dict[str, Any]:
    return {"parameters": cost.parameters, "macs": cost.macs}


def _input(backbone: Backbone) -> dict[str, Any]:
    """What the backbone does to an RGB image in 0..1 before its stem."""
    from yolo_lightbackbones.input_norm import InputConvention

    convention = backbone.applied_convention()
    if convention == InputConvention():
        return {"order": "as given", "mean": None, "std": None}
    return {"order": "bgr" if convention.bgr else "rgb", "mean": convention.mean, "std": convention.std}


def _rows(net: Any, costs: Costs) -> list[dict[str, Any]]:
    """The rows of a model, with the module names of its YAML if that has the same number of rows."""
    backbone_rows, head_rows = (list(net.yaml.get(part) or []) for part in ("backbone", "head"))
    written = [*backbone_rows, *head_rows]
    rows = []
    for number, module in enumerate(net.model):
        part = "head" if number == len(net.model) - 1 else "backbone" if number < len(backbone_rows) else "neck"
        name, args = type(module).__name__, []
        if len(written) == len(net.model):
            name, args = written[number][2], written[number][3]
        found = costs.parts[f"model.{number}"]
        rows.append(
            {
                "row": number,
                "part": part,
                "from": module.f,
                "module": f"{name} {args[0]}" if name == "Tap" else name,
                "output": found.output and found.output[1:],
                **_numbers(found),
            }
        )
    return rows


def _parts(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds of each part, summed over its rows."""
    parts: dict[str, dict[str, int]] = {}
    for row in rows:
        part = parts.setdefault(row["part"], {"parameters": 0, "macs": 0})
        part["parameters"] += row["parameters"]
        part["macs"] += row["macs"]
    return parts


def _task(net: Any) -> str:
    from ultralytics.nn.tasks import guess_model_task

    with quiet_ultralytics():
        return str(guess_model_task(net))
