"""Counting parameters and multiply-adds: by hand, against published counts, and on models of Ultralytics."""

from __future__ import annotations

import copy
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from operations import operations
from torch import Tensor, nn
from ultralytics import YOLO

from yolo_lightbackbones import create_backbone
from yolo_lightbackbones.measure import cost

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTED = {name: published.COUNTED[name] for name in ("repvit_m0_6", "edgevit_xxs", "parcnet_xs", "conv2former_n")}


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]  # (B, 1, H * W, C)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


class Doubtful(nn.Module):
    """Decides by a value, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out if float(out.sum()) > 1e9 else out + 1


@pytest.mark.parametrize(
    ("module", "parameters", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 3 * 8 * 9 + 8, 16 * 12 * 8 * 3 * 9),
        (nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3, bias=False), 6 * 9, 8 * 6 * 6 * 9),
        (nn.Linear(12, 5), 12 * 5 + 5, 3 * 16 * 12 * 5),
        (Attention(), 0, 2 * (16 * 12) ** 2 * 3),
        (nn.BatchNorm2d(3), 6, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_by_hand(module: nn.Module, parameters: int, macs: int) -> None:
    total = cost.count(module, (1, 3, 16, 12)).total
    assert (total.parameters, total.macs, total.flops) == (parameters, macs, 2 * macs)


def test_eval_mode_leaves_the_module_as_it_was() -> None:
    class Auxiliary(nn.Module):
        """A branch that only trains."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.branch = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.branch(x) if self.training else x

    module = Auxiliary().train()
    assert cost.count(module, (1, 3, 8, 8)).total.macs == 64 * (3 * 4 + 4 * 5)
    assert cost.count(module, (1, 3, 8, 8), in_eval_mode=True).total.macs == 64 * 3 * 4
    assert module.training


def test_copies_on_the_meta_device_share_no_hooks() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))
    copied = cost.on_meta(module)
    seen: list[nn.Module] = []
    copied[0].register_forward_hook(lambda part, *_: seen.append(part))
    copied(torch.empty(1, 3, 8, 8, device="meta"))
    module(torch.rand(1, 3, 8, 8))
    assert seen == [copied[0]]
    assert {parameter.device.type for parameter in copied.parameters()} == {"meta"}


def test_attention_that_runs_on_the_cpu_is_counted_in_its_plain_form() -> None:
    """Its fused kernel there is not one that every release of torch counts, so that the plain form has to run."""
    fused: list[bool] = []

    class DoubtfulAttention(Attention):
        def forward(self, x: Tensor) -> Tensor:
            assert float(x.sum()) == 0  # sends it to the CPU
            fused.append(torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled())
            return super().forward(x.contiguous(memory_format=torch.channels_last))  # the layout that it takes

    before = torch.backends.cuda.flash_sdp_enabled()
    assert cost.count(DoubtfulAttention(), (1, 3, 16, 12)).total.macs == 2 * (16 * 12) ** 2 * 3
    assert fused == [False]
    assert torch.backends.cuda.flash_sdp_enabled() is before


def test_parts_and_their_outputs() -> None:
    inner = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.ReLU())
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), inner, nn.ReLU())
    costs = cost.count(model, (2, 3, 16, 12), ["0", "1", "1.0", "2"])
    first, second = 2 * 8 * 6 * 8 * 27, 2 * 8 * 6 * 8 * 8
    assert {name: part.macs for name, part in costs.parts.items()} == {"0": first, "1": second, "1.0": second, "2": 0}
    assert {name: part.parameters for name, part in costs.parts.items()} == {"0": 216, "1": 64, "1.0": 64, "2": 0}
    assert costs.parts["1"].output == (2, 8, 8, 6)
    assert costs.total == cost.Cost(280, first + second, (2, 8, 8, 6))
    with pytest.raises(AttributeError, match="3"):
        cost.count(model, (1, 3, 16, 12), ["3"])


def test_a_module_called_twice_costs_twice_and_has_its_parameters_once() -> None:
    conv = nn.Conv2d(4, 4, 1, bias=False)
    costs = cost.count(nn.Sequential(conv, conv), (1, 4, 8, 8), ["0"])
    assert costs.total.parameters == 16
    assert costs.total.macs == costs.parts["0"].macs == 2 * 64 * 16


def test_what_needs_values_runs_on_the_cpu() -> None:
    module = Doubtful().half()
    total = cost.count(module, (1, 3, 4, 4)).total
    assert (total.parameters, total.macs, total.output) == (16, 16 * 12, (1, 4, 4, 4))
    assert module.conv.weight.dtype == torch.float16


def test_errors_of_the_module_are_its_own() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        cost.count(create_backbone("repvit_m0_6"), (1, 3, 40, 40))
    with pytest.raises(RuntimeError, match="channels"):
        cost.count(nn.Conv2d(3, 4, 1), (1, 5, 4, 4))


@pytest.mark.parametrize("name", COUNTED)
def test_backbones_have_the_published_counts_and_stages_make_the_whole(name: str) -> None:
    parameters, gmacs = COUNTED[name]
    with torch.device("meta"):
        backbone = create_backbone(name).eval()
    parts = ["stem", "stages.0", "stages.1", "stages.2", "stages.3"]
    costs = cost.count(backbone, (1, 3, 640, 640), parts)
    assert costs.total.parameters == parameters
    assert costs.total.macs / 1e9 == pytest.approx(gmacs, abs=6e-5)
    assert sum(part.macs for part in costs.parts.values()) == costs.total.macs
    assert sum(part.parameters for part in costs.parts.values()) == parameters
    assert all(part.macs > 0 for part in costs.parts.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["yolov5n_repvit.yaml", "yolo11n.yaml", "yolo26n-pose.yaml", "yolov8n-seg.yaml"])
def test_models_of_ultralytics_cost_what_a_real_run_does(name: str, training: bool) -> None:
    net: Any = YOLO(name).model.train(training)
    before = copy.deepcopy(net.state_dict())
    hooks = sum(len(module._forward_hooks) for module in net.modules())

    costs = cost.count(net, (1, 3, 96, 64), [f"model.{i}" for i in range(len(net.model))])

    assert net.training is training
    assert {parameter.device.type for parameter in net.parameters()} == {"cpu"}
    assert sum(len(module._forward_hooks) for module in net.modules()) == hooks
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert costs.total.flops == operations(net, torch.zeros(1, 3, 96, 64)) > 0
    assert costs.total.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert sum(part.macs for part in costs.parts.values()) == costs.total.macs
    assert sum(part.parameters for part in costs.parts.values()) == costs.total.parameters


def test_half_precision_counts_like_single() -> None:
    with torch.device("meta"):
        single = create_backbone("edgevit_xxs").eval()
    assert cost.count(single.half(), (1, 3, 64, 64)) == cost.count(single.float(), (1, 3, 64, 64))
