"""Which weights of our modules an optimizer may shrink or orthogonalise; knows no Ultralytics and no family.

Ultralytics sorts parameters into groups by name and shape: what is neither a bias nor in one of torch's own norms
decays, and under MuSGD every parameter with two or four dimensions is made orthogonal, as if it were a matrix. For our
backbones and blocks that is wrong twice. Layer scales and position embeddings should not decay: they say how much of a
branch, and where. And depthwise kernels, circular kernels and embeddings have four dimensions without being matrices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.blocks import BlockRow

WEIGHT, NO_DECAY, MUON = "weight", "bn", "muon"
"""What Ultralytics calls its groups (the key `param_group`): decaying, not decaying, orthogonalised."""


def regroup(optimizer: torch.optim.Optimizer, model: nn.Module) -> int:
    """Move parameters of our backbones and blocks in `model` to the groups they belong in; return how many were moved.

    Groups keep their places and options. States are saved, and loaded, in the order that there was: checkpoints can be
    resumed with and without this, and Ultralytics may load its last one in the middle of a run (after a loss of NaN).
    """
    groups = optimizer.param_groups
    wanted = _wanted_groups(model)
    before: list[list[Tensor]] = [list(group["params"]) for group in groups]
    moves = []
    for group, params in zip(groups, before, strict=True):
        for param in params:
            kind = wanted.get(id(param), {}).get(group.get("param_group", ""))
            if kind is not None:
                moves.append((param, group, _group_like(groups, kind, group)))
    for param, source, target in moves:
        source["params"] = [other for other in source["params"] if other is not param]
        target["params"].append(param)
    if moves:
        optimizer.register_state_dict_post_hook(lambda own, state: _in_order(state, own.param_groups, before))
        optimizer.register_load_state_dict_pre_hook(lambda own, state: _regrouped(state, own.param_groups, before))
    return len(moves)


def _wanted_groups(model: nn.Module) -> dict[int, dict[str, str]]:
    """By the id of a parameter: from which kind of group to which other it has to move."""
    wanted: dict[int, dict[str, str]] = {}
    for part in (module for module in model.modules() if isinstance(module, Backbone | BlockRow)):
        kept_whole = part.no_weight_decay()
        for prefix, module in part.named_modules():
            for name, param in module.named_parameters(prefix, recurse=False):
                if name in kept_whole:
                    wanted[id(param)] = {WEIGHT: NO_DECAY, MUON: NO_DECAY}
                elif not _is_matrix(module):
                    wanted[id(param)] = {MUON: WEIGHT}
    return wanted


def _is_matrix(module: nn.Module) -> bool:
    """Whether the weight of this module maps all of its inputs to all of its outputs."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _group_like(groups: Iterable[dict[str, Any]], kind: str, source: dict[str, Any]) -> dict[str, Any]:
    """The group of that kind with the learning rate of `source`, or the last of that kind.

    The rate they start from: in the middle of a warm-up, where a run may be resumed, all of them can be 0.
    """
    alike = [group for group in groups if group.get("param_group") == kind]
    if not alike:
        raise ValueError(f"The optimizer has no group {kind!r} to move parameters of our layers to.")
    return next((group for group in alike if _start(group) == _start(source)), alike[-1])


def _start(group: dict[str, Any]) -> float:
    rate: float = group.get("initial_lr", group["lr"])
    return rate


def _in_order(state: dict[str, Any], groups: list[dict[str, Any]], before: list[list[Tensor]]) -> dict[str, Any]:
    """The state dict as if the parameters were still in the groups of `before`."""
    now = {id(param): i for i, param in enumerate(param for group in groups for param in group["params"])}
    order = [id(param) for params in before for param in params]
    renumbered = {number: state["state"][now[key]] for number, key in enumerate(order) if now[key] in state["state"]}
    starts = [sum(map(len, before[:i])) for i in range(len(before))]
    saved = [
        {**group, "params": list(range(start, start + len(params)))}
        for group, start, params in zip(state["param_groups"], starts, before, strict=True)
    ]
    return {**state, "state": renumbered, "param_groups": saved}


def _regrouped(
    state: dict[str, Any], groups: list[dict[str, Any]], before: list[list[Tensor]]
) -> dict[str, Any] | None:
    """A state dict in the order of `before` with its parameters in the groups of now; None leaves it to torch."""
    if [len(group["params"]) for group in state["param_groups"]] != [len(params) for params in before]:
        return None  # of another model or optimizer; torch says so
    keys = [key for group in state["param_groups"] for key in group["params"]]
    key_of = dict(zip((id(param) for params in before for param in params), keys, strict=True))
    own = [
        {**saved, "params": [key_of[id(param)] for param in group["params"]]}
        for saved, group in zip(state["param_groups"], groups, strict=True)
    ]
    return {**state, "param_groups": own}
