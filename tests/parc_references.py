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


def published(variant: str, model: nn.Module, style: str = "a layer") -> dict[str, Tensor]:
    """The state dict under the names of published code; `style`: how the operator's own parameters are called."""
    state = {}
    for name, tensor in model.state_dict().items():
        key, value = name, tensor
        if variant == "convnext_xt":
            key, value = "".join(_official(name)), tensor.flatten() if name.endswith("layer_scale") else tensor
        for kind in ("kernel", "bias", "pe"):
            for axis in "HW":
                if name.endswith(f".{kind}_{axis}"):
                    key = key.replace("dwconv.", "").removesuffix(f"{kind}_{axis}")
                    key += {
                        "a layer": {"kernel": f"gcc_{axis}.conv.weight", "bias": f"gcc_{axis}.conv.bias"},
                        "parameters": {"kernel": f"meta_kernel_1_{axis}", "bias": f"meta_bias_1_{axis}"},
                    }[style].get(kind, {"a layer": f"gcc_{axis}.pe", "parameters": f"meta_pe_1_{axis}"}[style])
                    value = tensor[..., None] if axis == "H" else tensor[..., None, :]
                    value = tensor if kind == "bias" else value
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
