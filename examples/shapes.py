"""Pictures of discs, with boxes and masks, that `torchvision_detectors.py` and `smp_segmenters.py` train on."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 128
"""Side of a picture in pixels: a multiple of the `size_divisibility` of every backbone."""


def disc(seed: int) -> tuple[Tensor, Tensor]:
    """An RGB image (3, SIZE, SIZE) in 0..1 with a disc on noise, and the disc's mask (1, SIZE, SIZE) of 0 and 1."""
    random = torch.Generator().manual_seed(seed)
    radius, x, y = (torch.rand(3, generator=random) * 20 + torch.tensor([15.0, 40.0, 40.0])).int().tolist()
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    mask = ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)[None].to(torch.uint8)
    image = 0.4 * torch.rand(3, SIZE, SIZE, generator=random)
    return image + 0.6 * mask * torch.rand(3, 1, 1, generator=random), mask
