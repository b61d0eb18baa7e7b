"""The backbone contract apart from any family: stages and taps, stochastic depth, the input norm and where it folds."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from contract import imagenet, random_image, randomise, run
from torch import Tensor, nn

from yolo_lightbackbones import fusion
from yolo_lightbackbones.input_norm import IMAGENET, InputConvention, InputNorm
from yolo_lightbackbones.layers import BatchNorm2d, ConvNorm, DropPath, LayerNorm2d, drop_path_rates
from yolo_lightbackbones.stages import Stage, StagedBackbone


@dataclass(frozen=True)
class ToyConfig:
    drop_path_rate: float = 0.25


class Toy(StagedBackbone):
    """Three stages, the first of them at half of the image's size, after a stem that is a convolution."""

    family = "toy"
    variants = {"a": ToyConfig()}
    input_convention = IMAGENET

    def build_stem(self, config: ToyConfig, in_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, 4, 2, 2)

    def build_stages(self, config: ToyConfig, drop_path_rate: float) -> Iterator[Stage]:
        for i, rates in enumerate(drop_path_rates(drop_path_rate, (2, 1, 2))):
            downsample = nn.MaxPool2d(2) if i else None
            yield Stage([DropPath(rate) for rate in rates], channels=4, reduction=2 << i, downsample=downsample)


# --- taps -------------------------------------------------------------------------------------------------------------


def test_taps_are_derived_from_the_stages() -> None:
    toy = Toy("a", taps=("P1", "P3"))
    assert (toy.taps, toy.out_channels, toy.reductions) == (("P1", "P3"), (4, 4), (2, 8))
    assert [tuple(feature.shape) for feature in toy(random_image(64, 32))] == [(1, 4, 32, 16), (1, 4, 8, 4)]
    assert len(Toy("a", taps=("P1",)).stages) == 1


def test_taps_that_no_stage_gives() -> None:
    with pytest.raises(ValueError, match=r"Toy has no tap 'P4', 'P5'. Allowed: P1, P2, P3"):
        Toy("a", taps=("P3", "P4", "P5"))


def test_a_config_in_the_place_of_a_variant() -> None:
    toy = Toy(ToyConfig(drop_path_rate=0.5), taps=("P3",))
    assert [module.rate for module in toy.modules() if isinstance(module, DropPath)][-1] == 0.5


def test_a_backbone_says_what_it_lacks() -> None:
    class Unfinished(StagedBackbone):
        family = "unfinished"
        variants = {"a": None}

    with pytest.raises(NotImplementedError, match=r"Unfinished does not implement build_stem\(\)"):
        Unfinished("a")


# --- stochastic depth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "depths", "expected"),
    [
        (0.4, (2, 1, 2), [[0.0, 0.1], [0.2], [0.3, 0.4]]),
        (0.0, (1, 2), [[0.0], [0.0, 0.0]]),
        (0.3, (1,), [[0.0]]),
        (0.3, (0, 2), [[], [0.0, 0.3]]),
    ],
)
def test_drop_path_rates(rate: float, depths: tuple[int, ...], expected: list[list[float]]) -> None:
    assert list(drop_path_rates(rate, depths)) == [pytest.approx(stage) for stage in expected]


def test_the_rate_of_a_variant_is_its_own_unless_told_otherwise() -> None:
    def last_rate(toy: Toy) -> float:
        return [module.rate for module in toy.modules() if isinstance(module, DropPath)][-1]

    assert last_rate(Toy("a", taps=("P3",))) == 0.25
    assert last_rate(Toy("a", taps=("P3",), drop_path_rate=0.0)) == 0.0


def test_drop_path_keeps_the_expected_value() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, 3)
    dropped = DropPath(0.25).train()(x)
    per_sample = dropped.flatten(1)
    assert (per_sample == per_sample[:, :1]).all(), "a branch is dropped as a whole"
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert DropPath(0.25).eval()(x) is x


def test_pickles_whose_constants_went_through_half_precision_have_them_again() -> None:
    old = InputNorm(IMAGENET)
    del old.values  # as pickled by version 0.1.0
    for name in ("mean", "std"):
        setattr(old, name, old.get_buffer(name).half())  # as every best.pt
    new = pickle.loads(pickle.dumps(old)).float()
    image = random_image(4, 6)
    torch.testing.assert_close(new(image), imagenet(image), rtol=1e-6, atol=1e-6)
    folded = InputNorm(InputConvention(mean=(0.5, 0.25, 0.1)))
    del folded.values
    kept = pickle.loads(pickle.dumps(folded))
    torch.testing.assert_close(kept(image), image - torch.tensor([0.5, 0.25, 0.1]).view(1, 3, 1, 1))


# --- where in its stage a tap is --------------------------------------------------------------------------------------


class Counting(Toy):
    """Every block adds one, so that a map tells how many blocks it went through."""

    def build_stages(self, config: ToyConfig, drop_path_rate: float) -> Iterator[Stage]:
        for i in range(2):
            yield Stage([AddOne(), AddOne()], channels=4, reduction=2 << i, downsample=nn.MaxPool2d(2) if i else None)


class AddOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.one


def test_a_state_dict_says_where_its_taps_are() -> None:
    authors, timm, image = Counting("a", taps=("P1", "P2")), Counting("a", taps=("P1", "P2")), torch.zeros(1, 3, 32, 32)
    keys = list(authors.state_dict())
    timm.load_state_dict(authors.state_dict())
    timm.stages[0].blocks_behind_tap = 1
    first, second = run(authors, image)
    torch.testing.assert_close(run(timm, image), [first - 1, second], rtol=0, atol=0)
    state = timm.state_dict()
    assert set(state) - set(keys) == {"stages.0.blocks_behind_tap"}
    for other in (copy.deepcopy(timm), fusion.fuse(timm), pickle.loads(pickle.dumps(timm))):
        assert list(other.state_dict()) == list(state)
    new = Counting("a", taps=("P1", "P2"))
    new.load_state_dict(state)
    torch.testing.assert_close(run(new, image), [first - 1, second], rtol=0, atol=0)
    new.load_state_dict({"stem.bias": state["stem.bias"]}, strict=False)  # says nothing of the stages
    torch.testing.assert_close(run(new, image), [first - 1, second], rtol=0, atol=0)
    new.load_state_dict(authors.state_dict())
    torch.testing.assert_close(run(new, image), [first, second], rtol=0, atol=0)
    assert list(new.state_dict()) == keys


@pytest.mark.parametrize("value", [torch.tensor(3), torch.tensor(-1), torch.tensor(1.0), torch.tensor([1, 1])])
def test_a_tap_at_no_block_is_refused(value: Tensor) -> None:
    state = {**Counting("a", taps=("P1",)).state_dict(), "stages.0.blocks_behind_tap": value}
    with pytest.raises(ValueError, match="must be one whole number from 0 to 2"):
        Counting("a", taps=("P1",)).load_state_dict(state)


# --- layers -----------------------------------------------------------------------------------------------------------


def test_batchnorm_escapes_what_ultralytics_does_to_plain_ones() -> None:
    layer = BatchNorm2d(3)
    assert type(layer) is not nn.BatchNorm2d  # its check: `type(m) is nn.BatchNorm2d`
    assert layer.eps == 1e-5
    assert isinstance(layer, nn.BatchNorm2d)


def test_layer_norm_is_over_the_channels_of_each_position() -> None:
    layer = LayerNorm2d(5, eps=1e-6).double()
    randomise(layer)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    weight, bias = (parameter.view(1, -1, 1, 1) for parameter in (layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), (x - mean) / (var + 1e-6).sqrt() * weight + bias)


def test_conv_norm_pads_odd_kernels_alone() -> None:
    assert [ConvNorm(3, 4, size).conv.padding for size in (1, 2, 3, 5)] == [(0, 0), (1, 1), (1, 1), (2, 2)]


# --- input norm -------------------------------------------------------------------------------------------------------


CONVENTIONS = {
    "imagenet": (IMAGENET, imagenet),
    "bgr": (InputConvention(bgr=True), lambda x: x[:, [2, 1, 0]]),
    "std alone": (InputConvention(std=(0.2, 0.3, 0.4)), lambda x: x / torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)),
    # caffe's: mean in the order that comes out, blue first
    "bgr and mean": (
        InputConvention(mean=(0.406, 0.456, 0.485), bgr=True),
        lambda x: torch.stack([x[:, 2] - 0.406, x[:, 1] - 0.456, x[:, 0] - 0.485], 1),
    ),
}


@pytest.mark.parametrize("convention", list(CONVENTIONS))
@pytest.mark.parametrize("padding", [0, 1])
def test_input_norm_and_its_folding(convention: str, padding: int) -> None:
    described, by_hand = CONVENTIONS[convention]
    image = random_image(6, 8)
    norm = InputNorm(described)
    torch.testing.assert_close(norm(image), by_hand(image))
    conv = nn.Conv2d(3, 4, 3, padding=padding).requires_grad_(False)
    expected = conv(by_hand(image))
    rest, folded = norm.fold_into(conv)
    torch.testing.assert_close(folded(rest(image)), expected)
    # only a mean in front of a border of zeros is left
    assert isinstance(rest, InputNorm) == (described.mean is not None and padding > 0)
    if isinstance(rest, InputNorm):
        assert rest.std is None
        assert not rest.bgr


def test_input_norm_is_no_weight_and_follows_dtype() -> None:
    norm = InputNorm(IMAGENET)
    assert not norm.state_dict()
    assert norm.half()(random_image(4, 4).half()).dtype == torch.float16


def test_input_norm_folds_into_a_stem_that_is_a_convolution() -> None:
    toy = Toy("a", taps=("P1",)).eval()
    image = random_image(32, 64)
    expected = run(toy, image)
    fused = fusion.fuse(toy)
    assert isinstance(fused.get_submodule("input_norm"), nn.Identity)
    torch.testing.assert_close(run(fused, image), expected)
    assert isinstance(toy.input_norm, InputNorm)


@pytest.mark.parametrize("convention", list(CONVENTIONS))
def test_channels_without_a_convention(convention: str) -> None:
    class Other(Toy):
        input_convention = CONVENTIONS[convention][0]

    assert isinstance(Other("a", in_channels=1, taps=("P1",)).input_norm, nn.Identity)
    assert isinstance(Other("a", in_channels=3, taps=("P1",)).input_norm, InputNorm)
    assert isinstance(Other("a", taps=("P1",), input_norm="none").input_norm, nn.Identity)


def test_no_convention_needs_no_norm() -> None:
    class Plain(Toy):
        input_convention = InputConvention()

    assert isinstance(Plain("a", taps=("P1",)).input_norm, nn.Identity)


def test_size_check() -> None:
    toy = Toy("a", taps=("P3",))
    with pytest.raises(ValueError, match=r"The image is 64 x 33 .* multiples of 32. .* 64 x 64"):
        toy(torch.zeros(1, 3, 64, 33))

    class Finer(Toy):
        size_divisibility = 8

    assert isinstance(Finer("a", taps=("P3",))(torch.zeros(1, 3, 8, 24))[0], Tensor)
