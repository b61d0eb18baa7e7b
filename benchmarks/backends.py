"""Modules in every runtime here, exported as Ultralytics' exporter does it, with a fixed number of threads."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]
Run = Callable[[Array], Sequence[Array]]


@dataclass(frozen=True)
class Built:
    """A module in a runtime: `run` maps an image to the module's outputs; `file` holds its weights, if there is one."""

    run: Run
    file: Path | None = None


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Args:
        title: its name in tables.
        package: what has to be installed, as it is imported.
        build: takes a module in eval mode, an image, an empty folder and the number of threads.
        form: the format of `plugin/formats.py` whose recording it runs; empty if it runs the module itself.
        tolerance: largest error of its outputs, as a share of the largest value of a map.
        batches: whether it takes several images at once.
    """

    title: str
    package: str
    build: Callable[[nn.Module, Tensor, Path, int], Built]
    form: str = ""
    tolerance: float = 1e-4
    batches: bool = True


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs of a module that returns a tensor or a list of tensors."""
    with torch.inference_mode():
        out = model(x)
    return [out] if isinstance(out, Tensor) else list(out)


def eager(model: nn.Module, x: Tensor, folder: Path, threads: int) -> Built:
    torch.set_num_threads(threads)
    return Built(lambda image: [out.numpy() for out in outputs(model, torch.from_numpy(image))])


def compiled(model: nn.Module, x: Tensor, folder: Path, threads: int) -> Built:
    built: Any = torch.compile(model)
    return eager(built, x, folder, threads)


def torchscript(model: nn.Module, x: Tensor, folder: Path, threads: int) -> Built:
    torch.jit.trace(model, x, strict=False, check_trace=False).save(file := str(folder / "m.ts"))
    loaded: Any = torch.jit.load(file)
    return Built(eager(loaded, x, folder, threads).run, Path(file))


def onnx_file(model: nn.Module, x: Tensor, folder: Path) -> tuple[Path, list[str]]:
    """Write `model` as ONNX; return the file and the names of its outputs."""
    names = [f"out{i}" for i in range(len(outputs(model, x)))]
    file = folder / "m.onnx"
    torch.onnx.export(model, (x,), str(file), dynamo=False, opset_version=18, input_names=["x"], output_names=names)
    return file, names


def onnxruntime_session(file: Path, threads: int, profile: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def onnx(model: nn.Module, x: Tensor, folder: Path, threads: int) -> Built:
    file, _ = onnx_file(model, x, folder)
    session = onnxruntime_session(file, threads)
    return Built(lambda image: session.run(None, {"x": image}), file)


def openvino_compiled(model: nn.Module, x: Tensor, folder: Path, threads: int, **more: str) -> Any:
    import openvino as ov

    traced = torch.jit.trace(model, x, strict=False, check_trace=False)
    ov.save_model(
        ov.convert_model(traced, input=x.shape, example_input=x), file := folder / "m.xml", compress_to_fp16=False
    )
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads)}
    return ov.Core().compile_model(file, "CPU", {**hints, **more})


def openvino(model: nn.Module, x: Tensor, folder: Path, threads: int) -> Built:
    built = openvino_compiled(model, x, folder, threads)
    return Built(lambda image: list(built(image).values()), folder / "m.bin")


class _Tuple(nn.Module):
    """Returns the outputs as a tuple: pnnx makes a list an expression, which NCNN does not know."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        out: Tensor | list[Tensor] = self.model(x)
        return out if isinstance(out, Tensor) else tuple(out)


def ncnn(model: nn.Module, x: Tensor, folder: Path, threads: int) -> Built:
    import ncnn as runtime
    import pnnx

    pnnx.export(_Tuple(model).eval(), str(folder / "m.pt"), inputs=x, fp16=False)
    net = runtime.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    if net.load_param(str(folder / "m.ncnn.param")) or net.load_model(str(folder / "m.ncnn.bin")):
        raise RuntimeError("NCNN cannot load what pnnx wrote.")
    (entry,), names = net.input_names(), sorted(net.output_names())

    def run(image: Array) -> list[Array]:
        extractor = net.create_extractor()
        extractor.input(entry, runtime.Mat(image[0]))
        return [np.array(extractor.extract(name)[1])[None] for name in names]

    return Built(run, folder / "m.ncnn.bin")


@contextmanager
def _without_pip(folder: Path) -> Iterator[None]:
    """MNN's converter calls `pip install` through the shell; here it finds a `pip` that does nothing."""
    (stub := folder / "pip").write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    path, os.environ["PATH"] = os.environ["PATH"], f"{folder}{os.pathsep}{os.environ['PATH']}"
    try:
        yield
    finally:
        os.environ["PATH"] = path


def mnn(model: nn.Module, x: Tensor, folder: Path, threads: int) -> Built:
    import MNN

    source, names = onnx_file(model, x, folder)
    with _without_pip(folder):
        from MNN.tools import mnnconvert

        mnnconvert.convert(["", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(file := folder / "m.mnn")])
    manager = MNN.nn.create_runtime_manager(({"precision": "high", "backend": "CPU", "numThread": threads},))
    net = MNN.nn.load_module_from_file(str(file), ["x"], names, runtime_manager=manager, rearrange=True)

    def run(image: Array) -> list[Array]:
        made = net.onForward([MNN.expr.const(image.ctypes.data, list(image.shape))])
        return [np.array(out.read()) for out in made]

    return Built(run, file)


def executorch(model: nn.Module, x: Tensor, folder: Path, threads: int) -> Built:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime as Loader

    portable_lib._unsafe_reset_threadpool(threads)
    program = to_edge_transform_and_lower(torch.export.export(model, (x,)), partitioner=[XnnpackPartitioner()])
    (file := folder / "m.pte").write_bytes(program.to_executorch().buffer)
    method = Loader.get().load_program(str(file)).load_method("forward")
    return Built(lambda image: [out.numpy() for out in method.execute([torch.from_numpy(image)])], file)


def litert(model: nn.Module, x: Tensor, folder: Path, threads: int) -> Built:
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    litert_torch.convert(model, (x,)).export(str(file := folder / "m.tflite"))
    interpreter = Interpreter(str(file), num_threads=threads)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    targets = [
        detail["index"] for detail in sorted(interpreter.get_output_details(), key=lambda detail: detail["name"])
    ]

    def run(image: Array) -> list[Array]:
        interpreter.set_tensor(source, image)
        interpreter.invoke()
        return [np.asarray(interpreter.get_tensor(target)) for target in targets]

    return Built(run, file)


RUNTIMES = {
    "eager": Runtime("PyTorch, eager", "torch", eager),
    "compile": Runtime("torch.compile", "torch", compiled),
    "torchscript": Runtime("TorchScript", "torch", torchscript, "torchscript"),
    "onnx": Runtime("ONNX Runtime", "onnxruntime", onnx, "onnx"),
    "openvino": Runtime("OpenVINO, f32", "openvino", openvino, "openvino"),
    "mnn": Runtime("MNN", "MNN", mnn, "mnn", tolerance=2e-3),  # its erf, which GELU takes, is off by 2e-4
    "ncnn": Runtime("NCNN", "pnnx", ncnn, "ncnn", batches=False),
    "executorch": Runtime("ExecuTorch", "executorch", executorch, "executorch"),
    "litert": Runtime("LiteRT", "litert_torch", litert, "litert"),
}


def is_installed(runtime: Runtime) -> bool:
    return importlib.util.find_spec(runtime.package) is not None
