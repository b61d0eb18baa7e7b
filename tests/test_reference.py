"""The textbook forms in benchmarks/reference: they compute what was published, and what our backbones compute."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import published
import pytest
import torch
from places import REPOSITORY
from torch import nn

from yolo_lightbackbones import create_backbone, fuse, load_weights
from yolo_lightbackbones.testing import assert_features, random_image, randomise, run

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = ("edgevit_xxs_96x64", "parcnet_s_96x96", "repvit_m0_9_96x64", "conv2former_n_96x64")
SMALLEST = ("edgevit_xxs", "parcnet_xs", "repvit_m0_6", "conv2former_n")


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("reference")


@pytest.mark.parametrize("name", GOLDEN)
def test_published_outputs(reference: ModuleType, name: str, tmp_path: Path) -> None:
    golden = published.golden(name)
    backbone = create_backbone(golden["name"], input_norm="none").eval()
    state = published.make_state(golden["keys"])
    load_weights(backbone, published.save_checkpoint(state, tmp_path / "w.pth", golden["checkpoint_wrapper"]))
    plain = reference.twin(backbone, golden["name"])
    image = published.make_image(golden["input"]["shape"])
    for form in (plain, reference.folded(plain)):
        outputs = run(form, image)
        for output, expected in zip(outputs, golden["taps"].values(), strict=True):
            values = output.flatten()[expected["indices"]]
            assert list(output.shape) == expected["shape"]
            torch.testing.assert_close(
                values, torch.tensor(expected["values"]), rtol=0, atol=1e-5 * max(map(abs, expected["values"]))
            )


@pytest.mark.parametrize("name", SMALLEST)
def test_equals_our_backbone(reference: ModuleType, name: str) -> None:
    backbone = create_backbone(name, input_norm="none").eval()
    randomise(backbone)
    plain = reference.twin(backbone, name)
    image = random_image(64, 96, batch=2)
    ours = run(fuse(backbone), image)
    assert_features(run(plain, image), ours, 1e-5, f"{name} as it is")
    assert_features(run(reference.folded(plain), image), ours, 1e-5, f"{name} folded")
    with torch.no_grad():
        largest = max(backbone.parameters(), key=torch.numel)
        largest += 0.01  # the weights were copied, not shared, so only ours changes
    assert not torch.allclose(run(plain, image)[-1], run(backbone, image)[-1], rtol=1e-3)


@pytest.mark.parametrize("name", SMALLEST)
def test_trains_like_our_backbone(reference: ModuleType, name: str) -> None:
    backbone = create_backbone(name, input_norm="none").double()
    randomise(backbone)
    plain = reference.twin(backbone, name)
    image = random_image(64, 64, batch=2).double()
    gradients = []
    for model in (backbone, plain):
        torch.manual_seed(0)  # dropout
        sum(feature.square().mean() for feature in model.train()(image)).backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    for key, gradient in ours.items():
        expected = theirs[key].reshape(gradient.shape)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")


def test_only_repvit_folds_as_its_authors_fold(reference: ModuleType) -> None:
    norms = {}
    for name in SMALLEST:
        backbone = create_backbone(name).eval()
        folded = reference.folded(reference.twin(backbone, name))
        norms[name] = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert not folded.training
    assert norms.pop("repvit_m0_6") == 0
    assert all(norms.values()), norms


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [("edgevit_xxs", "edgevit_xs", "differ in .* tensors"), ("resnet_18", "edgevit_xxs", "resnet_18 has no reference")],
)
def test_refuses_other_weights(reference: ModuleType, name: str, other: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.twin(create_backbone(other), name)
