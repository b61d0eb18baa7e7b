"""Which weights of one detector may go into another by name; knows no Ultralytics and no family.

Ultralytics takes over every tensor whose name and shape occur in both models. Names count rows: `model.16.conv.weight`.
One row with a backbone of ours stands for many of its own, so between a stock model and one of ours the same name means
another layer, and what fits by chance would arrive in a wrong place.
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
    """Pretrained weights as `BaseModel.load` reads them, of some rows only; in everything else the model itself.

    Args:
        source: the model that they are of.
        tensors: by name in its state dict.
        with_head: whether its last row is among them.
        notes: one sentence for everything that is not taken over though its name and shape fit.
    """

    source: nn.Module
    tensors: dict[str, Tensor]
    with_head: bool
    notes: list[str] = field(default_factory=list)

    def float(self) -> Chosen:
        """Itself: the tensors are in single precision already."""
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The chosen tensors."""
        return dict(self.tensors)

    @property
    def model(self) -> Sequence[Any]:
        """The rows; no head is there to be copied where its weights are not."""
        rows: Sequence[Any] = self.source.model if self.with_head else [None]  # type: ignore[assignment]
        return rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["source"], name)


def choose(target: nn.Module, source: nn.Module) -> Chosen:
    """The weights of `source` that belong into `target`, a first convolution for other images adapted.

    Both are models as Ultralytics builds them, with `model`, a sequence of rows. Neither is changed.
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
    """Put the taps of `target` where `source` has them, in stages of the same tensors.

    Weights that timm trained have their taps one block earlier, and a state dict may not say so.
    """
    mine, theirs = _rows(target), _rows(source)
    for i in matching_rows(mine, theirs):
        ours, pretrained = mine[i], theirs[i]
        if isinstance(ours, Backbone) and isinstance(pretrained, Backbone):
            ours.copy_settings(pretrained)


def matching_rows(target: Sequence[nn.Module], source: Sequence[nn.Module]) -> set[int]:
    """Indices of rows that are the same layer in both models: of one kind, from the same rows, counted alike.

    Where all rows are connected alike, some may be of other kinds (a block of ours instead of Ultralytics', the head of
    another task). Behind a backbone that the other model does not have, nothing is the same, and behind a first
    difference in what rows there are, neither.
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
    """One class, or one derived from the other: heads of other tasks, or layers that a tool has wrapped."""
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
    """Make the first convolution of an RGB model one for images of other channels.

    What an RGB model does to its image first (order of channels, mean, std) a model for other images does not do, so it
    goes into the weights: exactly, but for the border of zeros that convolutions pad with.
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
        return  # it fits, or is of another variant, as other layers are then
    if weight.shape[1] != 3 or has_folded(theirs) or has_folded(mine):
        chosen.notes.append(
            f"The first convolution of {type(mine).__name__} keeps its weights of now: the pretrained ones are for "
            f"images of {weight.shape[1]} channels and this model takes {target.shape[1]}; only weights for RGB, "
            f"and not of a fused model, can be adapted. Train from RGB weights, or train this layer from scratch."
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
