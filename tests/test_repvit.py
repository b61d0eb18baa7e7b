"""RepViT: the family contract, and what is its own."""

from __future__ import annotations

import pytest
import torch
from contract import Expected, FamilyContract, assert_features, imagenet, random_image, randomise, run
from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.backbones.repvit import (
    ChannelMixer,
    RepDepthwise,
    RepViT,
    RepViTBlocks,
    RepViTConfig,
    SqueezeExcite,
)


class TestRepViT(FamilyContract):
    family = "repvit"
    class_name = "RepViT"
    smallest = "m0_6"
    # counted on THU-MIG/RepViT 298f420
    expected = {
        "m0_6": Expected(2_165_652, 0.3854, (40, 80, 160, 320)),
        "m0_9": Expected(4_717_792, 0.8165, (48, 96, 192, 384)),
        "m1_0": Expected(6_403_004, 1.1072, (56, 112, 224, 448)),
        "m1_1": Expected(7_774_864, 1.3382, (64, 128, 256, 512)),
        "m1_5": Expected(13_616_384, 2.2759, (64, 128, 256, 512)),
        "m2_3": Expected(22_404_232, 4.5202, (80, 160, 320, 640)),
    }
    top1 = {"m0_6": 74.1, "m0_9": 79.1, "m1_0": 80.3, "m1_1": 81.2, "m1_5": 82.5, "m2_3": 83.7}
    weights = dict.fromkeys(expected, "download")

    @staticmethod
    def prepare(image: Tensor) -> Tensor:
        return imagenet(image)

    def test_a_fused_token_mixer_is_one_convolution(self) -> None:
        fused = fusion.fuse(self.build())
        mixers = [module for name, module in fused.named_modules() if name.endswith("token_mixer")]
        assert len(mixers) == 2 + 2 + 9 + 1
        assert all(type(mixer) is nn.Conv2d and mixer.kernel_size == (3, 3) for mixer in mixers)

    @pytest.mark.parametrize("name", ["m0.9", "repvit_m0.9", "REPVIT_M0_9", " m0_9 "])
    def test_names_with_a_dot(self, name: str) -> None:
        assert RepViT.resolve_variant(name) == "m0_9"

    @pytest.mark.parametrize("name", ["m0_9", "m1_0", "m1_1", "m1_5", "m2_3"])
    def test_equals_timm(self, name: str) -> None:
        timm = pytest.importorskip("timm")
        theirs = timm.create_model(f"repvit_{name}", pretrained=False, num_classes=0).eval()
        randomise(theirs)
        ours = self.build(name, input_norm="none")
        # both register their parameters in the order of computation
        state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("head.")}
        ours.load_state_dict(dict(zip(ours.state_dict(), state.values(), strict=True)))
        # timm counts the last block of a stage to the next one's downsampling
        taps = [theirs.stages[1].downsample.pre_block, theirs.stages[2].downsample.pre_block]
        taps += [theirs.stages[3].downsample.pre_block, theirs.stages[3]]
        expected: list[Tensor] = []
        for tap in taps:
            tap.register_forward_hook(lambda _module, _inputs, output: expected.append(output))
        image = random_image(64, 96, batch=2)
        run(theirs, image)
        assert_features(run(ours, image), expected, 1e-5)


def test_channel_mixers_start_as_the_identity() -> None:
    mixer = ChannelMixer(8, mlp_ratio=2, drop_path=0.0).eval()
    x = torch.rand(1, 8, 4, 5)
    torch.testing.assert_close(mixer(x), x, rtol=0, atol=0)


def test_channel_mixers_of_rows_start_open() -> None:
    # the published 0 makes detectors learn late that start from scratch, see docs/accuracy.md
    assert all((block.channel_mixer.conv2.norm.weight == 1).all() for block in RepViTBlocks(8, 8, 2).blocks)
    mixers = [module for module in RepViT("m0_6", init="scratch").modules() if isinstance(module, ChannelMixer)]
    assert len(mixers) == 2 + 2 + 9 + 1 + 3
    assert all((mixer.conv2.norm.weight == 1).all() for mixer in mixers)


def test_gates_of_rows_start_open() -> None:
    for model, expected in (
        (RepViTBlocks(8, 8, 2), 0.95),
        (RepViT("m0_6", init="scratch"), 0.95),
        (RepViT("m0_6"), 0.5),
    ):
        gates = [module for module in model.modules() if isinstance(module, SqueezeExcite)]
        assert gates
        for gate in gates:
            channels = gate.fc1.in_channels
            seen = gate(torch.ones(1, channels, 2, 2)).mean().item()
            assert seen == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("dim", "hidden"), [(40, 8), (48, 16), (56, 16), (96, 24), (112, 32), (448, 112)])
def test_width_of_squeeze_and_excitation(dim: int, hidden: int) -> None:
    # a quarter rounded to a multiple of 8, half of it up: 40 -> 10 -> 8, 48 -> 12 -> 16, 112 -> 28 -> 32
    assert SqueezeExcite(dim).fc1.out_channels == hidden


def test_token_mixer_by_hand() -> None:
    mixer = RepDepthwise(2).eval()
    randomise(mixer)
    x = torch.rand(1, 2, 3, 4, dtype=torch.float64)
    mixer.double()

    def normalised(value: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        mean, var, weight, bias = (
            t.view(1, -1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias) if t is not None
        )
        return (value - mean) / (var + 1e-5).sqrt() * weight + bias

    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    kernel = mixer.conv3x3.conv.weight
    blurred = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            blurred += padded[:, :, i : i + 3, j : j + 4] * kernel[:, 0, i, j].view(1, -1, 1, 1)
    scaled = x * mixer.conv1x1.weight.view(1, -1, 1, 1) + mixer.conv1x1.bias.view(1, -1, 1, 1)  # type: ignore[union-attr]
    expected = normalised(normalised(blurred, mixer.conv3x3.norm) + scaled + x, mixer.norm)
    torch.testing.assert_close(mixer(x), expected)
    torch.testing.assert_close(fusion.fuse(mixer)(x), expected)


@pytest.mark.parametrize(
    ("dims", "squeezes", "message"),
    [
        ((8, 16), ("1",), "one entry per stage"),
        ((8, 16), ("1", "12"), "strings of 0 and 1"),
        ((8, 16), ("1", ""), "strings of 0 and 1"),
    ],
)
def test_config_is_checked(dims: tuple[int, ...], squeezes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RepViTConfig(dims=dims, squeezes=squeezes)


def test_custom_config() -> None:
    backbone = RepViT(RepViTConfig(dims=(8, 16, 24), squeezes=("1", "0", "10")), taps=("P2", "P4"))
    assert (backbone.out_channels, backbone.reductions) == ((8, 24), (4, 16))
