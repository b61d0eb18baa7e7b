"""Which weights of our modules an optimizer may shrink or orthogonalise; knows no family.

Ultralytics sorts parameters into groups by name and shape: what is neither a bias nor in one of torch's own norms
decays, and under MuSGD every parameter with two or four dimensions is made orthogonal, as if it were a matrix. For our
backbones and blocks that is wrong twice. Layer scales and position embeddings should not decay: they say how much of a
branch, and where. And depthwise kernels, circular kernels and embeddings have four dimensions without being matrices.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.plugin import releases

WEIGHT, NO_DECAY, MUON, BIAS = "weight", "bn", "muon", "bias"
"""What Ultralytics calls its groups (the key `param_group`): decaying, not decaying, orthogonalised, biases."""

BUFFER, MUON_SGD_BUFFER = "momentum_buffer", "momentum_buffer_SGD"
"""MuSGD's state. In a group that it orthogonalises, the first is an average of gradients and the second SGD's sum of
them; in other groups the first is SGD's sum, and there is no second."""

UNSORTED = "no optimizer groups of their own for layer scales, position embeddings and depthwise kernels"


def on_pretrain_routine_end(trainer: Any) -> None:
    """Ultralytics' callback on every worker: the optimizer is built (or resumed), and nothing is trained yet."""
    try:
        regroup(trainer.optimizer, trainer.model)
    except ValueError as error:
        warnings.warn(f"{error} Ultralytics {releases.version()} trains it as it trains its own layers.", stacklevel=2)


def regroup(optimizer: torch.optim.Optimizer, model: nn.Module) -> int:
    """Move parameters of our backbones and blocks in `model` to the groups they belong in; return how many were moved.

    Groups keep their places and options; where they have no label, what they do says what they are. States are saved,
    and loaded, as if nothing had been moved: in the order that there was, with MuSGD's two buffers where there were
    two. So checkpoints can be resumed with and without this, and Ultralytics may load its last one in the middle of a
    run (after a loss of NaN). Groups and parameters that are added later are saved behind the others of their group.

    Raises:
        ValueError: if there is no group to move them to, or a group does not do what its label says. Nothing is moved
            then.
    """
    groups = optimizer.param_groups
    names = {id(param): name for name, param in model.named_parameters()}
    kinds = [_kind(group, names) for group in groups]
    wanted = _wanted_groups(model)
    before: list[list[Tensor]] = [list(group["params"]) for group in groups]
    moves = []
    for group, kind, params in zip(groups, kinds, before, strict=True):
        for param in params:
            goal = wanted.get(id(param), {}).get(kind)
            if goal is not None:
                moves.append((param, group, _group_like(groups, kinds, goal, group)))
    unmuoned = {id(param) for param, source, target in moves if source.get("use_muon") and not target.get("use_muon")}
    for param, source, target in moves:
        source["params"] = [other for other in source["params"] if other is not param]
        target["params"].append(param)
        if id(param) in unmuoned and param in optimizer.state:  # resumed from what was trained without this
            optimizer.state[param] = _as_sgd(optimizer.state[param])
    if moves:
        optimizer.register_state_dict_post_hook(lambda own, state: _as_before(state, own, before, unmuoned))
        optimizer.register_load_state_dict_pre_hook(lambda own, state: _as_now(state, own, before, unmuoned))
    return len(moves)


def _kind(group: Mapping[str, Any], names: Mapping[int, str]) -> str:
    """What Ultralytics calls this group, or (before 8.4.50, and in others' trainers) would call it.

    Raises:
        ValueError: if the group does not do what its label says.
    """
    label = group.get("param_group")
    if label in {WEIGHT, NO_DECAY, MUON, BIAS}:
        if label == NO_DECAY and group.get("weight_decay"):
            raise ValueError(f"The optimizer's group {label!r} has a weight decay of {group['weight_decay']}.")
        if (label == MUON) != bool(group.get("use_muon")):
            raise ValueError(f"The optimizer's group {label!r} has use_muon={group.get('use_muon')}.")
        return str(label)
    if group.get("use_muon"):
        return MUON
    if group.get("weight_decay"):
        return WEIGHT
    biases = bool(group["params"]) and all("bias" in names.get(id(param), "") for param in group["params"])
    return BIAS if biases else NO_DECAY


def _wanted_groups(model: nn.Module) -> dict[int, dict[str, str]]:
    """`id` of a parameter -> kind of the group it is in -> kind of the group that it has to move to."""
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


def _group_like(
    groups: Sequence[dict[str, Any]], kinds: Sequence[str], kind: str, source: dict[str, Any]
) -> dict[str, Any]:
    """The group of a kind that has the learning rate of `source`, or the last group of that kind.

    The rate they start from: in the middle of a warm-up, where a run may be resumed, all of them can be 0.
    """
    alike = [group for group, its in zip(groups, kinds, strict=True) if its == kind]
    if not alike:
        what = "with weight decay 0" if kind == NO_DECAY else "that is not orthogonalised"
        raise ValueError(
            f"The optimizer has no group {kind!r} to move parameters of our layers to, only {', '.join(kinds)}. "
            f"Give it a group {what} for them, which may be an empty one."
        )
    return next((group for group in alike if _start(group) == _start(source)), alike[-1])


def _start(group: dict[str, Any]) -> float:
    rate: float = group.get("initial_lr", group["lr"])
    return rate


def _order(groups: Sequence[dict[str, Any]], before: list[list[Tensor]]) -> list[list[Tensor]]:
    """The parameters of every group as if nothing had been moved: first those of `before`, then what was added."""
    here = {id(param) for group in groups for param in group["params"]}
    known = {id(param) for params in before for param in params}
    added = [[param for param in group["params"] if id(param) not in known] for group in groups]
    kept = [[param for param in params if id(param) in here] for params in before]
    return [(kept[i] if i < len(kept) else []) + more for i, more in enumerate(added)]


def _as_before(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, before: list[list[Tensor]], unmuoned: set[int]
) -> dict[str, Any]:
    """The state dict as if the parameters were still in the groups of `before`."""
    groups = optimizer.param_groups
    now = {id(param): i for i, param in enumerate(param for group in groups for param in group["params"])}
    order = _order(groups, before)
    momenta = {id(param): group.get("momentum", 0.0) for group in groups for param in group["params"]}
    renumbered = {}
    for number, key in enumerate(id(param) for params in order for param in params):
        if now[key] in state["state"]:
            own = state["state"][now[key]]
            renumbered[number] = _as_muon(own, momenta[key]) if key in unmuoned else own
    starts = [sum(map(len, order[:i])) for i in range(len(order))]
    saved = [
        {**group, "params": list(range(start, start + len(params)))}
        for group, start, params in zip(state["param_groups"], starts, order, strict=True)
    ]
    return {**state, "state": renumbered, "param_groups": saved}


def _as_now(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, before: list[list[Tensor]], unmuoned: set[int]
) -> dict[str, Any] | None:
    """A state dict in the order of `before` with its parameters in the groups of now; None leaves it to torch."""
    groups = optimizer.param_groups
    order = _order(groups, before)
    if [len(group["params"]) for group in state["param_groups"]] != [len(params) for params in order]:
        return None  # of another model or optimizer; torch says so
    keys = [key for group in state["param_groups"] for key in group["params"]]
    key_of = dict(zip((id(param) for params in order for param in params), keys, strict=True))
    own = [
        {**saved, "params": [key_of[id(param)] for param in group["params"]]}
        for saved, group in zip(state["param_groups"], groups, strict=True)
    ]
    converted = {key_of[key] for key in unmuoned if key in key_of}
    states = {key: _as_sgd(own) if key in converted else own for key, own in state["state"].items()}
    return {**state, "state": states, "param_groups": own}


def _as_sgd(state: dict[str, Any]) -> dict[str, Any]:
    """Convert MuSGD's state of an orthogonalised parameter into that of any other: the same sum of gradients.

    A state of 0.1.0 has the sum in the place of the average, and nothing else; it stays as it is.
    """
    if MUON_SGD_BUFFER not in state:
        return state
    others = {name: value for name, value in state.items() if name != MUON_SGD_BUFFER}
    return {**others, BUFFER: state[MUON_SGD_BUFFER]}


def _as_muon(state: dict[str, Any], momentum: float) -> dict[str, Any]:
    """Convert a state back (see `_as_sgd`).

    The average of gradients is (1 - momentum) times their sum, which includes weight decay.
    """
    if BUFFER not in state:
        return state
    return {**state, BUFFER: state[BUFFER] * (1 - momentum), MUON_SGD_BUFFER: state[BUFFER]}


# --- whether Ultralytics sorts parameters as this expects -------------------------------------------------------------


class _Tiny(nn.Module):
    """A model with one parameter of each kind, without memory."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))


def misfit_of_groups(build_optimizer: Callable[..., torch.optim.Optimizer]) -> str | None:
    """How Ultralytics' groups differ from what `regroup` expects, tried on a model of two layers; None if they do not.

    Args:
        build_optimizer: the method of Ultralytics' trainer.
    """
    trainer = SimpleNamespace(args=SimpleNamespace(lr0=0.01), data={"nc": 1})
    for optimizer, matrix in (("SGD", WEIGHT), ("MuSGD", MUON)):
        model = _Tiny()
        names = {id(param): name for name, param in model.named_parameters()}
        expected = {"model.0.weight": matrix, "model.1.weight": NO_DECAY, "model.1.bias": BIAS}
        try:
            with _muted():
                groups = build_optimizer(trainer, model, name=optimizer, lr=0.01, decay=0.01).param_groups
            seen = {names[id(param)]: _kind(group, names) for group in groups for param in group["params"]}
        except Exception as error:  # whatever it raises, it is no method that we know
            return f"BaseTrainer.build_optimizer fails for {optimizer} on a model of two layers: {error!r}"
        if seen != expected:
            return f"BaseTrainer.build_optimizer sorts parameters for {optimizer} into {seen}, not {expected}"
    return None


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Without lines in Ultralytics' log about an optimizer that trains nothing."""
    log = importlib.import_module("ultralytics.utils").LOGGER

    def drop(_record: logging.LogRecord) -> bool:
        return False

    log.addFilter(drop)
    try:
        yield
    finally:
        log.removeFilter(drop)
