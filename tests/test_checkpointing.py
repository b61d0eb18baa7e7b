"""The option `checkpoint`: blocks run twice in training; nothing but memory and time changes."""

from __future__ import annotations

import copy

import pytest
import torch
from test_recompute import SMALLEST, assert_same_step, backbone, images, saved_bytes, step
from torch import nn
from ultralytics.nn import tasks

from yolo_lightbackbones import create_backbone


@pytest.mark.parametrize("name", SMALLEST)
def test_a_step_is_the_same(name: str) -> None:
    """Also with stochastic depth and dropout, whose random numbers are drawn twice."""
    model, plain = (backbone(name, drop_path_rate=0.3, checkpoint=given).double() for given in (True, False))
    assert list(model.state_dict()) == list(plain.state_dict())
    for module in (*model.modules(), *plain.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    maps = []
    for one in (model, plain):
        for _ in range(2):
            torch.manual_seed(3)
            maps.append(step(one, images(2, torch.float64)))
    torch.testing.assert_close(maps[1], maps[3], rtol=1e-10, atol=1e-10)
    assert_same_step(model, plain, 1e-9)


def test_random_numbers_differ_from_step_to_step() -> None:
    model = backbone("repvit_m0_6", drop_path_rate=0.5, checkpoint=True)
    assert not torch.equal(model(images(4))[-1], model(images(4))[-1])


@pytest.mark.parametrize("name", SMALLEST)
def test_bytes(name: str) -> None:
    model, plain = (backbone(name, checkpoint=given) for given in (True, False))
    assert saved_bytes(model, images()) <= 0.5 * saved_bytes(plain, images())


def test_modes_and_statistics_after_a_step() -> None:
    model = backbone("repvit_m0_6", checkpoint=True)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[5].eval()
    frozen = copy.deepcopy(norms[5].state_dict())
    loss = sum(one.square().mean() for one in model(images()))
    model.eval()
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert not any(module.training for module in model.modules())
    assert {int(norm.num_batches_tracked or 0) for norm in norms} == {0, 1}
    torch.testing.assert_close(norms[5].state_dict(), frozen, rtol=0, atol=0)


def test_autocast() -> None:
    model, plain = (backbone("edgevit_xxs", checkpoint=given) for given in (True, False))
    for one in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            maps = one(images())
        sum(feature.float().square().mean() for feature in maps).backward()  # type: ignore[union-attr]
    assert_same_step(model, plain, 1e-6)


def test_frozen_blocks_and_copies() -> None:
    model = backbone("conv2former_n", checkpoint=True)
    for parameter in [*model.get_submodule("stem").parameters(), *model.get_submodule("stages.0").parameters()]:
        parameter.requires_grad_(False)
    step(copy.deepcopy(model), images())
    step(model, images())
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_evaluation_and_exports_run_blocks_once() -> None:
    model = backbone("conv2former_n", checkpoint=True).eval()
    plain = backbone("conv2former_n").eval()
    torch.testing.assert_close(model(images()), plain(images()), rtol=0, atol=0)
    assert "checkpoint" not in str(torch.jit.trace(model.train(), images(), check_trace=False).inlined_graph)


def test_rows() -> None:
    model = {
        "nc": 2,
        "backbone": [[-1, 1, "RepViT", ["m0_6", {"checkpoint": True}]]],
        "head": [[0, 1, "Tap", ["P3"]], [0, 1, "Tap", ["P4"]], [0, 1, "Tap", ["P5"]], [[1, 2, 3], 1, "Detect", ["nc"]]],
    }
    assert tasks.DetectionModel(copy.deepcopy(model), verbose=False).model[0].checkpoint
    model["backbone"] = [[-1, 1, "RepViT", ["m0_6", {"checkpoint": 1}]]]
    with pytest.raises(ValueError, match=r"checkpoint is 1; it must be true or false"):
        tasks.DetectionModel(model, verbose=False)


def test_families_without_it_refuse_it() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="Timm has no option 'checkpoint'"):
        create_backbone("timm/resnet18", checkpoint=True)
