"""ParC-Net's circular convolution, recorded as a depthwise convolution and as a matrix product, in every runtime here.

    python benchmarks/circular.py

No test runs this: it measures time, which a busy machine cannot.

Prints the time of the matrix product as a share of the convolution's, and the size of both files, for the maps of a
parcnet_s that sees 640 x 640 pixels; the `matrix_from` of `plugin/formats.py` is set by it. Runtimes that are not
installed are left out. A pair of convolutions, along the height and then along the width; median of interleaved runs,
one image, batch 1.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_lightbackbones.layers import Axis, CircularConv, FixedConv
from yolo_lightbackbones.layers.circular import circulant, resize

MAPS = ((192, 80), (256, 40), (320, 20))  # channels, length
ROUNDS = 60

Run = Callable[[np.ndarray[Any, Any]], Any]


class Pair(nn.Module):
    """Two circular convolutions at a fixed size."""

    def __init__(self, channels: int, length: int, as_matrix: bool) -> None:
        super().__init__()
        self.convs = [self._fixed(channels, length, axis) for axis in (2, 3)]
        self.as_matrix = as_matrix

    @staticmethod
    def _fixed(channels: int, length: int, axis: Axis) -> FixedConv:
        generator = torch.Generator().manual_seed(axis)
        weight = torch.randn(CircularConv(channels, length, axis).weight.shape, generator=generator) / length
        kernel = resize(weight, axis, length)
        matrix = circulant(kernel) if axis == 2 else circulant(kernel).transpose(1, 2).contiguous()
        return FixedConv(axis, kernel, matrix, None)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, self.as_matrix)
        return x


def torchscript(model: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Run]:
    torch.jit.trace(model, x).save(file := str(folder / "m.ts"))
    loaded = torch.jit.load(file)
    return Path(file), lambda x: loaded(torch.from_numpy(x)).numpy()


def onnx(model: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Run]:
    import onnxruntime

    torch.onnx.export(model, (x,), str(file := folder / "m.onnx"), dynamo=False, input_names=["x"])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return file, lambda x: session.run(None, {"x": x})[0]


def openvino(model: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Run]:
    import openvino as ov

    converted = ov.convert_model(torch.jit.trace(model, x), input=x.shape, example_input=x)
    ov.save_model(converted, folder / "m.xml", compress_to_fp16=False)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(folder / "m.xml", "CPU", hints)
    return folder / "m.bin", lambda x: compiled(x)[0]


def ncnn(model: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Run]:
    import ncnn
    import pnnx

    pnnx.export(model, str(folder / "m.pt"), inputs=x, fp16=False)
    net = ncnn.Net()
    net.load_param(str(folder / "m.ncnn.param"))
    net.load_model(str(folder / "m.ncnn.bin"))

    def run(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], ncnn.Mat(x[0]))
        return np.array(extractor.extract(net.output_names()[0])[1])[None]

    return folder / "m.ncnn.bin", run


def mnn(model: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Run]:
    import MNN
    from MNN.tools import mnnconvert

    (stub := folder / "pip").write_text("#!/bin/sh\n")  # the converter calls `pip install` through the shell
    stub.chmod(0o755)
    path, os.environ["PATH"] = os.environ["PATH"], f"{folder}{os.pathsep}{os.environ['PATH']}"
    source, _ = onnx(model, x, folder)
    mnnconvert.convert(["", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(file := folder / "m.mnn")])
    os.environ["PATH"] = path
    manager = MNN.nn.create_runtime_manager(({"precision": "high", "backend": "CPU", "numThread": 2},))
    net = MNN.nn.load_module_from_file(str(file), [], [], runtime_manager=manager, rearrange=True)
    return file, lambda x: np.array(net.onForward([MNN.expr.const(x.ctypes.data, list(x.shape))])[0].read())


def executorch(model: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Run]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = to_edge_transform_and_lower(torch.export.export(model, (x,)), partitioner=[XnnpackPartitioner()])
    (file := folder / "m.pte").write_bytes(program.to_executorch().buffer)
    method = Runtime.get().load_program(str(file)).load_method("forward")
    return file, lambda x: method.execute([torch.from_numpy(x)])[0].numpy()


def litert(model: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Run]:
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    litert_torch.convert(model.eval(), (x,)).export(str(file := folder / "m.tflite"))
    interpreter = Interpreter(str(file), num_threads=2)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(target))

    return file, run


RUNTIMES = {
    "torchscript": ("torch", torchscript),
    "onnx": ("onnxruntime", onnx),
    "openvino": ("openvino", openvino),
    "ncnn": ("pnnx", ncnn),
    "mnn": ("MNN", mnn),
    "executorch": ("executorch", executorch),
    "litert": ("litert_torch", litert),
}


def ms(run: Run, x: np.ndarray[Any, Any]) -> float:
    begin = time.perf_counter()
    run(x)
    return (time.perf_counter() - begin) * 1e3


def main() -> None:
    print("| runtime | map | convolution, ms | matrix / convolution, time | worst difference | sizes, MB |")
    print("|---|---|---|---|---|---|")
    for name, (package, build) in RUNTIMES.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed", file=sys.stderr)
            continue
        for channels, length in MAPS:
            x = torch.randn(1, channels, length, length, generator=torch.Generator().manual_seed(0))
            with tempfile.TemporaryDirectory() as folder, torch.inference_mode(name in ("torchscript",)):
                built = []
                for as_matrix in (False, True):
                    (place := Path(folder, str(as_matrix))).mkdir()
                    built.append(build(Pair(channels, length, as_matrix).eval(), x, place))
                (conv_file, conv), (matrix_file, matrix) = built
                sizes = " / ".join(f"{file.stat().st_size / 1e6:.1f}" for file in (conv_file, matrix_file))
                difference = np.abs(conv(x.numpy()) - matrix(x.numpy())).max()
                pairs = [(ms(conv, x.numpy()), ms(matrix, x.numpy())) for _ in range(ROUNDS + 5)][5:]
            conv_ms = statistics.median(a for a, _ in pairs)
            ratio = statistics.median(b / a for a, b in pairs)
            cells = (name, f"{channels} x {length} x {length}", f"{conv_ms:.2f}", f"{ratio:.2f}", f"{difference:.1e}")
            print(f"| {' | '.join(cells)} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
