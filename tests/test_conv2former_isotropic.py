"""Conv2Former IS and IB, which have one stage: the contract with a simple feature pyramid, and without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import REDUCTIONS, Expected, FamilyContract, assert_features, imagenet, random_image, randomise, run
from torch import Tensor, nn
from ultralytics.nn import tasks

from yolo_lightbackbones import load_weights
from yolo_lightbackbones.backbone import TAPS
from yolo_lightbackbones.backbones.conv2former import Conv2Former
from yolo_lightbackbones.checkpoints.errors import CheckpointError
from yolo_lightbackbones.plugin.row import ConfigError
from yolo_lightbackbones.registry import create_backbone


def trunk(dim: int) -> tuple[int, int]:
    """Parameters, and multiply-adds per position at 1/16, of 18 blocks behind 16x16 patches; counted by hand."""
    matrices, kernels = 3 * dim**2 + 8 * dim**2, 11 * 11 * dim + 9 * 4 * dim
    biases = 3 * dim + dim + 4 * dim + 4 * dim + dim
    norms, layer_scales = 2 * 2 * dim, 2 * dim
    patches = 3 * 16 * 16 * dim
    return 18 * (matrices + kernels + biases + norms + layer_scales) + patches + dim, 18 * (
        matrices + kernels
    ) + patches


def pyramid(dim: int) -> tuple[int, float]:
    """The same of ViTDet's pyramid with 256 channels."""
    up1, up2 = dim * (dim // 2) * 4, (dim // 2) * (dim // 4) * 4
    conv, norms = 9 * 256**2, 2 * 2 * 256
    parameters = up1 + dim // 2 + dim + up2 + dim // 4  # P2, with a norm between the two
    parameters += up1 + dim // 2  # P3
    parameters += 256 * (dim // 4 + dim // 2 + dim + dim) + 4 * (conv + norms)
    macs = up1 + 4 * up2 + 16 * (256 * dim // 4 + conv)
    macs += up1 + 4 * (256 * dim // 2 + conv)
    return parameters, macs + (256 * dim + conv) * 1.25


def expected(dim: int) -> Expected:
    parameters, macs = (a + b for a, b in zip(trunk(dim), pyramid(dim), strict=True))
    return Expected(int(parameters), macs * 14 * 14 / 1e9, (256, 256, 256, 256))


class TestIsotropicConv2Former(FamilyContract):
    family = "conv2former"
    class_name = "Conv2Former"
    smallest = "is"
    options = {"pyramid": "simple"}
    expected = {"is": expected(320), "ib": expected(640)}
    test_names = None
    test_card = None
    test_default_of_rows = None

    @staticmethod
    def prepare(image: Tensor) -> Tensor:
        return imagenet(image)

    def test_norms_keep_their_published_eps(self) -> None:
        assert {module.eps for module in self.build().modules() if isinstance(module, nn.LayerNorm)} == {1e-6}

    @pytest.mark.parametrize("taps", [("P2",), ("P3", "P5"), ("P4",), ("P2", "P3", "P4")])
    def test_taps(self, taps: tuple[str, ...]) -> None:
        whole, part = self.build(), self.build(taps=taps)
        report = part.load_state_dict(whole.state_dict(), strict=False)
        assert not report.missing_keys
        assert {".".join(key.split(".")[:2]) for key in report.unexpected_keys} == {
            f"pyramid.{tap}" for tap in TAPS if tap not in taps
        }
        chosen = [TAPS.index(tap) for tap in taps]
        assert part.out_channels == (256,) * len(taps)
        assert part.reductions == tuple(REDUCTIONS[i] for i in chosen)
        image = random_image(64, 96)
        features = run(whole, image)
        torch.testing.assert_close(run(part, image), [features[i] for i in chosen], rtol=0, atol=0)


@pytest.mark.parametrize(("variant", "dim", "least", "most"), [("is", 320, 21.5, 22.5), ("ib", 640, 80, 90)])
def test_sizes_are_about_those_of_the_paper(variant: str, dim: int, least: float, most: float) -> None:
    """About 22 M, and above 80 M, with a classifier on 1000 classes."""
    with torch.device("meta"):
        backbone = create_backbone(f"conv2former_{variant}", taps=None)
    parameters = sum(p.numel() for p in backbone.parameters())
    assert parameters == trunk(dim)[0]
    assert least < (parameters + 1000 * dim + 1000) / 1e6 < most
    assert "width is ours" in Conv2Former.card.notes[variant]


def test_without_a_pyramid_there_is_p4_only() -> None:
    plain = create_backbone("conv2former_is", taps=None).eval()
    randomise(plain)
    assert (plain.taps, plain.out_channels, plain.reductions) == (("P4",), (320,), (16,))
    whole = create_backbone("conv2former_is", pyramid="simple").eval()
    report = whole.load_state_dict(plain.state_dict(), strict=False)
    assert {key.split(".")[0] for key in report.missing_keys} == {"pyramid"}
    image = random_image(64, 96)
    (map_,) = run(plain, image)
    assert map_.shape == (1, 320, 4, 6)
    assert whole.pyramid is not None
    assert_features(run(whole, image), run(whole.pyramid, map_), 1e-6)


def test_weights_without_a_pyramid_are_loaded_and_others_are_named(tmp_path: Path) -> None:
    plain = create_backbone("conv2former_is", taps=None)
    torch.save(plain.state_dict(), path := tmp_path / "is.pth")
    report = load_weights(whole := create_backbone("conv2former_is", pyramid="simple"), path)
    assert not report.unexpected
    torch.testing.assert_close(whole.stem.state_dict(), plain.stem.state_dict(), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="this is conv2former_is; you asked for conv2former_n"):
        load_weights(create_backbone("conv2former_n"), path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"has no tap 'P2', 'P3', 'P5'\. Allowed: P4\. With the option pyramid: simple, it has P2, P3, P4, P5\."),
        ({"pyramid": "fpn"}, "pyramid is 'fpn'; it must be one of none, simple"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("conv2former_is", **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "conv2former_n",
            "conv2former_n needs none: it has maps at 1/4, 1/8, 1/16, 1/32 of the image's side by itself",
        ),
        ("repvit_m0_6", "RepViT has no option 'pyramid'"),
    ],
)
def test_other_backbones_need_no_pyramid(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone(name, pyramid="simple")


def detector(row: list[Any], taps: tuple[str, ...]) -> dict[str, Any]:
    rows = [[0, 1, "Tap", [tap]] for tap in taps]
    head = [[list(range(1, len(taps) + 1)), 1, "Detect", ["nc"]]]
    return {"nc": 4, "backbone": [[-1, 1, "Conv2Former", row], *rows], "head": head}


def test_a_detector_builds_only_the_levels_that_it_uses() -> None:
    config = detector(["is", {"pyramid": "simple"}], ("P3", "P5"))
    model = tasks.DetectionModel(config, verbose=False)
    backbone = model.model[0]
    assert backbone.taps == ("P3", "P5")
    assert not backbone.tap_norms, "the levels end with norms"
    assert model.stride.tolist() == [8, 32]
    assert model.yaml["backbone"][0][3] == ["is", {"pyramid": "simple"}]
    model(torch.rand(2, 3, 64, 96))


def test_a_detector_on_p4_only() -> None:
    model = tasks.DetectionModel(detector(["is"], ("P4",)), verbose=False)
    assert list(model.model[0].tap_norms) == ["P4"]
    assert model.stride.tolist() == [16]


@pytest.mark.parametrize(
    ("row", "taps", "message"),
    [
        (["is"], ("P3",), r"Conv2Former has no tap P3\. .* With the option pyramid: simple, it has P2, P3, P4, P5"),
        (["n", {"pyramid": "simple"}], ("P3",), r"row 0 .*conv2former_n needs none: it has maps at 1/4, 1/8"),
        (["is", {"pyramid": True}], ("P3",), r"row 0 .*pyramid is True; it must be one of none, simple"),
        (["is", {"imgsz": 224}], ("P3",), r"row 0 .*unknown option 'imgsz'\. Allowed: .*, pyramid"),
    ],
)
def test_mistakes_in_rows(row: list[Any], taps: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks.DetectionModel(detector(row, taps), verbose=False)
