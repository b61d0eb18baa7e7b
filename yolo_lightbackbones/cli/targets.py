"""Finds and builds what a user names: a variant, a model YAML, a checkpoint of Ultralytics, or published weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yolo_lightbackbones.bounds import is_whole
from yolo_lightbackbones.cli import models
from yolo_lightbackbones.cli.common import UserError, check_image_size
from yolo_lightbackbones.configs import finding
from yolo_lightbackbones.messages import quoted

if TYPE_CHECKING:  # they import torch, which `lightbackbones --help` does without
    from yolo_lightbackbones.backbone import Backbone
    from yolo_lightbackbones.card import Figures
    from yolo_lightbackbones.measure.cost import Costs

HELP = "A variant (repvit_m0_9), a model YAML (yours or ours, yolov5n_repvit.yaml) or a .pt, .pth or .safetensors file."

MOST_CHANNELS = 1024
"""Most channels of an image; sensors have a few hundred bands."""

WEIGHTS_SUFFIXES = (".pt", ".pth", ".safetensors")

Kind = Literal["variant", "yaml", "checkpoint", "weights"]


@dataclass(frozen=True)
class Target:
    """A backbone or a model that a user named.

    Args:
        name: the name that the user gave, or the full name of the variant.
        kind: what was named. For weights, the module is their variant, without the weights themselves.
        module: a `Backbone`, or a model of Ultralytics in float32; in eval mode.
        channels: channels of the image.
        divisor: height and width of the image must be multiples of it.
        variant: full name of the variant, if the module is a backbone.
        note: a remark about the file, if there is one.
    """

    name: str
    kind: Kind
    module: Any
    channels: int
    divisor: int
    variant: str | None = None
    note: str = ""

    @property
    def figures(self) -> Figures | None:
        """Published figures of the variant; None for models, and if the card has none."""
        if self.variant is None:
            return None
        backbone: Backbone = self.module
        return backbone.card.figures.get(backbone.resolve_variant(self.variant))

    def check(self, size: tuple[int, int]) -> None:
        """Refuse an image of a height and width that the module cannot take."""
        check_image_size(size, self.divisor, self.name)
        from yolo_lightbackbones.backbone import Backbone

        only = next((m.image_size for m in self.module.modules() if isinstance(m, Backbone) and m.image_size), size)
        if only != size:
            raise UserError(
                f"{self.name} is built for images of {only[0]} x {only[1]}, and the size is {size[0]} x {size[1]}. "
                f"Give --imgsz {only[0]}{f'x{only[1]}' if only[0] != only[1] else ''}."
            )

    def count(self, size: tuple[int, int], parts: Iterable[str] = ()) -> Costs:
        """Count the cost of the module and of some of its parts, for one image of this height and width.

        Raises:
            UserError: if the module cannot run on such an image.
        """
        from yolo_lightbackbones.measure import cost

        try:
            return cost.count(self.module, (1, self.channels, *size), parts)
        except RuntimeError as error:
            height, width = size
            raise UserError(f"{self.name} cannot run on an image of {height} x {width}: {error}") from error


def find(text: str, scale: str | None, size: tuple[int, int], *, empty: bool = False) -> Target:
    """Find and build what `text` names.

    Args:
        text: what the user wrote.
        scale: scale letter for a YAML whose name gives none; None: the first, as in Ultralytics.
        size: height and width of the image, for variants that are built for one size.
        empty: whether a variant may be built on the meta device, without memory for its values.

    Raises:
        UserError, ValueError, OSError: the message says what was given, what is allowed and what to do.
    """
    path = Path(text)
    if path.suffix in {".yaml", ".yml"}:
        with models.quiet_ultralytics():
            config = models.read_yaml(text, scale, assume_first=True)
            net = models.build(config, text, channels_of(config, text))
        return _model(text, "yaml", net)
    if scale is not None:
        raise UserError(f"--scale {scale} is for model YAMLs; {text} is none.")
    if path.exists():
        return _file(path, empty)
    if path.suffix in WEIGHTS_SUFFIXES or (path.name != text and not _is_of_open_family(text)):
        raise UserError(finding.explain_missing(path) or f"There is no file {text}.")
    return _variant(text, size, empty)


def _is_of_open_family(text: str) -> bool:
    """Whether `text` is a name such as timm/resnet18, and no path."""
    from yolo_lightbackbones import registry

    family = registry.family_in(text)
    return family is not None and family.is_open


def channels_of(config: dict[str, Any], text: str) -> int:
    """Channels of the images that a model YAML, which messages call `text`, is for: its `channels`, or 3.

    Raises:
        UserError: if it is not a number of channels.
    """
    channels = config.get("channels") or 3
    if not is_whole(channels) or not 1 <= channels <= MOST_CHANNELS:
        raise UserError(
            f"{text}: channels is {quoted(channels)}; it must be a whole number above 0 and at most {MOST_CHANNELS}."
        )
    return channels


def _variant(name: str, size: tuple[int, int], empty: bool) -> Target:
    from yolo_lightbackbones.configs import timm_series
    from yolo_lightbackbones.registry import create_backbone, family_in

    try:
        family = family_in(name)
        needed = {}
        if family is not None and family.is_open:
            needed = timm_series.needed_options(family, family.resolve_variant(name))
        if "imgsz" in needed:
            needed["imgsz"] = size
        with _device(empty):
            backbone = create_backbone(name, taps=None, **needed).eval()
    except ModuleNotFoundError as error:  # of an open family
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(
            f"{error} A model YAML (yours, or one of ours, {models.our_yamls(name)}) or a .pt, .pth or .safetensors "
            "file will do as well."
        ) from error
    note = backbone.card.notes.get(backbone.resolve_variant(name), "")
    return _backbone(full_name(backbone, name), "variant", backbone, note)


def _file(path: Path, empty: bool) -> Target:
    from yolo_lightbackbones.backbone import Options
    from yolo_lightbackbones.checkpoints import engine, files, identify
    from yolo_lightbackbones.checkpoints.errors import UltralyticsCheckpointError

    try:
        state, _ = files.read_tensors(path)
    except UltralyticsCheckpointError:
        with models.quiet_ultralytics():
            net = models.read_checkpoint(path)
        if not hasattr(net, "yaml"):
            raise UserError(
                f"{path} holds a {type(net).__name__} and no model of Ultralytics around it. "
                "Give a checkpoint that Ultralytics has saved."
            ) from None
        return _model(str(path), "checkpoint", net)
    found = identify.recognise(state)
    if found is None or found.similarity < engine.RESEMBLES:
        raise UserError(
            f"{path} holds {len(state)} tensors, but they are the weights of no backbone of ours. "
            "Give a checkpoint of Ultralytics, or weights that `lightbackbones convert` takes."
        )
    names = " or ".join(map(str, found.variants))
    verb = (
        "These are the weights of" if found.similarity == 1 else f"{found.similarity:.0%} of the names and shapes fit"
    )
    where = f", in the part of a larger model called {found.prefix!r}" if found.prefix else ""
    with _device(empty):
        backbone = found.variants[0].family(found.variants[0].short_name, Options(taps=None)).eval()
    return _backbone(str(found.variants[0]), "weights", backbone, f"{path}: {verb} {names}{where}.")


def _backbone(name: str, kind: Kind, backbone: Backbone, note: str = "") -> Target:
    return Target(name, kind, backbone, 3, backbone.size_divisibility, variant=name, note=note)


def _model(name: str, kind: Kind, net: Any) -> Target:
    from yolo_lightbackbones.backbone import Backbone
    from yolo_lightbackbones.plugin.models import image_channels

    strides = [int(stride) for stride in getattr(net, "stride", [])]
    divisors = [module.size_divisibility for module in net.modules() if isinstance(module, Backbone)]
    return Target(name, kind, net.eval(), image_channels(net), max([1, *strides, *divisors]))


def full_name(backbone: Backbone, name: str) -> str:
    """`repvit_m0_9` for a backbone that was asked for as `repvit_m0.9`."""
    return backbone.full_name(backbone.resolve_variant(name))


def _device(empty: bool) -> Any:
    import torch

    return torch.device("meta") if empty else contextlib.nullcontext()
