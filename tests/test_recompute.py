"""Maps that are computed again in the backward pass: gradients, running statistics, and who still sees modules called.

The reference is the same layers called as modules, which a hook on each of them enforces.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from yolo_lightbackbones import create_backbone
from yolo_lightbackbones.layers import BatchNorm2d, Chained, ConvNorm, Layer, LayerNorm2d, Product, Sum, run

SMALLEST = ("edgevit_xxs", "parcnet_xs", "repvit_m0_6", "conv2former_n", "parc_mobilenetv2", "parc_convnext_xt")
BACKWARD = "_RecomputedBackward"


def randomised(module: nn.Module) -> nn.Module:
    """Give norms, biases and layer scales values that show a mistake."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
                child.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
            if isinstance(child, nn.Dropout):
                child.p = 0.0
    return module


def as_modules(module: nn.Module) -> nn.Module:
    """A copy whose layers have to be called as modules, because each has a hook."""
    plain = copy.deepcopy(module)
    for child in plain.modules():
        child.register_forward_hook(lambda *_: None)
    return plain


def backbone(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomised(create_backbone(name, **options)).train()


def images(count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(2), dtype=dtype)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    maps: list[Tensor] = model(x)
    sum(one.float().square().mean() for one in maps).backward()  # type: ignore[union-attr]
    return maps


def nodes(y: Tensor) -> list[str]:
    """Names of the operations of the backward pass of `y`."""
    found, seen, todo = [], set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.append(node.name())
            todo += [before for before, _ in node.next_functions]
    return found


def is_recomputed(y: Tensor) -> bool:
    return BACKWARD in nodes(y)


def saved_bytes(model: Callable[[Tensor], Any], x: Tensor) -> int:
    """Bytes kept for the backward pass, each memory counted once, parameters left out."""
    assert isinstance(model, nn.Module)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            seen[tensor.untyped_storage().data_ptr()] = tensor  # held, so that its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = model(x)
    assert maps is not None
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def assert_same_step(model: nn.Module, plain: nn.Module, tolerance: float) -> None:
    """Compare gradients, to `tolerance` of the largest of each tensor or of 1, and running statistics."""
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None and other.grad is not None:
            atol = tolerance * max(1, other.grad.abs().max().item())
            problem = named(name)
            torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=atol, msg=problem)
    for (name, seen), expected in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6, msg=named(name))


def named(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


# --- gradients of single layers -----------------------------------------------------------------------------------

DIM = 4
SEQUENCES: dict[str, Callable[[], tuple[Layer, ...]]] = {
    "norm, act": lambda: (ConvNorm(DIM, 6), nn.GELU(), ConvNorm(6, DIM)),
    "tanh": lambda: (nn.Conv2d(DIM, 6, 1), nn.GELU("tanh"), nn.Conv2d(6, DIM, 3, padding=1)),
    "norm first": lambda: (BatchNorm2d(DIM), nn.Conv2d(DIM, 6, 1), nn.Hardswish(), nn.Conv2d(6, DIM, 1, bias=False)),
    "layer norm": lambda: (LayerNorm2d(DIM), nn.Conv2d(DIM, 6, 1), nn.SiLU(), nn.Conv2d(6, DIM, 1)),
    "relu": lambda: (ConvNorm(DIM, DIM), nn.ReLU(inplace=True), ConvNorm(DIM, DIM, 3, stride=2), nn.ReLU6()),
    "act first": lambda: (nn.SiLU(inplace=True), nn.BatchNorm2d(DIM), nn.Conv2d(DIM, DIM, 3, dilation=2, padding=2)),
    "depthwise": lambda: (nn.GELU(), nn.Conv2d(DIM, DIM, 1, groups=DIM), nn.Conv2d(DIM, 6, 1)),
    "no bias": lambda: (nn.GELU(), nn.Conv2d(DIM, DIM, 1, groups=DIM, bias=False), nn.BatchNorm2d(DIM, affine=False)),
    "sum": lambda: (Sum((ConvNorm(DIM, DIM, 3, groups=DIM),), (nn.Conv2d(DIM, DIM, 1, groups=DIM),)), BatchNorm2d(DIM)),
    "sum of conv": lambda: (Sum((nn.Conv2d(DIM, DIM, 1),), (nn.Conv2d(DIM, DIM, 1), nn.GELU())), nn.Conv2d(DIM, 2, 1)),
    "residual": lambda: (nn.GELU(), Sum((nn.Conv2d(DIM, DIM, 3, padding=1), nn.GELU())), nn.Conv2d(DIM, DIM, 1)),
    "product": lambda: (
        LayerNorm2d(DIM),
        Product((nn.Conv2d(DIM, 6, 1), nn.GELU(), nn.Conv2d(6, 6, 3, padding=1)), (nn.Conv2d(DIM, 6, 1), nn.SiLU())),
        nn.Conv2d(6, DIM, 1),
    ),
}


class Layers(Chained):
    """Layers as one module."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self.listed = layers
        inner = [one for layer in layers if isinstance(layer, Sum | Product) for row in layer.branches for one in row]
        self.modules_inside = nn.ModuleList([layer for layer in (*layers, *inner) if isinstance(layer, nn.Module)])

    def layers(self) -> tuple[Layer, ...]:
        return self.listed


def plainly(x: Tensor, layers: tuple[Layer, ...]) -> Tensor:
    """What layers mean, written out."""
    for layer in layers:
        if isinstance(layer, Sum):
            x = sum((plainly(x, branch) for branch in layer.branches), torch.zeros_like(x)) + x
        elif isinstance(layer, Product):
            x = plainly(x, layer.branches[0]) * plainly(x, layer.branches[1])
        elif isinstance(layer, nn.ReLU | nn.SiLU):
            x = type(layer)()(x)
        else:
            x = layer(x)
    return x


@pytest.mark.parametrize("name", SEQUENCES)
def test_gradients_of_sequences(name: str) -> None:
    torch.manual_seed(0)
    model = randomised(Layers(SEQUENCES[name]()).double()).train()
    x = torch.randn(2, DIM, 4, 3, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    y = model(x)
    assert is_recomputed(y)
    torch.testing.assert_close(y, plainly(x, model.layers()), rtol=1e-12, atol=1e-12)  # type: ignore[operator]
    parameters = tuple(model.parameters())

    def function(x: Tensor, *_: Tensor) -> Tensor:
        out: Tensor = model(x)
        return out

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, *parameters), fast_mode=True)
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0, msg="the input was overwritten")


@pytest.mark.parametrize("wants_input", [True, False])
def test_frozen_parameters_get_no_gradient(wants_input: bool) -> None:
    model = Layers(SEQUENCES["norm, act"]()).train()
    first = next(model.parameters()).requires_grad_(False)
    x = torch.randn(3, DIM, 6, 5, requires_grad=wants_input)
    y = model(x)
    assert is_recomputed(y)
    y.square().sum().backward()
    assert first.grad is None
    assert (x.grad is not None) == wants_input
    assert all(parameter.grad is not None for parameter in list(model.parameters())[1:])


def test_backward_twice_and_changes_in_between() -> None:
    model = Layers(SEQUENCES["norm, act"]()).train()
    x = torch.randn(3, DIM, 6, 5, requires_grad=True)
    y = model(x)
    first = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    model.eval()  # the backward pass is that of the forward pass
    second = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.square().sum(), x)


def test_one_value_per_channel_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run(torch.randn(1, DIM, 1, 1), *SEQUENCES["norm, act"]())


# --- families -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SMALLEST)
def test_a_step_is_that_of_plain_modules(name: str, dtype: torch.dtype) -> None:
    model = backbone(name, drop_path_rate=0.0).to(dtype)
    plain = as_modules(model)
    maps, expected = step(model, images(dtype=dtype)), step(plain, images(dtype=dtype))
    assert is_recomputed(maps[0])
    assert not is_recomputed(expected[0])
    # RepViT's depthwise 1x1 convolutions round differently, which its many norms amplify
    rounding = 0 if "repvit" not in name else 1e-10 if dtype == torch.float64 else 1e-4
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=rounding * other.abs().max().item())
    assert_same_step(model, plain, max(rounding, 1e-10 if dtype == torch.float64 else 1e-6))


SHARES = {"edgevit_xxs": 0.7, "parcnet_xs": 0.75, "repvit_m0_6": 0.6, "conv2former_n": 0.6}


@pytest.mark.parametrize(("name", "share"), SHARES.items())
def test_bytes_kept_for_the_backward_pass(name: str, share: float) -> None:
    model = backbone(name)
    assert saved_bytes(model, images()) <= share * saved_bytes(as_modules(model), images())


@pytest.mark.parametrize("name", SMALLEST[:4])
def test_autocast(name: str) -> None:
    model = backbone(name, drop_path_rate=0.0)
    plain = as_modules(model)
    with torch.autocast("cpu", torch.bfloat16):
        maps, expected = model(images()), plain(images())
    for one, other in zip(maps, expected, strict=True):
        assert one.dtype == other.dtype
        if name != "repvit_m0_6":
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    for found in (maps, expected):
        sum(one.float().square().mean() for one in found).backward()
    assert is_recomputed(maps[0])
    grads = [torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None]) for one in (model, plain)]
    assert grads[0].dtype == torch.float32
    # two roundings of the same numbers: each gradient has three digits
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > (0.98 if name == "repvit_m0_6" else 0.9999)


def test_channels_last_stays() -> None:
    model = randomised(Layers(SEQUENCES["norm, act"]())).train()
    x = torch.randn(3, DIM, 6, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = model(x)
    assert is_recomputed(y)
    assert y.is_contiguous(memory_format=torch.channels_last)
    plain = as_modules(model)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), x), torch.autograd.grad(plain(x).square().sum(), x), rtol=1e-5, atol=1e-5
    )


# --- who still sees modules called --------------------------------------------------------------------------------


def mixer() -> Layers:
    torch.manual_seed(0)
    model = randomised(Layers(SEQUENCES["norm, act"]())).train()
    assert isinstance(model, Layers)
    return model


def tensor(**options: Any) -> Tensor:
    return torch.randn(3, DIM, 6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_(**options)


def test_hooks_are_called() -> None:
    model, calls = mixer(), []
    act = model.listed[1]
    assert isinstance(act, nn.Module)
    handle = act.register_forward_hook(lambda *_: calls.append("act"))
    model(tensor())
    handle.remove()
    whole = nn.modules.module.register_module_forward_hook(lambda *_: calls.append("all"))
    assert not is_recomputed(model(tensor()))
    whole.remove()
    assert calls == ["act", *["all"] * 8]  # three layers, two of which have two inside, and the sequence itself
    assert is_recomputed(model(tensor()))


def test_other_layers_are_called_between_recomputed_ones() -> None:
    class Mine(nn.GELU):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    model = mixer()
    first, _, last = model.listed
    model.listed = (first, nn.GELU(), last, Mine(), first, nn.GELU(), last)
    y = model(tensor())
    assert nodes(y).count(BACKWARD) == 2
    torch.testing.assert_close(y, plainly(tensor(), model.listed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["eval", "no_grad", "frozen norm", "sync", "parametrised", "wrapped"])
def test_plain_modules_run(how: str) -> None:
    model = mixer()
    conv, norm = model.listed[0].conv, model.listed[0].norm  # type: ignore[union-attr]
    if how == "eval":
        model.eval()
    if how == "frozen norm":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    if how == "sync":
        norm = nn.SyncBatchNorm(DIM)
        model = Layers((nn.GELU(), norm))
    if how == "parametrised":
        parametrize.register_parametrization(conv, "weight", nn.Identity())
        parametrize.register_parametrization(model.listed[2].conv, "weight", nn.Identity())  # type: ignore[union-attr]
    if how == "wrapped":  # as accelerate does
        for module in list(model.modules()):
            module.forward = module.forward  # type: ignore[method-assign]
    before = norm.num_batches_tracked.clone()
    with torch.set_grad_enabled(how != "no_grad"):
        y = model(tensor())
    if how == "parametrised":
        assert nodes(y).count("ConvolutionBackward0") == 2, "its convolutions are called"
    elif how != "frozen norm":
        assert not is_recomputed(y)
    trains = how not in ("eval", "frozen norm")
    assert norm.num_batches_tracked - before == int(trains)


def test_transforms_of_torch_func() -> None:
    model = mixer()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    x = tensor(requires_grad=False)
    jacobian = torch.func.jacrev(lambda one: model(one).sum((1, 2, 3)))(x)
    whole = tensor()
    expected = torch.stack(
        [torch.autograd.grad(row, whole, retain_graph=True)[0] for row in model(whole).sum((1, 2, 3))]
    )
    torch.testing.assert_close(jacobian, expected, rtol=1e-4, atol=1e-5)
    _, tangent = torch.func.jvp(lambda one: model(one).sum(), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected.sum(), rtol=1e-3, atol=1e-4)


def test_forward_mode_gradients() -> None:
    with torch.autograd.forward_ad.dual_level():
        y = mixer()(torch.autograd.forward_ad.make_dual(tensor(), torch.ones(3, DIM, 6, 5)))
        assert torch.autograd.forward_ad.unpack_dual(y).tangent is not None


def test_functional_call_uses_the_weights_given() -> None:
    model = mixer()
    given = {name: (value * 2).detach().requires_grad_() for name, value in model.named_parameters()}
    y = torch.func.functional_call(model, given, tensor())
    assert is_recomputed(y)
    other = mixer()
    other.load_state_dict({name: given.get(name, value) for name, value in other.state_dict().items()})
    other(tensor()).square().sum().backward()
    y.square().sum().backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(given[name].grad, parameter.grad, rtol=1e-4, atol=1e-4, msg=named(name))


def test_recordings_see_plain_modules() -> None:
    model = mixer()
    traced = torch.jit.trace(model, tensor(), check_trace=False)
    assert "aten::gelu" in str(traced.inlined_graph)
    assert "_Recomputed" not in str(traced.inlined_graph)
    program = torch.export.export(model, (tensor(requires_grad=False),))
    assert any("gelu" in str(node.target) for node in program.graph.nodes)
    graph = torch.fx.symbolic_trace(model)
    assert any(node.op == "call_module" for node in graph.graph.nodes)


def test_compiled_training_step() -> None:
    model, plain = mixer(), mixer()
    torch.compile(model, backend="aot_eager")(tensor()).square().sum().backward()
    plain(tensor()).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-4, msg=named(name))
    torch.compiler.reset()


def test_copies_after_a_step() -> None:
    model = mixer()
    y = model(tensor())
    again = copy.deepcopy(model)
    y.sum().backward()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert is_recomputed(again(tensor()))
