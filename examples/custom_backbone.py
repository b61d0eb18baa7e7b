"""A custom backbone family, and a detector with it.

    python examples/custom_backbone.py                    # builds the detector of custom_backbone.yaml and runs it
    python examples/custom_backbone.py --scale s --imgsz 640

The family is the class `PlainNet` below, about 30 lines. Once it is registered, its class name is a module of model
YAMLs, with the same taps, scale letters, options, folding and error messages as the families of the package. Its card
describes it to the `lightbackbones` command.

`@register_backbone` works in every process that imports this file. Training needs more: `yolo` is a separate program,
every worker of multi-GPU training is a new interpreter, and `best.pt` names the class by its module. So put the file
into a package, and declare the class in that package's `pyproject.toml` as an entry point of the group
`yolo_lightbackbones`:

    [project.entry-points.yolo_lightbackbones]
    PlainNet = "custom_backbone:PlainNet"

Once that package is installed, every process knows the class without an import:

    yolo train model=examples/custom_backbone.yaml data=digits.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from yolo_lightbackbones import (
    Stage,
    StagedBackbone,
    create_backbone,
    fuse,
    list_backbones,
    register,
    register_backbone,
)
from yolo_lightbackbones.card import Card
from yolo_lightbackbones.input_norm import IMAGENET
from yolo_lightbackbones.layers import ConvNorm, DropPath, drop_path_rates

MODEL = Path(__file__).with_suffix(".yaml")


# --8<-- [start:family]
@dataclass(frozen=True)
class PlainNetConfig:
    dims: tuple[int, ...]
    depths: tuple[int, ...]


class Block(nn.Module):
    """Two 3x3 convolutions as a residual: (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(ConvNorm(dim, dim, 3), nn.ReLU(), ConvNorm(dim, dim, 3), DropPath(drop_path))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


@register_backbone
class PlainNet(StagedBackbone):
    """Image (B, C, H, W) -> taps P2..P5, each (B, dims[i], H / 2^(i+2), W / 2^(i+2))."""

    family = "plainnet"  # create_backbone("plainnet_n")
    variants = {
        "n": PlainNetConfig(dims=(16, 32, 64, 128), depths=(1, 1, 2, 1)),
        "s": PlainNetConfig(dims=(32, 64, 128, 256), depths=(1, 2, 4, 1)),
    }
    input_convention = IMAGENET  # what input_norm="auto" does to RGB in 0..1
    card = Card(
        title="PlainNet",
        letters={"n": "n", "s": "s"},  # `lightbackbones new -b plainnet`: scale letter -> variant
    )

    def build_stem(self, config: PlainNetConfig, in_channels: int) -> nn.Module:
        dim = config.dims[0]
        return nn.Sequential(ConvNorm(in_channels, dim, 3, stride=2), nn.ReLU(), ConvNorm(dim, dim, 3, stride=2))

    def build_stages(self, config: PlainNetConfig, drop_path_rate: float) -> Iterator[Stage]:
        rates = drop_path_rates(drop_path_rate, config.depths)
        for i, (dim, stage_rates) in enumerate(zip(config.dims, rates, strict=True)):
            downsample = ConvNorm(config.dims[i - 1], dim, 3, stride=2) if i else None  # the stem does the first one
            blocks = [Block(dim, rate) for rate in stage_rates]
            yield Stage(blocks, channels=dim, reduction=2 ** (i + 2), downsample=downsample)


# --8<-- [end:family]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--scale", choices=list(PlainNet.variants), default="n", help="scale letter of the model")
    parser.add_argument("--imgsz", type=int, default=320, help="side of the square image, in pixels")
    options = parser.parse_args()
    divisor = PlainNet.size_divisibility
    if options.imgsz < divisor or options.imgsz % divisor:
        parser.exit(1, f"error: --imgsz is {options.imgsz}; it must be a multiple of {divisor}, for example 320.\n")
    image = torch.rand(1, 3, options.imgsz, options.imgsz)

    print(f"registered: {', '.join(list_backbones('plainnet'))}")
    backbone = create_backbone(f"plainnet_{options.scale}")
    with torch.no_grad():
        backbone(image)  # in training mode: norms that have seen no batch leave little to fold
        backbone.eval()
        for tap, feature in zip(backbone.taps, backbone(image), strict=True):
            print(f"{tap}: {' x '.join(map(str, feature.shape))}")
        difference = max(
            (a - b).abs().max().item() for a, b in zip(backbone(image), fuse(backbone)(image), strict=True)
        )
    print(f"fused, the largest difference of a value is {difference:.1e}")

    register()  # needed only if the autoload is off
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    detector = DetectionModel({**yaml_model_load(MODEL), "scale": options.scale}, verbose=False).eval()
    with torch.no_grad():
        boxes = detector(image)[0]
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    strides = ", ".join(str(int(stride)) for stride in detector.stride)
    print(f"{MODEL.name}, scale {options.scale}: {parameters:,} parameters, strides {strides}, {boxes.shape[2]} boxes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
