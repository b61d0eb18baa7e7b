"""ParC-Net: the family contract, and what is its own."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import Expected, FamilyContract, assert_features, random_image, randomise, run
from torch import Tensor, nn

from yolo_lightbackbones import fusion, recording
from yolo_lightbackbones.backbones.parcnet import (
    ChannelAttention,
    Mlp,
    ParCNet,
    ParCNetConfig,
)
from yolo_lightbackbones.layers import Axis, CircularConv, FixedConv, FoldedParCBranch, ParCBranch
from yolo_lightbackbones.layers.circular import circulant
from yolo_lightbackbones.plugin import formats


def test_a_fused_model_keeps_nothing_of_the_images_it_saw() -> None:
    first, second = (fusion.fuse(ParCNet("xs")) for _ in range(2))
    image = random_image(64, 96)
    size = len(pickle.dumps(first))
    run(first, image)
    assert len(pickle.dumps(first)) == size
    assert b"FixedConv" not in pickle.dumps(first), "restricted loading of checkpoints allows modules alone"
    assert_features(run(copy.deepcopy(first), image), run(first, image), 1e-6)
    first.load_state_dict(second.state_dict())
    assert_features(run(first, image), run(second, image), 1e-6)


def test_an_export_holds_the_same_constants_before_and_after_the_first_image() -> None:
    backbone = ParCNet("xs", taps=("P3",)).eval()
    randomise(backbone)
    image = random_image(64, 96)
    programs = []
    for warm in (False, True):
        fused = fusion.fuse(backbone)
        if warm:
            run(fused, image)
        programs.append(torch.export.export(fused, (image,)))
    cold, after = ([str(node.target) for node in program.graph.nodes] for program in programs)
    assert cold == after
    assert not [target for target in cold if "interpolate" in target or "upsample" in target]
    values = [node.meta.get("val") for node in programs[0].graph.nodes]
    assert not [value for value in values if isinstance(value, Tensor) and value.dtype == torch.float64]
    assert_features(run(programs[0].module(), image), run(backbone, image), 1e-5)


def folded_branch() -> tuple[ParCBranch, FoldedParCBranch, Tensor]:
    branch = ParCBranch(4, 8, 2, position=True).eval()
    randomise(branch)
    folded = fusion.fuse(branch)
    assert isinstance(folded, FoldedParCBranch)
    return branch, folded, torch.rand(1, 4, 6, 5)


@pytest.mark.parametrize("way", ["in place", "through .data", "a parameter", "half and back", "assign", "inference"])
def test_a_folded_kernel_that_changes_is_computed_anew(way: str) -> None:
    branch, folded, x = folded_branch()
    doubled = branch.conv2.weight.detach() * 2
    with torch.inference_mode(way == "inference"), torch.no_grad():
        if way == "inference":
            folded = copy.deepcopy(folded)  # its tensors are of inference mode, which count no changes
        run(folded, x)
        if way in {"in place", "inference"}:
            folded.kernel2.mul_(2)
        elif way == "through .data":
            folded.kernel2.data.mul_(2)
        elif way == "a parameter":
            folded.kernel2 = nn.Parameter(doubled)
        elif way == "assign":
            folded.load_state_dict({**folded.state_dict(), "kernel2": doubled}, assign=True)
        else:
            folded.half().float()
            folded.kernel2.copy_(doubled)
        branch.conv2.weight.copy_(doubled)
        tolerance = 1e-3 if way == "half and back" else 1e-6
        torch.testing.assert_close(run(folded, x), run(branch, x), rtol=tolerance, atol=tolerance)
        exported = torch.export.export(folded, (x,)).module()
        torch.testing.assert_close(run(exported, x), run(branch, x), rtol=tolerance, atol=tolerance)


def test_a_folded_branch_learns_as_the_branch_does() -> None:
    branch, folded, x = folded_branch()
    folded.requires_grad_(True)
    for module in (branch, folded):
        module(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in folded.parameters())
    for seen, wanted in ((folded.kernel1, branch.conv1.weight), (folded.kernel2, branch.conv2.weight)):
        torch.testing.assert_close(seen.grad, wanted.grad, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        folded.kernel1.add_(folded.kernel1.grad, alpha=-1e-3)
        branch.conv1.weight.add_(branch.conv1.weight.grad, alpha=-1e-3)
    torch.testing.assert_close(run(folded, x), run(branch, x), rtol=1e-4, atol=1e-4)


def test_a_compiled_branch_follows_its_kernels() -> None:
    branch, folded, x = folded_branch()
    compiled = torch.compile(folded, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(branch, x))
    with torch.no_grad():
        folded.kernel2.mul_(2)
        branch.conv2.weight.mul_(2)
    torch.testing.assert_close(run(compiled, x), run(branch, x))


def test_parameters_lent_for_a_call_are_used() -> None:
    branch, folded, x = folded_branch()
    before = run(folded, x)
    lent = {"kernel2": folded.kernel2.detach() * 2}
    seen = torch.func.functional_call(folded, lent, (x,))
    torch.testing.assert_close(run(folded, x), before, rtol=0, atol=0)
    with torch.no_grad():
        branch.conv2.weight.mul_(2)
    torch.testing.assert_close(seen, run(branch, x))


def test_position_embeddings_fold_one_by_one() -> None:
    for dropped in ("pos1", "pos2"):
        branch, _, x = folded_branch()
        setattr(branch, dropped, nn.Identity())
        torch.testing.assert_close(run(fusion.fuse(branch), x), run(branch, x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
def test_an_unfolded_branch_is_recorded_for_any_size_as_well() -> None:
    """A model with fake quantisers is exported unfolded."""
    branch, _, x = folded_branch()
    recording.record_for(branch, any_size=True)
    traced = torch.jit.trace(branch, x, check_trace=False)
    other = torch.rand(2, 4, 9, 12)
    torch.testing.assert_close(run(traced, other), run(branch, other), rtol=1e-5, atol=1e-6)


def test_one_image_is_trained_on_after_conversion_to_another_norm() -> None:
    attention = ChannelAttention(32)
    randomise(attention)
    for name in ("fc1.norm", "fc2.norm"):
        plain = nn.BatchNorm2d(attention.get_submodule(name).get_parameter("weight").numel())
        plain.load_state_dict(attention.get_submodule(name).state_dict())
        attention.set_submodule(name, plain)
    x = torch.rand(1, 32, 3, 4)
    torch.testing.assert_close(attention.train()(x), attention.eval()(x))


class TestParCNet(FamilyContract):
    family = "parcnet"
    class_name = "ParCNet"
    smallest = "xs"
    image_size = 256
    # counted on hkzhang91/ParC-Net f6780d0
    expected = {
        "xs": Expected(1_901_504, 1.0743, (64, 96, 128, 160)),
        "s": Expected(4_292_408, 1.6502, (64, 96, 128, 160)),
        "h": Expected(19_026_300, 8.5169, (144, 216, 288, 432)),
    }
    top1 = {"s": 78.6}
    weights = {"xs": "none listed", "s": "by hand", "h": "none listed"}

    @staticmethod
    def prepare(image: Tensor) -> Tensor:
        red, green, blue = image.unbind(1)
        return torch.stack([blue, green, red], 1)

    def test_position_embeddings_are_in_the_first_block_of_a_stage(self) -> None:
        names = [name for name, _ in self.build().named_parameters() if ".pos" in name]
        blocks = {name.partition(".branch")[0] for name in names}
        assert blocks == {f"stages.{stage}.blocks.0.blocks.0" for stage in (1, 2, 3)}
        assert len(names) == 3 * 4

    def test_the_published_start(self) -> None:
        torch.manual_seed(0)
        parameters = dict(ParCNet("xs", init="published").named_parameters())
        embeddings = [value for name, value in parameters.items() if ".pos" in name]
        assert torch.cat([value.flatten() for value in embeddings]).std().item() == pytest.approx(1, rel=0.05)
        weight = parameters["stages.1.blocks.0.merge.conv.weight"]
        fan_out = weight.shape[0] * weight[0, 0].numel()
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
        assert all((value == 0).all() for name, value in parameters.items() if name.endswith("bias"))

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:You are using the legacy:DeprecationWarning")
    @pytest.mark.parametrize("warm", [False, True])
    def test_exports_constant_weights(self, tmp_path: Path, warm: bool) -> None:
        onnx = pytest.importorskip("onnx")
        runtime = pytest.importorskip("onnxruntime")
        fused = fusion.fuse(self.build())
        image = random_image(64, 96)
        if warm:  # as Ultralytics does before it exports
            run(fused, image)
        path = str(tmp_path / "parcnet.onnx")
        torch.onnx.export(fused, (image,), path, dynamo=False, opset_version=17, input_names=["image"])
        graph = onnx.load(path).graph
        constants = {tensor.name for tensor in graph.initializer}
        constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
        assert not [node.name for node in graph.node if node.op_type in ("Resize", "Einsum", "Upsample")]
        weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
        assert set(weights) <= constants
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        features = [torch.from_numpy(array) for array in session.run(None, {"image": image.numpy()})]
        assert_features(features, run(fused, image), 1e-5)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:You are using the legacy:DeprecationWarning")
    def test_exports_for_any_size(self, tmp_path: Path) -> None:
        pytest.importorskip("onnx")
        runtime = pytest.importorskip("onnxruntime")
        fused = fusion.fuse(self.build())
        recording.record_for(fused, any_size=True)
        path = str(tmp_path / "parcnet.onnx")
        torch.onnx.export(
            fused,
            (random_image(64, 96),),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            dynamic_axes={"image": {0: "batch", 2: "height", 3: "width"}},
        )
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for height, width in ((64, 96), (96, 64), (32, 160), (224, 192)):
            image = random_image(height, width, batch=2)
            features = [torch.from_numpy(array) for array in session.run(None, {"image": image.numpy()})]
            assert_features(features, run(fused, image), 1e-5)


# --- the operator, written out ----------------------------------------------------------------------------------------


def resized(values: np.ndarray, length: int) -> np.ndarray:
    """(C, K) -> (C, length), linearly, both ends kept."""
    places = np.linspace(0, values.shape[1] - 1, length)
    return np.stack([np.interp(places, np.arange(values.shape[1]), row) for row in values])


def circular(x: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """`y[i] = sum over j of kernel[j] * x[(i + j) mod L]` along an axis of (B, C, H, W); kernel (C, L)."""
    out = np.zeros_like(x)
    for j in range(x.shape[axis]):
        out += kernel[None, :, j, None, None] * np.roll(x, -j, axis)
    return out


def along(values: np.ndarray, axis: int) -> np.ndarray:
    """(C, L) as something to add to (B, C, H, W) that varies along the axis alone."""
    return values[None, :, :, None] if axis == 2 else values[None, :, None, :]


def weights_of(module: nn.Module, channels: int) -> np.ndarray:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().numpy().reshape(channels, -1)


@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 2)])
@pytest.mark.parametrize(("height", "width"), [(7, 12), (12, 7), (1, 9), (16, 5)])
def test_branch_by_hand(first: int, second: int, position: bool, height: int, width: int) -> None:
    channels, length = 3, 8
    branch = ParCBranch(channels, length, first, position).double().eval()  # type: ignore[arg-type]
    randomise(branch)
    x = torch.rand(2, channels, height, width, dtype=torch.float64)
    sizes = {2: height, 3: width}

    y = x.numpy()
    if position:
        y = y + along(resized(weights_of(branch.pos1, channels), sizes[first]), first)
    norm = branch.norm
    mean, var, scale, shift = (
        t.detach().numpy()[None, :, None, None]
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        if t is not None
    )
    y = (y - mean) / np.sqrt(var + 1e-5) * scale + shift
    y = circular(y, resized(weights_of(branch.conv1, channels), sizes[first]), first)
    if position:
        y = y + along(resized(weights_of(branch.pos2, channels), sizes[second]), second)
    y = circular(y, resized(weights_of(branch.conv2, channels), sizes[second]), second)
    expected = x + torch.from_numpy(y)

    with torch.no_grad():
        torch.testing.assert_close(branch(x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(fusion.fuse(branch)(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_both_forms_of_a_fixed_convolution_are_equal(axis: Axis, length: int) -> None:
    sizes = (length, 5) if axis == 2 else (5, length)
    x = torch.randn(2, 3, *sizes, dtype=torch.float64)
    kernel = torch.randn(3, 1, *((length, 1) if axis == 2 else (1, length)), dtype=torch.float64)
    matrix = circulant(kernel) if axis == 2 else circulant(kernel).transpose(1, 2)
    offset = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    conv = FixedConv(axis, kernel, matrix, offset)
    assert conv.length == length
    expected = torch.from_numpy(circular(x.numpy(), kernel.numpy().reshape(3, length), axis)) + offset
    torch.testing.assert_close(conv(x, as_matrix=True), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(conv(x, as_matrix=False), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("format", "operator"),
    [
        ("torchscript", "aten::matmul"),
        ("litert", "aten::matmul"),
        ("openvino-int8", "aten::matmul"),
        ("litert-int8", "aten::_convolution"),
        ("ncnn", "aten::_convolution"),
        ("onnx", "aten::_convolution"),
        ("formatoftomorrow", "aten::_convolution"),
    ],
)
def test_the_format_chooses_the_form(format: str, operator: str) -> None:
    """A map 24 long is a matrix product where that was measured to be much faster, a convolution elsewhere."""
    fused = fusion.fuse(ParCBranch(4, 8, 2, position=True))
    name, _, int8 = format.partition("-")
    recording.record_for(fused, matrix_from=formats.find(name).matrices_from(int8=bool(int8)))
    graph = str(torch.jit.trace(fused, torch.rand(1, 4, 24, 24)).inlined_graph)
    assert {name for name in ("aten::matmul", "aten::_convolution") if name in graph} == {operator}


def test_recording_for_any_size_can_be_taken_back() -> None:
    fused = fusion.fuse(ParCBranch(4, 8, 2, position=True))
    assert isinstance(fused, recording.SizeBound)
    assert not fused.any_size
    recording.record_for(fused, any_size=True)
    assert fused.any_size
    recording.record_for(fused)
    assert not fused.any_size


@pytest.mark.parametrize("axis", [2, 3])
def test_a_map_as_long_as_the_kernel_is_not_resized(axis: int) -> None:
    conv = CircularConv(2, 6, axis)  # type: ignore[arg-type]
    x = torch.rand(1, 2, 6, 6)
    expected = circular(x.numpy(), weights_of(conv, 2), axis)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), torch.from_numpy(expected))


def test_kernels_of_a_folded_branch_follow_dtype() -> None:
    branch = ParCBranch(4, 8, 2, position=True).eval()
    randomise(branch)
    fused = fusion.fuse(branch)
    x = torch.rand(1, 4, 6, 8)
    expected = run(fused, x)
    half = run(fused.to(torch.bfloat16), x.to(torch.bfloat16))
    assert isinstance(half, Tensor)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_mlp_and_attention_by_hand() -> None:
    block = nn.Sequential(Mlp(32, 64, dropout=0.1), ChannelAttention(32)).double().eval()
    randomise(block)
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64) * 4  # beyond where Hardswish and Hardsigmoid bend
    state: dict[str, Tensor] = dict(block.state_dict())

    def conv(name: str, value: Tensor) -> Tensor:
        out: Tensor = torch.einsum("oi,bihw->bohw", state[f"{name}.weight"][:, :, 0, 0], value)
        if f"{name}.bias" in state:
            out = out + state[f"{name}.bias"].view(1, -1, 1, 1)
        return out

    def norm(name: str, value: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (value - mean) / (var + 1e-5).sqrt() * weight + bias

    def hardswish(value: Tensor) -> Tensor:
        return value * (value + 3).clamp(0, 6) / 6

    y = conv("0.fc2", hardswish(conv("0.fc1", norm("0.norm", x))))
    pooled = y.mean(3, keepdim=True).mean(2, keepdim=True)
    weights = hardswish(norm("1.fc1.norm", conv("1.fc1.conv", pooled)))
    weights = (norm("1.fc2.norm", conv("1.fc2.conv", weights)) + 3).clamp(0, 6) / 6
    assert state["1.fc1.conv.weight"].shape[0] == 2  # a sixteenth
    with torch.no_grad():
        torch.testing.assert_close(block(x), y * weights)
        torch.testing.assert_close(fusion.fuse(block)(x), y * weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_dims": (8,)}, "one entry per convolutional stage"),
        ({"depths": (1, 1)}, "one entry per global stage"),
        ({"parc_dims": (15,)}, "must be even"),
    ],
)
def test_config_is_checked(changes: dict[str, tuple[int, ...]], message: str) -> None:
    options: dict[str, object] = {"stem_dim": 8, "stem_kernel": 3, "conv_dims": (8, 16), "mlp_dims": (32,)}
    options |= {"dims": (24,), "parc_dims": (16,), "depths": (1,), "lengths": (8,)}
    with pytest.raises(ValueError, match=message):
        ParCNetConfig(**(options | changes))  # type: ignore[arg-type]


def test_custom_config() -> None:
    config = ParCNetConfig(
        stem_dim=8,
        stem_kernel=3,
        conv_dims=(8, 16),
        dims=(24,),
        parc_dims=(32,),
        mlp_dims=(32,),
        depths=(2,),
        lengths=(8,),
    )
    features = run(ParCNet(config, taps=("P2", "P3")).eval(), random_image(32, 96))
    assert [tuple(feature.shape) for feature in features] == [(1, 16, 8, 24), (1, 24, 4, 12)]
