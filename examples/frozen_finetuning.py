"""Fine-tuning with the backbone frozen: the neck and the head learn, the pretrained features stay as they are.

    lightbackbones convert repvit_m0_9_distill_450e.pth --model yolov5_repvit.yaml --scale n -o init.pt
    python examples/frozen_finetuning.py init.pt --data data.yaml --epochs 20
    python examples/frozen_finetuning.py best.pt --data digits.yaml    # or from a trained detector

The whole backbone is layer 0 of the model, so `freeze=[0]` freezes only the backbone. Ultralytics then does this, and
the script checks the first two points after the training:

- The parameters of the backbone get no gradient and no weight decay.
- Its BatchNorms are set to eval mode before every epoch, so their running statistics do not change. (Setting
  `requires_grad = False` by hand has neither effect: Ultralytics sets it back, and every batch changes the statistics.)
- Its stochastic depth stays in training mode: with `drop_path_rate` above 0 the features are noisier than in inference.

Checkpoints hold all tensors in half precision, also the frozen ones: these are rounded once, and do not change after
that. The script compares the model that was trained in this process, so use one device.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones import Backbone

BACKBONE = 0
"""Index of the backbone's layer in all models with one of our backbones."""


@dataclass(frozen=True)
class Change:
    """Numbers of tensors in a part of the model, and how many of them have changed."""

    parameters: int
    parameters_changed: int
    statistics: int
    statistics_changed: int

    def __str__(self) -> str:
        return (
            f"{self.parameters_changed} of {self.parameters} parameters and "
            f"{self.statistics_changed} of {self.statistics} BatchNorm statistics changed"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "checkpoint", type=Path, help="checkpoint to start from, made by `lightbackbones convert` or `yolo train`"
    )
    parser.add_argument("--data", default="digits.yaml", help="data set (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--imgsz", type=int, default=320, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images (default: %(default)s)")
    parser.add_argument("--lr0", type=float, default=0.001, help="learning rate of AdamW (default: %(default)s)")
    parser.add_argument("--unfrozen", action="store_true", help="train the backbone as well, to compare")
    parser.add_argument("--out", type=Path, default=Path("runs/frozen"), help="folder to save in (%(default)s)")
    options = parser.parse_args()
    try:
        detector = open_detector(options.checkpoint)
        check_data(options.data)
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")

    seen: dict[str, Any] = {}

    def remember(trainer: Any) -> None:
        """Save the state of the model after it is built and frozen, before the first update."""
        seen["model"] = trainer.model
        seen["before"] = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        seen["trainable"] = count(trainer.model, trainable=True)

    def look_at(trainer: Any) -> None:
        """Save the state of the training model itself; checkpoints hold its average, rounded to half precision."""
        seen["after"] = {key: value.clone() for key, value in trainer.model.state_dict().items()}

    detector.add_callback("on_train_start", remember)
    detector.add_callback("on_train_epoch_end", look_at)
    detector.train(
        data=options.data,
        epochs=options.epochs,
        imgsz=options.imgsz,
        batch=options.batch,
        nbs=options.batch,  # update after each batch; by default Ultralytics collects the gradients of 64 images first
        freeze=None if options.unfrozen else [BACKBONE],
        optimizer="AdamW",
        lr0=options.lr0,
        warmup_bias_lr=0.0,
        workers=options.workers,
        amp=False,  # on a GPU, its self-test would download a model
        plots=False,
        project=options.out.resolve(),  # Ultralytics resolves a relative path from its own runs folder
        name="train",
    )

    backbone = compare(seen["model"].model[BACKBONE], f"model.{BACKBONE}.", seen["before"], seen["after"])
    whole = compare(seen["model"], "", seen["before"], seen["after"])
    total = count(seen["model"])
    print(f"\nTrainable: {seen['trainable']:,} of {total:,} parameters ({seen['trainable'] / total:.0%})")
    print(f"Backbone: {backbone}")
    print(f"Whole model: {whole}")
    if not options.unfrozen and (backbone.parameters_changed or backbone.statistics_changed):
        print("error: the backbone is frozen, but has changed.", file=sys.stderr)
        return 1
    return 0


def open_detector(path: Path) -> Any:
    """Open the model of a checkpoint, and check that its layer 0 is one of our backbones."""
    if not path.is_file() or path.suffix != ".pt":
        raise FileNotFoundError(
            f"there is no checkpoint {path}. Make one: lightbackbones convert repvit_m0_9 --model yolov5_repvit.yaml "
            "--scale n -o init.pt"
        )
    from ultralytics import YOLO

    detector = YOLO(path)
    first = detector.model.model[BACKBONE]
    if not isinstance(first, Backbone):
        raise ValueError(
            f"layer {BACKBONE} of {path} is {type(first).__name__}, not a backbone of yolo_lightbackbones: "
            f"freeze=[{BACKBONE}] would freeze only that layer."
        )
    return detector


def check_data(name: str) -> None:
    """Refuse a missing data set before anything is written; download it if its YAML has a download."""
    from ultralytics.data.utils import check_det_dataset

    try:
        check_det_dataset(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Give --data a data set YAML, such as digits.yaml.") from error


def count(model: nn.Module, *, trainable: bool = False) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trainable)


def compare(part: nn.Module, prefix: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> Change:
    """Count the changed tensors of a part of the model, whose names start with `prefix` in both state dicts."""
    parameters = [prefix + name for name, _ in part.named_parameters()]
    statistics = [
        f"{prefix}{name}.{kind}".replace("..", ".")
        for name, module in part.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("running_mean", "running_var")
    ]
    changed = {key for key in (*parameters, *statistics) if not torch.equal(before[key], after[key])}
    return Change(len(parameters), len(changed & {*parameters}), len(statistics), len(changed & {*statistics}))


if __name__ == "__main__":
    sys.exit(main())
