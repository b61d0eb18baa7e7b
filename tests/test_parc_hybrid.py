"""ParC hybrids: the family contract, and equality with torchvision's models that have the operator put in."""

from __future__ import annotations

from pathlib import Path

import parc_references
import pytest
import torch
from contract import Expected, FamilyContract, assert_features, imagenet, random_image, randomise, run
from published import save_checkpoint
from torch import Tensor, nn

from yolo_lightbackbones import fusion, load_weights, recording
from yolo_lightbackbones.backbones.parc_hybrid import ConvNeXtConfig, ParCHybrid
from yolo_lightbackbones.checkpoints.errors import CheckpointError
from yolo_lightbackbones.layers import CircularConv, ParCConv, ParCConvNorm
from yolo_lightbackbones.registry import create_backbone, family_in, find, recognise

HEADS = {
    "mobilenetv2": 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000,
    "convnext_xt": 2 * 384 + 384 * 1000 + 1000,
    "resnet50": 2048 * 1000 + 1000,
}
"""Parameters behind P5: MobileNetV2's last 1x1 convolution and norm, ConvNeXt's last norm, and the classifiers."""


class TestParCHybrid(FamilyContract):
    family = "parc"
    class_name = "ParCHybrid"
    smallest = "mobilenetv2"
    # counted on the models of parc_references.py, without their heads
    expected = {
        "mobilenetv2": Expected(1_838_976, 0.2806, (24, 32, 96, 320)),
        "convnext_xt": Expected(7_027_056, 1.1388, (48, 96, 192, 384)),
        "resnet50": Expected(21_688_640, 3.9394, (256, 512, 1024, 2048)),
    }
    top1 = {}
    weights = dict.fromkeys(expected, "none listed")

    @staticmethod
    def prepare(image: Tensor) -> Tensor:
        return imagenet(image)

    def test_default_of_rows(self) -> None:
        norms = {variant: ParCHybrid.default_tap_norm(variant) for variant in self.expected}
        assert norms == {"mobilenetv2": "none", "convnext_xt": "batch", "resnet50": "none"}


@pytest.mark.parametrize("variant", list(HEADS))
class TestAgainstTorchvision:
    def test_parameters_are_the_published_number(self, variant: str) -> None:
        with torch.device("meta"):
            reference = parc_references.MODELS[variant]()
            ours = create_backbone(f"parc_{variant}")
        total = sum(p.numel() for p in reference.parameters())
        assert round(total / 1e6, 2) == {"mobilenetv2": 3.53, "convnext_xt": 7.41, "resnet50": 23.74}[variant]
        assert sum(p.numel() for p in ours.parameters()) == total - HEADS[variant]

    @pytest.mark.parametrize("size", [(224, 224), (160, 96)])
    def test_a_published_file_gives_its_outputs(self, variant: str, size: tuple[int, int], tmp_path: Path) -> None:
        reference = parc_references.MODELS[variant]().eval()
        randomise(reference)
        state = parc_references.published(variant, reference)
        ours = create_backbone(f"parc_{variant}", input_norm="none").eval()
        report = load_weights(ours, save_checkpoint(state, tmp_path / "model.pth", "model"))
        assert not report.missing
        assert not report.unexpected
        assert len(report.loaded) == len(ours.state_dict())
        image = random_image(*size)
        with torch.no_grad():
            expected = parc_references.taps(variant, reference, image)
        assert_features(run(ours, image), expected, 1e-5)
        assert_features(run(fusion.fuse(ours), image), expected, 1e-5)


def test_a_file_of_another_hybrid_is_refused(tmp_path: Path) -> None:
    state = parc_references.published("resnet50", parc_references.resnet50())
    path = save_checkpoint(state, tmp_path / "resnet.pth", None)
    with pytest.raises(CheckpointError, match="this is parc_resnet50; you asked for parc_mobilenetv2"):
        load_weights(create_backbone("parc_mobilenetv2"), path)


def test_published_names_of_the_operator() -> None:
    """Read off the published code by hand, one block of each variant."""
    names = {
        "mobilenetv2": ("features.9.", ["pw_expand.0.weight", "bn.running_var", "pw_linear.1.bias", "gcc_H.pe"]),
        "convnext_xt": ("stages.2.6.", ["gcc_W.gcc_conv.weight", "gcc_H.gcc_conv.bias", "gcc_W.pe", "gamma"]),
        "resnet50": ("layer3.3.", ["parc_H.gcc_conv.weight", "parc_W.pe", "bn2.weight", "conv3.weight"]),
    }
    for variant, (block, inside) in names.items():
        state = parc_references.published(variant, parc_references.MODELS[variant]())
        assert {block + name for name in inside} <= set(state)


def test_names_are_kept_apart_from_those_of_parcnet() -> None:
    from yolo_lightbackbones.registry import families

    def known(name: str) -> tuple[str, str | None] | None:
        found = recognise(name, families())
        return None if found is None else (found[0].family, found[1])

    assert [cls.family for name in ("parcnet_s", "parc_resnet50") if (cls := family_in(name))] == ["parcnet", "parc"]
    assert find("parc_convnext_xt") == (ParCHybrid, "convnext_xt")
    assert known("ParC-Net-S") == ("parcnet", "s")
    assert known("ParC-ConvNeXt-XT") == ("parc", "convnext_xt")
    assert known("parcnet") == ("parcnet", None)
    assert known("ParCHybrid") == ("parc", None)
    with pytest.raises(ValueError, match=r"Unknown variant 'parc_resnet5'.* Did you mean 'resnet50'\?"):
        find("parc_resnet5")


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("size", [(7, 7), (5, 9), (24, 3)])
def test_the_operator_by_its_definition(dense: bool, position: bool, size: tuple[int, int]) -> None:
    block = ParCConvNorm(8, 7, position=position, dense=dense).double().eval()
    randomise(block)
    reference = parc_references.Operator(8, 7, position=position, dense=dense).double()
    with torch.no_grad():
        for half, axis in ((block.conv.height, "H"), (block.conv.width, "W")):
            parts = {"kernel": half.conv.weight, "bias": half.conv.bias, "pe": getattr(half.pos, "weight", None)}
            for name, tensor in parts.items():
                if tensor is not None:
                    target = reference.get_parameter(f"{name}_{axis}")
                    target.copy_(tensor.reshape(target.shape))
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = block.norm(reference(x))
    assert_features([run(block, x)], [expected], 1e-12)  # type: ignore[list-item]
    fused = fusion.fuse(block)
    assert isinstance(fused, ParCConv)
    assert_features([run(fused, x)], [expected], 1e-12)  # type: ignore[list-item]
    symbolic = fused.float()
    recording.record_for(symbolic, any_size=True)
    traced = torch.jit.trace(symbolic, torch.zeros(1, 8, 6, 4), check_trace=False)  # type: ignore[no-untyped-call]
    assert_features([traced(x.float()).double()], [expected], 1e-5)


@pytest.mark.parametrize("variant", ["convnext_xt", "resnet50"])
def test_every_parameter_of_the_others_learns(variant: str) -> None:
    backbone = create_backbone(f"parc_{variant}").train()
    randomise(backbone)
    sum(feature.square().mean() for feature in backbone(random_image(64, 96, batch=2))).backward()  # type: ignore[union-attr]
    assert not [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_start_of_the_others() -> None:
    scratch = create_backbone("parc_convnext_xt", init="scratch", taps=("P3",))
    published = create_backbone("parc_convnext_xt")
    for name, scale in published.named_parameters():
        if name.endswith("layer_scale"):
            torch.testing.assert_close(scale, torch.full_like(scale, 1e-6))
            assert name in published.no_weight_decay()
    for name, scale in scratch.named_parameters():
        if name.endswith("layer_scale"):
            torch.testing.assert_close(scale, torch.full_like(scale, 0.1))
    for module in published.modules():
        if isinstance(module, nn.Conv2d | CircularConv):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)
            assert module.bias is None or not module.bias.any()
    assert {m.eps for m in published.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_dense_kernels_are_matrices_to_the_optimizer() -> None:
    from yolo_lightbackbones.plugin.training import _is_matrix

    assert _is_matrix(CircularConv(4, 7, 2, dense=True))
    assert not _is_matrix(CircularConv(4, 7, 2))


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match="one entry per stage"):
        ConvNeXtConfig((8, 16), (1,), (None,))


def test_custom_config() -> None:
    config = ConvNeXtConfig((8, 16), (1, 2), (None, 1))
    backbone = ParCHybrid(config, taps=("P3",)).eval()
    assert [type(block.token_mixer).__name__ for block in backbone.stages[1].blocks] == ["Conv2d", "ParCConv"]
    assert [tuple(feature.shape) for feature in run(backbone, random_image(32, 64))] == [(1, 16, 4, 8)]
