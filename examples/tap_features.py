"""Shows the feature maps of a backbone's taps as heat maps over a picture, side by side.

    python examples/tap_features.py street.jpg --model best.pt                                    # a trained detector
    python examples/tap_features.py street.jpg --backbone repvit_m0_9 --weights repvit_m0_9_distill_450e.pth
    python examples/tap_features.py                                      # random weights, picture from Ultralytics

The heat at a position is the norm of its feature vector, scaled from the 1st to the 99th percentile of the map. Random
weights show little more than edges; compare trained weights with that.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from yolo_lightbackbones import Backbone, create_backbone, load_weights
from yolo_lightbackbones.writing import write_bytes

Picture = NDArray[np.uint8]
"""(H, W, 3), BGR as in OpenCV."""

OPACITY = 0.6  # of the heat map over the picture
TITLE_HEIGHT = 28  # pixels


@dataclass(frozen=True)
class Panel:
    title: str
    picture: Picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("picture", nargs="?", type=Path, help="the picture (default: bus.jpg, part of Ultralytics)")
    parser.add_argument("--backbone", default="edgevit_xxs", help="name of a backbone (default: %(default)s)")
    parser.add_argument("--weights", type=Path, help="published weights for that backbone, or weights of ours")
    parser.add_argument("--model", type=Path, help="a trained detector (best.pt), whose backbone replaces --backbone")
    parser.add_argument("--imgsz", type=int, default=640, help="longer side of the image, in pixels (default: 640)")
    parser.add_argument("--out", type=Path, default=Path("taps.jpg"), help="picture to write (default: %(default)s)")
    options = parser.parse_args()
    try:
        refuse_unwritable(options.out)
        picture = read_picture(options.picture or default_picture())
        if options.model:
            if options.weights:
                raise ValueError("--model brings its own weights; leave --weights out.")
            backbone = backbone_of(options.model)
        else:
            backbone = create_backbone(options.backbone)
            if options.weights:
                print(load_weights(backbone, options.weights))
        picture = resize(picture, options.imgsz, backbone.size_divisibility)
    except (OSError, TypeError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")

    panels = [Panel("image", picture), *tap_panels(backbone, picture)]
    for panel in panels[1:]:
        print(panel.title)
    try:
        write_bytes(options.out, cv2.imencode(options.out.suffix, side_by_side(panels))[1].data)
    except OSError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"Wrote {options.out}")
    return 0


def tap_panels(backbone: Backbone, picture: Picture) -> list[Panel]:
    """Draw one heat map over the picture for each tap."""
    image = torch.from_numpy(np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1)))[None].float() / 255
    with torch.no_grad():
        features = backbone.eval()(image)  # one (1, channels, H / reduction, W / reduction) per tap
    panels = []
    for tap, reduction, feature in zip(backbone.taps, backbone.reductions, features, strict=True):
        channels, height, width = feature.shape[1:]
        heat = feature[0].norm(dim=0).numpy()
        panels.append(Panel(f"{tap} /{reduction}: {channels} x {height} x {width}", overlay(heat, picture)))
    return panels


def overlay(heat: NDArray[np.float32], picture: Picture) -> Picture:
    """Draw heat (h, w) in colours over the picture (H, W, 3)."""
    low, high = np.percentile(heat, [1, 99])
    shares = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
    levels = cv2.resize((shares * 255).astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)
    mixed: Picture = cv2.addWeighted(colours, OPACITY, picture, 1 - OPACITY, 0)
    return mixed


def side_by_side(panels: list[Panel]) -> Picture:
    """Join the pictures in one row, each below its title."""
    titled = []
    for panel in panels:
        bar = np.full((TITLE_HEIGHT, panel.picture.shape[1], 3), 255, np.uint8)
        scale = min(0.5, panel.picture.shape[1] / (len(panel.title) * 20))  # a letter is 20 px wide at scale 1
        cv2.putText(bar, panel.title, (4, TITLE_HEIGHT - 9), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
        titled.append(np.vstack([bar, panel.picture]))
    row: Picture = np.hstack(titled)
    return row


def refuse_unwritable(out: Path) -> None:
    """Refuse an output file that could not be written, before any work is done."""
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} into. Create it first.")
    if out.is_dir() or not cv2.haveImageWriter(str(out)):
        raise ValueError(f"{out} is not a file name of a picture. Give one that ends in .jpg or .png.")


def read_picture(path: Path) -> Picture:
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}.")
    picture: Picture | None = cv2.imread(str(path))
    if picture is None:
        raise ValueError(f"{path} is not a picture that OpenCV reads. Give a .jpg or .png file.")
    return picture


def default_picture() -> Path:
    from ultralytics.utils import ASSETS

    return Path(ASSETS) / "bus.jpg"


def backbone_of(path: Path) -> Backbone:
    """Return the backbone of a checkpoint that Ultralytics wrote."""
    if not path.is_file() or path.suffix != ".pt":
        raise FileNotFoundError(f"there is no checkpoint {path}. Give a best.pt or last.pt of `yolo train`.")
    from ultralytics import YOLO

    model = YOLO(path).model.float()
    for module in model.modules():
        if isinstance(module, Backbone):
            return module
    raise ValueError(
        f"{path} has no backbone of yolo_lightbackbones; its first layer is {type(model.model[0]).__name__}."
    )


def resize(picture: Picture, longer_side: int, divisor: int) -> Picture:
    """Resize the picture to this longer side; round both sides to multiples of `divisor`."""
    if longer_side < divisor:
        raise ValueError(f"--imgsz is {longer_side}; it must be at least {divisor}.")
    share = longer_side / max(picture.shape[:2])
    height, width = (max(1, math.floor(side * share / divisor + 0.5)) * divisor for side in picture.shape[:2])
    resized: Picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return resized


if __name__ == "__main__":
    sys.exit(main())
