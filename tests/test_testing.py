"""The checks that other packages run on their families: each of these families breaks one promise, and is told so."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion, registry, testing
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.checkpoints import layouts
from yolo_lightbackbones.checkpoints.rules import Drop, Layout, Rename
from yolo_lightbackbones.layers import ConvNorm
from yolo_lightbackbones.options import Option
from yolo_lightbackbones.stages import Stage, StagedBackbone

pytestmark = pytest.mark.usefixtures("one_thread")


class Fine(StagedBackbone):
    """P2 and P3, with nothing wrong."""

    family = "fine"
    variants = {"a": 8}

    def build_stem(self, config: int, in_channels: int) -> nn.Module:
        return ConvNorm(in_channels, config, 3, stride=4)

    def build_stages(self, config: int, drop_path_rate: float) -> Iterator[Stage]:
        yield Stage([ConvNorm(config, config, 3), nn.ReLU()], channels=config, reduction=4)
        yield Stage([], channels=config, reduction=8, downsample=ConvNorm(config, config, 3, stride=2))


class Fused(fusion.Fusible):
    """Folds into something else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def fold(self) -> nn.Module:
        return nn.Identity()


class Mixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Forgetful(nn.Module):
    """Has a number that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.number = random.random()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.number


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


class WithBlock(Fine):
    family = "broken"
    block: type[nn.Module]

    def build_stages(self, config: int, drop_path_rate: float) -> Iterator[Stage]:
        yield Stage([ConvNorm(config, config, 3), self.block()], channels=config, reduction=4)


class Mixing(WithBlock):
    block = Mixed


class Forgetting(WithBlock):
    block = Forgetful


class Wasting(WithBlock):
    block = Unused


class Folding(WithBlock):
    block = Fused


class NoCheck(Fine):
    family = "broken"

    def check_size(self, x: Tensor) -> None:
        pass


class WrongReduction(Fine):
    family = "broken"

    def build_stages(self, config: int, drop_path_rate: float) -> Iterator[Stage]:
        yield Stage([], channels=config, reduction=8)


class NoConvFirst(Fine):
    family = "broken"

    def build_stem(self, config: int, in_channels: int) -> nn.Module:
        return nn.Sequential(Fused(), ConvNorm(in_channels, config, 3, stride=4))


@pytest.fixture(autouse=True)
def untouched_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_families", registry.families())


def test_a_family_that_keeps_its_promises() -> None:
    registry.register_backbone(Fine)
    testing.check_backbone("fine_a")
    testing.check_rows("fine")
    testing.check_layouts("fine")
    testing.check_rows("repvit")
    testing.check_layouts("repvit")


@pytest.mark.parametrize(
    ("family", "said"),
    [
        (WrongReduction, r"broken_a at 64 x 64: maps are \[\(2, 8, 16, 16\)\], its taps say \[\(2, 8, 8, 8\)\]"),
        (NoCheck, "broken_a takes an image of 33 x 32, and its size_divisibility is 32: call self.check_size"),
        (NoConvFirst, r"its first parameter has the shape \(1,\); it must be the weight of a convolution"),
        (Mixing, "broken_a, image 0 without others"),
        (Forgetting, "broken_a with P2 only"),
        (Wasting, r"broken_a: no gradient for 1 parameters: .*unused"),
        (Folding, "broken_a folded"),
    ],
)
def test_a_family_that_breaks_one(family: type[Fine], said: str) -> None:
    registry.register_backbone(family)
    with pytest.raises(AssertionError, match=said):
        testing.check_backbone("broken_a")


def test_rows_and_layouts_that_break_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strided(BlockRow):
        options: Mapping[str, Option] = {}

        def build_block(self, dim: int, index: int, options: Mapping[str, Any]) -> nn.Module:
            return ConvNorm(dim, dim, 3, stride=2)

    class Broken(Fine):
        family = "broken"
        block_rows = {"StridedBlock": Strided}

    registry.register_backbone(Broken)
    with pytest.raises(AssertionError, match=re.escape("StridedBlock: (2, 8, 13, 20) became (2, 16, 4, 5)")):
        testing.check_rows("broken")
    for rules, said in (
        ((Drop(r"head\..+", example="fc.weight"),), r"authors: 'head\\\\..\+' does not match 'fc.weight'"),
        (
            (Drop("head.+", example="head.weight"), Rename("head.weight", "stem", example="head.weight")),
            "authors: 2 rules match 'head.weight'",
        ),
    ):
        monkeypatch.setattr(
            testing, "layouts_of", lambda _, rules=rules: (layouts.OURS, Layout("authors", rules=rules))
        )
        with pytest.raises(AssertionError, match=said):
            testing.check_layouts("broken")
    with pytest.raises(ValueError, match=r"Unknown family 'brokne'\. Did you mean 'broken'"):
        testing.check_rows("brokne")
