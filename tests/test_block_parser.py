"""Ultralytics' parser with rows of blocks: nothing that others see is changed, and other parsers are told."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from block_models import NAMES, model_yaml
from torch import Tensor
from ultralytics import YOLO
from ultralytics.nn import tasks

import yolo_lightbackbones
from yolo_lightbackbones import plugin, registry
from yolo_lightbackbones.plugin import parser
from yolo_lightbackbones.plugin.row import ConfigError, UnknownModuleError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    yolo_lightbackbones.register()
    yield
    yolo_lightbackbones.register()


def test_models_without_such_rows_never_see_another_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise AssertionError("asked for another parser")

    monkeypatch.setattr(parser, "with_rows", refuse)
    YOLO("yolov8n.yaml")
    YOLO("yolov5n_repvit.yaml")


def test_nothing_that_others_see_is_changed(tmp_path: Path) -> None:
    def weights() -> dict[str, Tensor]:
        torch.manual_seed(0)
        return YOLO("yolo11n.yaml").model.state_dict()

    names, before = dict(vars(tasks)), weights()
    YOLO(model_yaml(tmp_path, *NAMES))
    assert vars(tasks) == names
    assert not {"frozenset", *NAMES} & set(names)
    torch.testing.assert_close(weights(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("module", "error"), [("LGLBlocks", UnknownModuleError), ("Nobodys", KeyError)])
def test_a_module_that_nobody_knows(module: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error, match=r"row 3 .*'LGLBlocks'. Did you mean 'LGLBlock'|^'Nobodys'$") as seen:
        YOLO(model_yaml(tmp_path, module, *NAMES[1:]))
    assert seen.type is error


def test_a_parser_that_somebody_wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yolo_lightbackbones.unregister()
    stock = tasks.parse_model

    @functools.wraps(stock)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return stock(*args, **kwargs)

    monkeypatch.setattr(tasks, "parse_model", wrapped)
    yolo_lightbackbones.register()
    try:
        assert YOLO("yolov5n_repvit.yaml").model.stride.tolist() == [8, 16, 32]
        expected = (
            r"yolo11n_blocks\.yaml, row 3 \[-1, 3, LGLBlock, \[256\]\]: rows of LGLBlock, ParCBlock, RepViTBlock, "
            rf"ConvModBlock.* are not available with Ultralytics \S+: .*wrapped it.*{plugin.TESTED_VERSIONS}; install"
        )
        with pytest.raises(ConfigError, match=expected):
            YOLO(model_yaml(tmp_path, "LGLBlock"))
    finally:
        yolo_lightbackbones.unregister()


def test_a_module_of_ultralytics_own_by_such_a_name_is_hands_off(monkeypatch: pytest.MonkeyPatch) -> None:
    yolo_lightbackbones.unregister()
    monkeypatch.setattr(tasks, "LGLBlock", object, raising=False)
    with pytest.warns(UserWarning, match="has a LGLBlock of its own"):
        yolo_lightbackbones.register()
    assert not plugin.is_registered()


BLOCKS = registry.block_rows()


class C2f:
    """What the parsers below mean by this name."""


def without_sets(d: Any, ch: int, verbose: bool = True) -> Any:
    return [globals()[module](*args) for _, _, module, args in d["backbone"]], []


def of_other_sets(d: Any, ch: int, verbose: bool = True) -> Any:
    """Does not ask whether a class is among those with scaled channels."""
    known = frozenset({C2f})
    return [globals()[module](*args) for _, _, module, args in d["backbone"] if globals()[module] in known], []


def without_depth(d: Any, ch: int, verbose: bool = True) -> Any:
    """Knows our classes, but repeats everything once."""
    known = frozenset({C2f})
    return [globals()[module](ch, 16, 1) for _, _, module, _ in d["backbone"] if globals()[module] in known], []


def without_verbose(d: Any, ch: int) -> Any:
    return list(frozenset({C2f})), []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (functools.partial(without_depth), "is no plain function, but functools.partial"),
        (without_sets, "makes no frozenset of classes such as C2f"),
        (of_other_sets, r"builds rows of ours with \[\(128, .* where \[\(3, 16, 2, .* was expected"),
        (without_depth, r"builds rows of ours with \[\(3, 16, 1\), .* where \[\(3, 16, 2, .* was expected"),
        (without_verbose, "fails on rows of ours with TypeError"),
    ],
)
def test_a_parser_that_works_otherwise_is_told(other: Any, message: str) -> None:
    with pytest.raises(parser.MisfitError, match=message):
        parser.with_rows(other, BLOCKS)


def test_the_parsers_own_defaults_are_carried_over() -> None:
    def like(d: Any, ch: int, *, verbose: bool = True, seen: Any = BLOCKS) -> Any:
        if verbose:
            return seen, frozenset({C2f})
        return [globals()["Probe"](3, 16, 2, {"n": "n"}), globals()["Probe"](16, 8, 1)], []

    seen, known = parser.with_rows(like, BLOCKS)({}, 3)
    assert seen is BLOCKS
    assert known == {C2f, *BLOCKS.values()}
    assert like({}, 3)[1] == {C2f}, "the function itself goes on as it did"
