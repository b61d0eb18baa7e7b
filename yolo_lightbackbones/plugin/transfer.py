"""Chooses the weights of one detector that may go into another; imports neither Ultralytics nor a family.

Ultralytics loads every tensor whose name and shape occur in both models. Names contain row numbers, as in
`model.16.conv.weight`. One row with our backbone replaces many rows of a stock model. So the same name means different
layers in the two models, and a tensor that fits by chance would be loaded into a wrong layer.
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


@dataclass
class Chosen:
    """Pretrained weights of chosen rows, for `BaseModel.load`. All other attributes are those of the source model.

    Args:
        source: the model that the weights come from.
        tensors: name in the state dict -> chosen tensor.
        with_head: whether the last row, the head, is among the chosen rows.
        notes: sentences for the user about weights that are not taken over, or only in part.
    """

    source: nn.Module
    tensors: dict[str, Tensor]
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


def choose(target: nn.Module, source: nn.Module) -> Chosen:
    """Choose the weights of `source` that belong in `target`; adapt a first convolution for another number of channels.

    Both are models as Ultralytics builds them, with a sequence of rows in `model`. Neither is changed.
    """
    mine, theirs = _rows(target), _rows(source)
    common = matching_rows(mine, theirs)
    given, wanted = source.state_dict(), target.state_dict()
    tensors = {key: tensor for key, tensor in given.items() if _row_of(key) in common}
    chosen = Chosen(source, tensors, with_head=len(mine) == len(theirs) and len(mine) - 1 in common)
    lost = sum(key not in tensors and key in wanted and wanted[key].shape == given[key].shape for key in given)
    if not tensors or lost:
        chosen.notes.append(_explain(mine, theirs, common, taken=len(tensors), lost=lost, total=len(given)))
    for i in sorted(common):
        ours, pretrained = mine[i], theirs[i]
        if isinstance(ours, Backbone) and isinstance(pretrained, Backbone):
            _adapt_stem(chosen, f"model.{i}.", ours, pretrained, wanted)
    return chosen


def take_over_taps(target: nn.Module, source: nn.Module) -> None:
    """Move the taps of `target` to where `source` has them, in stages whose tensors have the same shapes.

    Weights trained by timm have their taps one block earlier, and a state dict may not contain that.
    """
    mine, theirs = _rows(target), _rows(source)
    for i in matching_rows(mine, theirs):
        ours, pretrained = mine[i], theirs[i]
        if isinstance(ours, Backbone) and isinstance(pretrained, Backbone):
            ours.copy_settings(pretrained)


def matching_rows(target: Sequence[nn.Module], source: Sequence[nn.Module]) -> set[int]:
    """Indices of the rows that are the same layer in both models: same index, same kind, and same input rows.

    If all rows of the two models are connected alike, some may be of another kind (our block instead of Ultralytics',
    or the head of another task), and the rows behind them still match. Otherwise no row behind the first difference
    matches, and neither does any row behind a backbone that the other model does not have.
    """
    connected_alike = [_inputs(row) for row in target] == [_inputs(row) for row in source]
    matching: set[int] = set()
    for i, (mine, theirs) in enumerate(zip(target, source, strict=False)):
        if _inputs(mine) == _inputs(theirs) and _same_kind(mine, theirs):
            matching.add(i)
        elif i == 0 or not connected_alike or isinstance(mine, Backbone) or isinstance(theirs, Backbone):
            break
    return matching


def _rows(model: nn.Module) -> list[nn.Module]:
    rows = getattr(model, "model", None)
    return list(rows) if isinstance(rows, nn.Sequential | nn.ModuleList) else []


def _row_of(key: str) -> int | None:
    """`model.16.conv.weight` -> 16."""
    parts = key.split(".")
    return int(parts[1]) if parts[0] == "model" and len(parts) > 1 and parts[1].isdecimal() else None


def _inputs(row: nn.Module) -> Any:
    return getattr(row, "f", None)


def _same_kind(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two rows have one class, or one derives from the other: heads of other tasks, or wrapped layers."""
    a, b = (type(row[0]) if type(row) is nn.Sequential and len(row) else type(row) for row in (mine, theirs))
    return issubclass(a, b) or issubclass(b, a)


def _explain(
    mine: Sequence[nn.Module], theirs: Sequence[nn.Module], common: set[int], *, taken: int, lost: int, total: int
) -> str:
    first = next((i for i in range(min(len(mine), len(theirs))) if i not in common), None)
    if first is None:
        why = "the two models have no common rows"
    else:
        here, there = (type(rows[first]).__name__ for rows in (mine, theirs))
        why = f"row {first} is {there} in their model and {here} in this one"
        why += "" if any(i > first for i in common) else ", and what follows does not correspond either"
    return (
        f"{taken} of {total} pretrained tensors are taken over: {why}; {lost} others have the name and shape of a "
        "tensor here but belong to other layers. Give weights of a model with the same rows, or train from scratch."
    )


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
