"""Loads a checkpoint file into a backbone: finds its layout, checks everything, and only then copies.

file -> tensors by name -> layout (ours, or a published one) -> our names -> checks -> copy
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.checkpoints import files, identify
from yolo_lightbackbones.checkpoints.errors import CheckpointError
from yolo_lightbackbones.checkpoints.layouts import layouts_of
from yolo_lightbackbones.checkpoints.rules import Converted, Layout, convert
from yolo_lightbackbones.fusion import has_folded
from yolo_lightbackbones.messages import CUT, flow, listed, printable

RESEMBLES = 0.8
"""Smallest share of equal names and shapes at which an error says that weights look like a variant."""

SHOWN = 20
"""Most names that an error lists for each kind of problem."""


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_weights`.

    Args:
        layout: the naming of parameters in the file: `yolo_lightbackbones`, `official`, `timm`, ...
        loaded: the backbone's keys that were filled.
        dropped: the file's keys that were expected but not needed: heads, stages that the backbone did not build, and
            norms after taps that it does not have.
        missing: the backbone's keys that kept their values. Only with `strict=False`.
        unexpected: the file's keys that have no place in the backbone. Only with `strict=False`.
        adapted: the loaded keys whose tensor was adapted to another number of image channels.
    """

    layout: str
    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.missing)} tensors ({self.layout} layout)"]
        for verb, keys in (("dropped", self.dropped), ("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                parts.append(f"{verb} {len(keys)} ({_top_names(keys)})")
        parts += [f"adapted {key} to the number of image channels" for key in self.adapted]
        return ", ".join(parts)


@dataclass
class _Plan:
    """The planned copies from a file to a backbone, and every problem with them."""

    layout: Layout
    copies: dict[str, Tensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    colliding: dict[str, list[str]] = field(default_factory=dict)
    misfits: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The file's key -> (our key, what is wrong with the tensor)."""
    adapted: list[str] = field(default_factory=list)
    settings: dict[str, Tensor] = field(default_factory=dict)
    """Our key -> the number in the file, such as the place of a tap."""

    def problems(self) -> list[str]:
        """One entry per kind of problem, with its first keys."""
        lists = [
            ("missing in the file", self.missing),
            ("unknown here", self.unmatched),
            ("several keys for one parameter", [f"{k} <- {listed(v, 4)}" for k, v in self.colliding.items()]),
            ("of a wrong shape, type or value", [f"{k}: {why}" for k, (_, why) in self.misfits.items()]),
        ]
        return [f"{len(keys)} {title}:\n    {_lines(keys)}" for title, keys in lists if keys]


def load_weights(backbone: Backbone, path: str | os.PathLike[str], *, strict: bool = True) -> LoadReport:
    """Fill a backbone with the weights of a file: a published checkpoint, or a state dict of ours.

    Reads `.pth`, `.pt` and `.safetensors`, and never runs code from the file. Values are converted to the backbone's
    dtype; if images do not have 3 channels, the first convolution is adapted. If it raises, nothing was changed.

    The taps become those of the implementation that the file comes from: timm takes RepViT's P2 to P4 one block earlier
    than the authors do, and a file in timm's layout gives timm's feature maps. A state dict of ours stores its own.

    Args:
        backbone: an unfused backbone, whose parameters and buffers are overwritten.
        path: the file.
        strict: if True, every tensor of the file must have a place and every parameter a tensor, except classifier
            heads and stages that were not built. If False, everything that fits is loaded and the report lists the
            rest.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: (a `ValueError`) if the file is not a checkpoint, belongs to another backbone, or does not fit;
            the message counts all problems and lists the first of each kind.
        ValueError: if the backbone is fused, or is on the meta device.
    """
    _check_target(backbone)
    state, others = files.read_tensors(path)
    return load_tensors(backbone, state, source=printable(str(path)), others=others, strict=strict)


def load_tensors(
    backbone: Backbone, state: Mapping[str, Tensor], *, source: str, others: Sequence[str] = (), strict: bool = True
) -> LoadReport:
    """Fill a backbone with tensors that have been read already; otherwise like `load_weights`.

    Args:
        backbone: as in `load_weights`.
        state: tensors by name, in any layout.
        source: the name of their file in errors.
        others: names of entries beside them that are not tensors.
        strict: as in `load_weights`.

    Raises:
        CheckpointError: if they do not fit.
        ValueError: if the backbone is fused, or is on the meta device.
    """
    _check_target(backbone)
    plan = _make_plan(backbone, state)
    plan.unmatched += others
    problems = plan.problems()
    if problems and (strict or not plan.copies):
        raise CheckpointError(_explain(backbone, source, state, plan, problems))
    target = backbone.state_dict()
    with torch.no_grad():
        for key, tensor in plan.copies.items():
            target[key].copy_(tensor)
    backbone.load_settings(plan.settings, plan.layout.blocks_behind_tap)
    wrongly_shaped = [ours for ours, _ in plan.misfits.values()]
    return LoadReport(
        layout=plan.layout.name,
        loaded=(*plan.copies, *filter(backbone.is_setting, backbone.state_dict())),
        dropped=tuple(plan.dropped),
        missing=(*plan.missing, *plan.colliding, *wrongly_shaped),
        unexpected=(*plan.unmatched, *_flat(plan.colliding.values()), *plan.misfits),
        adapted=tuple(plan.adapted),
    )


def _make_plan(backbone: Backbone, state: Mapping[str, Tensor]) -> _Plan:
    """Plan the copies with the layout that converts most keys of the file to keys of the backbone."""
    target = {key: tensor for key, tensor in backbone.state_dict().items() if not backbone.is_setting(key)}
    candidates = [convert(layout, state) for layout in layouts_of(type(backbone))]
    # Our own layout is the first one, and of layouts with equally many matches the first wins.
    best = max(candidates, key=lambda converted: len(converted.placed.keys() & target.keys()))
    plan = _Plan(best.layout, dropped=list(best.dropped))
    unbuilt = _unbuilt_stages(backbone, best)
    image_conv = backbone.image_conv()
    stem = f"{image_conv[0]}.weight" if image_conv else None
    for ours, sources in best.placed.items():
        if backbone.is_setting(ours):
            _plan_setting(plan, backbone, ours, *sources[0])
        elif ours not in target:
            keys = [key for key, _ in sources]
            (plan.dropped if ours in unbuilt or backbone.is_extra(ours) else plan.unmatched).extend(keys)
        elif len(sources) > 1:
            plan.colliding[ours] = [key for key, _ in sources]
        else:
            key, tensor = sources[0]
            if ours == stem and is_plain(tensor):
                adapted = adapt_channels(tensor, target[ours], bgr=backbone.input_convention.bgr)
                plan.adapted += [ours] * (adapted is not tensor)
                tensor = adapted
            if wrong := _misfit(tensor, target[ours]):
                plan.misfits[key] = (ours, wrong)
            else:
                plan.copies[ours] = tensor
    # Counters, which only a momentum of None would read and some tools leave out; and norms that no published file has.
    optional = {key for key in target if key.endswith(".num_batches_tracked") or backbone.is_extra(key)}
    plan.missing = [key for key in target if key not in best.placed and key not in optional]
    return plan


def _plan_setting(plan: _Plan, backbone: Backbone, ours: str, key: str, tensor: Tensor) -> None:
    if backbone.is_unbuilt(ours):
        plan.dropped.append(key)
        return
    try:
        backbone.check_setting(ours, tensor)
    except ValueError as error:
        plan.misfits[key] = (ours, str(error))
    else:
        plan.settings[ours] = tensor


def _check_target(backbone: Backbone) -> None:
    name = type(backbone).__name__
    if has_folded(backbone):
        raise ValueError(
            f"This {name} is fused: its parameters are products of those in a checkpoint. Load the weights into an "
            "unfused backbone, then fuse it."
        )
    if any(tensor.is_meta for tensor in backbone.state_dict().values()):
        raise ValueError(f"This {name} is on the meta device and cannot hold values. Call .to_empty(device=...) first.")


def _unbuilt_stages(backbone: Backbone, converted: Converted) -> set[str]:
    """Our keys of stages that the variant has but this backbone did not build, because no tap needs them."""
    beyond = [key for key in converted.placed if backbone.is_unbuilt(key)]
    if not beyond or backbone.variant is not None:  # it knows the names of its variant by itself
        return set(beyond)
    names = {key for variant in identify.matching_variants(backbone) for key in identify.full_shapes(variant)}
    # A custom config is not a known variant, so nobody knows the keys of its other stages.
    return {key for key in beyond if not names or key in names}


def adapt_channels(weight: Tensor, target: Tensor, *, bgr: bool) -> Tensor:
    """Adapt the first convolution's weight to images that do not have 3 channels, as timm does.

    For one channel it becomes the sum over RGB, which gives the same result on a grey image. For others RGB is repeated
    and scaled by 3 / channels, so that activations keep their size. Weights trained on BGR are reordered to RGB first:
    images that do not have 3 channels reach the stem as they are, neither reordered nor normalised.
    """
    channels = target.shape[1]
    if weight.ndim != 4 or target.ndim != 4 or weight.shape[1] != 3 or channels == 3:
        return weight
    dtype, weight = weight.dtype, (weight.flip(1) if bgr else weight).float()
    if channels == 1:
        return weight.sum(1, keepdim=True).to(dtype)
    return (weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)).to(dtype)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has all its values in memory: it is not sparse, not quantised, not on the meta device."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _misfit(tensor: Tensor, target: Tensor) -> str | None:
    if not is_plain(tensor):
        return "sparse, quantised or without values in the file"
    if tensor.shape != target.shape:
        return f"the file has {_dims(tensor)}, the backbone {_dims(target)}"
    if target.is_floating_point() and not tensor.is_floating_point():
        return f"the file has {tensor.dtype}, the backbone {target.dtype}"
    if target.is_floating_point() and not tensor.to(target.dtype).isfinite().all():
        return f"values that are not finite in {target.dtype}"
    return None


def _explain(
    backbone: Backbone,
    source: str,
    state: Mapping[str, Tensor],
    plan: _Plan,
    problems: Sequence[str],
) -> str:
    """Make the error text: it names the file's backbone if that is another one of ours, else it lists all problems."""
    asked = [str(variant) for variant in identify.matching_variants(backbone)]
    wanted = " or ".join(asked) or f"the {type(backbone).__name__} of a custom config"
    found = identify.recognise(state)
    headline = ""
    if found and found.similarity >= RESEMBLES and (found.prefix or not set(map(str, found.variants)) & set(asked)):
        this = " or ".join(map(str, found.variants))
        verb = "is" if found.similarity == 1 else "looks like"
        headline = f"this {verb} {this}; you asked for {wanted}. Give the weights of {wanted}, or build {this}. "
        if found.prefix:
            headline = (
                f"this is a larger model; the part of it called {found.prefix!r} {verb} {this}, and you asked for "
                f"{wanted}. Save only that part, its names without this prefix. "
            )
        if found.similarity == 1:
            return f"{source}: {headline.strip()}"
    fits = f"{len(plan.copies)} of {len(backbone.state_dict())} tensors fit {wanted} ({plan.layout.name} layout)"
    advice = "strict=False (--partial) loads what fits. " if plan.copies else ""
    tops = f"The names in the file start with {_top_names(state)}."
    return f"{source}: {headline}{fits}. {advice}{tops}\n  " + "\n  ".join(problems)


def _dims(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _lines(keys: Sequence[str]) -> str:
    """The first `SHOWN` keys, one per line, and the number of others: a file can have any number of keys."""
    lines = [flow(key, 300) for key in keys[:SHOWN]]
    if len(keys) > SHOWN:
        lines.append(f"{CUT} ({len(keys) - SHOWN:,} more)")
    return "\n    ".join(lines)


def _top_names(keys: Iterable[str]) -> str:
    """The first parts of dotted names, each once."""
    return listed(dict.fromkeys(key.split(".")[0].split(" ")[0] for key in keys), 6) or "nothing"


def _flat(lists: Iterable[Sequence[str]]) -> list[str]:
    return [item for items in lists for item in items]
