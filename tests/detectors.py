"""Detectors with random weights that behave like trained ones."""

from __future__ import annotations

import torch
from torch import nn
from ultralytics import YOLO


def awake_detector(name: str, seed: int = 0) -> YOLO:
    """A detector of that model YAML whose output depends on its image.

    A fresh one's does not: the signal fades in norms that have seen nothing, layer scales start at 1e-6, and class
    scores start at nearly 0. Here affine terms are random, norms have seen some noise, and scores spread around 0.5.
    """
    torch.manual_seed(seed)
    detector = YOLO(name)
    model = detector.model.train()
    for key, parameter in model.named_parameters():
        if "layer_scale" in key:
            nn.init.uniform_(parameter, 0.1, 0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        for branch in (*model.model[-1].cv2, *model.model[-1].cv3):
            branch[-1].weight.mul_(3)
            branch[-1].bias.zero_()
        for _ in range(6):
            model(torch.rand(4, 3, 128, 128))
    model.eval()
    return detector
