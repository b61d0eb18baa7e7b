"""Chooses the weights of one detector that may go into another; imports neither Ultralytics nor a family.

Ultralytics loads every tensor whose name and shape occur in both models. Names contain row numbers, as in
`model.16.conv.weight`. One row with our backbone replaces many rows of a stock model. So the same name means different
layers in the two models, and a tensor that fits by chance would be loaded into a wrong layer. `correspondence` finds
the rows that are the same layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.checkpoints import engine
from yolo_lightbackbones.fusion import has_folded
from yolo_lightbackbones.layers import ConvNorm
from yolo_lightbackbones.messages import listed
from yolo_lightbackbones.plugin.correspondence import Tail, matching_rows, neck_and_head, rows_of


@dataclass
class Chosen:
    """Pretrained weights of chosen rows, for `BaseModel.load`. All other attributes are those of the source model.

    Args:
        source: the model that the weights come from.
        tensors: name in the state dict of the target -> chosen tensor.
        pairs: row of the target -> row of the source.
        tail: neck and head, where they are taken by their place from the end.
        with_head: whether the last row, the head, is among the chosen rows.
        notes: sentences for the user about weights that are not taken over, or only in part.
    """

    source: nn.Module
    tensors: dict[str, Tensor]
    pairs: dict[int, int]
    tail: Tail
    with_head: bool
    notes: list[str] = field(default_factory=list)

    def float(self) -> Chosen:
        """Return this object: the tensors are in single precision already."""
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The chosen tensors."""
        return dict(self.tensors)

    @property
    def model(self) -> Sequence[Any]:
        """The rows of the source model. Without weights of the head there is only None, so that no head is copied."""
        rows: Sequence[Any] = self.source.model if self.with_head else [None]  # type: ignore[assignment]
        return rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["source"], name)


@dataclass(frozen=True)
class TailReport:
    """What neck and head have taken by their place from the end.

    Args:
        rows: row of the model -> row of the other model.
        taken: names of the tensors that were filled.
        kept: names of the others.
        reasons: why tensors, or all of a row, were not taken -> their names.
    """

    rows: dict[int, int]
    taken: tuple[str, ...]
    kept: tuple[str, ...]
    reasons: dict[str, list[str]]

    def __str__(self) -> str:
        first, last = min(self.rows), max(self.rows)
        text = (
            f"Neck and head by their place from the end: rows {first} to {last} take {len(self.taken)} of "
            f"{len(self.taken) + len(self.kept)} tensors from rows {self.rows[first]} to {self.rows[last]}"
        )
        kept = "; ".join(f"{listed(names, 4)} ({why})" for why, names in self.reasons.items())
        return f"{text}. Not taken: {kept}." if kept else f"{text}."


def choose(target: nn.Module, source: nn.Module) -> Chosen:
    """Choose the weights of `source` that belong in `target`; adapt a first convolution for another number of channels.

    Both are models as Ultralytics builds them, with a sequence of rows in `model`. Neither is changed.
    """
    mine, theirs = rows_of(target), rows_of(source)
    given, wanted = source.state_dict(), target.state_dict()
    common = matching_rows(mine, theirs)
    pairs = {i: i for i in common}
    tail = Tail()
    if mine and theirs and len(mine) - 1 not in common:
        tail = neck_and_head(target, source)
        first, first_there = min(tail.pairs, default=len(mine)), min(tail.pairs.values(), default=len(theirs))
        pairs = {i: j for i, j in pairs.items() if i < first and j < first_there} | tail.pairs
    tensors = _renumbered(given, pairs, tail.kept)
    chosen = Chosen(source, tensors, pairs, tail, with_head=bool(mine) and pairs.get(len(mine) - 1) == len(theirs) - 1)
    lost = sum(key not in tensors and key in wanted and wanted[key].shape == given[key].shape for key in given)
    if not tail.pairs and (not tensors or lost):
        why = _explain(mine, theirs, common) + (f"; and {tail.problem}" if tail.problem else "")
        chosen.notes.append(
            f"{len(tensors)} of {len(given)} pretrained tensors are taken over: {why}; {lost} others have the name and "
            "shape of a tensor here but belong to other layers. Give weights of a model with the same rows, or of the "
            "same neck, head and scale, or train from scratch."
        )
    for i, j in pairs.items():
        ours, pretrained = mine[i], theirs[j]
        if isinstance(ours, Backbone) and isinstance(pretrained, Backbone):
            _adapt_stem(chosen, f"model.{i}.", ours, pretrained, wanted)
    return chosen


def choose_tail(target: nn.Module, source: nn.Module) -> Chosen:
    """Choose the weights of neck and head only, by their place from the end; `tail` says why if there are none."""
    tail = neck_and_head(target, source)
    tensors = _renumbered(source.state_dict(), tail.pairs, tail.kept)
    return Chosen(source, tensors, tail.pairs, tail, with_head=bool(tail.pairs))


def report_tail(target: nn.Module, chosen: Chosen) -> TailReport:
    """What neck and head of `target` have taken by their place from the end, after the tensors were loaded."""
    pairs, mine, state = chosen.tail.pairs, rows_of(target), target.state_dict()
    inside = [key for key in state if _row_of(key) in pairs]
    taken = [key for key in inside if key in chosen.tensors and chosen.tensors[key].shape == state[key].shape]
    reasons: dict[str, list[str]] = {}
    for key, why in chosen.tail.kept.items():
        number = int(key.split(".")[1])
        if key.endswith("."):
            reasons.setdefault(why, []).append(f"row {number} {type(mine[number]).__name__}")
        elif key not in taken:
            reasons.setdefault(why, []).append(key)
    return TailReport(dict(pairs), tuple(taken), tuple(key for key in inside if key not in taken), reasons)


def take_over_taps(target: nn.Module, chosen: Chosen) -> None:
    """Move the taps of `target` to where the source has them, in stages whose tensors have the same shapes.

    Weights trained by timm have their taps one block earlier, and a state dict may not contain that.
    """
    mine, theirs = rows_of(target), rows_of(chosen.source)
    for i, j in chosen.pairs.items():
        ours, pretrained = mine[i], theirs[j]
        if isinstance(ours, Backbone) and isinstance(pretrained, Backbone):
            ours.copy_settings(pretrained)


def _renumbered(given: Mapping[str, Tensor], pairs: Mapping[int, int], kept: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of paired rows under the row numbers of the target, without those of rows that keep their own."""
    here = {j: i for i, j in pairs.items()}
    tensors = {}
    for key, tensor in given.items():
        row = _row_of(key)
        if row in here and f"model.{here[row]}." not in kept:
            tensors[f"model.{here[row]}.{key.split('.', 2)[2]}"] = tensor
    return tensors


def _row_of(key: str) -> int | None:
    """`model.16.conv.weight` -> 16."""
    parts = key.split(".")
    return int(parts[1]) if parts[0] == "model" and len(parts) > 2 and parts[1].isdecimal() else None


def _explain(mine: Sequence[nn.Module], theirs: Sequence[nn.Module], common: set[int]) -> str:
    first = next((i for i in range(min(len(mine), len(theirs))) if i not in common), None)
    if first is None:
        return "the two models have no common rows"
    here, there = (type(rows[first]).__name__ for rows in (mine, theirs))
    behind = "" if any(i > first for i in common) else ", and what follows does not correspond either"
    return f"row {first} is {there} in their model and {here} in this one{behind}"


def _adapt_stem(chosen: Chosen, prefix: str, mine: Backbone, theirs: Backbone, wanted: Mapping[str, Tensor]) -> None:
    """Adapt the first convolution of an RGB model to images with another number of channels.

    An RGB model normalises its image first (channel order, mean, std); a model for other images does not. So the
    normalisation is folded into the weights. This is exact, except at the border where convolutions pad with zeros.
    """
    found = theirs.image_conv()
    if found is None:
        return
    name, conv = found
    key = f"{prefix}{name}.weight"
    if key not in chosen.tensors or key not in wanted:
        return
    weight, target = chosen.tensors[key], wanted[key]
    if weight.shape[1] == target.shape[1] or (weight.shape[0], weight.shape[2:]) != (target.shape[0], target.shape[2:]):
        return  # it fits, or is of another variant; then other layers differ, too
    if weight.shape[1] != 3 or has_folded(theirs) or has_folded(mine):
        chosen.notes.append(
            f"The first convolution of {type(mine).__name__} keeps its current weights: the pretrained ones are for "
            f"images of {weight.shape[1]} channels and this model takes {target.shape[1]}; only RGB weights of a model "
            f"that is not fused can be adapted. Train from RGB weights, or train this layer from scratch."
        )
        return
    rest, folded = theirs.fold_input()
    with torch.no_grad():
        chosen.tensors[key] = engine.adapt_channels(folded.weight.detach(), target, bgr=False)
        black = rest(folded.weight.new_zeros(1, 3, 1, 1)).flatten()  # what the rest of the norm makes of 0
        constant = (folded.weight.sum((2, 3)) * black).sum(1)
        constant = (constant if folded.bias is None else constant + folded.bias).detach()
        parent = theirs.get_submodule(name.rpartition(".")[0])
        path = key.removesuffix(".conv.weight")
        if conv.bias is not None:
            chosen.tensors[f"{key.removesuffix('weight')}bias"] = constant
        elif isinstance(parent, ConvNorm):
            chosen.tensors[f"{path}.norm.running_mean"] = chosen.tensors[f"{path}.norm.running_mean"] - constant
        elif constant.any():
            chosen.notes.append(
                f"The first convolution of {type(mine).__name__} is adapted from RGB to {target.shape[1]} channels, "
                f"without the mean that is subtracted from RGB images, for which it has no bias; train it before use."
            )
