"""Moves parameters of our modules to the optimizer groups where they belong; independent of the families.

Ultralytics sorts parameters into groups by name and shape. Weight decay applies to every parameter that is neither a
bias nor part of one of torch's norms. MuSGD orthogonalises every parameter with two or four dimensions, as if it were a
matrix. Both rules are wrong for some parameters of our backbones and blocks. Layer scales and position embeddings
should not decay, because they hold the weight of a branch, or positions. Depthwise kernels, circular ones included, and
embeddings have four dimensions, but are not matrices.
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

from yolo_lightbackbones import layers
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.plugin import pretrained, quantising, releases, sizes

WEIGHT, NO_DECAY, MUON, BIAS = "weight", "bn", "muon", "bias"
"""Ultralytics' labels of groups (key `param_group`): with weight decay, without, orthogonalised, biases."""

BUFFER, MUON_SGD_BUFFER = "momentum_buffer", "momentum_buffer_SGD"
"""Keys of MuSGD's state. In an orthogonalised group, the first is an average of gradients, and the second is SGD's sum
of gradients. In other groups the first is SGD's sum, and the second does not exist."""

UNSORTED = "no optimizer groups of their own for layer scales, position embeddings and depthwise kernels"


def on_pretrain_routine_end(trainer: Any) -> None:
    """Prepare a training; Ultralytics' callback on every worker, after the optimizer is built or resumed."""
    sizes.on_training(trainer)
    pretrained.on_training(trainer)
    quantising.on_training(trainer)
    try:
        regroup(trainer.optimizer, trainer.model)
    except ValueError as error:
        warnings.warn(
            f"{error} Ultralytics {releases.version()} trains our layers as it trains its own layers.", stacklevel=2
        )


def regroup(optimizer: torch.optim.Optimizer, model: nn.Module) -> int:
    """Move parameters of our backbones and blocks in `model` to the groups they belong in; return how many were moved.

    Groups keep their order and options. The kind of a group without a label is derived from its options. The state dict
    is saved and loaded as if nothing had been moved: in the original order, and with both buffers of MuSGD where there
    were two. So checkpoints can be resumed with and without this plugin, and Ultralytics may reload the last one in the
    middle of a run (after a loss of NaN). Parameters that are added later are saved behind the others of their group.

    Raises:
        ValueError: if there is no group to move parameters to, or if the options of a group contradict its label.
            Nothing is moved then.
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
        if id(param) in unmuoned and param in optimizer.state:  # resumed from a run without this plugin
            optimizer.state[param] = _as_sgd(optimizer.state[param])
    if moves:
        optimizer.register_state_dict_post_hook(lambda own, state: _as_before(state, own, before, unmuoned))
        optimizer.register_load_state_dict_pre_hook(lambda own, state: _as_now(state, own, before, unmuoned))
    return len(moves)


def _kind(group: Mapping[str, Any], names: Mapping[int, str]) -> str:
    """Return Ultralytics' label of a group; derive it if there is none (before 8.4.50, and in trainers of others).

    Raises:
        ValueError: if the options of the group contradict its label.
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
    """Map `id` of a parameter -> kind of its present group -> kind of the group that it must move to."""
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
    if isinstance(module, layers.CircularConv):
        return module.dense
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _group_like(
    groups: Sequence[dict[str, Any]], kinds: Sequence[str], kind: str, source: dict[str, Any]
) -> dict[str, Any]:
    """Find the group of a kind with the initial learning rate of `source`; otherwise the last group of that kind.

    The present rates cannot be compared: in the middle of a warm-up, where a run may be resumed, all of them can be 0.
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
    """The parameters of each group as if nothing had been moved: first those of `before`, then those added later."""
    here = {id(param) for group in groups for param in group["params"]}
    known = {id(param) for params in before for param in params}
    added = [[param for param in group["params"] if id(param) not in known] for group in groups]
    kept = [[param for param in params if id(param) in here] for params in before]
    return [(kept[i] if i < len(kept) else []) + more for i, more in enumerate(added)]


def _as_before(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, before: list[list[Tensor]], unmuoned: set[int]
) -> dict[str, Any]:
    """Rewrite the state dict of now as if the parameters were still in the groups of `before`."""
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
    """Rewrite a state dict in the order of `before` for the groups of now; None, for torch to report, if it misfits."""
    groups = optimizer.param_groups
    order = _order(groups, before)
    if [len(group["params"]) for group in state["param_groups"]] != [len(params) for params in order]:
        return None  # of another model or optimizer; torch reports it
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
    """Convert MuSGD's state of an orthogonalised parameter into that of any other; the sum of gradients is kept.

    A state written by 0.1.0 has only the sum, under the key of the average; it stays as it is.
    """
    if MUON_SGD_BUFFER not in state:
        return state
    others = {name: value for name, value in state.items() if name != MUON_SGD_BUFFER}
    return {**others, BUFFER: state[MUON_SGD_BUFFER]}


def _as_muon(state: dict[str, Any], momentum: float) -> dict[str, Any]:
    """Convert a state into that of an orthogonalised parameter, the inverse of `_as_sgd`.

    The average of gradients is set to (1 - momentum) times their sum, which includes weight decay.
    """
    if BUFFER not in state:
        return state
    return {**state, BUFFER: state[BUFFER] * (1 - momentum), MUON_SGD_BUFFER: state[BUFFER]}


# --- check that Ultralytics sorts parameters as expected --------------------------------------------------------------


class _Tiny(nn.Module):
    """A model with one parameter of each kind, on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))


def misfit_of_groups(build_optimizer: Callable[..., torch.optim.Optimizer]) -> str | None:
    """Explain how Ultralytics' groups differ from those that `regroup` expects, tried on two layers; None if they fit.

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
        except Exception as error:  # any error means that this is not the method that we know
            return f"BaseTrainer.build_optimizer fails for {optimizer} on a model of two layers: {error!r}"
        if seen != expected:
            return f"BaseTrainer.build_optimizer sorts parameters for {optimizer} into {seen}, not {expected}"
    return None


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Silence Ultralytics' log inside this block, for an optimizer that trains nothing."""
    log = importlib.import_module("ultralytics.utils").LOGGER

    def drop(_record: logging.LogRecord) -> bool:
        return False

    log.addFilter(drop)
    try:
        yield
    finally:
        log.removeFilter(drop)
