"""Rows of blocks: what they compute, and that Ultralytics treats them as rows of its own."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from block_models import BLOCK_ROWS, NAMES, model_yaml
from contract import assert_features, randomise, run
from detectors import awake_detector
from optimizers import membership, stock_optimizer
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils.callbacks import default_callbacks

import yolo_lightbackbones
from yolo_lightbackbones import fusion, recording, registry
from yolo_lightbackbones.backbones.conv2former import ConvModBlocks
from yolo_lightbackbones.backbones.edgevit import LGLBlock, LGLBlocks, SparseAttention
from yolo_lightbackbones.backbones.parcnet import ChannelAttention, ParCBlocks
from yolo_lightbackbones.backbones.repvit import RepViTBlocks, SqueezeExcite
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.layers import DropPath, PositionEmbedding
from yolo_lightbackbones.plugin import training

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = registry.block_rows()

SIZES = [(8, 8), (6, 10), (7, 5), (1, 3), (33, 17)]


def row(name: str, in_channels: int = 24, out_channels: int = 40, repeats: int = 2, **options: Any) -> BlockRow:
    """A row in eval mode with randomised weights."""
    built = BLOCKS[name](in_channels, out_channels, repeats, options)
    randomise(built)
    return built.eval()


def random_map(height: int, width: int, *, channels: int = 24, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(height * width))


def modules(module: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [child for child in module.modules() if isinstance(child, kind)]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    yolo_lightbackbones.register()
    yield
    yolo_lightbackbones.register()


@pytest.fixture(scope="module", params=BLOCKS)
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> YOLO:
    """A detector of one kind of blocks whose output depends on its image."""
    return awake_detector(str(model_yaml(tmp_path_factory.mktemp("detector"), request.param)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> YOLO:
    """A detector with all four kinds of blocks."""
    return awake_detector(str(model_yaml(tmp_path_factory.mktemp("mixed"), *NAMES)))


def test_every_family_brings_the_row_of_its_block() -> None:
    wanted = dict(zip(NAMES, (RepViTBlocks, LGLBlocks, ParCBlocks, ConvModBlocks), strict=True))
    assert BLOCKS.items() >= wanted.items()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_called_as_in_model_yamls(name: str) -> None:
    assert {type(block).__name__ for block in row(name).blocks} == {name}


# --- what a row computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
class TestRow:
    @pytest.mark.parametrize(("height", "width"), SIZES)
    def test_any_size(self, name: str, height: int, width: int) -> None:
        for in_channels, out_channels, repeats in ((24, 40, 2), (40, 40, 1), (24, 8, 1)):
            out = run(row(name, in_channels, out_channels, repeats), random_map(height, width, channels=in_channels))
            assert out.shape == (2, out_channels, height, width)
            assert out.isfinite().all()
            assert out.std() > 1e-4

    def test_a_row_is_a_projection_where_the_width_changes_and_then_its_blocks(self, name: str) -> None:
        changing, keeping = row(name, 24, 40, 3), row(name, 40, 40, 1)
        x = random_map(7, 5)
        projected = run(changing.project, x)
        weight, norm = changing.project.conv.weight, changing.project.norm
        by_hand = nn.functional.batch_norm(
            nn.functional.conv2d(x, weight), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5
        )
        torch.testing.assert_close(projected, by_hand.detach())
        for block in changing.blocks:
            projected = run(block, projected)
        torch.testing.assert_close(run(changing, x), projected, rtol=0, atol=0)
        assert len(changing.blocks) == 3
        assert isinstance(keeping.project, nn.Identity)

    @pytest.mark.parametrize(("height", "width"), [(16, 12), (7, 13)])
    def test_fused_equals_unfused(self, name: str, height: int, width: int) -> None:
        built = row(name)
        before = copy.deepcopy(built.state_dict())
        fused = fusion.fuse(built)
        x = random_map(height, width)
        assert_features([run(fused, x)], [run(built, x)], 1e-5)
        assert fusion.is_fused(fused)
        assert not fusion.is_fused(built)
        assert not modules(fused, nn.BatchNorm2d)
        assert isinstance(fused, BlockRow)
        assert isinstance(fused.project, nn.Conv2d)
        assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in built.parameters())
        torch.testing.assert_close(built.state_dict(), before, rtol=0, atol=0)
        torch.testing.assert_close(run(fusion.fuse(fused), x), run(fused, x), rtol=0, atol=0)

    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        built = row(name).train()
        built(random_map(7, 6)).square().mean().backward()
        dead = [key for key, p in built.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not dead

    def test_trains_on_a_single_image(self, name: str) -> None:
        assert row(name).train()(random_map(3, 5, batch=1)).isfinite().all()

    def test_drop_path_is_that_of_every_block(self, name: str) -> None:
        assert {m.rate for m in modules(row(name), DropPath)} == {0.0}
        rates = [m.rate for m in modules(row(name, repeats=3, drop_path=0.25), DropPath)]
        assert len(rates) >= 3
        assert set(rates) == {0.25}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, name: str, dtype: torch.dtype) -> None:
        built, x = row(name), random_map(7, 6)
        expected = run(built, x)
        fused = fusion.fuse(built.to(dtype))
        for module in (built, fused):
            out = run(module, x.to(dtype))
            assert out.dtype == dtype
            assert out.isfinite().all()
            assert (out.float() - expected).std() < 0.1 * expected.std()

    @pytest.mark.parametrize("fused", [False, True])
    def test_copies_and_files(self, name: str, fused: bool) -> None:
        built = fusion.fuse(row(name)) if fused else row(name)
        x = random_map(7, 6)
        expected = run(built, x)
        torch.save(built, file := io.BytesIO())
        file.seek(0)
        for other in (copy.deepcopy(built), torch.load(file, weights_only=False)):
            torch.testing.assert_close(run(other, x), expected, rtol=0, atol=0)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
    @pytest.mark.parametrize(
        ("recorded", "sizes"),
        [((7, 6), [(7, 6)]), ((7, 6), [(7, 6), (8, 6), (5, 8)]), ((8, 6), [(8, 6), (7, 5), (12, 9)])],
        ids=["one-size", "any-size-from-cut-windows", "any-size-from-whole-windows"],
    )
    def test_a_trace_holds_for_its_size_or_for_any(
        self, name: str, recorded: tuple[int, int], sizes: list[tuple[int, int]]
    ) -> None:
        fused = fusion.fuse(row(name))
        recording.record_for(fused, any_size=len(sizes) > 1)
        traced = torch.jit.trace(fused, random_map(*recorded), check_trace=False)
        for height, width in sizes:
            x = random_map(height, width)
            assert_features([run(traced, x)], [run(fused, x)], 1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"drop_paths": 2}, r"unknown option 'drop_paths'. Did you mean 'drop_path'\? Allowed: .*drop_path"),
            ({"drop_path": 1}, "drop_path is 1; it must be a number, at least 0 and below 1"),
        ],
    )
    def test_wrong_options(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            row(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_ratio_is_at_least_1(name: str) -> None:
    with pytest.raises(ValueError, match="mlp_ratio is 0; it must be a whole number"):
        row(name, mlp_ratio=0)


# --- options, family by family ----------------------------------------------------------------------------------------


def test_repvit_squeezes_in_every_other_block() -> None:
    with_squeeze = [bool(modules(block, SqueezeExcite)) for block in row("RepViTBlock", repeats=5).blocks]
    assert with_squeeze == [True, False, True, False, True]  # the authors' "10101"
    assert not modules(row("RepViTBlock", squeeze=False), SqueezeExcite)
    assert row("RepViTBlock", mlp_ratio=3).blocks[0].channel_mixer.conv1.conv.out_channels == 120


@pytest.mark.parametrize(
    ("width", "head_dim", "heads"),
    [(288, 36, 8), (240, 48, 5), (48, 48, 1), (256, 32, 8), (136, 32, 4), (8, 32, 1), (40, 32, 1), (72, 32, 2)],
)
def test_heads_follow_the_width(width: int, head_dim: int, heads: int) -> None:
    """The first three as in EdgeViT-XXS, XS and S; the others as any width comes out of a scale."""
    (attention,) = modules(row("LGLBlock", width, width, 1, head_dim=head_dim), SparseAttention)
    assert attention.head_dim * heads == width


@pytest.mark.parametrize("rate", [1, 2, 3, 4])
def test_windows_at_the_border_are_cut(rate: int) -> None:
    """On a map that is padded to whole windows the same tokens are sampled, and what is outside can be cut off."""
    partial = SparseAttention(24, 12, rate).eval()
    randomise(partial)
    whole = copy.deepcopy(partial)
    partial.partial_windows = True
    for height, width in SIZES:
        x = random_map(height, width)
        padded = nn.functional.pad(x, (0, -width % rate, 0, -height % rate), value=7.0)
        assert_features([run(partial, x)], [run(whole, padded)[:, :, :height, :width]], 1e-6)


def test_where_windows_fit_a_row_is_edgevits_own_block() -> None:
    built = row("LGLBlock", 48, 48, 1, sr_ratio=4, head_dim=24)
    published = LGLBlock(48, 24, 4).eval()
    published.load_state_dict(built.blocks[0].state_dict())
    x = random_map(8, 12, channels=48)
    torch.testing.assert_close(run(built, x), run(published, x), rtol=0, atol=0)


def test_parc_options() -> None:
    built = row("ParCBlock", repeats=3, length=9, mlp_ratio=3, dropout=0.2)
    assert [len(modules(block, PositionEmbedding)) for block in built.blocks] == [4, 0, 0], "those of the first do"
    assert {max(m.weight.shape[2:]) for m in modules(built, PositionEmbedding)} == {9}
    assert built.blocks[0].mlp.fc1.out_channels == 120
    assert {m.p for m in modules(built, nn.Dropout)} == {0.2}
    with pytest.raises(ValueError, match="41 output channels; they must be even"):
        ParCBlocks(24, 41)
    (attention,) = modules(row("ParCBlock", 8, 8, 1), ChannelAttention)
    assert attention.fc1.conv.out_channels == 1, "a sixteenth of 8 channels, but never none"


def test_conv_mod_options() -> None:
    built = ConvModBlocks(24, 24, 1, {"kernel_size": 11, "mlp_ratio": 2, "layer_scale": 0.3})
    assert built.blocks[0].attn.depthwise.kernel_size == (11, 11)
    assert built.blocks[0].mlp.fc1.out_channels == 48
    torch.testing.assert_close(built.blocks[0].layer_scale2.detach(), torch.full((24,), 0.3))
    of_itself = ConvModBlocks(24, 24).blocks[0].layer_scale1
    torch.testing.assert_close(of_itself.detach(), torch.full((24,), 0.1), msg="as in a backbone row from scratch")


# --- in Ultralytics ---------------------------------------------------------------------------------------------------


def shapes(model: nn.Module, image: Tensor, rows_with_maps: Iterable[int] = range(11)) -> dict[int, tuple[int, ...]]:
    """Row number -> shape of the map that it gives."""
    seen: dict[int, tuple[int, ...]] = {}
    hooks = [
        model.model[i].register_forward_hook(lambda layer, _, out: seen.update({layer.i: tuple(out.shape)}))
        for i in rows_with_maps
    ]
    run(model, image)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("letter", ["n", "m"])
@pytest.mark.parametrize("name", BLOCKS)
def test_rows_scale_as_those_of_c2f(name: str, letter: str, tmp_path: Path) -> None:
    path = model_yaml(tmp_path, "C2f").rename(tmp_path / f"yolo11{letter}_c2f.yaml")
    stock = YOLO(path).model.eval()
    path = model_yaml(tmp_path, name).rename(tmp_path / f"yolo11{letter}_ours.yaml")
    ours = YOLO(path).model.eval()
    image = torch.rand(1, 3, 64, 96)
    assert shapes(ours, image) == shapes(stock, image)
    assert ours.stride.tolist() == [8, 16, 32]
    for number in BLOCK_ROWS:
        assert type(ours.model[number]) is BLOCKS[name]
        assert len(ours.model[number].blocks) == len(stock.model[number].m)
        assert ours.model[number].type.endswith(f".{name}s")
    assert [isinstance(ours.model[i].project, nn.Identity) for i in BLOCK_ROWS] == [False, True, True, False]
    assert ours.yaml["backbone"][3] == [-1, 3, name, [256]], "stored as written"


def test_options_reach_the_blocks(tmp_path: Path) -> None:
    path = model_yaml(tmp_path, *NAMES)
    path.write_text(path.read_text().replace("LGLBlock, [256]", "LGLBlock, [256, {sr_ratio: 4, head_dim: 16}]"))
    attentions = modules(YOLO(path).model.model[5], SparseAttention)
    assert [(m.sampling_rate, m.head_dim) for m in attentions] == [(4, 16)]


def test_they_go_with_a_backbone_of_ours(tmp_path: Path) -> None:
    text = "nc: 3\nbackbone:\n  - [-1, 1, RepViT, [m0_6]]\n  - [0, 1, Tap, [P3]]\n  - [-1, 2, LGLBlock, [96]]\n"
    (path := tmp_path / "both.yaml").write_text(text + "head:\n  - [[1, 2], 1, Detect, [nc]]\n")
    model = YOLO(path).model.eval()
    assert len(model.model[2].blocks) == 2
    assert shapes(model, torch.rand(1, 3, 96, 64), rows_with_maps=(1, 2)) == {1: (1, 80, 12, 8), 2: (1, 96, 12, 8)}


def test_a_detector_fuses(detector: YOLO) -> None:
    image = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    model = detector.model
    fused = copy.deepcopy(model)
    assert not fused.is_fused()
    fused.fuse(verbose=False)
    assert fused.is_fused()
    assert not modules(fused, nn.BatchNorm2d)
    assert [m.i for m in fused.model] == list(range(len(fused.model)))
    with torch.no_grad():
        expected, seen = model(image)[0], fused(image)[0]
    assert expected[:, 4:].std() > 0.01
    torch.testing.assert_close(seen[:, :4], expected[:, :4], rtol=0, atol=0.01)  # pixels
    torch.testing.assert_close(seen[:, 4:], expected[:, 4:], rtol=0, atol=1e-4)


def test_norms_keep_the_eps_of_their_family(detector: YOLO) -> None:
    """Ultralytics sets 1e-3 on its own; EdgeViT's LayerNorms have two values."""
    for number in BLOCK_ROWS:
        assert {m.eps for m in modules(detector.model.model[number], nn.BatchNorm2d)} <= {1e-5}
        assert {m.eps for m in modules(detector.model.model[number], nn.LayerNorm)} <= {1e-5, 1e-6}
    assert {m.eps for m in modules(detector.model.model[0], nn.BatchNorm2d)} == {1e-3}


def test_a_detector_runs_in_half_precision(detector: YOLO) -> None:
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    half = copy.deepcopy(detector.model).half()
    with torch.no_grad():
        assert all(out.isfinite().all() for out in (half(image.half())[0], half.fuse(verbose=False)(image.half())[0]))


@pytest.mark.parametrize("optimizer_name", ["AdamW", "MuSGD"])
def test_optimizer_groups(optimizer_name: str, mixed: YOLO) -> None:
    model = copy.deepcopy(mixed.model)
    optimizer = stock_optimizer(model, optimizer_name)
    before = membership(optimizer, model)
    assert training.regroup(optimizer, model) > 0
    after = membership(optimizer, model)
    spared = {key for key in after if "layer_scale" in key or key.endswith((".pos1.weight", ".pos2.weight"))}
    assert {key.split(".")[1] for key in spared} == {"7", "10"}, "ParC-Net's and Conv2Former's rows"
    assert {after[key] for key in spared} == {"bn"}
    assert "bn" not in {before[key] for key in spared}
    for key, kind in after.items():
        owner = model.get_submodule(key.rpartition(".")[0])
        if int(key.split(".")[1]) not in BLOCK_ROWS:
            assert kind == before[key], "what is Ultralytics' own is its own business"
        elif isinstance(owner, nn.Conv2d) and key.endswith("weight"):
            matrix = optimizer_name == "MuSGD" and owner.groups == 1
            assert kind == ("muon" if matrix else "weight"), key


def test_a_checkpoint_loads_in_a_fresh_process_that_trusts_known_classes_alone(mixed: YOLO, tmp_path: Path) -> None:
    fused = copy.deepcopy(mixed.model).fuse(verbose=False)
    torch.save({"model": mixed.model, "train_args": {}}, tmp_path / "plain.pt")
    torch.save({"model": fused, "train_args": {}}, tmp_path / "fused.pt")
    image = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    torch.save(image, tmp_path / "image.pt")
    code = """
        import torch
        from ultralytics import YOLO
        for name in ("plain", "fused"):
            with torch.no_grad():
                torch.save(YOLO(f"{name}.pt").model.eval()(torch.load("image.pt"))[0], f"{name}_out.pt")
    """
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment, cwd=tmp_path)
    for name, model in (("plain", mixed.model), ("fused", fused)):
        torch.testing.assert_close(torch.load(tmp_path / f"{name}_out.pt"), run(model, image)[0])


def test_a_model_is_built_again_from_its_checkpoint(mixed: YOLO, tmp_path: Path) -> None:
    """As training from a checkpoint does: by the YAML in it."""
    mixed.save(tmp_path / "m.pt")
    stored = YOLO(tmp_path / "m.pt").model
    again = tasks.DetectionModel(stored.yaml, nc=3, verbose=False)
    again.load_state_dict(stored.float().state_dict())
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(run(again.eval(), image)[0], run(stored.eval(), image)[0], rtol=0, atol=0)


# --- exports ----------------------------------------------------------------------------------------------------------


def on_export_start(exporter: Any) -> None:
    (callback,) = (f for f in default_callbacks["on_export_start"] if f.__module__.startswith("yolo_lightbackbones."))
    callback(exporter)


@pytest.mark.parametrize("name", ["LGLBlock", "ParCBlock"])
def test_without_a_backbone_of_ours_the_export_seam_works_as_well(name: str, tmp_path: Path) -> None:
    model = YOLO(model_yaml(tmp_path, name)).model.fuse(verbose=False)
    bound = modules(model, recording.SizeBound)
    assert bound
    exporter = SimpleNamespace(model=model, args=SimpleNamespace(dynamic=True, format="onnx"))
    on_export_start(exporter)
    assert {(m.any_size, m.matrix_from) for m in bound} == {(True, 40)}
    exporter.args = SimpleNamespace(dynamic=False, format="ncnn")
    on_export_start(exporter)
    assert {(m.any_size, m.matrix_from) for m in bound} == {(False, 128)}
    exporter.args.dynamic = True
    with pytest.raises(ValueError, match=r"dynamic=True is given for format=ncnn.*only as torchscript, onnx, openvino"):
        on_export_start(exporter)


def check_onnx(file: str, expected: nn.Module, sizes: Iterable[tuple[int, int]]) -> None:
    """The file's outputs are those of the module: boxes within a hundredth of a pixel, class scores within 1e-4."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for height, width in sizes:
        x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        seen = torch.from_numpy(np.asarray(session.run(None, {"images": x.numpy()})[0]))
        want = run(expected, x)[0]
        assert want[:, 4:].std() > 0.01, "a detector whose scores are all alike would prove nothing"
        torch.testing.assert_close(seen[:, :4], want[:, :4], rtol=0, atol=0.01)
        torch.testing.assert_close(seen[:, 4:], want[:, 4:], rtol=0, atol=1e-4)


def test_the_onnx_file_gives_the_outputs_of_the_checkpoint(detector: YOLO, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    detector.save(tmp_path / "m.pt")  # in half precision, as Ultralytics does
    stored = YOLO(tmp_path / "m.pt").model.float().eval()
    file = YOLO(tmp_path / "m.pt").export(format="onnx", imgsz=[96, 64], verbose=False)
    check_onnx(file, stored, [(96, 64)])
    nodes = [node.op_type for node in onnx.load(file).graph.node]
    assert nodes.count("Resize") == 1, "the upsampling of the neck; ParC-Net's kernels are constants"


def test_an_onnx_file_for_any_size(mixed: YOLO, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    mixed.save(tmp_path / "m.pt")
    stored = YOLO(tmp_path / "m.pt").model.float().eval()
    file = YOLO(tmp_path / "m.pt").export(format="onnx", imgsz=[96, 64], dynamic=True, verbose=False)
    check_onnx(file, stored, [(96, 64), (64, 128), (32, 160)])


# --- the bundled model ------------------------------------------------------------------------------------------------


def test_the_bundled_neck_has_the_head_of_yolo11() -> None:
    ours, stock = YOLO("yolo11n_repvit-neck.yaml").model, YOLO("yolo11n.yaml").model
    found = [layer.i for layer in ours.model if isinstance(layer, RepViTBlocks)]
    assert found == [8, 11, 14]
    assert [type(m) for m in ours.model[-1].cv3.modules()] == [type(m) for m in stock.model[-1].cv3.modules()]
    assert ours.stride.tolist() == stock.stride.tolist()
    assert [layer.cv1.conv.in_channels for layer in ours.model if type(layer).__name__ == "C2PSA"] == [256]


@pytest.mark.slow
def test_a_detector_of_blocks_trains_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from yolo_lightbackbones.datasets.digits import build_digits

    folder = build_digits(tmp_path / "digits", train_images=8, val_images=2)
    (data := tmp_path / "data.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnc: 10\n")
    options = {"imgsz": 96, "batch": 4, "workers": 0, "amp": False, "plots": False, "project": str(tmp_path)}
    YOLO(model_yaml(tmp_path, *NAMES)).train(data=str(data), epochs=1, name="first", **options)
    again = YOLO(tmp_path / "first" / "weights" / "last.pt")
    again.train(data=str(data), epochs=1, name="second", **options)
    trained = YOLO(tmp_path / "second" / "weights" / "best.pt").model
    assert [type(trained.model[number]) for number in BLOCK_ROWS] == [BLOCKS[name] for name in NAMES]
    assert all(p.isfinite().all() for p in trained.parameters())
