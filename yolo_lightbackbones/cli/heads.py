"""Takes neck and head of a model from a checkpoint of Ultralytics, by their place from the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from yolo_lightbackbones.bounds import LONGEST_TEXT
from yolo_lightbackbones.cli import untrusted
from yolo_lightbackbones.cli.common import UserError
from yolo_lightbackbones.messages import quoted

if TYPE_CHECKING:  # it imports torch, which `lightbackbones --help` does without
    from yolo_lightbackbones.plugin.transfer import TailReport


def has_backbone(net: Any) -> bool:
    """Whether a model has a backbone of ours."""
    from yolo_lightbackbones.backbone import Backbone

    return any(isinstance(module, Backbone) for module in net.modules())


def take(net: Any, source: Any, weights: str) -> TailReport:
    """Fill neck and head of `net` from those of `source`, the model in the file `weights`, in float32.

    Raises:
        UserError: if that is no model, is fused, or has another task, neck, head or scale. Then nothing is changed.
    """
    from yolo_lightbackbones.plugin import transfer

    if not hasattr(source, "model") or not hasattr(source, "yaml"):
        raise UserError(f"{weights} is no checkpoint of an Ultralytics model, so it has no neck and head to take.")
    try:
        if source.is_fused():
            raise UserError(
                f"The model in {weights} is fused: its weights are products of those in training. Give the checkpoint "
                "from before."
            )
        head, its_head = (type(model.model[-1]).__name__ for model in (net, source))
        if head != its_head:
            raise UserError(
                f"{weights} has the head {quoted(its_head)}, and this model {head}: another task or generation. Give a "
                "checkpoint of the same one."
            )
        chosen = transfer.choose_tail(net, source)
        if not chosen.tail.pairs:
            raise UserError(
                f"The neck and head in {weights} do not fit this model{_scales(net, source)}: {chosen.tail.problem}. "
                "Give a checkpoint with the same neck, head and scale."
            )
        _check_values(chosen.tensors, net.state_dict(), weights)
        net.load(chosen, verbose=False)
        report = transfer.report_tail(net, chosen)
    except UserError:
        raise
    except Exception as error:  # of any kind: the model comes from a file that may be damaged or older
        raise UserError(f"The neck and head in {weights} cannot be read: {untrusted.shortened(error)}") from error
    _take_names(net, source, report)
    return report


def _scales(net: Any, source: Any) -> str:
    """A remark if the two models have different scale letters."""
    here, there = (model.yaml.get("scale") if isinstance(model.yaml, Mapping) else None for model in (net, source))
    return f" (theirs has scale {quoted(there)}, this one {quoted(here)})" if here and there and here != there else ""


def _check_values(tensors: Mapping[str, Any], wanted: Mapping[str, Any], weights: str) -> None:
    """Refuse tensors that are sparse or quantised, of another kind than those they go into, or not finite."""
    from yolo_lightbackbones.checkpoints import engine

    for key, tensor in tensors.items():
        kind = tensor.is_floating_point()
        if not engine.is_plain(tensor) or (key in wanted and kind != wanted[key].is_floating_point()):
            raise UserError(f"{weights}: {quoted(key)} is not a plain tensor of numbers. Give another checkpoint.")
        if kind and not tensor.isfinite().all():
            raise UserError(
                f"{weights}: the tensor for {quoted(key)} has values that are not finite; its training diverged."
            )


def _take_names(net: Any, source: Any, report: TailReport) -> None:
    """Take the names of the classes if the whole head is taken: training then finds its classes by name."""
    names, count = getattr(source, "names", None), net.yaml.get("nc")
    last = f"model.{len(net.model) - 1}."
    if isinstance(names, dict) and len(names) == count and not any(key.startswith(last) for key in report.kept):
        net.names = {int(number): str(name)[:LONGEST_TEXT] for number, name in names.items()}
