"""The seams on Ultralytics: what they add, and that stock models do not notice them."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics
from detectors import awake_detector
from operations import operations
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils import checks, torch_utils
from ultralytics.utils.callbacks import base as callbacks

import yolo_lightbackbones
from yolo_lightbackbones import autoload, backbone, fusion, plugin, recording, registry
from yolo_lightbackbones.backbones.edgevit import VARIANTS, EdgeViT
from yolo_lightbackbones.layers import BatchNorm2d
from yolo_lightbackbones.plugin import fit, install, parse_model, rows
from yolo_lightbackbones.plugin.patching import Patches

STOCK = ["yolov5n.yaml", "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"]
STOCK_YAMLS = sorted((Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    """Every test starts and ends with the plugin installed, as in a process where the autoload ran."""
    yolo_lightbackbones.register()
    yield
    yolo_lightbackbones.register()


@pytest.fixture(scope="module")
def detector() -> Any:
    """A YOLOv5n on EdgeViT-XXS whose output depends on its image and whose norms have something to fold."""
    return awake_detector("yolov5n_edgevit.yaml").model


def build(name: str) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """State dict and raw outputs of a stock model with seeded weights."""
    torch.manual_seed(0)
    model = YOLO(name).model.eval()
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(image)
        fused = model.fuse(verbose=False)(image)
    return model.state_dict(), [tensor for out in (plain, fused) for tensor in flat(out)]


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for item in values for tensor in flat(item)]


@pytest.mark.parametrize("name", STOCK)
def test_stock_models_are_bit_identical_with_and_without_the_plugin(name: str) -> None:
    weights_on, outputs_on = build(name)
    yolo_lightbackbones.unregister()
    weights_off, outputs_off = build(name)
    assert list(weights_on) == list(weights_off)
    assert len(outputs_on) == len(outputs_off) > 1
    for on, off in zip([*weights_on.values(), *outputs_on], [*weights_off.values(), *outputs_off], strict=True):
        assert torch.equal(on, off)


@pytest.mark.parametrize("file", STOCK_YAMLS, ids=lambda file: file.stem)
def test_stock_yamls_reach_ultralytics_parser_as_they_are(file: Path) -> None:
    """All of Ultralytics' model YAMLs; one with a backbone of ours is then refused for nothing that is in them."""
    config = tasks.yaml_model_load(str(file))
    before, seen = copy.deepcopy(config), []
    parse_model.parse_model(lambda d, ch: seen.append((d, ch)), tasks, pytest.fail)(config, 3)
    assert seen[0][0] is config
    assert seen == [(before, 3)]

    mixed = {**config, "backbone": [[-1, 1, "EdgeViT", ["xxs"]], [0, 1, "Tap", ["P5"]]]}
    mixed["head"] = [[1, *row[1:]] for row in config["head"]]
    translated = rows.translate(mixed, 3, registry.families())
    assert [row[1:] for row in translated["head"]] == [row[1:] for row in before["head"]]


def test_unregister_leaves_nothing_behind_and_register_is_idempotent() -> None:
    yolo_lightbackbones.unregister()
    originals = (tasks.parse_model, tasks.BaseModel.fuse, tasks.BaseModel.is_fused, checks.check_file)
    names = set(vars(tasks))
    assert not hasattr(tasks, "EdgeViT")
    with pytest.raises(FileNotFoundError):
        YOLO("yolov5n_edgevit.yaml")

    yolo_lightbackbones.register()
    yolo_lightbackbones.register()
    assert tasks.EdgeViT is EdgeViT
    assert tasks.parse_model.__wrapped__ is originals[0]
    for name, module in sys.modules.items():
        if name.startswith("ultralytics"):
            assert all(v is not originals[0] for v in list(vars(module).values())), f"{name} holds the old parser"

    yolo_lightbackbones.unregister()
    assert (tasks.parse_model, tasks.BaseModel.fuse, tasks.BaseModel.is_fused, checks.check_file) == originals
    assert set(vars(tasks)) == names


def test_what_others_hold_of_ours_does_nothing_when_unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    held, ours = tasks.parse_model, tasks.BaseModel.fuse

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    monkeypatch.setattr(tasks.BaseModel, "fuse", theirs)
    yolo_lightbackbones.unregister()
    assert tasks.BaseModel.fuse is theirs, "put there after ours"
    with pytest.raises(KeyError, match="EdgeViT"):
        held({"nc": 1, "backbone": [[-1, 1, "EdgeViT", ["xxs"]], [0, 1, "Tap", ["P3"]]], "head": []}, 3)
    assert not plugin.is_registered()
    monkeypatch.undo()
    tasks.BaseModel.fuse = ours.__wrapped__  # not by monkeypatch, which would put ours back in the end
    yolo_lightbackbones.register()


def test_unregister_bears_a_list_of_callbacks_that_somebody_has_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils.callbacks import base

    kept = list(base.default_callbacks["on_export_start"])
    base.default_callbacks["on_export_start"].clear()
    yolo_lightbackbones.unregister()
    assert not plugin.is_registered()
    base.default_callbacks["on_export_start"][:] = kept[:1]


def test_threads_register_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    yolo_lightbackbones.unregister()
    yolo_lightbackbones.register()
    patches = len(install._patches._undo)
    yolo_lightbackbones.unregister()
    look = fit.essential

    def slowly(package: fit.Ultralytics) -> list[fit.Seam]:  # so that the others arrive meanwhile
        time.sleep(0.01)
        return look(package)

    monkeypatch.setattr(fit, "essential", slowly)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: yolo_lightbackbones.register(), range(32)))
    assert len(install._patches._undo) == patches


def on_ultralytics() -> dict[str, Any]:
    """Everything that the plugin changes."""
    methods = {name: getattr(tasks.BaseModel, name) for name in ("fuse", "is_fused", "load")}
    listed = {event: list(callbacks.default_callbacks[event]) for event in callbacks.default_callbacks}
    functions = [tasks.parse_model, checks.check_file, torch_utils.get_flops, sys.excepthook]
    finders = [finder for finder in sys.meta_path if isinstance(finder, autoload.AfterImport)]
    return {"methods": methods, "callbacks": listed, "functions": functions, "names": set(vars(tasks)), "on": finders}


@pytest.mark.parametrize("done", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("number", range(len(install._STEPS)), ids=[s.install.__name__ for s in install._STEPS])
def test_registering_is_all_or_nothing(number: int, done: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    yolo_lightbackbones.unregister()
    clean, steps = on_ultralytics(), install._STEPS

    def fails(package: fit.Ultralytics) -> None:
        if done:
            steps[number].install(package)
        raise OSError("in the middle")

    failing = steps[number]._replace(install=fails)
    with monkeypatch.context() as patched:
        patched.setattr(install, "_STEPS", (*steps[:number], failing, *steps[number + 1 :]))
        with pytest.raises(OSError, match="in the middle"):
            yolo_lightbackbones.register()
    assert on_ultralytics() == clean
    assert not plugin.is_registered()
    with pytest.raises(FileNotFoundError):
        checks.check_yaml("yolov5_edgevit.yaml")
    yolo_lightbackbones.register()
    assert plugin.is_registered()
    assert all(seam.installed in {True, None} for seam in plugin.seams())


def test_unregister_takes_everything_off_though_a_part_of_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    yolo_lightbackbones.unregister()
    clean, parser_step = on_ultralytics(), install._STEPS[2]

    def put(package: fit.Ultralytics) -> None:
        parser_step.install(package)
        install._patches.keep(fails)  # among the patches

    def fails() -> None:
        raise OSError("in the middle")

    steps = (*install._STEPS[:2], parser_step._replace(install=put), *install._STEPS[3:], install.Step(id, fails))
    with monkeypatch.context() as patched:
        patched.setattr(install, "_STEPS", steps)
        yolo_lightbackbones.register()
        with pytest.raises(OSError, match="in the middle"):
            yolo_lightbackbones.unregister()
    assert on_ultralytics() == clean
    assert not plugin.is_registered()


def test_patches_come_off_though_one_of_them_fails() -> None:
    off: list[int] = []
    patches = Patches("ultralytics")
    patches.keep(lambda: off.append(1))
    patches.keep(lambda: 1 / 0)
    patches.keep(lambda: off.append(3))
    with pytest.raises(ZeroDivisionError):
        patches.remove()
    assert off == [3, 1]
    patches.remove()
    assert off == [3, 1], "each comes off once"


RELOADED = """
import importlib, sys, warnings
warnings.simplefilter("error", UserWarning)
from ultralytics import YOLO
if "by hand" in sys.argv:
    import yolo_lightbackbones
    yolo_lightbackbones.register()
import yolo_lightbackbones.plugin as plugin
def complete():
    assert plugin.is_registered()
    missing = [seam.name for seam in plugin.seams() if seam.installed is False]
    assert not missing, missing
    from ultralytics import YOLO
    from ultralytics.nn import tasks
    assert type(YOLO("yolov5n_edgevit.yaml", verbose=False).model.model[0]).__name__ == "EdgeViT"
complete()
for name in ("utils.checks", "nn.tasks", "utils.callbacks.base", "utils.torch_utils", "nn.tasks"):
    importlib.reload(sys.modules[f"ultralytics.{name}"])
    complete()
del sys.modules["ultralytics.nn.tasks"]
import ultralytics.nn.tasks
complete()
for name in [name for name in sys.modules if name.split(".")[0] == "ultralytics"]:
    del sys.modules[name]
import ultralytics.nn.tasks
complete()
plugin.unregister()
importlib.reload(ultralytics.nn.tasks)
assert not plugin.is_registered() and not any(seam.installed for seam in plugin.seams())
"""


@pytest.mark.parametrize(("arguments", "switch"), [([], "1"), (["by hand"], "0")], ids=["autoload", "by hand"])
def test_modules_of_ultralytics_that_are_executed_anew_get_everything_again(arguments: list[str], switch: str) -> None:
    environment = {**os.environ, "YOLO_LIGHTBACKBONES_AUTOLOAD": switch}
    result = subprocess.run(
        [sys.executable, "-c", RELOADED, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("row", [[-1, 1, "nn.Conv2d", [8]], [-1, 1, "NoSuchModule", []]], ids=str)
def test_a_build_that_fails_leaves_the_activation_of_the_process(row: list[Any]) -> None:
    """Ultralytics' parser sets it for all models, and sets it back at its end."""
    before = tasks.Conv.default_act
    backbone = [[-1, 1, "EdgeViT", ["xxs"]], [0, 1, "Tap", ["P3"]], row]
    with pytest.raises((TypeError, KeyError, ValueError)):
        tasks.parse_model({"nc": 1, "activation": "torch.nn.ReLU()", "backbone": backbone, "head": []}, 3)
    assert tasks.Conv.default_act is before
    built, _ = tasks.parse_model(
        {
            "nc": 1,
            "activation": "torch.nn.ReLU()",
            "backbone": [*backbone[:2], [-1, 1, "Conv", [8]], [-1, 1, "RepViTBlock", [8]]],
            "head": [],
        },
        3,
    )
    assert isinstance(built[2].act, nn.ReLU)
    assert tasks.Conv.default_act is before


@pytest.mark.parametrize(("letter", "variant"), [("n", "xxs"), ("s", "xs"), ("m", "s")])
def test_the_scale_letter_builds_its_variant(letter: str, variant: str) -> None:
    model = YOLO(f"yolov5{letter}_edgevit.yaml").model
    assert model.model[0].out_channels == VARIANTS[variant].embed_dims
    assert model.stride.tolist() == [8, 16, 32]
    assert model.yaml["backbone"][0] == [-1, 1, "EdgeViT", [{"n": "xxs", "s": "xs", "m": "s"}]], "stored as written"
    assert model.yaml["backbone"][1] == [0, 1, "Tap", ["P3"]]


def test_the_image_channels_of_the_data_reach_the_stem() -> None:
    model = tasks.DetectionModel("yolov5n_edgevit.yaml", ch=1, nc=2, verbose=False)
    assert model.model[0].stem.proj.in_channels == 1
    assert isinstance(model.model[0].input_norm, nn.Identity), "there is no published convention for one channel"


def test_published_eps_survives_initialize_weights_and_gflops_are_counted(detector: Any) -> None:
    ours = [m for m in detector.model[0].modules() if isinstance(m, nn.BatchNorm2d)]
    assert ours
    assert all(isinstance(m, BatchNorm2d) for m in ours)
    assert {m.eps for m in ours} == {1e-5}
    assert {m.eps for m in detector.model[4].modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}

    from ultralytics.utils.torch_utils import get_flops

    assert get_flops(detector, 640) == pytest.approx(operations(detector, torch.zeros(1, 3, 640, 640)) / 1e9, rel=0.03)


def test_a_count_that_fails_is_left_to_ultralytics(detector: Any) -> None:
    from ultralytics.utils.torch_utils import get_flops

    assert get_flops(detector, [640]) == 0.0  # what Ultralytics says where it cannot count either


def test_every_parameter_of_a_detector_gets_a_gradient() -> None:
    model = YOLO("yolov5n_edgevit.yaml").model.train()
    sum(out.float().pow(2).mean() for out in flat(model(torch.rand(2, 3, 64, 96)))).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None and ".dfl." not in name]
    assert not missing


def test_fuse_folds_our_modules_and_keeps_the_output(detector: Any) -> None:
    import copy

    image = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    fused = copy.deepcopy(detector)
    assert not fused.is_fused()
    fused.fuse(verbose=False)
    assert fused.is_fused()
    assert fusion.is_fused(fused.model[0])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert [m.i for m in fused.model] == list(range(len(fused.model))), "Ultralytics' own marks are kept"
    with torch.no_grad():
        expected, seen = detector(image)[0], fused(image)[0]
    assert expected[:, 4:].std() > 0.01
    torch.testing.assert_close(seen[:, :4], expected[:, :4], rtol=0, atol=0.01)  # pixels
    torch.testing.assert_close(seen[:, 4:], expected[:, 4:], rtol=0, atol=1e-4)
    before = {name: tensor.clone() for name, tensor in fused.state_dict().items()}
    fused.fuse(verbose=False)
    for name, tensor in fused.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("format", "refused"), [("onnx", False), ("mnn", True)])
def test_an_export_for_any_size_is_recorded_as_such_or_refused(format: str, refused: bool, detector: Any) -> None:
    from types import SimpleNamespace

    from ultralytics.utils.callbacks import default_callbacks

    (callback,) = (f for f in default_callbacks["on_export_start"] if f.__module__.startswith("yolo_lightbackbones."))
    attention = next(m for m in detector.modules() if isinstance(m, recording.SizeBound))
    exporter = SimpleNamespace(model=detector, args=SimpleNamespace(dynamic=True, format=format, quantize=None))
    if refused:
        with pytest.raises(
            ValueError, match=r"dynamic=True is given for format=mnn.*only as torchscript, onnx, openvino"
        ):
            callback(exporter)
    else:
        callback(exporter)
        assert attention.any_size
    exporter.args.dynamic = False
    callback(exporter)
    assert not attention.any_size
    exporter.args.dynamic, exporter.model = True, YOLO("yolov8n.yaml").model
    callback(exporter)


@pytest.mark.parametrize("name", ["yolov5_edgevit.yaml", "yolov5n_edgevit.yaml", "cfg/yolov5m_edgevit.yaml"])
def test_our_yamls_are_found_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(YOLO(name).model.model[0], EdgeViT)


def test_a_file_of_the_users_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("yolov5_edgevit.yaml").write_text("mine: true\n")
    assert checks.check_yaml("yolov5_edgevit.yaml") == "yolov5_edgevit.yaml"


@pytest.mark.parametrize("name", ["elsewhere/yolov5_edgevit.yaml", "yolov5_edgevitt.yaml", "yolov5_edgevit.txt"])
def test_a_mistyped_path_is_not_answered_with_a_file_of_ours(name: str, tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, AssertionError)):
        checks.check_yaml(name)
    with pytest.raises(FileNotFoundError):
        checks.check_file(str(tmp_path / "yolov5_edgevit.yaml"))


def test_a_mistake_in_a_yaml_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (repository / "cfg" / "yolov5_edgevit.yaml").read_text().replace("n: xxs", "n: xxxs")
    Path("mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml, row 0 .*Unknown variant 'xxxs' of EdgeViT\. Did you mean 'xxs'"):
        YOLO("mine.yaml").train(data="digits.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_family_registered_later_is_known_to_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    from yolo_lightbackbones import registry

    class Later(EdgeViT):
        family = "later"

    monkeypatch.setattr(registry, "_families", dict(registry._families))
    registry.register_backbone(Later)
    model, _ = tasks.parse_model(
        {"nc": 1, "backbone": [[-1, 1, "Later", ["xxs"]], [0, 1, "Tap", ["P3"]]], "head": []}, 3
    )
    assert isinstance(model[0], Later)


def test_a_missing_seam_is_one_warning_and_hands_off(monkeypatch: pytest.MonkeyPatch) -> None:
    yolo_lightbackbones.unregister()

    def other_parser(config: Any) -> None:
        """Another signature."""

    monkeypatch.setattr(tasks, "parse_model", other_parser)
    monkeypatch.delattr(tasks.BaseModel, "is_fused")
    names, fuse = set(vars(tasks)), tasks.BaseModel.fuse
    with pytest.warns(UserWarning, match="does not fit Ultralytics") as caught:
        yolo_lightbackbones.register()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "ultralytics.nn.tasks.parse_model(config" in message
    assert "BaseModel.is_fused is gone" in message
    assert plugin.TESTED_VERSIONS in message
    assert not plugin.is_registered()
    assert set(vars(tasks)) == names
    assert tasks.parse_model is other_parser
    assert tasks.BaseModel.fuse is fuse


def test_a_module_of_ultralytics_own_by_our_name_is_hands_off(monkeypatch: pytest.MonkeyPatch) -> None:
    yolo_lightbackbones.unregister()
    monkeypatch.setattr(tasks, "Tap", object, raising=False)
    with pytest.warns(UserWarning, match="has a Tap of its own"):
        yolo_lightbackbones.register()
    assert not plugin.is_registered()


@pytest.mark.parametrize("safe", ["0", "1"])
def test_a_checkpoint_loads_in_a_fresh_process_without_an_import(safe: str, detector: Any, tmp_path: Path) -> None:
    """As in a DDP worker or a notebook; with ULTRALYTICS_SAFE_LOAD=1 only known classes are unpickled."""
    path = tmp_path / "best.pt"
    torch.save({"model": detector, "train_args": {}}, path)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.save(image, tmp_path / "image.pt")
    code = f"""
        import torch
        from ultralytics import YOLO
        model = YOLO({str(path)!r}).model.eval()
        with torch.no_grad():
            torch.save(model(torch.load({str(tmp_path / "image.pt")!r}))[0], {str(tmp_path / "out.pt")!r})
    """
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": safe}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment, cwd=tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "out.pt"), detector(image)[0])


def test_importing_the_plugin_module_touches_nothing() -> None:
    code = "import yolo_lightbackbones.plugin, sys; assert 'ultralytics' not in sys.modules"
    environment = {**os.environ, "YOLO_LIGHTBACKBONES_AUTOLOAD": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_taps_default_matches_the_contract() -> None:
    assert backbone.TAPS == ("P2", "P3", "P4", "P5")
