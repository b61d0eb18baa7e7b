"""Checks a family against the contract of a backbone, for the tests of packages that bring one; needs torch only.

    import pytest
    from yolo_lightbackbones import list_backbones, testing

    @pytest.mark.parametrize("name", list_backbones("sepnet"))
    def test_contract(name):
        testing.check_backbone(name)

Weights and statistics are random, because a fresh model hides mistakes: its norms are the identity, and its layer
scales are nearly 0.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolo_lightbackbones import fusion, registry
from yolo_lightbackbones.backbone import Backbone
from yolo_lightbackbones.blocks import BlockRow
from yolo_lightbackbones.checkpoints.layouts import layouts_of
from yolo_lightbackbones.checkpoints.rules import Drop, Rename
from yolo_lightbackbones.messages import listed

TOLERANCE = 1e-5
"""Largest difference of two maps that should be equal, as a share of the largest value."""


def check_backbone(name: str) -> None:
    """Check a variant: its taps, any image size, gradients, folding, other numbers of channels, and saving.

    Args:
        name: full name of the variant, such as `sepnet_n`.

    Raises:
        AssertionError: for the first promise that the variant breaks; the message says which.
        ValueError: for an unknown name, and for whatever the variant itself refuses.
    """
    _check_shapes(name)
    backbone = _build(name)
    divisor = backbone.size_divisibility
    image = random_image(2 * divisor, 3 * divisor, batch=2)
    maps = run(backbone, image)
    for tap, feature in zip(backbone.taps, maps, strict=True):
        _require(bool(feature.isfinite().all() and feature.std() > 1e-4), f"{name}: the values of {tap} are dead")
    _check_single_images(name, backbone, image, maps)
    _check_sizes(name, backbone)
    _check_channels(name)
    _check_taps(name, backbone, image, maps)
    _check_folding(name, backbone, image, maps)
    _check_saving(name, backbone, image, maps)
    _check_gradients(name, backbone, image)


def check_rows(family: str) -> None:
    """Check the rows of blocks of a family: other channels, any size, gradients, folding.

    Raises:
        AssertionError: for the first promise that a row breaks.
        ValueError: for an unknown family.
    """
    for title, row in _family(family).block_rows.items():
        _require(issubclass(row, BlockRow), f"{title} is no subclass of BlockRow")
        module = row(8, 16, repeats=2)
        randomise(module)
        x = random_image(13, 20, batch=2, channels=8)
        out = module.eval()(x)
        _require(tuple(out.shape) == (2, 16, 13, 20), f"{title}: (2, 8, 13, 20) became {tuple(out.shape)}")
        _require_gradients(title, module, [module.train()(x)])
        with torch.no_grad():
            assert_features([fusion.fuse(module)(x)], [module.eval()(x)], TOLERANCE, f"{title} folded")


def check_layouts(family: str) -> None:
    """Check the layouts of a family: they can be imported, and every rule matches its own example.

    Raises:
        AssertionError: for the first rule that does not match its example.
        ValueError: for an unknown family, and for layouts that cannot be imported.
    """
    for layout in layouts_of(_family(family)):
        for rule in layout.rules:
            matching = [other for other in layout.rules if re.fullmatch(other.pattern, rule.example)]
            _require(rule in matching, f"{layout.name}: {rule.pattern!r} does not match {rule.example!r}")
            moves = [other for other in matching if isinstance(other, Rename | Drop)]
            _require(len(moves) <= 1, f"{layout.name}: {len(moves)} rules match {rule.example!r}")


# --- tools, for tests of your own -------------------------------------------------------------------------------------


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Set every parameter and statistic to a value that differs from its initial one, at scales that keep maps alive.

    A fresh model hides mistakes: its norms are the identity, its layer scales are nearly 0, and in a fresh RepViT the
    last norms of the residual branches are 0.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point() or "input_norm" in name:
                continue
            if name.endswith("running_var"):
                low, high = 0.5, 1.5
            elif name.endswith(("running_mean", "bias")):
                low, high = -0.1, 0.1
            elif tensor.ndim > 1:
                high = (3 / tensor[0].numel()) ** 0.5
                low = -high
            else:
                low, high = 0.25, 0.75
            tensor.uniform_(low, high, generator=generator)


def random_image(height: int, width: int, *, batch: int = 1, channels: int = 3) -> Tensor:
    """Return a random image (batch, channels, height, width) in 0..1, the same at every call."""
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def run(module: nn.Module, image: Tensor) -> list[Tensor]:
    """Compute the features of an image, without gradients."""
    with torch.no_grad():
        features: list[Tensor] = module(image)
    return features


def assert_features(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str = "") -> None:
    """Compare every value with a tolerance of `tolerance` times the largest value of its map.

    Raises:
        AssertionError: for a value that differs, or a dead map; the message begins with `what`.
    """
    _require(len(actual) == len(expected), f"{what}: {len(actual)} maps instead of {len(expected)}")
    for ours, theirs in zip(actual, expected, strict=True):
        _require(theirs.std().item() > 1e-4, f"{what}: a dead feature map proves nothing")
        atol = tolerance * theirs.abs().max().item()
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}" if what else text
        )


# --- the promises -----------------------------------------------------------------------------------------------------


def _check_shapes(name: str) -> None:
    """Build on the meta device, without memory, and compare the maps of several sizes with what the taps say."""
    with torch.device("meta"):
        backbone = registry.create_backbone(name, taps=None).eval()
    _require(bool(backbone.taps), f"{name} has no taps")
    divisor = backbone.size_divisibility
    for height, width in ((2 * divisor, 2 * divisor), (3 * divisor, 5 * divisor), (divisor, 7 * divisor)):
        features = backbone(torch.empty(2, 3, height, width, device="meta"))
        wanted = [
            (2, channels, height // reduction, width // reduction)
            for channels, reduction in zip(backbone.out_channels, backbone.reductions, strict=True)
        ]
        shapes = [tuple(feature.shape) for feature in features]
        _require(shapes == wanted, f"{name} at {height} x {width}: maps are {shapes}, its taps say {wanted}")
    meta = [key for key, _ in backbone.named_parameters() if "meta" in key.split(".")]
    _require(not meta, f"{name}: torch.export refuses a parameter with 'meta' in its name: {meta[:1]}")


def _check_single_images(name: str, backbone: Backbone, image: Tensor, maps: Sequence[Tensor]) -> None:
    """Images of a batch do not mix."""
    for i in range(len(image)):
        alone = run(backbone, image[i : i + 1])
        assert_features(alone, [feature[i : i + 1] for feature in maps], TOLERANCE, f"{name}, image {i} without others")


def _check_sizes(name: str, backbone: Backbone) -> None:
    divisor = backbone.size_divisibility
    if divisor == 1:
        return
    try:
        run(backbone, random_image(divisor + 1, divisor))
    except ValueError:
        return
    raise AssertionError(
        f"{name} takes an image of {divisor + 1} x {divisor}, and its size_divisibility is {divisor}: "
        "call self.check_size(x) in forward()"
    )


def _check_channels(name: str) -> None:
    for channels in (1, 4):
        first = next(_build(name, channels).parameters())
        _require(
            first.ndim == 4 and first.shape[1] == channels,
            f"{name}: its first parameter has the shape {tuple(first.shape)}; it must be the weight of a convolution "
            f"on the image of {channels} channels, because Ultralytics reads their number from it",
        )


def _check_taps(name: str, whole: Backbone, image: Tensor, maps: Sequence[Tensor]) -> None:
    for i, tap in enumerate(whole.taps):
        part = _build(name, taps=(tap,))
        missing = part.load_state_dict(whole.state_dict(), strict=False).missing_keys
        _require(not missing, f"{name} with {tap} only has parameters of its own: {listed(missing, 3)}")
        assert_features(run(part, image), [maps[i]], TOLERANCE, f"{name} with {tap} only")


def _check_folding(name: str, backbone: Backbone, image: Tensor, maps: Sequence[Tensor]) -> None:
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    fused = fusion.fuse(backbone)
    assert_features(run(fused, image), maps, TOLERANCE, f"{name} folded")
    _require(fusion.is_fused(fused), f"{name} can still be folded after fuse()")
    changed = [key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])]
    _require(not changed, f"{name}: fuse() changed its argument: {listed(changed, 3)}")


def _check_saving(name: str, backbone: Backbone, image: Tensor, maps: Sequence[Tensor]) -> None:
    """A state dict, and a pickle of the whole module as Ultralytics saves it."""
    other = _build(name, seed=1)
    other.load_state_dict(backbone.state_dict())
    assert_features(run(other, image), maps, 0, f"{name} after load_state_dict")
    file = io.BytesIO()
    torch.save(backbone, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)  # nosec B614 # the bytes that it has just written
    assert_features(run(loaded, image), maps, 0, f"{name} after torch.save")


def _check_gradients(name: str, backbone: Backbone, image: Tensor) -> None:
    _require_gradients(name, backbone, backbone.train()(image))
    features = backbone(image[:1])  # Ultralytics does this when it searches for a batch size
    _require(all(bool(feature.isfinite().all()) for feature in features), f"{name} cannot train on a single image")


def _require_gradients(name: str, module: nn.Module, features: Sequence[Tensor]) -> None:
    torch.stack([feature.square().mean() for feature in features]).sum().backward()  # type: ignore[no-untyped-call]
    dead = [key for key, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    _require(not dead, f"{name}: no gradient for {len(dead)} parameters: {listed(dead, 3)}")


def _build(name: str, channels: int = 3, taps: Sequence[str] | None = None, seed: int = 0) -> Backbone:
    backbone = registry.create_backbone(name, in_channels=channels, taps=taps)
    randomise(backbone, seed)
    return backbone.eval()


def _family(name: str) -> type[Backbone]:
    registry.list_backbones(name)  # raises for an unknown family, with the closest match
    return next(cls for cls in registry.families().values() if cls.family == name)


def _require(kept: bool, sentence: str) -> None:
    if not kept:
        raise AssertionError(f"{sentence}.")
