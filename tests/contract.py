"""The contract that every family fulfils: one suite, subclassed once per family by the thin `test_<family>.py` files.

A family supplies the numbers of its paper and its published code. No number here comes from the code under test.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from operations import KnownShapes, operations
from torch import Tensor, nn

from yolo_lightbackbones import fusion, recording
from yolo_lightbackbones.backbone import TAPS, Backbone
from yolo_lightbackbones.layers import DropPath
from yolo_lightbackbones.options import InputNormMode
from yolo_lightbackbones.registry import create_backbone, families, list_backbones
from yolo_lightbackbones.testing import assert_features, random_image, randomise, run

REDUCTIONS = (4, 8, 16, 32)
LARGE = 30_000_000
"""Variants with more parameters than this are fused only in the full run: the small ones have the same blocks."""


@dataclass(frozen=True)
class Expected:
    """Published figures of a variant.

    Attributes:
        parameters: number of parameters of the backbone only.
        gmacs: billions of multiply-adds in convolutions and matrix products, at the family's `image_size`.
        channels: channels of the four taps.
    """

    parameters: int
    gmacs: float
    channels: tuple[int, int, int, int]


def imagenet(image: Tensor) -> Tensor:
    """Normalise an RGB image in 0..1 by the mean and standard deviation of ImageNet."""
    red, green, blue = image.unbind(1)
    return torch.stack([(red - 0.485) / 0.229, (green - 0.456) / 0.224, (blue - 0.406) / 0.225], 1)


class FamilyContract:
    """All tests of a family. Subclass it as `class TestFamily(FamilyContract)`, and set its attributes."""

    family: ClassVar[str]
    class_name: ClassVar[str]
    smallest: ClassVar[str]
    image_size: ClassVar[int] = 224
    expected: ClassVar[dict[str, Expected]]
    others: ClassVar[tuple[str, ...]] = ()
    """Variants of the family that have a contract suite of their own, behind those of `expected` in every list."""
    options: ClassVar[dict[str, Any]] = {}
    """Options of `create_backbone` in every test."""
    top1: ClassVar[dict[str, float]]
    """Variant -> ImageNet top-1 in per cent, of all that were published."""
    weights: ClassVar[dict[str, str]]
    """Variant -> where its weights are: `download`, or one of `card.STATUSES`."""
    row_tap_norm: ClassVar[str] = "none"
    draws_as_scratch: ClassVar[bool] = False
    """Whether `init` makes no difference, since the authors draw weights as torch does."""

    @staticmethod
    def prepare(image: Tensor) -> Tensor:
        """Prepare an RGB image in 0..1 as the published weights expect it."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrise `variant` and `fused_variant` with all variants; mark large ones of `fused_variant` as slow.

        Large variants are folded only in single precision: they have the same blocks as the small ones, and double
        precision takes up to half a minute for each.
        """
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", list(self.expected))
        if "fused_variant" in metafunc.fixturenames:
            cases = []
            for name, known in self.expected.items():
                slow = known.parameters > LARGE
                cases.append(pytest.param(name, torch.float32, 1e-5, marks=[pytest.mark.slow] * slow))
                cases += [] if slow else [(name, torch.float64, 1e-10)]
            metafunc.parametrize(("fused_variant", "dtype", "tolerance"), cases)

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """Use one thread: maps are tiny here, and threads that wait for each other take most of the time."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    def build(
        self,
        variant: str | None = None,
        *,
        in_channels: int = 3,
        taps: Sequence[str] = TAPS,
        drop_path_rate: float | None = None,
        input_norm: InputNormMode = "auto",
        normed_taps: Sequence[str] = (),
    ) -> Backbone:
        """Build a backbone in eval mode with randomised weights; the smallest variant by default."""
        backbone = create_backbone(
            f"{self.family}_{variant or self.smallest}",
            in_channels=in_channels,
            taps=taps,
            drop_path_rate=drop_path_rate,
            input_norm=input_norm,
            normed_taps=normed_taps,
            **self.options,
        )
        randomise(backbone)
        return backbone.eval()

    def fresh(self, **options: Any) -> Backbone:
        """Build the smallest variant as it starts."""
        return create_backbone(f"{self.family}_{self.smallest}", **self.options, **options)

    @classmethod
    @functools.cache
    def build_meta(cls, variant: str) -> Backbone:
        """Build a variant without memory, once for all tests; none of them changes it."""
        with torch.device("meta"):
            return create_backbone(f"{cls.family}_{variant}", **cls.options).eval()

    # --- what it is ---------------------------------------------------------------------------------------------------

    def test_names(self) -> None:
        names = [f"{self.family}_{variant}" for variant in (*self.expected, *self.others)]
        assert list_backbones(self.family) == names
        assert families()[self.class_name].family == self.family

    def test_card(self) -> None:
        cls = families()[self.class_name]
        figures = cls.card.figures
        assert {variant: told.top1 for variant, told in figures.items()} == self.top1
        assert all(told.source for told in figures.values())
        assert {variant: cls.card.weights_of(variant) for variant in cls.variants} == self.weights
        assert cls.card.releases or cls.card.by_hand, "convert has to say what to do instead of a download"

    def test_default_of_rows(self) -> None:
        assert families()[self.class_name].row_tap_norm == self.row_tap_norm

    def test_parameters_and_macs_are_those_of_the_published_code(self, variant: str) -> None:
        backbone = self.build_meta(variant)
        flops = operations(backbone, torch.empty(1, 3, self.image_size, self.image_size, device="meta"))
        assert sum(parameter.numel() for parameter in backbone.parameters()) == self.expected[variant].parameters
        assert flops / 2e9 == pytest.approx(self.expected[variant].gmacs, rel=0.005)

    def test_first_parameter_is_the_stem_convolution(self, variant: str) -> None:
        # Ultralytics reads the number of image channels from it
        backbone = self.build_meta(variant)
        name, first = next(backbone.named_parameters())
        assert name.startswith("stem.")
        assert isinstance(backbone.get_submodule(name.removesuffix(".weight")), nn.Conv2d)
        assert first.shape[1] == 3

    def test_norms_keep_their_published_eps(self) -> None:
        # Ultralytics sets another eps on every module whose type is exactly nn.BatchNorm2d
        norms = [module for module in self.build_meta(self.smallest).modules() if isinstance(module, nn.BatchNorm2d)]
        assert {norm.eps for norm in norms} == {1e-5}
        assert nn.BatchNorm2d not in {type(norm) for norm in norms}

    def test_no_parameter_is_called_what_torch_export_refuses(self) -> None:
        with_meta = [name for name, _ in self.build_meta(self.smallest).named_parameters() if "meta" in name.split(".")]
        assert not with_meta

    # --- shapes and taps ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (32, 224), (640, 480)])
    def test_shapes(self, variant: str, height: int, width: int) -> None:
        backbone = self.build_meta(variant)
        with KnownShapes():
            features = backbone(torch.empty(2, 3, height, width, device="meta"))
        channels = self.expected[variant].channels
        wanted = [(2, c, height // r, width // r) for c, r in zip(channels, REDUCTIONS, strict=True)]
        assert [tuple(feature.shape) for feature in features] == wanted
        assert (backbone.taps, backbone.out_channels, backbone.reductions) == (TAPS, channels, REDUCTIONS)

    @pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (32, 224), (224, 32)])
    def test_any_size_computes(self, height: int, width: int) -> None:
        features = run(self.build(), random_image(height, width))
        assert [feature.shape[2:] for feature in features] == [(height // r, width // r) for r in REDUCTIONS]
        assert all(feature.isfinite().all() and feature.std() > 1e-4 for feature in features)

    @pytest.mark.parametrize("taps", [("P2",), ("P3", "P5"), ("P4",), ("P2", "P3", "P4")])
    def test_taps(self, taps: tuple[str, ...]) -> None:
        whole, part = self.build(), self.build(taps=taps)
        report = part.load_state_dict(whole.state_dict(), strict=False)
        chosen = [TAPS.index(tap) for tap in taps]
        assert not report.missing_keys
        assert part.out_channels == tuple(self.expected[self.smallest].channels[i] for i in chosen)
        assert part.reductions == tuple(REDUCTIONS[i] for i in chosen)
        image = random_image(64, 96)
        features = run(whole, image)
        torch.testing.assert_close(run(part, image), [features[i] for i in chosen], rtol=0, atol=0)
        # stages behind the last tap are not built
        unbuilt = {f"stages.{i}" for i in range(len(TAPS)) if i > max(chosen)}
        assert {".".join(key.split(".")[:2]) for key in report.unexpected_keys} == unbuilt

    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_image_channels(self, channels: int) -> None:
        backbone = self.build(in_channels=channels)
        assert next(backbone.parameters()).shape[1] == channels
        image = random_image(64, 32, channels=channels)
        # nothing is published for other channels, so "auto" takes the image as it is
        torch.testing.assert_close(
            run(backbone, image), run(self.build(in_channels=channels, input_norm="none"), image), rtol=0, atol=0
        )

    # --- errors -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("taps", "message"),
        [
            (("P6",), r"no tap 'P6'. Allowed: P2, P3, P4, P5"),
            (("P5", "P3"), "shallow to deep"),
            (("P3", "P3"), "each once"),
            ((), "at least one"),
        ],
    )
    def test_wrong_taps(self, taps: tuple[str, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.build(taps=taps)

    @pytest.mark.parametrize(
        ("height", "width", "fit"), [(65, 64, "96 x 64"), (64, 100, "64 x 128"), (16, 16, "32 x 32")]
    )
    def test_wrong_size(self, height: int, width: int, fit: str) -> None:
        with pytest.raises(ValueError, match=f"{height} x {width}.* multiples of 32.* {fit}"):
            run(self.build(), random_image(height, width))

    def test_wrong_variant(self) -> None:
        with pytest.raises(ValueError, match=f"Unknown variant '{self.family}_xyz'.*Allowed: .*{self.smallest}"):
            self.build("xyz")

    @pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
    def test_wrong_drop_path_rate(self, rate: float) -> None:
        with pytest.raises(ValueError, match=f"drop_path_rate is {rate}"):
            self.build(drop_path_rate=rate)

    def test_init(self) -> None:
        name = f"{self.family}_{self.smallest}"
        torch.manual_seed(0)
        published = dict(create_backbone(name, **self.options).named_parameters())
        torch.manual_seed(0)
        changed = dict(create_backbone(name, init="scratch", **self.options).named_parameters())
        assert list(changed) == list(published)
        differ = {key for key, value in changed.items() if not torch.equal(value, published[key])}
        assert bool(differ) != self.draws_as_scratch
        embeddings = self.build().no_weight_decay()
        for key in (key for key in differ - embeddings if changed[key].ndim > 1):  # uniform within 1 / sqrt(fan in)
            deviation = (changed[key].numel() / len(changed[key]) * 3) ** -0.5
            assert changed[key].detach().std().item() == pytest.approx(deviation, rel=0.15), key
        with pytest.raises(ValueError, match="init is 'zeros'; it must be one of published, scratch"):
            create_backbone(name, init="zeros")  # type: ignore[arg-type]

    def test_wrong_input_norm(self) -> None:
        with pytest.raises(ValueError, match="input_norm is 'imagenet'; it must be one of auto, none"):
            self.build(input_norm="imagenet")  # type: ignore[arg-type]

    def test_wrong_normed_taps(self) -> None:
        with pytest.raises(ValueError, match=r"normed_taps are \('P2',\); they must be among the taps, P3, P5"):
            self.build(taps=("P3", "P5"), normed_taps=("P2",))

    # --- numbers ------------------------------------------------------------------------------------------------------

    def test_normed_taps(self) -> None:
        taps = TAPS[1:]
        plain, normed = self.build(), self.build(normed_taps=taps)
        added = set(normed.state_dict()) - set(plain.state_dict())
        assert {key.rpartition(".")[0] for key in added} == {f"tap_norms.{tap}" for tap in taps}
        before = {key: normed.state_dict()[key].clone() for key in added}
        normed.load_state_dict(plain.state_dict())  # strict: published weights have none
        for key in added:
            torch.testing.assert_close(normed.state_dict()[key], before[key], rtol=0, atol=0)
        plain.load_state_dict(normed.state_dict())  # and the other way round
        image = random_image(64, 96)
        first, *others = run(plain, image)
        wanted = [first]
        for tap, feature in zip(taps, others, strict=True):
            weight, bias, mean, var = (
                before[f"tap_norms.{tap}.{name}"][:, None, None]
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            wanted.append((feature / 16 - mean) / (var + 1e-5).sqrt() * weight + bias)  # a 16th: TAP_SHARE
        assert_features(run(normed, image), wanted, 1e-6)
        fused = fusion.fuse(normed)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.tap_norms.modules())
        assert_features(run(fused, image), wanted, 1e-5)

    def test_norms_behind_taps_start_as_the_identity(self) -> None:
        plain = self.build()
        normed = self.fresh(normed_taps=TAPS).eval()
        normed.load_state_dict(plain.state_dict())
        image = random_image(64, 96)
        assert_features(run(normed, image), run(plain, image), 1e-6)

    def test_pickles_from_before_norms_behind_taps_work(self) -> None:
        backbone = self.build()
        image, old = random_image(64, 32), copy.deepcopy(backbone)
        del old._modules["tap_norms"]
        assert_features(run(pickle.loads(pickle.dumps(old)), image), run(backbone, image), 0)

    def test_normed_taps_learn(self) -> None:
        backbone = self.build(taps=("P3", "P5"), normed_taps=("P3", "P5")).train()
        torch.manual_seed(0)
        features = backbone(random_image(64, 64, batch=4))
        for feature in features:  # with batch statistics, only the affine part sets the scale
            assert feature.std((0, 2, 3)).max() < 1
        sum((feature**2).sum() for feature in features).backward()
        for norm in backbone.tap_norms.parameters():
            assert norm.grad is not None
            assert norm.grad.abs().max() > 0

    def test_input_norm_equals_an_image_prepared_by_hand(self) -> None:
        backbone, bare = self.build(), self.build(input_norm="none")
        assert list(backbone.state_dict()) == list(bare.state_dict()), "a convention is not a weight"
        image = random_image(64, 96, batch=2)
        expected = run(bare, self.prepare(image))
        assert_features(run(backbone, image), expected, 1e-5)
        assert_features(run(fusion.fuse(backbone), image), expected, 1e-5)
        assert not torch.equal(run(bare, image)[0], expected[0]), "preparing the image made no difference"

    def test_images_of_a_batch_do_not_mix(self) -> None:
        backbone = self.build()
        image = random_image(64, 96, batch=2)
        together = run(backbone, image)
        for i in range(2):
            assert_features([feature[i : i + 1] for feature in together], run(backbone, image[i : i + 1]), 1e-5)

    def test_deterministic_in_eval_mode(self) -> None:
        backbone = self.build(drop_path_rate=0.5)
        image = random_image(64, 64)
        torch.testing.assert_close(run(backbone, image), run(backbone, image), rtol=0, atol=0)

    def test_channels_last(self) -> None:
        backbone, image = self.build(), random_image(64, 96)
        expected = run(backbone, image)
        backbone = backbone.to(memory_format=torch.channels_last)
        assert_features(run(backbone, image.to(memory_format=torch.channels_last)), expected, 1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        backbone, image = self.build(), random_image(64, 96)
        expected = run(backbone, image)
        features = run(backbone.to(dtype), image.to(dtype))
        assert all(feature.dtype == dtype for feature in features)
        # in random networks of this depth, rounding to 8 or 11 bits adds up to a few per cent of the deviation
        for ours, theirs in zip(features, expected, strict=True):
            assert (ours.float() - theirs).std() < 0.1 * theirs.std()

    def test_finite_in_bfloat16_at_full_size(self) -> None:
        backbone = self.fresh().eval().bfloat16()
        assert all(feature.isfinite().all() for feature in run(backbone, random_image(640, 640).bfloat16()))

    @pytest.mark.parametrize("start", ["fresh", "randomised"])
    def test_nothing_overflows_float16_at_full_size(self, start: str) -> None:
        # float16 itself takes minutes at this size on a CPU
        backbone = self.fresh().eval()
        if start == "randomised":
            randomise(backbone)
        largest = {}
        for name, module in backbone.named_modules():
            if name and not list(module.children()):
                module.register_forward_hook(
                    lambda _module, _inputs, output, name=name: largest.update({name: output.abs().max().item()})
                )
        run(backbone, random_image(640, 640))
        assert max(largest.values()) < torch.finfo(torch.float16).max / 16, max(largest, key=largest.__getitem__)

    def test_autocast(self) -> None:
        backbone, image = self.build(), random_image(64, 64)
        expected = run(backbone, image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = run(backbone, image)
        for ours, theirs in zip(features, expected, strict=True):
            assert (ours.float() - theirs).std() < 0.1 * theirs.std()

    @pytest.mark.parametrize("taps", [(), ("P5",)], ids=["plain", "normed"])
    def test_sync_batchnorm(self, taps: tuple[str, ...]) -> None:
        backbone = self.build(normed_taps=taps)
        image = random_image(64, 96)
        expected = run(backbone, image)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(backbone)).eval()
        assert_features(run(converted, image), expected, 1e-6)
        fused = fusion.fuse(converted)
        assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fused.modules())
        assert_features(run(fused, image), expected, 1e-5)
        converted.load_state_dict(self.build().state_dict())  # strict: published weights have no norms behind taps
        converted.load_state_dict(backbone.state_dict())
        assert_features(run(converted, image), expected, 1e-6)

    @pytest.mark.parametrize("way", ["half", "bfloat16", "to_empty", "meta"])
    def test_constants_survive_what_happens_to_memory(self, way: str) -> None:
        backbone, image = self.build(normed_taps=("P3",)), random_image(64, 96)
        state = copy.deepcopy(backbone.state_dict())
        expected = [run(module, image) for module in (backbone, fusion.fuse(backbone))]
        if way == "meta":
            with torch.device("meta"):
                backbone = self.fresh(normed_taps=("P3",)).eval()
            backbone = backbone.to_empty(device="cpu")
            fresh = self.fresh(normed_taps=("P3",)).tap_norms.state_dict()
            torch.testing.assert_close(backbone.tap_norms.state_dict(), fresh, rtol=0, atol=0)
        elif way == "to_empty":
            backbone = backbone.to_empty(device="cpu")
            for buffer in backbone.input_norm.buffers():
                assert buffer.dtype == torch.float32
        else:
            backbone = backbone.to(getattr(torch, way)).float()
        backbone.load_state_dict(state)
        for module, wanted in zip((backbone, fusion.fuse(backbone)), expected, strict=True):
            torch.testing.assert_close(run(module, image), wanted, rtol=0, atol=0)

    # --- training -----------------------------------------------------------------------------------------------------

    def test_every_parameter_gets_a_gradient(self) -> None:
        backbone = self.build().train()
        loss = sum(feature.square().mean() for feature in backbone(random_image(64, 96, batch=2)))
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        dead = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not dead
        assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())

    def test_trains_on_a_single_image(self) -> None:
        # Ultralytics does this when it searches for a batch size, and with a last batch of one image
        features = self.build().train()(random_image(64, 64))
        assert all(feature.isfinite().all() for feature in features)

    def test_drop_path_rises_to_its_rate(self) -> None:
        rates = [m.rate for m in self.build(drop_path_rate=0.3).modules() if isinstance(m, DropPath)]
        assert rates[0] == 0
        assert max(rates) == rates[-1] == pytest.approx(0.3)
        assert all(m.rate == 0 for m in self.build().modules() if isinstance(m, DropPath))

    def test_drop_path_drops_in_training(self) -> None:
        backbone = self.build(drop_path_rate=0.9).train()
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d | nn.Dropout):
                module.eval()  # so that nothing else depends on the batch or on chance
        image = random_image(64, 64)
        torch.manual_seed(0)
        first, second = run(backbone, image), run(backbone, image)
        assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))

    # --- folding ------------------------------------------------------------------------------------------------------

    def test_fused_equals_unfused(self, fused_variant: str, dtype: torch.dtype, tolerance: float) -> None:
        backbone = self.build(fused_variant).to(dtype)
        fused = fusion.fuse(backbone)
        assert fusion.is_fused(fused)
        assert not fusion.is_fused(backbone)
        assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in backbone.parameters())
        # on P5 maps below about ten positions, PyTorch sums thousands of products one by one, which is less exact
        for height, width in ((96, 160), (160, 96)):
            image = random_image(height, width).to(dtype)
            assert_features(run(fused, image), run(backbone, image), tolerance)

    def test_fusing_from_half_precision_weights(self) -> None:
        backbone = self.build().half().float()
        image = random_image(64, 96)
        assert_features(run(fusion.fuse(backbone), image), run(backbone, image), 1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_fusing_keeps_half_precision(self, dtype: torch.dtype) -> None:
        backbone, image = self.build(), random_image(64, 96)
        expected = run(backbone, image)
        fused = fusion.fuse(backbone.to(dtype))
        assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
        for ours, theirs in zip(run(fused, image.to(dtype)), expected, strict=True):
            assert (ours.float() - theirs).std() < 0.1 * theirs.std()

    def test_fusing_leaves_its_argument_alone(self) -> None:
        backbone = self.build(drop_path_rate=0.2).train()
        before = copy.deepcopy(backbone.state_dict())
        names = [name for name, _ in backbone.named_modules()]
        fused = fusion.fuse(backbone)
        assert backbone.training
        assert not fused.training
        assert all(parameter.requires_grad for parameter in backbone.parameters())
        assert not any(parameter.requires_grad for parameter in fused.parameters())
        assert names == [name for name, _ in backbone.named_modules()]
        torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)
        shared = {p.data_ptr() for p in backbone.parameters()} & {p.data_ptr() for p in fused.parameters()}
        assert not shared

    def test_fusing_twice_changes_nothing(self) -> None:
        once = fusion.fuse(self.build())
        twice = fusion.fuse(once)
        torch.testing.assert_close(dict(twice.state_dict()), dict(once.state_dict()), rtol=0, atol=0)
        image = random_image(96, 64)
        torch.testing.assert_close(run(twice, image), run(once, image), rtol=0, atol=0)

    def test_fused_model_follows_the_image_size(self) -> None:
        backbone = self.build()
        fused = fusion.fuse(backbone)
        for height, width in ((64, 64), (32, 96), (96, 32), (64, 64)):
            image = random_image(height, width)
            assert_features(run(fused, image), run(backbone, image), 1e-5)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
    @pytest.mark.parametrize("warm", [False, True])
    def test_fused_model_traces(self, warm: bool) -> None:
        fused = fusion.fuse(self.build())
        image = random_image(64, 96)
        if warm:  # as Ultralytics does before it exports
            run(fused, image)
        traced = torch.jit.trace(fused, torch.zeros(1, 3, 64, 96), check_trace=False)  # type: ignore[no-untyped-call]
        assert_features(run(traced, image), run(fused, image), 1e-5)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
    def test_fused_model_traces_for_any_size(self) -> None:
        fused = fusion.fuse(self.build())
        recording.record_for(fused, any_size=True)
        image = random_image(64, 96)
        run(fused, image)
        traced = torch.jit.trace(fused, image, check_trace=False)  # type: ignore[no-untyped-call]
        for height, width in ((64, 96), (96, 64), (32, 160), (224, 192)):
            image = random_image(height, width, batch=2)
            assert_features(run(traced, image), run(fused, image), 1e-5)

    # --- files --------------------------------------------------------------------------------------------------------

    def test_state_dict_round_trip(self) -> None:
        backbone = self.build()
        other = self.build()
        randomise(other, seed=1)
        image = random_image(64, 64)
        assert not torch.equal(run(other, image)[-1], run(backbone, image)[-1])
        other.load_state_dict(backbone.state_dict())
        torch.testing.assert_close(run(other, image), run(backbone, image), rtol=0, atol=0)

    @pytest.mark.parametrize("fused", [False, True])
    def test_copies_and_pickles(self, fused: bool) -> None:
        backbone: nn.Module = self.build()
        if fused:
            backbone = fusion.fuse(backbone)
        image = random_image(64, 64)
        expected = run(backbone, image)
        file = io.BytesIO()
        torch.save(backbone, file)
        file.seek(0)
        saved = torch.load(file, weights_only=False)
        for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), saved):
            torch.testing.assert_close(run(other, image), expected, rtol=0, atol=0)
