"""ParC hybrids to compare with: torchvision's models, with the operator put in as it is defined, index by index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt


class Operator(nn.Module):
    """The first half of the channels along H, the second along W; `dense` within each half, or depthwise."""

    def __init__(self, dim: int, length: int, *, position: bool, dense: bool) -> None:
        super().__init__()
        half, self.dense = dim // 2, dense
        for axis in "HW":
            self.register_parameter(f"kernel_{axis}", nn.Parameter(torch.empty(half, half if dense else 1, length)))
            self.register_parameter(f"bias_{axis}", nn.Parameter(torch.empty(half)))
            self.register_parameter(f"pe_{axis}", nn.Parameter(torch.empty(1, half, length)) if position else None)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        along_w = self.along_h("W", second.transpose(2, 3)).transpose(2, 3)
        return torch.cat((self.along_h("H", first), along_w), 1)

    def along_h(self, axis: str, x: Tensor) -> Tensor:
        """`y[i] = bias + sum over j of k[j] * (x + pe)[(i + j) mod L]` along the height of `x`."""
        kernel, bias, pe = (getattr(self, f"{name}_{axis}") for name in ("kernel", "bias", "pe"))
        length = x.shape[2]
        if pe is not None:
            x = x + resized(pe, length)[..., None]
        kernel = resized(kernel, length)
        sources = [[(i + j) % length for i in range(length)] for j in range(length)]
        shifted = torch.stack([x[:, :, row] for row in sources], 2)  # (B, C, j, i, W)
        equation = "ocj,bcjiw->boiw" if self.dense else "cj,bcjiw->bciw"
        return torch.einsum(equation, kernel if self.dense else kernel[:, 0], shifted) + bias[:, None, None]


def resized(values: Tensor, length: int) -> Tensor:
    """Interpolate linearly along the last axis, the ends staying ends."""
    if values.shape[-1] == length or values.is_meta:
        return values if values.shape[-1] == length else values.new_empty(*values.shape[:-1], length)
    array = values.detach().numpy().reshape(-1, values.shape[-1])
    places = np.linspace(0, values.shape[-1] - 1, length)
    rows = [np.interp(places, np.arange(values.shape[-1]), row) for row in array]
    return torch.from_numpy(np.stack(rows)).to(values.dtype).reshape(*values.shape[:-1], length)


def resnet50() -> nn.Module:
    model = torchvision.models.resnet50()
    for layer, first, length in ((model.layer3, 3, 14), (model.layer4, 2, 7)):
        for block in layer[first:]:
            block.conv2 = Operator(block.conv2.in_channels, length, position=True, dense=True)
    return model


def mobilenet_v2() -> nn.Module:
    model = torchvision.models.mobilenet_v2()
    # two blocks of 64 channels, one of 96, one of 160; `conv` of a block is [expansion, depthwise, 1x1, norm]
    for number, length, position in ((9, 14, True), (10, 14, False), (13, 14, True), (16, 7, True)):
        middle = model.features[number].conv[1]
        middle[0] = Operator(middle[0].in_channels, length, position=position, dense=False)
    return model


def convnext_xt() -> nn.Module:
    dims, depths = (48, 96, 192, 384), (3, 3, 9, 3)
    nexts: tuple[int | None, ...] = (*dims[1:], None)
    model = ConvNeXt([CNBlockConfig(*stage) for stage in zip(dims, nexts, depths, strict=True)])
    for number, first, length in ((5, 6, 14), (7, 2, 7)):
        for block in model.features[number][first:]:
            block.block[0] = Operator(block.block[0].in_channels, length, position=True, dense=False)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mobilenetv2": mobilenet_v2,
    "convnext_xt": convnext_xt,
    "resnet50": resnet50,
}


def taps(variant: str, model: Any, image: Tensor) -> list[Tensor]:
    """The outputs of the four stages."""
    if variant == "resnet50":
        x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
        stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    else:
        last = {"mobilenetv2": (3, 6, 13, 17), "convnext_xt": (1, 3, 5, 7)}[variant]
        x, features, begun = image, list(model.features), 0
        stages = []
        for end in last:
            stages.append(nn.Sequential(*features[begun : end + 1]))
            begun = end + 1
    outputs = []
    for stage in stages:
        x = stage(x)
        outputs.append(x)
    return outputs


OPERATOR = {"mobilenetv2": "gcc", "convnext_xt": "gcc", "resnet50": "parc"}
"""Variant -> name of the operator in published code; `_H` or `_W` after it says which half."""

IN_MOBILENET = {"conv.0.": "pw_expand.", "conv.1.1.": "bn.", "conv.2.": "pw_linear.0.", "conv.3.": "pw_linear.1."}
"""torchvision's names in a block of MobileNetV2 -> those of blocks with the operator in published code."""


def published(variant: str, model: Any) -> dict[str, Tensor]:
    """The state dict under the names of published code (hkzhang91/ParC-Net, folder ParC_ConvNets)."""
    with_operator = [name for name, module in model.named_modules() if isinstance(module, Operator)]
    state = {}
    for name, tensor in model.state_dict().items():
        key, value = name, tensor
        if variant == "convnext_xt":
            key, value = "".join(_official(name)), tensor.flatten() if name.endswith("layer_scale") else tensor
        if variant == "mobilenetv2":
            for block in (operator.removesuffix("conv.1.0") for operator in with_operator):
                for theirs, renamed in IN_MOBILENET.items():
                    if name.startswith(block + theirs):
                        key = name.replace(theirs, renamed, 1)
        operator = next((path for path in with_operator if name.startswith(f"{path}.")), None)
        if operator is not None:
            kind, _, axis = name.rpartition(".")[2].partition("_")
            inner = {"kernel": "gcc_conv.weight", "bias": "gcc_conv.bias", "pe": "pe"}[kind]
            block = key.replace("dwconv.", "").replace("conv2.", "").replace("conv.1.0.", "").rpartition(".")[0]
            key = f"{block}.{OPERATOR[variant]}_{axis}.{inner}"
            if kind != "bias":
                value = tensor[..., None] if axis == "H" else tensor[..., None, :]
        state[key] = value
    return state


def _official(name: str) -> Iterator[str]:
    """torchvision's name of a parameter of ConvNeXt as facebookresearch/ConvNeXt writes it."""
    first, number, *rest = name.split(".")
    if first == "classifier":
        yield {"0": "norm.", "2": "head."}[number] + rest[0]
        return
    stage = int(number) // 2
    if int(number) % 2 == 0:
        yield f"downsample_layers.{stage}." + ".".join(rest)
        return
    block, *rest = rest
    yield f"stages.{stage}.{block}."
    if rest == ["layer_scale"]:
        yield "gamma"
    else:
        yield {"0": "dwconv", "2": "norm", "3": "pwconv1", "5": "pwconv2"}[rest[1]] + "." + rest[2]
