"""The option `pretrained` of Timm rows, with a cache of the hub that is made here; nothing goes to the network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contract import randomise
from test_timm_rows import config

from yolo_lightbackbones import Options, create_backbone
from yolo_lightbackbones.backbones import timm_adapter
from yolo_lightbackbones.backbones.timm_adapter import Timm
from yolo_lightbackbones.plugin import pretrained, register
from yolo_lightbackbones.plugin.row import ConfigError

timm = pytest.importorskip("timm")
hub = pytest.importorskip("huggingface_hub")

NAME, REPOSITORY = "test_efficientnet.r160_in1k", "timm/test_efficientnet.r160_in1k"

register()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which is offline."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    timm_adapter._say_once.cache_clear()
    return tmp_path / "hub"


@pytest.fixture
def weights(cache: Path) -> dict[str, torch.Tensor]:
    """Weights of a model of timm, in the cache as the hub's client puts them there."""
    from safetensors.torch import save_file

    model = timm.create_model("test_efficientnet")
    randomise(model)
    place = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (snapshot := place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    state: dict[str, torch.Tensor] = model.state_dict()
    save_file(state, snapshot / "model.safetensors")
    return state


def build(args: str, **more: Any) -> Any:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel({**config(args), **more}, ch=3, verbose=False)


def assert_loaded(backbone: Any, state: dict[str, torch.Tensor]) -> None:
    own = backbone.body.state_dict()
    assert len(own) > 50
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


def test_weights_come_from_the_cache_and_say_their_licence_once(
    weights: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert_loaded(build(f"{NAME}, {{pretrained: true}}").model[0], weights)
    said = capfd.readouterr().err
    licence = timm.models.get_pretrained_cfg(NAME).license or "not stated"
    assert said.count(f"{NAME}: weights of huggingface.co/{REPOSITORY}, licence {licence}") == 1


def test_weights_in_python(weights: dict[str, torch.Tensor]) -> None:
    assert_loaded(Timm(NAME, Options(pretrained=True)), weights)
    fresh = create_backbone(f"timm/{NAME}")
    assert not torch.equal(fresh.body.conv_stem.weight, weights["conv_stem.weight"])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_image_channels(weights: dict[str, torch.Tensor], channels: int) -> None:
    stem = Timm(NAME, Options(pretrained=True, in_channels=channels)).body.conv_stem.weight
    assert stem.shape[1] == channels
    if channels == 1:
        torch.testing.assert_close(stem, weights["conv_stem.weight"].sum(1, keepdim=True))


def test_without_the_file_a_sentence_says_what_to_fetch() -> None:
    with pytest.raises(ConfigError) as error:
        build(f"{NAME}, {{pretrained: true}}")
    said = str(error.value)
    assert said.startswith("my.yaml, row 0 ")
    assert f"Fetch https://huggingface.co/{REPOSITORY}/resolve/main/model.safetensors where there is a network" in said
    assert "pretrained: PATH" in said
    assert "\n" not in said


def test_a_model_without_published_weights() -> None:
    name = next(name for name in ("ecaresnet200d", "resnetv2_18d", "convnext_pico_ols") if _has_no_weights(name))
    with pytest.raises(ValueError, match=f"timm has no published weights of {name}"):
        Timm(name, Options(taps=None)).load_published()


def _has_no_weights(name: str) -> bool:
    cfg = timm.models.get_pretrained_cfg(name)
    return cfg is None or not cfg.has_weights


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("test_resnet")
    randomise(model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    for path in ("weights.pth", tmp_path / "weights.pth"):
        assert_loaded(build(f"test_resnet, {{pretrained: {path}}}").model[0], model.state_dict())


def test_a_wrong_file(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "weights.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ConfigError, match=r"row 0 .*weights\.pth: 0 of [0-9]+ tensors fit timm/test_resnet"):
        build(f"test_resnet, {{pretrained: {tmp_path}/weights.pth}}")
    with pytest.raises(ConfigError, match=r"row 0 .*text\.pth is not a checkpoint"):
        build(f"test_resnet, {{pretrained: {tmp_path}/text.pth}}")
    with pytest.raises(ConfigError, match=r"row 0 .*There is no weights file .*none\.pth"):
        build(f"test_resnet, {{pretrained: {tmp_path}/none.pth}}")


def test_the_yaml_of_a_training_loads_nothing_again() -> None:
    given = f"{NAME}, {{pretrained: true}}"
    started = build(given, pretrained=False)  # the cache is empty, so that loading would fail
    model = SimpleNamespace(yaml=config(given))
    average = SimpleNamespace(yaml=config(given))
    pretrained.on_training(SimpleNamespace(model=SimpleNamespace(module=model), ema=SimpleNamespace(ema=average)))
    for marked in (model, average):
        assert marked.yaml == {**config(given), "pretrained": False}
        assert marked.yaml["backbone"] == started.yaml["backbone"]
    assert pretrained.without(config("test_resnet")) == config("test_resnet")


def test_info_fetches_nothing(tmp_path: Path) -> None:
    import yaml
    from typer.testing import CliRunner

    from yolo_lightbackbones.cli import app

    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config(f"{NAME}, {{pretrained: true}}")))
    result = CliRunner().invoke(app, ["info", str(tmp_path / "my.yaml"), "--imgsz", "64", "--json"])
    assert result.exit_code == 0, result.output
