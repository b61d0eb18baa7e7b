"""Quantisation-aware training (`yolo train quantize=8`) of models with our modules: what is trained is what runs.

Ultralytics puts fake quantisers of NVIDIA ModelOpt on convolutions and linear layers. Before it does, every row of ours
is folded as for inference, and stays trainable: RepViT's branches, norms, layer scales and scales of attention are in
the weights then, so the quantisers act on the convolutions that a runtime executes. Layers of Ultralytics keep their
norms, which `model.fuse()` folds after the training, with the ranges of the weights.

A checkpoint keeps the folded rows and, beside the model, the ranges. A model that takes such weights is folded first
(`take_form`).
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.messages import listed
from yolo_lightbackbones.plugin import releases
from yolo_lightbackbones.plugin.correspondence import rows_of

PACKAGES = {"nvidia-modelopt": (0, 44), "huggingface-hub": (0, 24), "omegaconf": (2, 3)}
"""Package -> first release that is enough; the extra `qat`. A test compares them with pyproject.toml."""

UNMERGED = "no folding of our layers before quantisation-aware training"

TOLERANCE = 0.01
"""Largest mean difference of a row's output that folding may make, as a share of the standard deviation: TF32 makes
about 0.001, a wrong fold 1."""


class QuantisingError(ValueError):
    """Quantisation-aware training, or a checkpoint of it, cannot go on. The message says why, and what to do."""


class MissingPackageError(QuantisingError, ModuleNotFoundError):
    """A package of the extra `qat` is missing."""


def prepare_qat(original: Callable[..., Any]) -> Callable[..., Any]:
    """Replace `prepare_qat`: our rows are folded and stay trainable, then Ultralytics inserts its quantisers.

    The replacement raises a `QuantisingError` before anything is changed: without ModelOpt, for a model that was never
    trained, and if folding would change what a row computes.
    """

    def prepare_qat(model: Any, *args: Any, **kwargs: Any) -> Any:
        if any(_ours(model)):
            if problem := misfit_of_preparation(original):
                releases.warn_without(UNMERGED, problem)
                return original(model, *args, **kwargs)
            given = inspect.signature(original).bind(model, *args, **kwargs).arguments
            _require_packages("quantize=8 trains with fake quantisers of NVIDIA ModelOpt")
            _refuse_untrained(model)
            batch = given["preprocess"](next(iter(given["dataloader"])))
            _merge(model, batch["img"] if isinstance(batch, Mapping) else batch)
        return original(model, *args, **kwargs)

    return prepare_qat


def restore_qat(original: Callable[..., Any]) -> Callable[..., Any]:
    """Replace `restore_qat`: without ModelOpt, a checkpoint with our rows is refused in one sentence."""

    def restore_qat(model: Any, *args: Any, **kwargs: Any) -> Any:
        if any(_ours(getattr(model, "student_model", model))):
            _require_packages("This checkpoint comes from a training with quantize=8, with quantisers of ModelOpt")
        return original(model, *args, **kwargs)

    return restore_qat


def take_form(target: Any, source: nn.Module) -> None:
    """Fold those rows of `target` that are folded in `source`, a model with quantisers; they stay trainable.

    A row of another variant stays as it is, because its weights do not come from there.
    """
    if not has_quantisers(source):
        return
    mine, theirs = dict(_ours(target)), dict(_ours(source))
    folded = [
        number
        for number, row in mine.items()
        if type(theirs.get(number)) is type(row) and fusion.is_folded(theirs[number]) and not fusion.is_folded(row)
    ]
    for number in folded:
        row = merged(mine[number])
        if _has_layers_of(row, theirs[number]):
            target.model[number] = row


def _has_layers_of(row: nn.Module, other: nn.Module) -> bool:
    """Whether each parameter of a row has its counterpart in the other; channels of the image may differ."""
    there = dict(other.named_parameters())
    return all(name in there and there[name].shape[:1] == own.shape[:1] for name, own in row.named_parameters())


def without_quantisers(model: nn.Module) -> nn.Module:
    """The model itself if it has no quantisers; else a copy without them.

    Ultralytics copies class branches of a head as they are, and quantisers can come into a model only once.
    """
    if not has_quantisers(model):
        return model
    plain = copy.deepcopy(model)
    importlib.import_module("ultralytics.utils.torch_utils").strip_qat(plain)
    return plain


def merged(row: nn.Module) -> nn.Module:
    """Fold a row as for inference, for further training: trainable, in its mode, with the parser's marks."""
    folded = fusion.fuse(row).train(row.training)
    for parameter in folded.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for name in ("i", "f", "type", "np"):
        if hasattr(row, name):
            setattr(folded, name, getattr(row, name))
    return folded


def has_quantisers(model: nn.Module) -> bool:
    """Whether a model carries ModelOpt's quantisers; by their name, as Ultralytics looks for them."""
    return any(type(module).__name__ == "TensorQuantizer" for module in model.modules())


def _ours(model: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    return ((number, row) for number, row in enumerate(rows_of(model)) if isinstance(row, Backbone | BlockRow))


def _named(number: int, row: nn.Module) -> str:
    return f"row {number}, {type(row).__name__},"


def _merge(model: Any, image: Tensor) -> None:
    """Fold our rows, each checked on its own input of this image (B, C, H, W); nothing is changed if one misfits."""
    rows = dict(_ours(model))
    inputs: dict[int, Any] = {}

    def note(number: int) -> Callable[..., None]:
        return lambda _row, given: inputs.__setitem__(number, given[0])

    mode = model.training
    noting = [row.register_forward_pre_hook(note(number)) for number, row in rows.items()]
    try:
        with torch.no_grad():
            model.eval()(image[:2])
    finally:
        model.train(mode)
        for handle in noting:
            handle.remove()
    folded = {number: merged(row) for number, row in rows.items()}
    for number, row in rows.items():
        left = [what for module in row.modules() if (what := fusion.obstacle(module)) is not None]
        if left:
            raise QuantisingError(
                f"quantize=8 folds {_named(number, row)} before the training, and it has {left[0].what}, which folding "
                f"would lose. To train it, {left[0].remedy or 'start from a model without them'}."
            )
        _check_equal(number, row, folded[number], inputs[number])
    for number, row in folded.items():
        model.model[number] = row


def _check_equal(number: int, row: nn.Module, folded: nn.Module, given: Any) -> None:
    mode = row.training
    with torch.no_grad():
        pairs = list(zip(_maps(row.eval()(given)), _maps(folded.eval()(given)), strict=True))
    row.train(mode)
    folded.train(mode)
    for wanted, seen in pairs:
        if not wanted.isfinite().all():
            raise QuantisingError(
                f"The output of {_named(number, row)} is not finite before the training with quantize=8 begins: its "
                "weights are broken. Start from another checkpoint."
            )
        rounding = 1e-5 * wanted.abs().mean()
        if not (seen - wanted).abs().mean() <= TOLERANCE * wanted.std() + rounding:
            raise QuantisingError(
                f"quantize=8 folds {_named(number, row)} before the training, and the folded form computes something "
                "else. Train without quantize=8, and please report this model."
            )


def _maps(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def _refuse_untrained(model: nn.Module) -> None:
    """Refuse a model with norms whose running statistics are still the initial ones.

    The ranges of activations are measured once, with the running statistics. In the training, norms use those of the
    batch. With initial statistics (mean 0, variance 1) a new ParC-Net has activations up to 0.02 in the measurement and
    up to 0.4 in the training. Nearly all are cut off, the norm behind scales the rest up again, and gradients grow from
    layer to layer: after a few updates they are not finite, and then no weight is.
    """
    for number, row in enumerate(rows_of(model)):
        for norm in row.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and _is_new(norm):
                raise QuantisingError(
                    f"quantize=8 is given for a model that was not trained: a norm in {_named(number, row)} has seen "
                    "no batch, and the ranges of activations are measured before the first update. Train without "
                    "quantize=8 first, then give model=best.pt and quantize=8."
                )


def _is_new(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """Whether the running statistics are the initial ones. Ultralytics' average of models does not count batches."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        return False
    # a mean may be 0 after a training as well: behind another norm, it is too small for the half precision of a file
    return not mean.any() and bool((var == var[0]).all())


def _require_packages(why: str) -> None:
    missing = [name for name, release in PACKAGES.items() if _installed(name) < release]
    if missing:
        wanted = " ".join(f'"{name}>={".".join(map(str, PACKAGES[name]))}"' for name in missing)
        raise MissingPackageError(f"{why}, and {listed(missing, 3)} is not installed. Run: pip install {wanted}")


def _installed(name: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, re.findall(r"\d+", importlib.metadata.version(name))[:2]))
    except importlib.metadata.PackageNotFoundError:
        return ()


# --- in the training --------------------------------------------------------------------------------------------------


def on_training(trainer: Any) -> None:
    """Say that a training without `quantize=8` goes on with folded rows, as weights of a QAT checkpoint make it."""
    folded = [_named(number, row) for number, row in _ours(_whole(trainer)) if fusion.has_folded(row)]
    if folded and not _quantises(trainer):
        warnings.warn(
            f"The weights of {folded[0]} come from a training with quantize=8: it is folded, and is trained without "
            "the norms it had. Give quantize=8 as well, or start from the float checkpoint.",
            stacklevel=3,
        )


def on_train_batch_end(trainer: Any) -> None:
    """Stop after a batch whose loss is not finite if it has ruined weights; Ultralytics' callback."""
    if _quantises(trainer) and trainer.loss is not None and not trainer.loss.detach().isfinite().all():
        _refuse_ruined(trainer)


def on_train_epoch_end(trainer: Any) -> None:
    """Stop before weights that are not finite are validated and saved as zeros; Ultralytics' callback."""
    if _quantises(trainer):
        _refuse_ruined(trainer)


def _quantises(trainer: Any) -> bool:
    return getattr(trainer.args, "quantize", None) == 8


def _whole(trainer: Any) -> nn.Module:
    """The model that is trained, without what distributed training and distillation put around it."""
    model = getattr(trainer.model, "module", trainer.model)
    whole: nn.Module = getattr(model, "student_model", model)
    return whole


def _refuse_ruined(trainer: Any) -> None:
    for number, row in _ours(_whole(trainer)):
        ruined = [name for name, parameter in row.named_parameters() if not parameter.detach().isfinite().all()]
        if ruined:
            raise QuantisingError(
                f"The training with quantize=8 stops in epoch {trainer.epoch + 1}: {_named(number, row)} has weights "
                f"that are not finite ({listed(ruined, 2)}). Start again from the float checkpoint with a lower "
                f"learning rate than lr0={trainer.args.lr0}."
            )


# --- check of the place in Ultralytics that this module relies on -----------------------------------------------------


def misfit_of_preparation(prepare: Callable[..., Any]) -> str | None:
    """Explain why rows cannot be folded before `prepare_qat` runs; None if they can."""
    names = list(inspect.signature(prepare).parameters)[:3]
    expected = ["model", "dataloader", "preprocess"]
    return None if names == expected else f"prepare_qat takes {', '.join(names)}, not {', '.join(expected)}"
