"""Timm rows' backbone against timm itself: one model for every trait that timm's models have."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import assert_features, random_image, randomise, run
from torch import Tensor, nn

from yolo_lightbackbones import Options, create_backbone, fusion, load_weights, recording, registry
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.backbones.timm_adapter import Timm

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {
    "mobilenetv4_conv_small": "norms with activations",
    "test_convnext": "LayerNorm; a first convolution without padding",
    "swin_tiny_patch4_window7_224": "maps (B, H, W, C), and windows that must not be strict",
    "test_mambaout": "maps (B, H, W, C)",
    "fastvit_t8": "branches that timm folds",
    "tf_efficientnet_lite0": "TensorFlow's padding",
    "pvt_v2_b0": "attention",
    "repvit_m0_9.dist_450e_in1k": "norms that are torch's BatchNorm2d; layers that timm fuses; a tag",
    "test_coatnet": "one size of images; norms before convolutions",
    "test_nfnet": "convolutions that normalise their weights",
    "resnet18": "a stem with pooling, and P2 inside the same stage",
    "hrnet_w18_small": "no intermediate maps but by features_only",
}
ONE_SIZE = {"test_coatnet": 160}
NORMS_LEFT = {"test_coatnet"}
"""Models with norms before their convolutions, which stay."""


def build(name: str, **options: Any) -> Backbone:
    backbone = Timm(name, Options(**{"taps": None, "imgsz": ONE_SIZE.get(name), **options}))
    randomise(backbone)
    return backbone.eval()


def image_for(name: str, **options: Any) -> Tensor:
    side = ONE_SIZE.get(name)
    return random_image(*((side, side) if side else (64, 96)), **options)


def reference(name: str, state: dict[str, Tensor]) -> Any:
    """timm's own model for feature maps, which has other names, with the weights of a classification model."""
    model = timm.create_model(name, features_only=True, **({"strict_img_size": False} if "swin" in name else {}))
    flat = {name.replace(".", "_", 1): name for name in state}
    names = {own: own.removeprefix("model.") for own in model.state_dict()}
    model.load_state_dict({own: state[theirs if theirs in state else flat[theirs]] for own, theirs in names.items()})
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_those_of_timm(name: str, tmp_path: Path) -> None:
    whole = timm.create_model(name)
    randomise(whole)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    backbone = Timm(name, taps=None, imgsz=ONE_SIZE.get(name)).eval()
    report = load_weights(backbone, tmp_path / "weights.pth")
    assert report.layout == "timm"
    assert not report.missing
    image = image_for(name, batch=2)
    theirs = reference(name, whole.state_dict())
    mean, std = (torch.tensor(theirs.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    maps = run(theirs, (image - mean) / std)
    if str(getattr(theirs, "output_fmt", "NCHW")).endswith("NHWC"):
        maps = [feature.permute(0, 3, 1, 2) for feature in maps]
    expected = [feature for feature in maps if feature.shape[-1] <= image.shape[-1] // 4]
    assert_features(run(backbone, image), expected, 1e-5)
    assert backbone.taps == ("P2", "P3", "P4", "P5")
    assert backbone.out_channels == tuple(feature.shape[1] for feature in expected)


@pytest.mark.parametrize("name", MODELS)
def test_fused_equals_unfused(name: str) -> None:
    backbone = build(name, normed_taps=("P3", "P5"), taps=("P3", "P5"))
    image = image_for(name)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        unfused = backbone.to(dtype)
        fused = fusion.fuse(unfused)
        assert fusion.is_fused(fused)
        assert not fusion.is_fused(unfused)
        assert {tensor.dtype for tensor in fused.parameters()} == {dtype}
        assert_features(run(fused, image.to(dtype)), run(unfused, image.to(dtype)), tolerance)
        norms = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
        assert bool(norms) == (name in NORMS_LEFT)


def test_folding_leaves_the_default_dtype_of_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    import timm.utils.model as folding

    theirs = folding.reparameterize_model

    def watched(*args: Any, **named: Any) -> Any:
        folded = theirs(*args, **named)
        seen.append(torch.get_default_dtype())  # of the whole process
        return folded

    monkeypatch.setattr(folding, "reparameterize_model", watched)
    fusion.fuse(build("repvit_m0_9"))
    assert seen == [torch.float32]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("hrnet_w18_small",)])
def test_only_what_the_taps_need_is_built(name: str) -> None:
    whole, part = build(name), build(name, taps=("P2", "P3"))
    report = part.load_state_dict(whole.state_dict(), strict=False)
    assert not report.missing_keys
    assert report.unexpected_keys
    image = image_for(name)
    torch.testing.assert_close(run(part, image), run(whole, image)[:2], rtol=0, atol=0)
    part.train()
    sum(feature.square().mean() for feature in part(image_for(name, batch=2))).backward()
    dead = [key for key, parameter in part.named_parameters() if parameter.grad is None]
    assert not dead


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    backbone = build(name).train()
    sum(feature.square().mean() for feature in backbone(image_for(name, batch=2))).backward()
    dead = [key for key, parameter in backbone.named_parameters() if parameter.grad is None]
    assert not dead


@pytest.mark.parametrize("name", MODELS)
def test_pickles_have_no_class_of_timm_and_keep_everything(name: str) -> None:
    backbone = build(name, taps=("P3", "P5"), normed_taps=("P5",))
    next(iter(backbone.parameters())).requires_grad_(False)
    image = image_for(name)
    for module in (backbone, fusion.fuse(backbone), copy.deepcopy(backbone).half()):
        before = torch.random.get_rng_state()
        content = pickle.dumps(module)
        assert b"timm.models" not in content
        assert b"timm.layers" not in content
        again = pickle.loads(content)
        assert torch.equal(before, torch.random.get_rng_state())
        assert not again.training
        flags = [parameter.requires_grad for parameter in module.parameters()]
        assert [parameter.requires_grad for parameter in again.parameters()] == flags
        torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
        if module.body and next(module.parameters()).dtype == torch.float32:
            torch.testing.assert_close(run(again, image), run(module, image), rtol=0, atol=0)


def test_a_changed_model_is_pickled_with_its_classes() -> None:
    backbone = build("resnet18")
    backbone.body.layer1 = nn.Identity()
    again = pickle.loads(pickle.dumps(backbone))
    assert isinstance(again.body.layer1, nn.Identity)
    torch.testing.assert_close(run(again, random_image(64, 64)), run(backbone, random_image(64, 64)), rtol=0, atol=0)


def test_copies_keep_what_is_put_on_layers() -> None:
    backbone = build("resnet18")
    backbone.body.layer1.register_forward_hook(lambda module, inputs, output: output * 0)
    again = copy.deepcopy(backbone)
    assert not run(again, random_image(64, 64))[0].any()


@pytest.mark.parametrize("name", ["repvit_m0_9", "mobilenetv4_conv_small"])
def test_norms_keep_what_was_published(name: str) -> None:
    from ultralytics.utils.torch_utils import initialize_weights

    def settings(model: nn.Module) -> list[tuple[float, float | None]]:
        return [(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

    backbone, image = build(name), random_image(64, 64)
    published, expected = settings(timm.create_model(name)), run(backbone, image)
    initialize_weights(backbone)
    kept = settings(backbone)
    assert set(kept) <= set(published)
    assert len(kept) > 40
    torch.testing.assert_close(run(backbone, image), expected, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "test_nfnet"])
def test_other_image_channels(name: str, channels: int) -> None:
    backbone = build(name, in_channels=channels)
    assert backbone.applied_convention().mean is None
    image = random_image(64, 64, channels=channels)
    assert_features(run(fusion.fuse(backbone), image), run(backbone, image), 1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ONE_SIZE])
def test_any_size(name: str) -> None:
    with torch.device("meta"):
        backbone = Timm(name, taps=None)
        for height, width in ((64, 224), (96, 32), (640, 480)):
            maps = backbone(torch.empty(2, 3, height, width))
            wanted = [
                (2, c, height // r, width // r) for c, r in zip(backbone.out_channels, (4, 8, 16, 32), strict=True)
            ]
            assert [tuple(feature.shape) for feature in maps] == wanted
    with pytest.raises(ValueError, match=r"65 x 64.* multiples of 32.* 96 x 64"):
        backbone(torch.empty(1, 3, 65, 64))


def test_sides_are_multiples_of_what_the_maps_need() -> None:
    """MobileViTv2's maps at 1/32 are cut into patches of 2 x 2; LeViT has maps at 1/64, and was trained at 224."""
    with torch.device("meta"):
        assert Timm("mobilevitv2_050").size_divisibility == 64
        assert Timm("mobilevit_xxs").size_divisibility == 32
        with pytest.raises(ValueError, match="levit_128s is built for images of one size; say which: imgsz: 256"):
            Timm("levit_128s", taps=None)
        assert Timm("levit_128s", taps=None, imgsz=256).image_size == (256, 256)


def test_one_size() -> None:
    backbone = build("test_coatnet")
    assert backbone.image_size == (160, 160)
    with pytest.raises(ValueError, match=r"The image is 128 x 160 .*; this Timm is built for 160 x 160"):
        backbone(torch.zeros(1, 3, 128, 160))
    backbone.measures_next = True
    maps = backbone(torch.zeros(1, 3, 256, 256))
    assert [feature.shape[-1] for feature in maps] == [64, 32, 16, 8]
    with pytest.raises(ValueError, match=r"The image is 256 x 256"):
        backbone(torch.zeros(1, 3, 256, 256))
    backbone.measures_next = True
    with pytest.raises(ValueError, match=r"The image is 256 x 256"):
        backbone(torch.ones(1, 3, 256, 256))


def test_a_plain_backbone_gets_its_taps_from_a_pyramid() -> None:
    backbone = build("test_vit", pyramid="simple", taps=("P3", "P4", "P5"), normed_taps=("P4",))
    image = random_image(64, 96)
    assert backbone.out_channels == (256, 256, 256)
    assert [tuple(feature.shape[2:]) for feature in run(backbone, image)] == [(8, 12), (4, 6), (2, 3)]
    body = timm.create_model("test_vit", dynamic_img_size=True).eval()
    body.load_state_dict(backbone.body.state_dict(), strict=False)
    normed = (image - 0.5) / 0.5
    with torch.no_grad():
        map_ = body.forward_intermediates(normed, indices=1, output_fmt="NCHW", intermediates_only=True)[-1]
        expected = backbone.pyramid(map_)[0]
    assert_features(run(backbone, image)[:1], [expected], 1e-5)
    fused = fusion.fuse(backbone)
    assert_features(run(fused, image), run(backbone, image), 1e-5)
    again = pickle.loads(pickle.dumps(fused))
    torch.testing.assert_close(run(again, image), run(fused, image), rtol=0, atol=0)


def test_onnx_of_resized_position_embeddings(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone = fusion.fuse(build("test_vit", pyramid="simple"))
    image, other = random_image(64, 96, batch=2).split(1)
    torch.onnx.export(backbone, (image,), tmp_path / "a.onnx", input_names=["image"], dynamo=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    maps = [torch.from_numpy(feature) for feature in session.run(None, {"image": other.numpy()})]
    assert_features(maps, run(backbone, other), 1e-4)


def test_a_trace_for_any_size_resizes_position_embeddings() -> None:
    backbone = fusion.fuse(build("test_vit", pyramid="simple"))
    recording.record_for(backbone, any_size=True)
    traced = torch.jit.trace(backbone, random_image(64, 96))
    image = random_image(96, 64)
    assert_features(run(traced, image), run(backbone, image), 1e-5)


def test_resizes_of_the_image_are_no_constants() -> None:
    resizes = recording.FixedResizes()

    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            half: Tensor = resizes.run(
                lambda y: nn.functional.interpolate(y, (8, 8), mode="bicubic", antialias=True), x
            )
            return half

    image, other = random_image(16, 16, batch=2).split(1)
    torch.testing.assert_close(torch.jit.trace(Halved(), image)(other), Halved()(other))


def test_drop_path_rate() -> None:
    rates = [m.drop_prob for m in build("test_convnext", drop_path_rate=0.3).modules() if hasattr(m, "drop_prob")]
    assert max(rates) == pytest.approx(0.3)
    assert not [m for m in build("test_convnext").modules() if getattr(m, "drop_prob", 0)]


def test_no_weight_decay_on_layer_scales_and_position_embeddings() -> None:
    names = build("test_convnext").no_weight_decay()
    assert "body.stages.0.blocks.0.gamma" in names
    assert "body.stages.0.blocks.0.mlp.fc1.weight" not in names


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mobilnetv4_conv_small",
            {},
            r"timm has no model 'mobilnetv4_conv_small'\. Did you mean 'mobilenetv4_conv_small'",
        ),
        (
            "resnet18.a9_in1k",
            {},
            r"timm has no weights 'a9_in1k' of resnet18\. Did you mean 'a[0-9]_in1k'\? Allowed: .*a1_in1k",
        ),
        ("test_coatnet", {}, "test_coatnet is built for images of one size; say which: imgsz: 160"),
        (
            "test_coatnet",
            {"imgsz": 170},
            "imgsz is 170 x 170; test_coatnet needs multiples of 32, and its own is 160 x 160",
        ),
        (
            "efficientformer_l1",
            {"imgsz": 256},
            "imgsz is 256 x 256; efficientformer_l1 does not work with it. Its own is 224 x 224",
        ),
        ("resnet18", {"imgsz": 224}, "resnet18 takes images of any size; leave imgsz out"),
        ("shvit_s1", {"taps": ("P3",)}, r"Timm has no tap 'P3'\. Allowed: P4, P5, P6"),
        ("vit_tiny_patch16_224", {}, "vit_tiny_patch16_224 has only maps at a reduction of 16"),
        ("convmixer_768_32", {}, "convmixer_768_32 has maps at reductions of 7"),
        (
            "inception_v3",
            {},
            "inception_v3 cannot be a backbone: for an image of 96 x 160, its map P2 is 192 x 20 x 36, and not",
        ),
        ("resnet18", {"init": "scratch"}, "Timm has no option 'init'"),
        ("resnet18", {"pyramid": "simple"}, "pyramid is 'simple', and resnet18 needs none"),
        ("vit_small_patch14_dinov2", {"pyramid": "simple"}, "map of vit_small_patch14_dinov2 is at 1/14"),
        ("vgg11", {"drop_path_rate": 0.1}, "vgg11 does not take drop_path_rate"),
        ("resnet18", {"pretrained": "file.pth"}, r"load_weights\(backbone, file\)"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Timm(name, Options(**{"taps": None, **options}))
    assert "\n" not in str(error.value)


def test_names() -> None:
    for name in ("timm/resnet18", "timm/ResNet18", "timm/resnet18.a1_in1k"):
        assert create_backbone(name, taps=("P3",)).out_channels == (128,)
    assert registry.find("timm") is None
    assert Timm.full_name("resnet18") == "timm/resnet18"
    assert not [name for name in registry.list_backbones() if "timm" in name]
    with pytest.raises(ValueError, match=r"Unknown backbone 'resnet18'.*, or timm/NAME, a model of timm\."):
        create_backbone("resnet18")


def test_timm_is_imported_only_when_it_is_asked_for() -> None:
    code = """
import sys
from yolo_lightbackbones import registry, list_backbones
from yolo_lightbackbones.checkpoints import identify
import torch
registry.families(), list_backbones(), registry.recognise("RepViT-M0.9", registry.families())
identify.recognise({"a": torch.zeros(1)})
assert "timm" not in sys.modules
sys.modules["timm"] = None
try:
    registry.create_backbone("timm/resnet18")
except ModuleNotFoundError as error:
    assert "pip install 'timm>=1.0.16'" in str(error), error
else:
    raise SystemExit("no error without timm")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
