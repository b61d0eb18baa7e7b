"""The devices that people export for, and what `yolo export` should be told for each: one row per device."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_lightbackbones.messages import did_you_mean, listed, quoted


@dataclass(frozen=True)
class Device:
    """A device and the export that suits it.

    Args:
        name: what a user writes, `lightbackbones export --for NAME`.
        title: the full name of the device.
        format: Ultralytics' name of the format.
        reason: why this format and these options; one sentence, printed by `lightbackbones export --list`.
        quantize: Ultralytics' `quantize=`; None for the default of the format.
        raw_head: whether the file gets the raw maps of the detection head.
        chip: Ultralytics' `name=`, the chip that a format is compiled for; empty if it does not take one.
    """

    name: str
    title: str
    format: str
    reason: str
    quantize: int | str | None = None
    raw_head: bool = False
    chip: str = ""


_NPU = "The NPU computes in INT8, which only raw heads survive."


def _rockchip(name: str) -> Device:
    return Device(name, f"Rockchip {name.upper()}", "rknn", _NPU, quantize=8, raw_head=True, chip=name)


_ROWS = (
    _rockchip("rk3588"),
    _rockchip("rk3576"),
    _rockchip("rk3568"),
    _rockchip("rk3566"),
    Device("android", "Android phones", "litert", "LiteRT, formerly TensorFlow Lite, comes with Android."),
    Device("ios", "iPhone and iPad", "coreml", "Core ML uses the Neural Engine."),
    Device("raspberry-pi", "Raspberry Pi", "ncnn", "NCNN is written for Arm CPUs and needs no other package."),
    Device("jetson", "NVIDIA Jetson", "engine", "TensorRT is built on the device; FP16 needs no data.", quantize=16),
    Device("intel-cpu", "Intel CPUs", "openvino", "OpenVINO is Intel's own runtime."),
    Device("browser", "web browsers", "onnx", "ONNX Runtime Web reads ONNX files."),
)

DEVICES = {row.name: row for row in _ROWS}


def find(name: str) -> Device:
    """Find the row of a device; its name may be written in upper case or with underscores.

    Raises:
        ValueError: with the names of all devices.
    """
    row = DEVICES.get(name.strip().lower().replace("_", "-"))
    if row is None:
        hint = did_you_mean(name, DEVICES)
        raise ValueError(f"No device is called {quoted(name)}. Devices: {listed(DEVICES)}.{hint}")
    return row
