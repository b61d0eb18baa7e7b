"""Finds the rows of two models that are the same layer; imports neither Ultralytics nor a family.

Rows correspond in two ways. From the front: same index, same kind, same input rows. From the end: neck and head of two
models on different backbones are the same rows with other numbers. For these, kinds and connections of all rows of the
YAML's `head` must agree, and every tensor must fit, except where the channels of a backbone or the number of classes
come in. Otherwise it is another neck or another scale, and a tensor that fits does so by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.layers import Channels
from yolo_lightbackbones.messages import flow

CLASS_BRANCHES = ("cv3.", "one2one_cv3.", "proto.semseg.", "linear.", "classifier.", "aux_head.")
"""Starts of the names in a head whose shapes follow the number of classes."""

_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "scale_factor", "d")
"""Attributes of layers without which equal weights would compute something else."""


@dataclass
class Tail:
    """Neck and head of two models, paired by their place from the end.

    Args:
        pairs: row of this model -> row of the other model.
        kept: name of a tensor here -> why the other model's tensor does not fit; for whole rows, `model.4.` -> why.
        problem: why the two necks or heads are not the same; then there are no pairs.
    """

    pairs: dict[int, int] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def rows_of(model: nn.Module) -> list[nn.Module]:
    """The rows of a model as Ultralytics builds it; none for any other module."""
    rows = getattr(model, "model", None)
    return list(rows) if isinstance(rows, nn.Sequential | nn.ModuleList) else []


def matching_rows(target: Sequence[nn.Module], source: Sequence[nn.Module]) -> set[int]:
    """Indices of the rows that are the same layer in both models: same index, same kind, and same input rows.

    If all rows of the two models are connected alike, some may be of another kind (our block instead of Ultralytics',
    or the head of another task), and the rows behind them still match. Otherwise no row behind the first difference
    matches, and neither does any row behind a backbone that the other model does not have.
    """
    connected_alike = [_from(row) for row in target] == [_from(row) for row in source]
    matching: set[int] = set()
    for i, (mine, theirs) in enumerate(zip(target, source, strict=False)):
        if _from(mine) == _from(theirs) and _same_kind(mine, theirs):
            matching.add(i)
        elif i == 0 or not connected_alike or isinstance(mine, Backbone) or isinstance(theirs, Backbone):
            break
    return matching


def takes_image(model: nn.Module, number: int) -> bool:
    """Whether a row takes the image, or some of its channels, and no feature map."""
    rows = rows_of(model)
    while number >= 0:
        inputs = _inputs(rows, number)
        number = inputs[0]
        if len(inputs) != 1 or (number >= 0 and not isinstance(rows[number], nn.Identity | Channels)):
            return False
    return True


def neck_and_head(target: nn.Module, source: nn.Module) -> Tail:
    """Pair the rows of neck and head of two models by their place from the end; taps do not count as rows."""
    here, there = rows_of(target), rows_of(source)
    if not all(_is_connected(rows, i) for rows in (here, there) for i in range(len(rows))):
        return Tail(problem="rows of one of them do not say where their input comes from")
    mine, theirs = _without_taps(here), _without_taps(there)
    pairs: dict[int, int] = {}
    different = ""
    for i, j in zip(reversed(mine), reversed(theirs), strict=False):
        if isinstance(here[i], Backbone) or isinstance(there[j], Backbone):
            break
        if not _same_kind(here[i], there[j]):
            different = f"row {i} is {_kind(here[i])} in this model and row {j}, its counterpart, {_kind(there[j])}"
            break
        pairs[i] = j
    for i in sorted(pairs, reverse=True):
        if not _same_inputs(i, here, there, pairs):
            different = (
                f"row {i} {_kind(here[i])} takes its input from rows {_listed(_inputs(here, i))} in this model, and "
                f"row {pairs[i]}, its counterpart, from rows {_listed(_inputs(there, pairs[i]))}"
            )
            pairs = {a: b for a, b in pairs.items() if a > i}
            break
    if not pairs or _lacks_head_rows(target, mine, set(pairs)) or _lacks_head_rows(source, theirs, {*pairs.values()}):
        return Tail(problem=different or "one of the two necks has more rows")
    return _fitting(here, there, pairs)


def _fitting(here: Sequence[nn.Module], there: Sequence[nn.Module], pairs: Mapping[int, int]) -> Tail:
    """Check that paired rows have the same tensors, but for channels from a backbone and the number of classes."""
    tail = Tail(dict(sorted(pairs.items())))
    fed: set[int] = set()  # rows without weights that pass on maps of a backbone
    for i, j in tail.pairs.items():
        mine, theirs = here[i].state_dict(), there[j].state_dict()
        takes_backbone = any(row not in pairs or row in fed for row in _inputs(here, i))
        is_head = i == len(here) - 1
        if not mine and not theirs and takes_backbone:
            fed.add(i)
        if problem := _other_setting(here[i], there[j]):
            return Tail(problem=f"row {i} {_kind(here[i])} has {problem}")
        same_class = type(here[i]) is type(there[j])
        if mine.keys() != theirs.keys() and not (is_head and not same_class):
            name = min(mine.keys() ^ theirs.keys())
            return Tail(
                problem=f"row {i} {_kind(here[i])} {'has' if name in mine else 'lacks'} {name} in this model, and row "
                f"{j}, its counterpart, {'lacks' if name in mine else 'has'} it"
            )
        if is_head and not same_class:
            why = f"the other model's head is {_kind(there[j])}, which has no such tensor"
            tail.kept |= {f"model.{i}.{name}": why for name in mine if name not in theirs}
        unequal = [name for name in mine if name in theirs and mine[name].shape != theirs[name].shape]
        if is_head and getattr(here[i], "nc", None) != getattr(there[j], "nc", None):
            classes = [name for name in unequal if name.startswith(CLASS_BRANCHES)]
            tail.kept |= {f"model.{i}.{name}": "for another number of classes" for name in classes}
            unequal = [name for name in unequal if name not in classes]
        if unequal and (is_head or not takes_backbone):
            return Tail(problem=f"row {i} {_kind(here[i])}: {_shapes(unequal[0], mine, theirs)}")
        if all(_differ_in_inputs(mine[name], theirs[name]) for name in unequal):
            why = "it takes maps of a backbone, which has other channels"
            tail.kept |= {f"model.{i}.{name}": why for name in unequal}
        else:
            tail.kept[f"model.{i}."] = "its width follows the channels of the backbone"
    return tail


# --- rows -------------------------------------------------------------------------------------------------------------


def _without_taps(rows: Sequence[nn.Module]) -> list[int]:
    """Numbers of all rows that do more than pass on one map of a backbone."""
    return [
        i
        for i, row in enumerate(rows)
        if not (_kind(row) == "Index" and all(k >= 0 and isinstance(rows[k], Backbone) for k in _inputs(rows, i)))
    ]


def _from(row: nn.Module) -> Any:
    """Where a row takes its input from, as Ultralytics' parser has noted it."""
    return getattr(row, "f", None)


def _is_connected(rows: Sequence[nn.Module], i: int) -> bool:
    """Whether a row takes its input from rows before it; models come from files that may be damaged."""
    given = _from(rows[i])
    numbers = given if isinstance(given, list | tuple) else [given]
    return all(is_whole(k) and -max(i, 1) <= k < i for k in numbers)


def _inputs(rows: Sequence[nn.Module], i: int) -> list[int]:
    """Numbers of the rows that row `i` takes its input from; -1 is the image."""
    given = _from(rows[i])
    return [i + k if k < 0 else k for k in (given if isinstance(given, list | tuple) else [given])]


def _same_inputs(i: int, here: Sequence[nn.Module], there: Sequence[nn.Module], pairs: Mapping[int, int]) -> bool:
    """Whether row `i` and its counterpart are connected alike; maps of a backbone correspond to maps of a backbone."""
    mine, theirs = _inputs(here, i), _inputs(there, pairs[i])
    if len(mine) != len(theirs):
        return False
    inside = {*pairs.values()}
    return all(pairs[a] == b if a in pairs else b not in inside for a, b in zip(mine, theirs, strict=True))


def _lacks_head_rows(model: nn.Module, numbers: Sequence[int], paired: set[int]) -> bool:
    """Whether a row of the `head` of the model's YAML is not among those that are paired."""
    config = getattr(model, "yaml", None)
    backbone = config.get("backbone") if isinstance(config, Mapping) else None
    first = len(backbone) if isinstance(backbone, list | tuple) else 0
    return any(i not in paired for i in numbers if i >= first)


def _same_kind(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two rows have one class, or one derives from the other: heads of other tasks, or wrapped layers."""
    a, b = (type(row[0]) if type(row) is nn.Sequential and len(row) else type(row) for row in (mine, theirs))
    return issubclass(a, b) or issubclass(b, a)


def _kind(row: nn.Module) -> str:
    return type(row).__name__


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


# --- layers in a row --------------------------------------------------------------------------------------------------


def _other_setting(mine: nn.Module, theirs: nn.Module) -> str:
    """The first setting of a layer that two rows do not share, such as a stride; empty if there is none."""
    others = dict(theirs.named_modules())
    for name, layer in mine.named_modules():
        for setting in _SETTINGS:
            a, b = (_text(getattr(part, setting, None)) for part in (layer, others.get(name, layer)))
            if a != b:
                return f"{f'{name}.' if name else ''}{setting} {a} in this model, and its counterpart {b}"
    return ""


def _text(value: Any) -> str:
    return flow(value.tolist() if isinstance(value, Tensor) else value)


def _differ_in_inputs(mine: Tensor, theirs: Tensor) -> bool:
    """Whether two weights are of the same shape but for the number of input channels."""
    a, b = list(mine.shape), list(theirs.shape)
    return len(a) == len(b) > 1 and a[:1] + a[2:] == b[:1] + b[2:]


def _shapes(name: str, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    a, b = (" x ".join(map(str, state[name].shape)) or "one number" for state in (mine, theirs))
    return f"{name} is {a} in this model and {b} in the other"
