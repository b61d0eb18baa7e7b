"""Settings with which runtimes of exported models give the same numbers on every machine, and soon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def exact_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs with bfloat16 use it unasked in OpenVINO, and a few boxes are then suppressed differently."""
    import openvino

    compile_model = openvino.Core.compile_model

    def compile_exactly(core: Any, model: Any, device_name: Any = None, config: Any = None, **more: Any) -> Any:
        return compile_model(core, model, "CPU", {**(config or {}), "INFERENCE_PRECISION_HINT": "f32"}, **more)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_exactly)


def single_threaded_ncnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCNN's threads spin while they wait for each other, which on a busy machine takes minutes."""
    import ncnn

    def net(create: Callable[[], Any] = ncnn.Net) -> Any:
        made = create()
        made.opt.num_threads = 1
        return made

    monkeypatch.setattr(ncnn, "Net", net)
