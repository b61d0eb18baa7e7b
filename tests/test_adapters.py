"""Backbones in torchvision's detectors and segmentation_models.pytorch's decoders, and the examples of them."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from contract import assert_features, random_image, randomise, run
from families import SMALLEST
from places import REPOSITORY

from yolo_lightbackbones import create_backbone, fuse
from yolo_lightbackbones.adapters import Encoder, NamedMaps

EXAMPLES = REPOSITORY / "examples"
DILATED = ("repvit_m0_6", "parcnet_xs", "parc_mobilenetv2")
"""Their downsampling is by convolutions with odd kernels; that of the others is by 2x2 patches."""


def encoder(name: str, depth: int = 5, output_stride: int = 32) -> Encoder:
    """An encoder as segmentation_models.pytorch makes one, with random weights."""
    made = Encoder(name, depth=depth, output_stride=output_stride)
    made.set_in_channels(3, pretrained=False)
    if output_stride != 32:
        made.make_dilated(output_stride)
    randomise(made)
    return made.eval()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SMALLEST.values())
def test_maps_have_names_and_channels(name: str) -> None:
    backbone = create_backbone(name, taps=("P3", "P5"))
    randomise(backbone)
    maps = NamedMaps(backbone.eval())
    image = random_image(64, 96)
    seen = maps(image)
    assert list(seen) == ["0", "1"]
    assert [feature.shape[1] for feature in seen.values()] == maps.out_channels
    assert_features(list(seen.values()), run(backbone, image), 0)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SMALLEST.values())
def test_an_encoder_gives_a_map_for_every_power_of_two(name: str) -> None:
    for depth in (5, 3):
        made = encoder(name, depth)
        image = random_image(64, 96)
        maps = run(made, image)
        assert [feature.shape[1] for feature in maps] == made.out_channels
        assert [tuple(feature.shape[2:]) for feature in maps] == [(64 >> i, 96 >> i) for i in range(depth + 1)]
        assert torch.equal(maps[0], image)
        assert made.out_channels[1] == 0
        assert made.output_stride == 2**depth
    made.set_in_channels(4)
    assert made.out_channels[0] == 4
    assert made(random_image(32, 32, channels=4))[0].shape == (1, 4, 32, 32)


def test_an_encoder_takes_the_options_of_a_backbone() -> None:
    made = Encoder("conv2former_is", pyramid="simple")
    assert made.out_channels == [3, 0, 256, 256, 256, 256]
    assert [feature.shape[2] for feature in made.eval()(random_image(64, 64))] == [64, 32, 16, 8, 4, 2]
    with pytest.raises(ValueError, match="conv2former_n needs none"):
        Encoder("conv2former_n", pyramid="simple")
    with pytest.raises(TypeError, match="pyramids"):
        Encoder("conv2former_is", pyramids="simple")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", DILATED)
def test_a_dilated_encoder_keeps_its_maps_at_the_stride(name: str, output_stride: int) -> None:
    made, image = encoder(name, output_stride=output_stride), random_image(64, 96)
    maps = run(made, image)
    assert [64 // feature.shape[2] for feature in maps] == [1, 2, 4, 8, output_stride, output_stride]
    assert made.output_stride == output_stride
    assert_features(run(fuse(made.backbone), image), maps[2:], 1e-5)


@pytest.mark.usefixtures("one_thread")
def test_every_second_value_of_a_dilated_map_is_that_of_the_strided_map() -> None:
    """A dilated network is the strided one, computed at more places; its gates are off, as their means would differ."""
    strided, dilated = encoder("repvit_m0_6"), encoder("repvit_m0_6", output_stride=8)
    for made in (strided, dilated):
        for name, parameter in made.named_parameters():
            if ".fc2.weight" in name:
                torch.nn.init.zeros_(parameter)
    dilated.load_state_dict(strided.state_dict())
    image = random_image(96, 160)
    wanted, seen = run(strided, image), run(dilated, image)
    assert_features([seen[4][..., ::2, ::2], seen[5][..., ::4, ::4]], wanted[4:], 1e-5)


@pytest.mark.parametrize("name", sorted({*SMALLEST.values()} - {*DILATED}))
def test_what_has_no_dilated_form_is_refused(name: str) -> None:
    said = rf"{name} cannot keep its maps at 1/16: .* Choose encoder_depth=4, whose deepest map is at 1/16\."
    with pytest.raises(ValueError, match=said):
        encoder(name, output_stride=16)
    made = encoder(name, depth=4, output_stride=16)  # nothing to dilate
    assert run(made, random_image(64, 64))[-1].shape[2:] == (4, 4)


def test_mistakes() -> None:
    for depth in (1, 6):
        with pytest.raises(ValueError, match=f"The depth of the encoder repvit_m0_6 is {depth}; it must be 2 to 5"):
            Encoder("repvit_m0_6", depth=depth)
    with pytest.raises(ValueError, match="Unknown variant 'repvit_m06' of RepViT"):
        Encoder("repvit_m06")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        Encoder("repvit_m0_6", weights="nothing.pth")


def test_weights_are_loaded(tmp_path: Path) -> None:
    backbone = create_backbone("repvit_m0_6")
    randomise(backbone)
    torch.save(backbone.state_dict(), tmp_path / "weights.pth")
    image = random_image(64, 64)
    made = Encoder("repvit_m0_6", weights=tmp_path / "weights.pth").eval()
    assert_features(run(made, image)[2:], run(backbone.eval(), image), 0)


# --- the examples -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "command",
    [
        "torchvision_detectors.py --detector retinanet --backbone edgevit_xxs --steps 24",
        "torchvision_detectors.py --detector ssd --backbone parcnet_xs --steps 8",
        "torchvision_detectors.py --detector maskrcnn --backbone repvit_m0_6 --steps 8",
        "smp_segmenters.py --segmenter upernet --backbone edgevit_xxs --steps 8",
        "smp_segmenters.py --segmenter deeplabv3 --backbone conv2former_n --steps 8 --depth 4",
        "smp_segmenters.py --segmenter deeplabv3 --backbone repvit_m0_6 --steps 8",
    ],
)
def test_an_example_learns_without_ultralytics(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision")
    script, _, model, *_ = words = command.split()
    if script.startswith("smp"):
        pytest.importorskip("segmentation_models_pytorch", reason="the example is for segmentation_models.pytorch")
    monkeypatch.setattr(sys, "argv", [*words, "--out", "made/here"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setitem(sys.modules, "ultralytics", None)  # importing it fails
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss (\S+)$", capsys.readouterr().out, re.M)]
    assert len(losses) == int(words[words.index("--steps") + 1])
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), losses
    assert (tmp_path / "made" / "here" / f"{model}.png").stat().st_size > 1000


@pytest.mark.parametrize("detector", ["retinanet", "ssd", "maskrcnn"])
def test_torchvision_does_not_normalise_what_the_backbone_normalises(
    detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    build = runpy.run_path(str(EXAMPLES / "torchvision_detectors.py"))["build"]
    image = random_image(128, 128)
    seen, _ = build(detector, "repvit_m0_6").transform(list(image))
    torch.testing.assert_close(seen.tensors, image, rtol=0, atol=0)


def test_torchvision_takes_models_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    build = runpy.run_path(str(EXAMPLES / "torchvision_detectors.py"))["build"]
    (found,) = build("retinanet", "timm/test_resnet").eval()(list(random_image(128, 128)))
    assert set(found) == {"boxes", "scores", "labels"}


def test_an_encoder_that_cannot_be_dilated_ends_the_example_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="the example is for segmentation_models.pytorch")
    monkeypatch.setattr(sys, "argv", ["smp_segmenters.py", "--backbone", "edgevit_xxs"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with pytest.raises(SystemExit, match=r"error: edgevit_xxs cannot keep its maps at 1/16.*Choose encoder_depth=4"):
        runpy.run_path(str(EXAMPLES / "smp_segmenters.py"), run_name="__main__")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["torchvision_detectors.py", "smp_segmenters.py"])
def test_an_example_is_short(script: str) -> None:
    assert len((EXAMPLES / script).read_text().splitlines()) <= 60
