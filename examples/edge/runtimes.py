"""The libraries that can run an exported model, each behind the same two things: `info` and a call.

To add one: write a class with `info: ModelInfo` and `__call__(batch) -> output` (see `detection.Runtime`) and name the
files it opens in `RUNTIMES`. Import its library inside the class: nobody has them all.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import metadata
import numpy as np
from detection import FloatArray, ModelInfo, Runtime, literal


class OnnxRuntime:
    """An ``.onnx`` file on onnxruntime's CPU provider."""

    def __init__(self, path: Path) -> None:
        onnxruntime = require(path, "onnxruntime")
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors share no base class
            raise ValueError(f"onnxruntime cannot load {path}: {one_line(error)}") from error
        self._input = self._session.get_inputs()[0]
        values = self._session.get_modelmeta().custom_metadata_map
        self.info = ModelInfo.from_metadata(values, input_size(path, self._input.shape))
        self._dtype = np.float16 if self._input.type == "tensor(float16)" else np.float32

    def __call__(self, batch: FloatArray) -> FloatArray:
        (output, *_) = self._session.run(None, {self._input.name: batch.astype(self._dtype, copy=False)})
        return np.asarray(output, np.float32)


class OpenCv:
    """An ``.onnx`` file on OpenCV's own `dnn` module: nothing else to install."""

    def __init__(self, path: Path) -> None:
        values = metadata.from_onnx(path)  # OpenCV does not hand them out
        self.info = ModelInfo.from_metadata(values)  # nor the size of the input
        if has_nms(values):  # OpenCV 5.0's loses boxes where there are many
            raise ValueError(f"OpenCV loses boxes in its own non-maximum suppression: export {path} with nms=False.")
        try:
            self._net = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise ValueError(f"OpenCV cannot load {path} (it takes float32 alone): {one_line(error)}") from error

    def __call__(self, batch: FloatArray) -> FloatArray:
        self._net.setInput(batch)
        try:
            return np.asarray(self._net.forward(), np.float32)
        except cv2.error as error:  # some layers are refused only when they run
            raise ValueError(f"OpenCV cannot run this model: {one_line(error)}") from error


class OpenVino:
    """The ``.xml`` file of a ``*_openvino_model`` folder, on the CPU."""

    def __init__(self, path: Path) -> None:
        openvino = require(path, "openvino")
        core = openvino.Core()
        # Left alone, newer CPUs compute in bfloat16, which moves boxes by more than a pixel. INT8 layers stay INT8.
        config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        try:
            model = core.read_model(path)
            shape = [side.get_length() if side.is_static else -1 for side in model.input().partial_shape]
            self._model = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot load {path}: {one_line(error)}") from error
        values = metadata.from_yaml(path.with_name("metadata.yaml"))
        self.info = ModelInfo.from_metadata(values, input_size(path, shape))

    def __call__(self, batch: FloatArray) -> FloatArray:
        return np.asarray(self._model(batch)[0], np.float32)


class Ncnn:
    """The ``.param`` file of a ``*_ncnn_model`` folder, on the CPU."""

    def __init__(self, path: Path) -> None:
        self._ncnn = require(path, "ncnn")
        self._net = self._ncnn.Net()
        weights = path.with_suffix(".bin")
        if not weights.exists():
            raise FileNotFoundError(f"{path} comes with a file of weights, and there is no {weights}.")
        if self._net.load_param(str(path)) or self._net.load_model(str(weights)):  # 0 is success
            raise ValueError(f"ncnn cannot load {path}.")
        # The graph holds no size of its own: the metadata's is the only one.
        self.info = ModelInfo.from_metadata(metadata.from_yaml(path.with_name("metadata.yaml")))

    def __call__(self, batch: FloatArray) -> FloatArray:
        with self._net.create_extractor() as extractor:
            extractor.input(self._net.input_names()[0], self._ncnn.Mat(batch[0]))  # its arrays have no batch
            failed, output = extractor.extract(min(self._net.output_names()))
            if failed:
                raise ValueError("ncnn cannot run this model.")
            return np.array(output, np.float32)[None]  # a copy: the extractor's memory goes with it


class Mnn:
    """An ``.mnn`` file on the CPU."""

    def __init__(self, path: Path) -> None:
        mnn = require(path, "MNN")
        # "normal" computes in float32; "low" would compute in float16 where the CPU can.
        config = {"backend": "CPU", "precision": "normal", "numThread": ((os.cpu_count() or 1) + 1) // 2}
        manager = mnn.nn.create_runtime_manager((config,))
        try:
            self._net = mnn.nn.load_module_from_file(str(path), [], [], runtime_manager=manager, rearrange=True)
        except (SystemError, RuntimeError, ValueError) as error:
            raise ValueError(f"MNN cannot load {path}.") from error
        self._expr = mnn.expr
        info = self._net.get_info()
        values = metadata.from_json(info.get("bizCode", ""))
        self.info = ModelInfo.from_metadata(values, input_size(path, list(info["inputs"][0].shape)))

    def __call__(self, batch: FloatArray) -> FloatArray:
        outputs = self._net.onForward([self._expr.const(batch, list(batch.shape))])
        if not outputs:  # an export with nms=True that found nothing
            return np.empty((1, 0, 6), np.float32)
        return np.array(outputs[0].read(), np.float32)  # a copy: the next run reuses its memory


class LiteRt:
    """A ``.tflite`` file on LiteRT's (formerly TensorFlow Lite's) CPU kernels."""

    def __init__(self, path: Path) -> None:
        module = require(path, "ai-edge-litert", "ai_edge_litert.interpreter", "tflite_runtime.interpreter")
        try:
            self._interpreter = module.Interpreter(str(path), num_threads=os.cpu_count())
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"LiteRT cannot load {path}: {one_line(error)}") from error
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]
        shape = [int(side) for side in self._input["shape"]]
        # Exports made through TensorFlow take (1, height, width, 3), those made from PyTorch directly (1, 3, ...).
        self._channels_last = shape[-1] == 3
        if self._channels_last:
            shape = [shape[0], shape[3], shape[1], shape[2]]
        values = metadata.from_zip(path)
        self.info = ModelInfo.from_metadata(values, input_size(path, shape))
        self._final = literal(values, "end2end", bool, False) or has_nms(values)

    def __call__(self, batch: FloatArray) -> FloatArray:
        if self._channels_last:
            batch = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))  # (1, 3, h, w) -> (1, h, w, 3)
        self._interpreter.set_tensor(self._input["index"], quantize(batch, self._input))
        self._interpreter.invoke()
        output = dequantize(self._interpreter.get_tensor(self._output["index"]), self._output)
        # Boxes are shares of the input's width and height, for the sake of INT8. Not final boxes made from PyTorch.
        size = np.array([self.info.width, self.info.height] * 2, np.float32)
        if not self._final:
            output[:, :4] *= size[:, None]
        elif self._channels_last:
            output[:, :, :4] *= size
        return output


def quantize(values: FloatArray, details: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Real numbers -> the type of a LiteRT tensor, to the nearest of its steps."""
    if not np.issubdtype(details["dtype"], np.integer):
        return values  # LiteRT's other inputs are float32
    scale, zero_point = details["quantization"]
    limits = np.iinfo(details["dtype"])
    steps: FloatArray = np.clip(np.round(values / scale + zero_point), limits.min, limits.max)
    return steps.astype(details["dtype"])


def dequantize(values: np.ndarray[Any, Any], details: Mapping[str, Any]) -> FloatArray:
    """The numbers of a LiteRT tensor -> real ones, as an array of our own."""
    real = np.array(values, np.float32)
    if np.issubdtype(details["dtype"], np.integer):
        scale, zero_point = details["quantization"]
        real = (real - np.float32(zero_point)) * np.float32(scale)
    return real


def require(path: Path, package: str, *modules: str) -> Any:
    """Import a runtime, the first there is of `modules`; where it is missing, say what to install."""
    cause: ModuleNotFoundError | None = None
    for module in modules or (package,):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            cause = cause or error
    raise ModuleNotFoundError(f"Running {path.name} needs {package}: pip install {package}") from cause


def input_size(path: Path, shape: list[Any]) -> tuple[int, int] | None:
    """Height and width of a graph's input (1, 3, height, width); None where it takes any (a name, or -1)."""
    batch, _, *size = shape
    if isinstance(batch, int) and batch > 1:
        raise ValueError(f"{path} takes {batch} pictures at once; export it with batch=1.")
    return (size[0], size[1]) if all(isinstance(side, int) and side > 0 for side in size) else None


def has_nms(values: Mapping[str, Any]) -> bool:
    """Whether the model was exported with ``nms=True``."""
    return literal(values, "args", lambda args: bool(args.get("nms")), False)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class Entry(NamedTuple):
    suffix: str  # of the file it opens
    load: Callable[[Path], Runtime]


# The first that opens a suffix is the default for it.
RUNTIMES: dict[str, Entry] = {
    "onnxruntime": Entry(".onnx", OnnxRuntime),
    "opencv": Entry(".onnx", OpenCv),
    "openvino": Entry(".xml", OpenVino),
    "ncnn": Entry(".param", Ncnn),
    "mnn": Entry(".mnn", Mnn),
    "litert": Entry(".tflite", LiteRt),
}
SUFFIXES = tuple(dict.fromkeys(entry.suffix for entry in RUNTIMES.values()))


def load(path: Path, runtime: str | None = None) -> Runtime:
    """Load an exported model, a file or the folder it lies in, with `runtime` or the one that its suffix asks for.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the runtime is not installed.
        ValueError: no runtime here opens such a file, or the runtime cannot load this one.
    """
    file = find_model(path)
    entry = RUNTIMES[runtime] if runtime else next(e for e in RUNTIMES.values() if e.suffix == file.suffix)
    if entry.suffix != file.suffix:
        raise ValueError(f"{runtime} runs {entry.suffix} files, and {file} is none.")
    return entry.load(file)


def find_model(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"There is no model {path}.")
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in candidates if file.suffix in SUFFIXES]
    if not files:
        raise ValueError(f"{path} is none of the model files this example runs ({', '.join(SUFFIXES)}).")
    if len(files) > 1:
        raise ValueError(f"{path} holds more than one model: name one of {', '.join(f.name for f in files)}.")
    return files[0]
