"""torchvision's RetinaNet, SSD and Mask R-CNN on any backbone of this package: torch alone, nothing of Ultralytics.

    python examples/torchvision_detectors.py --backbone repvit_m0_9 --detector retinanet --out pictures
Trains on discs, and draws the best box. A backbone normalises images itself: the detectors get mean 0, deviation 1.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from shapes import SIZE, disc
from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork, masks_to_boxes
from torchvision.utils import draw_bounding_boxes, save_image

from yolo_lightbackbones import create_backbone
from yolo_lightbackbones.adapters import NamedMaps


def build(detector: str, name: str) -> Any:
    start: Any = {} if name.startswith("timm/") else {"init": "scratch"}  # timm draws its own weights
    maps, raw = NamedMaps(create_backbone(name, **start)), {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if detector == "ssd":
        return SSD(maps, DefaultBoxGenerator([[2]] * 4, scales=[0.1, 0.2, 0.4, 0.6, 0.9]), (SIZE, SIZE), 2, **raw)
    pyramid = nn.Sequential(maps, FeaturePyramidNetwork(maps.out_channels, 64))
    setattr(pyramid, "out_channels", 64)  # noqa: B010  (torchvision looks for it there)
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,)), ((1.0,),) * 4)
    if detector == "retinanet":
        return RetinaNet(pyramid, 2, SIZE, SIZE, anchor_generator=anchors, **raw)
    return MaskRCNN(pyramid, 2, SIZE, SIZE, rpn_anchor_generator=anchors, box_batch_size_per_image=64, **raw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="repvit_m0_9")
    parser.add_argument("--detector", choices=["retinanet", "ssd", "maskrcnn"], default="retinanet")
    parser.add_argument("--steps", type=int, default=60, help="training steps of 4 pictures")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for a picture with the best box")
    options = parser.parse_args()
    model = build(options.detector, options.backbone)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for step in range(options.steps):
        images, masks = zip(*(disc(4 * step + i) for i in range(4)), strict=True)
        targets = [{"boxes": masks_to_boxes(mask), "labels": torch.tensor([1]), "masks": mask} for mask in masks]
        loss = torch.stack(list(model(list(images), targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")
    best = model.eval()([image := disc(-1)[0]])[0]["boxes"][:1]
    options.out.mkdir(parents=True, exist_ok=True)
    save_image(draw_bounding_boxes(image, best, colors="red"), options.out / f"{options.detector}.png")


if __name__ == "__main__":
    main()
