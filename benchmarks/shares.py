"""How near a folded backbone comes to the machine's limit, and where the rest of its time goes."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backends
import numpy as np
import torch
from harness import Array, Row
from torch import Tensor, nn

from yolo_lightbackbones.measure import cost, timing

SIDE = 1024
"""Side of the square matrices whose product is the limit."""
PROFILED = 10


class Product(nn.Module):
    """Multiplies a matrix (1, SIDE, SIDE) by a constant one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIDE, SIDE), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def measure(
    model: nn.Module,
    runtime: str,
    image: Tensor,
    folder: Path,
    *,
    threads: int,
    rounds: int,
    clock: Callable[[], float],
) -> Row:
    """GFLOP/s of a model as a share of the matrix product's: of PyTorch's or the runtime's own, whichever is faster."""
    torch.set_num_threads(threads)
    build = backends.RUNTIMES[runtime].build
    matrix = torch.randn(1, SIDE, SIDE)
    for name in ("model", "product", "profile"):
        (folder / name).mkdir()
    run = build(model, image, folder / "model", threads).run
    product = build(Product(), matrix, folder / "product", threads).run
    plain = backends.eager(Product(), matrix, folder, threads).run
    x, y = image.numpy(), matrix.numpy()
    latencies = timing.interleaved([lambda: run(x), lambda: product(y), lambda: plain(y)], rounds, clock=clock)
    work = cost.count(model, tuple(image.shape)).total.flops / 1e6  # type: ignore[arg-type]
    limit = 2 * SIDE**3 / 1e6
    rates = [[flops / ms for ms in found.rounds] for flops, found in zip([work, limit, limit], latencies, strict=True)]
    share = timing.summary([ours / max(one, other) for ours, one, other in zip(*rates, strict=True)])
    return {
        "ms": {"ours": round(latencies[0].median, 3)},
        "gflops": round(statistics.median(rates[0]), 2),
        "limit": round(max(map(statistics.median, rates[1:])), 2),
        "share": [round(value, 4) for value in (share.low, share.median, share.high)],
        "operators": PROFILERS[runtime](model, image, folder / "profile", threads),
    }


def _shares(times: Counter[str]) -> dict[str, float]:
    """Operators with at least a hundredth of the time, the longest first."""
    whole = sum(times.values())
    return {name: round(taken / whole, 4) for name, taken in times.most_common() if taken >= whole / 100}


def onnx_operators(model: nn.Module, image: Tensor, folder: Path, threads: int) -> dict[str, float]:
    file, _ = backends.onnx_file(model, image, folder)
    session = backends.onnxruntime_session(file, threads, folder / "profile")
    for _ in range(PROFILED):
        session.run(None, {"x": image.numpy()})
    times: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"]
    return _shares(times)


def openvino_operators(model: nn.Module, image: Tensor, folder: Path, threads: int) -> dict[str, float]:
    built: Any = backends.openvino_compiled(model, image, folder, threads, PERF_COUNT="YES")
    request, times = built.create_infer_request(), Counter[str]()
    array: Array = np.ascontiguousarray(image.numpy())
    for _ in range(PROFILED):
        request.infer([array])
        for node in request.profiling_info:
            times[node.node_type] += int(node.real_time.total_seconds() * 1e6)
    return _shares(times)


PROFILERS = {"onnx": onnx_operators, "openvino": openvino_operators}
