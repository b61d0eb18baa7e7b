"""What the plugin needs of Ultralytics: a misfit is named, and turns off no more than what needs the place."""

from __future__ import annotations

import copy
import functools
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner
from ultralytics import YOLO
from ultralytics.engine import exporter, trainer
from ultralytics.nn import tasks
from ultralytics.nn.backends import base
from ultralytics.nn.modules import block
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, checks, torch_utils
from ultralytics.utils.callbacks import default_callbacks

from yolo_lightbackbones import fusion, plugin, recording
from yolo_lightbackbones.cli import app
from yolo_lightbackbones.plugin import exporting, fit, models, training


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    plugin.register()
    yield
    plugin.register()


@pytest.fixture(scope="module")
def detector() -> Any:
    return YOLO("yolov5n_conv2former.yaml").model


def misfits() -> dict[str, str]:
    """Problem of every seam that does not fit."""
    return {seam.name: seam.problem for seam in plugin.seams() if seam.problem}


def warned(function: Any, *args: Any) -> list[str]:
    """Texts of our warnings during a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*args)
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def is_one_warning_of(texts: list[str], feature: str, problem: str) -> bool:
    (text,) = texts
    return f"Without it there is {feature};" in text and problem in text and plugin.TESTED_VERSIONS in text


# --- how the misfits below are made: each changes one place of Ultralytics --------------------------------------------


def without_marks(patch: pytest.MonkeyPatch) -> None:
    @functools.wraps(original := tasks.parse_model)
    def parse_model(d: Any, ch: Any, *args: Any, **kwargs: Any) -> Any:
        layers, save = original(d, ch, *args, **kwargs)
        for layer in layers:
            del layer.np
        return layers, save

    patch.setattr(tasks, "parse_model", parse_model)


def failing_parser(patch: pytest.MonkeyPatch) -> None:
    def parse_model(d: Any, ch: Any) -> Any:
        """Another signature behind the two that are looked at."""

    patch.setattr(tasks, "parse_model", parse_model)


def with_groups(**changes: Any) -> Any:
    def change(patch: pytest.MonkeyPatch) -> None:
        original = trainer.BaseTrainer.build_optimizer

        def build_optimizer(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            optimizer = original(*args, **kwargs)
            for group in optimizer.param_groups:
                if group["param_group"] == "bn":
                    group.update(changes)
            return optimizer

        patch.setattr(trainer.BaseTrainer, "build_optimizer", build_optimizer)

    return change


def without_muon(patch: pytest.MonkeyPatch) -> None:
    def build_optimizer(self: Any, model: nn.Module, name: str, lr: float, decay: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": list(model.parameters()), "param_group": "weight"}], lr, weight_decay=decay)

    patch.setattr(trainer.BaseTrainer, "build_optimizer", build_optimizer)


def other_expectation(patch: pytest.MonkeyPatch) -> None:
    class DFL(block.DFL):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    patch.setattr(block, "DFL", DFL)


def rebuilt_expectation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(block, "DFL", nn.Identity)


MISFITS = [
    (without_marks, "marks on layers", r"parse_model writes no 'np' on its layers"),
    (failing_parser, "marks on layers", r"parse_model fails on a model of one layer with TypeError"),
    (without_marks, "rows of blocks", r"parse_model makes no frozenset"),
    (
        lambda patch: patch.delattr(trainer.BaseTrainer, "build_optimizer"),
        "optimizer groups",
        r"ultralytics\.engine\.trainer\.BaseTrainer\.build_optimizer is gone",
    ),
    (
        lambda patch: patch.setitem(sys.modules, "ultralytics.engine.trainer", None),
        "optimizer groups",
        r"ultralytics\.engine\.trainer cannot be imported",
    ),
    (with_groups(weight_decay=0.1), "optimizer groups", r"fails for SGD .*group 'bn' has a weight decay of 0\.1"),
    (with_groups(use_muon=True), "optimizer groups", r"group 'bn' has use_muon=True"),
    (with_groups(param_group="weight"), "optimizer groups", r"for SGD into \{.*'model\.1\.weight': 'weight'.*, not \{"),
    (without_muon, "optimizer groups", r"into \{.*'model\.1\.bias': 'weight'\}, not"),
    (
        lambda patch: patch.setattr(tasks.DetectionModel, "__init__", lambda self, cfg, channels=3: None),
        "channels of models",
        r"DetectionModel takes no cfg and ch",
    ),
    (
        lambda patch: patch.delitem(DEFAULT_CFG_DICT, "dynamic"),
        "arguments of exports",
        r"exports have no argument 'dynamic'",
    ),
    (
        lambda patch: patch.delitem(DEFAULT_CFG_DICT, "quantize"),
        "argument quantize",
        r"neither an argument 'quantize' nor 'int8'",
    ),
    (
        lambda patch: patch.setattr(checks, "check_requirements", lambda requirements: True),
        "requirements of exports",
        r"check_requirements has no argument 'install'",
    ),
    (
        lambda patch: patch.delattr(exporter.Exporter, "export_onnx"),
        "steps of exports",
        r"Exporter has no export_onnx",
    ),
    (lambda patch: patch.delattr(exporter, "Exporter"), "steps of exports", r"Exporter is gone"),
    (lambda patch: patch.delattr(block, "DFL"), "expectation of DFL", r"ultralytics\.nn\.modules\.block\.DFL is gone"),
    (
        lambda patch: patch.delattr(base.BaseBackend, "apply_metadata"),
        "metadata of exported files",
        r"BaseBackend\.apply_metadata is gone",
    ),
    (
        lambda patch: patch.setattr(base.BaseBackend, "apply_metadata", lambda self, values: None),
        "metadata of exported files",
        r"apply_metadata\(self, values\) does not start with \(self, metadata\)",
    ),
    (rebuilt_expectation, "expectation of DFL", r"DFL is built differently: AttributeError"),
    (other_expectation, "expectation of DFL", r"DFL does not compute the expected bin numbers"),
    (
        lambda patch: patch.setattr(torch_utils, "prepare_qat", lambda net, loader: net),
        "preparation of QAT",
        r"prepare_qat takes net, loader, not model, dataloader, preprocess",
    ),
]


@pytest.mark.parametrize(("change", "name", "problem"), MISFITS, ids=[f"{m[1]}-{i}" for i, m in enumerate(MISFITS)])
def test_a_place_that_one_feature_needs_is_named_and_blocks_nothing_else(
    change: Any, name: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.unregister()
    with monkeypatch.context() as patch:
        change(patch)
        assert warned(plugin.register) == [], "nobody has used the feature yet"
        assert plugin.is_registered()
        found = misfits()
        assert re.search(problem, found[name]), found
        assert set(found) <= {name, "rows of blocks", "marks on layers"}, "of the parser, there are two"
        (seam,) = (seam for seam in plugin.seams() if seam.name == name)
        assert seam.installed is None
        assert seam.feature in {need.feature for need in fit.OPTIONAL}
        plugin.unregister()
    assert not misfits()


def test_every_place_is_tried() -> None:
    assert {name for _, name, _ in MISFITS} == {need.name for need in fit.OPTIONAL}


def test_an_event_that_is_gone_is_hands_off(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.unregister()
    before = {event: list(listed) for event, listed in default_callbacks.items()}
    monkeypatch.delitem(default_callbacks, "on_export_start")
    del before["on_export_start"]
    (text,) = warned(plugin.register)
    assert "default_callbacks has no 'on_export_start'" in text
    assert not plugin.is_registered()
    assert default_callbacks == before
    assert not hasattr(tasks, "EdgeViT")
    assert {seam.feature for seam in plugin.seams()} == {None}, "what does not matter any more is not tried"
    monkeypatch.undo()


def test_looking_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", True)
    state, activation, filters = torch.get_rng_state(), tasks.Conv.default_act, list(LOGGER.filters)
    with caplog.at_level("DEBUG"):
        assert not misfits()
    assert torch.equal(torch.get_rng_state(), state)
    assert tasks.Conv.default_act is activation
    assert LOGGER.filters == filters
    assert not caplog.text
    assert capfd.readouterr() == ("", "")


def test_the_doctor_says_what_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DEFAULT_CFG_DICT, "quantize")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["argument quantize"]["status"] == "wrong"
    assert exporting.UNSEEN_INT8 in checks["argument quantize"]["text"]
    assert 'pip install "ultralytics>=' in checks["argument quantize"]["advice"]
    assert checks["trial"]["status"] == checks["Ultralytics version"]["status"] == "ok"


# --- when a feature is used -------------------------------------------------------------------------------------------


def test_without_marks_nothing_is_folded(detector: Any) -> None:
    model = copy.deepcopy(detector).eval()
    del model.model[0].np
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(image)[0]
        texts = warned(functools.partial(model.fuse, verbose=False))
        assert is_one_warning_of(texts, models.UNFOLDED, "no 'np'")
        assert not fusion.is_fused(model.model[0])
        torch.testing.assert_close(model(image)[0], expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"weight_decay": 0.1}, "group 'bn' has a weight decay of 0.1."), ({"use_muon": True}, "has use_muon=True")],
)
def test_groups_that_do_not_do_what_their_labels_say(changes: dict[str, Any], text: str, detector: Any) -> None:
    arguments = SimpleNamespace(args=SimpleNamespace(lr0=0.01), data={"nc": 80})
    optimizer = trainer.BaseTrainer.build_optimizer(arguments, detector, name="AdamW", lr=0.01, decay=0.05)
    for group in optimizer.param_groups:
        group.update(changes if group["param_group"] == "bn" else {})
    before = [list(map(id, group["params"])) for group in optimizer.param_groups]
    (warning,) = warned(training.on_pretrain_routine_end, SimpleNamespace(optimizer=optimizer, model=detector))
    assert text in warning
    assert "trains our layers as it trains its own layers" in warning
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == before


def export(model: Any, tmp_path: Path, *, methods: tuple[str, ...] = ("export_onnx",), **options: Any) -> Any:
    """A stand-in for Ultralytics' exporter at the start of an export."""
    steps = {name: lambda: "" for name in methods}
    return SimpleNamespace(model=model, args=SimpleNamespace(**options), file=tmp_path / "best.pt", **steps)


@pytest.fixture
def model(detector: Any) -> Any:
    return copy.deepcopy(detector)


def kept_in_float(model: nn.Module) -> bool:
    return any("forward" in vars(module) for module in model.modules() if isinstance(module, block.DFL))


def test_an_export_without_its_arguments_is_left_to_ultralytics(model: Any, tmp_path: Path) -> None:
    started = export(model, tmp_path, format="onnx", quantize=8)
    step = started.export_onnx
    texts = warned(exporting.on_export_start, started)
    assert is_one_warning_of(texts, exporting.UNPREPARED, "no argument 'dynamic'")
    assert started.export_onnx is step
    assert not kept_in_float(model)


@pytest.mark.parametrize(
    ("options", "int8"),
    [({"quantize": 8}, True), ({"quantize": None}, False), ({"int8": True}, True), ({"int8": False}, False)],
)
def test_int8_is_seen_under_both_names(options: dict[str, Any], int8: bool, model: Any, tmp_path: Path) -> None:
    started = export(model, tmp_path, format="onnx", dynamic=False, **options)
    assert warned(exporting.on_export_start, started) == []
    assert kept_in_float(model) is int8


def test_int8_under_no_name_that_is_known(model: Any, tmp_path: Path) -> None:
    started = export(model, tmp_path, format="onnx", dynamic=True)
    texts = warned(exporting.on_export_start, started)
    assert is_one_warning_of(texts, exporting.UNSEEN_INT8, "neither")
    assert not kept_in_float(model)
    bound = [module for module in model.modules() if isinstance(module, recording.SizeBound)]
    assert all(module.any_size for module in bound), "the rest of the preparation is done"


@pytest.mark.parametrize("change", [other_expectation, rebuilt_expectation], ids=["other", "rebuilt"])
def test_an_expectation_of_another_kind_is_left_alone(
    change: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = export(model, tmp_path, format="onnx", dynamic=False, quantize=8)
    step = started.export_onnx
    with monkeypatch.context() as patch:
        change(patch)
        texts = warned(exporting.on_export_start, started)
    assert is_one_warning_of(texts, exporting.ROUNDED, "DFL")
    assert not kept_in_float(model)
    assert started.export_onnx is not step, "the rest of the preparation is done"


def test_an_exporter_without_its_step_is_left_alone(model: Any, tmp_path: Path) -> None:
    methods = ("export_saved_model",)
    started = export(model, tmp_path, methods=methods, format="pb", dynamic=False, quantize=None)
    step = started.export_saved_model
    texts = warned(exporting.on_export_start, started)
    assert is_one_warning_of(texts, exporting.UNSTAGED, "Exporter has no export_pb")
    assert started.export_saved_model is step
