"""DeepLabV3 and UPerNet of segmentation_models.pytorch on any backbone: torch alone, nothing of Ultralytics.

    python examples/smp_segmenters.py --backbone repvit_m0_9 --segmenter upernet --out pictures
    python examples/smp_segmenters.py --backbone conv2former_n --segmenter deeplabv3 --depth 4

Trains on discs, and draws a mask.
"""

import argparse
import sys
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from shapes import disc
from torch import nn
from torchvision.utils import draw_segmentation_masks, save_image

from yolo_lightbackbones.adapters import Encoder


def build(segmenter: str, name: str, depth: int) -> nn.Module:
    """Build a model that takes RGB images in 0..1: the backbone normalises them, `get_preprocessing_fn` must not."""
    smp.encoders.encoders[name] = {"encoder": Encoder, "pretrained_settings": {}, "params": {"name": name}}
    model: nn.Module
    if segmenter == "upernet":
        model = smp.UPerNet(name, depth, encoder_weights=None, decoder_channels=64)
    else:
        model = smp.DeepLabV3(name, depth, encoder_weights=None, encoder_output_stride=16, decoder_channels=64)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="repvit_m0_9", help="one of `lightbackbones list`")
    parser.add_argument("--segmenter", choices=["deeplabv3", "upernet"], default="deeplabv3")
    parser.add_argument("--depth", type=int, default=5, help="the deepest map is at 1/2^depth; 4 needs no dilation")
    parser.add_argument("--steps", type=int, default=60, help="training steps of 4 pictures")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for a picture with its mask")
    options = parser.parse_args()
    try:
        model = build(options.segmenter, options.backbone, options.depth)
    except ValueError as error:
        sys.exit(f"error: {error}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for step in range(options.steps):
        images, masks = (torch.stack(parts) for parts in zip(*(disc(4 * step + i) for i in range(4)), strict=True))
        loss = nn.functional.binary_cross_entropy_with_logits(model(images), masks.float())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")
    image, _ = disc(-1)
    mask = model.eval()(image[None])[0] > 0
    options.out.mkdir(parents=True, exist_ok=True)
    save_image(draw_segmentation_masks(image, mask, colors="red"), options.out / f"{options.segmenter}.png")


if __name__ == "__main__":
    main()
