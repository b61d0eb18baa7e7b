"""The folding algebra against compositions written out, and the walker."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from contract import randomise, run
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from yolo_lightbackbones import fusion
from yolo_lightbackbones.layers import BatchNorm2d, ConvNorm, LayerNorm2d


def same(actual: nn.Module, expected: nn.Module, x: Tensor) -> None:
    """Both modules compute the same from `x` in float64."""
    with torch.no_grad():
        torch.testing.assert_close(actual(x), expected(x), rtol=1e-12, atol=1e-12)


def vector(channels: int, seed: int) -> Tensor:
    return torch.rand(channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5


def norm(channels: int) -> BatchNorm2d:
    layer = BatchNorm2d(channels).double().eval()
    randomise(layer)
    return layer


class Affine(nn.Module):
    """`scale * x + shift` per channel, in the last or (maps) the second dimension."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1) if x.ndim == 4 else (-1,)
        return x * self.scale.view(shape) + self.shift.view(shape)


# groups 1, some, and depthwise; with and without bias
CONVS = [((4, 6), 1, True), ((4, 6), 2, False), ((4, 4), 4, True), ((4, 8), 4, False)]


@pytest.mark.parametrize(("channels", "groups", "bias"), CONVS)
@pytest.mark.parametrize("window", [(1, 1, 0), (3, 2, 1), (2, 2, 0)], ids=["1x1", "3x3 s2", "2x2 s2"])
class TestConvolutions:
    @pytest.fixture
    def conv(self, channels: tuple[int, int], groups: int, bias: bool, window: tuple[int, int, int]) -> nn.Conv2d:
        torch.manual_seed(0)
        return nn.Conv2d(*channels, *window, groups=groups, bias=bias).double()

    @pytest.fixture
    def x(self) -> Tensor:
        return torch.rand(2, 4, 6, 8, dtype=torch.float64)

    def test_scale_outputs(self, conv: nn.Conv2d, x: Tensor) -> None:
        scale, shift = vector(conv.out_channels, 1), vector(conv.out_channels, 2)
        same(fusion.scale_outputs(conv, scale, shift), nn.Sequential(conv, Affine(scale, shift)), x)
        same(fusion.scale_outputs(conv, scale), nn.Sequential(conv, Affine(scale, torch.zeros_like(scale))), x)

    def test_scale_inputs(self, conv: nn.Conv2d, x: Tensor) -> None:
        scale, shift = vector(conv.in_channels, 1), vector(conv.in_channels, 2)
        same(fusion.scale_inputs(conv, scale), nn.Sequential(Affine(scale, torch.zeros_like(scale)), conv), x)
        if conv.padding == (0, 0):
            same(fusion.scale_inputs(conv, scale, shift), nn.Sequential(Affine(scale, shift), conv), x)
        else:
            with pytest.raises(ValueError, match=r"cannot be folded into a convolution with padding \(1, 1\)"):
                fusion.scale_inputs(conv, scale, shift)

    def test_permute_inputs(self, conv: nn.Conv2d, x: Tensor) -> None:
        order = [2, 0, 3, 1]
        if conv.groups > 1:
            with pytest.raises(ValueError, match="only in a convolution without groups"):
                fusion.permute_inputs(conv, order)
            return
        with torch.no_grad():
            torch.testing.assert_close(fusion.permute_inputs(conv, order)(x), conv(x[:, order]))

    def test_arguments_are_not_written_to(self, conv: nn.Conv2d, x: Tensor) -> None:
        before = copy.deepcopy(conv.state_dict())
        fusion.scale_outputs(conv, vector(conv.out_channels, 1), vector(conv.out_channels, 2))
        fusion.scale_inputs(conv, vector(conv.in_channels, 1))
        torch.testing.assert_close(conv.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers(bias: bool) -> None:
    linear = nn.Linear(5, 7, bias=bias).double()
    x = torch.rand(2, 3, 5, dtype=torch.float64)
    outer, inner = Affine(vector(7, 1), vector(7, 2)), Affine(vector(5, 3), vector(5, 4))
    same(fusion.scale_outputs(linear, outer.scale, outer.shift), nn.Sequential(linear, outer), x)
    same(fusion.scale_inputs(linear, inner.scale, inner.shift), nn.Sequential(inner, linear), x)


def test_batchnorm_affine() -> None:
    layer = norm(3)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    same(Affine(*fusion.batchnorm_affine(layer)), layer, x)
    same(fusion.batchnorm_to_conv(layer), layer, x)


def test_batchnorm_without_affine_terms() -> None:
    layer = nn.BatchNorm2d(3, affine=False).double().eval()
    randomise(layer)
    same(Affine(*fusion.batchnorm_affine(layer)), layer, torch.randn(2, 3, 4, 5, dtype=torch.float64))


def test_batchnorm_without_running_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="running statistics"):
        fusion.batchnorm_affine(nn.BatchNorm2d(3, track_running_stats=False))


def test_dead_channel_of_a_batchnorm() -> None:
    layer = norm(3)
    nn.init.zeros_(layer.weight)
    same(fusion.batchnorm_to_conv(layer), layer, torch.randn(2, 3, 4, 5, dtype=torch.float64))


def test_take_affine() -> None:
    layer = LayerNorm2d(4).double()
    randomise(layer)
    conv = nn.Conv2d(4, 6, 2, 2).double()
    whole = copy.deepcopy(nn.Sequential(layer, conv))
    conv = fusion.scale_inputs(conv, *fusion.take_affine(layer))
    assert (layer.weight == 1).all()
    assert (layer.bias == 0).all()
    same(nn.Sequential(layer, conv), whole, torch.randn(2, 4, 6, 6, dtype=torch.float64))


class Residual(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 3), (1, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_branches_into_the_centre(kernel_size: tuple[int, int], bias: bool) -> None:
    padding = (kernel_size[0] // 2, kernel_size[1] // 2)
    conv = nn.Conv2d(4, 4, kernel_size, padding=padding, groups=4, bias=bias).double()
    pointwise = nn.Conv2d(4, 4, 1, groups=4).double()
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    same(fusion.add_identity(conv), Residual(conv, nn.Identity()), x)
    same(fusion.add_pointwise(conv, pointwise), Residual(conv, pointwise), x)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=0, groups=4),
        nn.Conv2d(4, 4, 4, padding=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, dilation=2, groups=4),
    ],
    ids=["full", "shrinking", "even", "strided", "dilated"],
)
def test_convolutions_without_a_centre_are_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="depthwise, odd, same-size"):
        fusion.add_identity(conv)


@pytest.mark.parametrize(
    "pointwise", [nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, 2, groups=4)]
)
def test_only_depthwise_1x1_fit_into_a_centre(pointwise: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="Only a depthwise 1x1"):
        fusion.add_pointwise(nn.Conv2d(4, 4, 3, padding=1, groups=4), pointwise)


# --- the walker -------------------------------------------------------------------------------------------------------


def test_conv_and_norm_become_a_convolution() -> None:
    layer = ConvNorm(3, 4, 3, stride=2).double()
    randomise(layer)
    fused = fusion.fuse(layer)
    assert type(fused) is nn.Conv2d
    same(fused, layer.eval(), torch.rand(1, 3, 8, 8, dtype=torch.float64))


def test_modules_that_know_nothing_of_folding_are_walked_through() -> None:
    model = nn.Sequential(nn.ModuleDict({"inner": nn.ModuleList([ConvNorm(3, 4)])}), nn.ReLU())
    fused = fusion.fuse(model)
    assert isinstance(fused.get_submodule("0.inner.0"), nn.Conv2d)
    assert isinstance(model.get_submodule("0.inner.0"), ConvNorm)


def test_a_module_in_two_places_stays_one() -> None:
    shared = ConvNorm(4, 4)
    randomise(shared)
    model = nn.Sequential(shared, nn.ReLU(), shared).double().eval()
    fused = fusion.fuse(model)
    assert fused.get_submodule("0") is fused.get_submodule("2")
    same(fused, model, torch.rand(1, 4, 3, 3, dtype=torch.float64))


class Doubling(fusion.Fusible):
    """Folds by changing itself, so that a second time would change it again."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def fold(self) -> Doubling:
        self.factor *= 2
        return self


def test_what_is_folded_is_not_folded_again() -> None:
    model = nn.Sequential(Doubling())
    assert not fusion.is_fused(model)
    once = fusion.fuse(model)
    assert fusion.is_fused(once)
    twice = fusion.fuse(nn.Sequential(once, Doubling()))
    x = torch.ones(1)
    assert once(x) == 4
    assert twice(x) == 16
    assert model(x) == 2


def test_a_fusible_module_must_say_how() -> None:
    class Forgetful(fusion.Fusible):
        pass

    with pytest.raises(NotImplementedError, match="Forgetful derives from Fusible but does not define fold"):
        fusion.fuse(Forgetful())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    fused = fusion.fuse(ConvNorm(3, 4).to(dtype))
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}


def test_folding_rounds_once() -> None:
    # in float32 alone 1 + 1e-8 is 1, and what is left of the difference would be 0
    layer = ConvNorm(1, 1)
    nn.init.ones_(layer.conv.weight)
    layer.norm.running_var.fill_(1 - 1e-5)  # type: ignore[union-attr]
    layer.norm.running_mean.fill_(0.1)  # type: ignore[union-attr]
    nn.init.constant_(layer.norm.bias, 0.1)
    fused = fusion.fuse(layer)
    assert isinstance(fused, nn.Conv2d)
    assert fused.bias is not None
    assert abs(fused.bias.item()) < 1e-7


# --- what a layer carries besides weight and bias ---------------------------------------------------------------------


def prune_half(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


def own_forward(layer: nn.Module) -> None:
    original = layer.forward
    layer.forward = lambda x: original(x) + 1  # type: ignore[method-assign]


CARRIED = {
    "a pruning mask": (prune_half, "torch.nn.utils.prune.remove"),
    "a parametrization": (parametrizations.spectral_norm, "remove_parametrizations"),
    "a normalised weight": (torch.nn.utils.spectral_norm, "remove_spectral_norm"),
    "hooks": (lambda layer: layer.register_forward_hook(lambda _layer, _args, out: out * 2), "remove them"),
    "hooks before": (lambda layer: layer.register_forward_pre_hook(lambda _layer, args: (args[0] * 2,)), "remove them"),
    "hooks behind": (lambda layer: layer.register_full_backward_hook(lambda *_: None), "remove them"),
    "a forward of its own": (own_forward, "delete the attribute"),
}


@pytest.mark.parametrize(
    ("where", "carried"),
    [("0.conv", carried) for carried in CARRIED]
    + [(where, carried) for where in ("0", "0.norm") for carried in CARRIED if "hooks" in carried or "own" in carried],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.(weight|spectral)_norm` is deprecated")
def test_a_layer_that_carries_more_is_left_as_it_is(where: str, carried: str) -> None:
    add, remedy = CARRIED[carried]
    model = nn.Sequential(ConvNorm(3, 4), ConvNorm(4, 4)).double()
    randomise(model)
    add(model.get_submodule(where))
    model.eval()
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    expected = model(x).detach()
    what = carried.removesuffix(" before").removesuffix(" behind")
    with pytest.warns(UserWarning, match=f"{where} has {what}") as seen:
        fused = fusion.fuse(model)
    assert remedy in str(seen[0].message)
    torch.testing.assert_close(fused(x).detach(), expected, rtol=1e-12, atol=1e-12)
    assert isinstance(fused.get_submodule("0"), ConvNorm)
    assert isinstance(fused.get_submodule("1"), nn.Conv2d)
    assert fusion.is_fused(fused)
    assert not fusion.is_fused(model)
    with pytest.warns(UserWarning, match="the first of 1 reasons"):
        twice = fusion.fuse(fused)
    torch.testing.assert_close(twice(x).detach(), expected, rtol=1e-12, atol=1e-12)


def test_hooks_beside_what_folds_stay() -> None:
    model = nn.Sequential(ConvNorm(3, 4), nn.ReLU())
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda _layer, _args, out: seen.append(out))
    fused = fusion.fuse(model)
    assert isinstance(fused.get_submodule("0"), nn.Conv2d)
    fused(torch.rand(1, 3, 4, 4))
    assert len(seen) == 1


class Louder(ConvNorm):
    """A subclass that changes the forward and leaves `fold` as it was."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_forward_that_fold_does_not_know_is_kept() -> None:
    layer = Louder(3, 4).double()
    randomise(layer)
    with pytest.warns(UserWarning, match=r"has the forward of Louder .* define fold\(\) in Louder"):
        fused = fusion.fuse(layer)
    same(fused, layer.eval(), torch.rand(1, 3, 4, 4, dtype=torch.float64))


class Standardised(nn.Conv2d):
    """A convolution whose weight is not what it multiplies with."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def test_a_convolution_that_computes_something_else_is_refused() -> None:
    model = nn.Sequential(ConvNorm(3, 4))
    model[0].conv = Standardised(3, 4, 1)
    with pytest.raises(ValueError, match=r"^0\.conv is a test_fusion\.Standardised, and folding needs a Conv2d"):
        fusion.fuse(model)


# --- other norms than BatchNorm2d -------------------------------------------------------------------------------------


class FrozenBatchNorm2d(nn.Module):
    """As in detection libraries: four buffers, and no relation to PyTorch's BatchNorm."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (t.view(1, -1, 1, 1) for t in self.buffers())
        return (x - mean) / (var + self.eps).sqrt() * weight + bias


class NormAndActivation(nn.BatchNorm2d):
    """A BatchNorm2d by its class and its buffers, and more than that by what it does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", [nn.SyncBatchNorm(4), FrozenBatchNorm2d(4), nn.Identity(), nn.BatchNorm2d(4, eps=0.1)])
def test_norms_that_scale_and_shift_fold(norm: nn.Module, dtype: torch.dtype) -> None:
    layer = ConvNorm(3, 4, 3)
    layer.norm = norm  # type: ignore[assignment]
    randomise(layer)
    layer = layer.eval().to(dtype)
    fused = fusion.fuse(layer)
    assert type(fused) is nn.Conv2d
    x = torch.rand(1, 3, 8, 8, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(run(fused, x), run(layer, x), rtol=tolerance, atol=tolerance)


def test_torchvisions_frozen_norm_folds() -> None:
    ops = pytest.importorskip("torchvision.ops")
    layer = ConvNorm(3, 4)
    layer.norm = ops.FrozenBatchNorm2d(4)
    randomise(layer)
    layer = layer.eval().double()
    same(fusion.fuse(layer), layer, torch.rand(1, 3, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (nn.GroupNorm(2, 4), "0.norm is a GroupNorm without running statistics"),
        (nn.InstanceNorm2d(4), "0.norm is a InstanceNorm2d without running statistics"),
        (LayerNorm2d(4), "0.norm is a yolo_lightbackbones.layers.norms.LayerNorm2d without running statistics"),
        (nn.BatchNorm2d(4, track_running_stats=False), "0.norm is a BatchNorm2d without running statistics"),
        (NormAndActivation(4), "0.norm is a test_fusion.NormAndActivation, which does more than scale and shift"),
    ],
)
@pytest.mark.parametrize("family", ["conv", "edgevit", "conv2former", "parcnet", "repvit"])
def test_other_norms_are_refused_by_name(norm: nn.Module, message: str, family: str) -> None:
    from yolo_lightbackbones.backbones import conv2former, edgevit, parcnet, repvit

    block, name = {
        "conv": (ConvNorm(4, 4), "norm"),
        "edgevit": (edgevit.LocalAggregation(4, 2, 0.0), "norm2"),
        "conv2former": (conv2former.Stem(3, 8), "norm2"),
        "parcnet": (parcnet.Mlp(4, 8, 0.0), "norm"),
        "repvit": (repvit.RepDepthwise(4), "norm"),
    }[family]
    setattr(block, name, norm)
    with pytest.raises(ValueError, match=f"^{re.escape(message.replace('0.norm', f'0.{name}'))}"):
        fusion.fuse(nn.Sequential(block))


def test_torch_fx_traces_our_norms() -> None:
    layer = ConvNorm(3, 4)
    randomise(layer)
    traced = torch.fx.symbolic_trace(layer.eval())
    x = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(run(traced, x), run(layer, x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNorm2d(3)(torch.rand(2, 3))
