"""Backbones as other libraries want them: torchvision's detectors, and segmentation_models.pytorch's decoders.

Neither library is imported here. Images are RGB in 0..1, and nothing normalises them before: a backbone has its own
input norm. Give torchvision's detectors `image_mean=[0, 0, 0], image_std=[1, 1, 1]`, or they normalise a second time.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.checkpoints.engine import load_weights
from yolo_lightbackbones.options import TAPS
from yolo_lightbackbones.registry import create_backbone


class NamedMaps(nn.Module):
    """A backbone for torchvision: image (B, C, H, W) -> `{"0": map of the first tap, "1": ...}`, shallow to deep.

    `out_channels` has the channels of each map. torchvision's `SSD` takes it as it is; for `RetinaNet` and `MaskRCNN`
    put torchvision's `FeaturePyramidNetwork` behind it.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_channels = list(backbone.out_channels)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(i), feature) for i, feature in enumerate(self.backbone(x)))


class Encoder(nn.Module):
    """An encoder for segmentation_models.pytorch: image (B, C, H, W) -> maps at 1, 1/2, 1/4, ..., 1/2^depth.

    The first map is the image. The one at 1/2 has no channels, because no backbone here has a tap there: UPerNet, FPN,
    DeepLabV3 and Unet do without it. Add it to the library's encoders, and name it there:

        params = {"name": "repvit_m0_9"}
        smp.encoders.encoders["repvit"] = {"encoder": Encoder, "pretrained_settings": {}, "params": params}
        smp.UPerNet("repvit", encoder_weights=None)

    Args:
        name: full name of a backbone.
        depth: the deepest map is at 1/2^depth, 2 to 5; later stages are not built.
        output_stride: reduction of the deepest map that the library asks for; see `make_dilated`.
        weights: file of weights, as `load_weights` takes it.
        options: further arguments of `create_backbone`; `pyramid="simple"` for a backbone with a single map.

    Raises:
        TypeError: for an unknown option.
        ValueError: for an unknown backbone, another depth, an option that the backbone does not have, or weights that
            do not fit.
    """

    def __init__(
        self,
        name: str,
        depth: int = 5,
        output_stride: int = 32,
        weights: str | PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not 2 <= depth <= 5:
            raise ValueError(f"The depth of the encoder {name} is {depth}; it must be 2 to 5: its maps begin at 1/4.")
        self.name, self.depth, self.weights, self.options = name, depth, weights, options
        self.output_stride = min(output_stride, 2**depth)
        self.set_in_channels(3)

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Build the backbone for images with this number of channels."""
        taps = TAPS[: self.depth - 1]
        self.backbone = create_backbone(self.name, in_channels=in_channels, taps=taps, **self.options)
        if self.weights is not None:
            load_weights(self.backbone, self.weights)
        self.out_channels = [in_channels, 0, *self.backbone.out_channels]

    def make_dilated(self, output_stride: int) -> None:
        """Keep the maps of later stages at this reduction: their strides become 1, and the next convolutions dilated.

        Raises:
            ValueError: for a backbone whose downsampling has no dilated form; a smaller `depth` needs none.
        """
        for part in (part for part in self.backbone.parts() if (part.reduction or 0) > output_stride):
            reduction, modules = part.reduction or 0, self.backbone.get_submodule(part.path).modules()
            rate = reduction // output_stride // 2  # before the stride
            for conv in (module for module in modules if isinstance(module, nn.Conv2d)):
                strided = conv.stride != (1, 1)
                conv.stride, conv.dilation = (1, 1), (rate, rate)
                conv.padding = tuple(side // 2 * rate for side in conv.kernel_size)
                rate = reduction // output_stride if strided else rate
        side = 2 * self.backbone.size_divisibility
        image = torch.empty(2, self.out_channels[0], side, side, device="meta")
        try:
            kept = copy.deepcopy(self.backbone).to("meta")(image)[-1].shape[-1] == side // output_stride
        except RuntimeError:  # even kernels change sizes, so that maps no longer fit together
            kept = False
        if not kept:
            raise ValueError(
                f"{self.name} cannot keep its maps at 1/{output_stride}: its downsampling has no dilated form. "
                f"Choose encoder_depth={output_stride.bit_length() - 1}, whose deepest map is at 1/{output_stride}."
            )
        self.output_stride = output_stride

    def forward(self, x: Tensor) -> list[Tensor]:
        batch, _, height, width = x.shape
        return [x, x.new_zeros(batch, 0, height // 2, width // 2), *self.backbone(x)]
