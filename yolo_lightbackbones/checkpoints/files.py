"""From a file to its tensors; runs no code that a file may hold."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo_lightbackbones.checkpoints.errors import CheckpointError, UltralyticsCheckpointError

SUFFIXES = (".pth", ".pt", ".safetensors")
"""What weights files are usually called; any other name is read like `.pth`."""

WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "module",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
)
"""Where training scripts keep the weights, in the order in which they are looked for.

Plain weights come before averaged ones: it is them that the published evaluation scripts read.
"""

PARALLEL_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

AVERAGE_COUNT = "n_averaged"
"""What torch.optim.swa_utils.AveragedModel keeps beside its module."""

MAX_DEPTH = 8
"""Of mappings within mappings, where weights are looked for."""


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a file on the CPU, and the names of entries among them that are no tensors.

    Wrappers of training scripts are opened, prefixes of parallel training removed.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is no checkpoint, is damaged, or holds objects whose loading would run code.
    """
    path = Path(path)
    advice = f"Give the path of a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file."
    if not path.exists():
        raise FileNotFoundError(f"There is no weights file {path}. {advice}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder. {advice}")
    loaded = _load_safetensors(path) if path.suffix.lower() == ".safetensors" else _load_torch(path)
    found = _unwrap(loaded, path)
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    others = [f"{key} ({type(value).__name__})" for key, value in found.items() if not isinstance(value, Tensor)]
    return _without_parallel_prefixes(tensors), others


@contextlib.contextmanager
def _allowing_nothing_else() -> Iterator[None]:
    """With namespaces alone on torch's list of classes that may be unpickled, which all of a process shares.

    Others leave on it what is safe in their hands alone: Ultralytics' models evaluate strings of the YAML that a file
    has them built from. A namespace is the command line in RepViT's official files.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _pickled_classes(path: Path) -> list[str]:
    """Dotted names of the classes and functions that reading a `torch.save` file in full would call; runs nothing."""
    try:
        with _allowing_nothing_else():
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # not in torch.save's present format, or damaged: then nearly anything can be raised
        return []


def _load_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f"Reading {path} needs the package safetensors. Install it: pip install safetensors"
        ) from error
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or it is damaged or cut off: {error}. Download or save it again."
        ) from error
    return tensors


def _load_torch(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(4)
    try:
        with _allowing_nothing_else(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on formats that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make an unpickler raise nearly anything
        raise _why_unreadable(path, start, error) from error


def _why_unreadable(path: Path, start: bytes, error: Exception) -> CheckpointError:
    zipped, pickled = start.startswith(b"PK\x03\x04"), start.startswith(b"\x80")
    again = "Download or copy it again."
    if "TorchScript" in str(error):
        return CheckpointError(
            f"{path} is a TorchScript archive, a program rather than a checkpoint. "
            "Give the .pth, .pt or .safetensors file it was exported from."
        )
    if (zipped and not zipfile.is_zipfile(path)) or (
        pickled and (isinstance(error, EOFError) or re.search("unexpected EOF|truncated|Ran out of input", str(error)))
    ):
        return CheckpointError(f"{path} is damaged or cut off ({path.stat().st_size:,} bytes). {again}")
    if classes := _pickled_classes(path) or re.findall(r"GLOBAL ([\w.]+)", str(error)):
        return _refusal(path, classes)
    if zipped and _has_torch_layout(path):
        return CheckpointError(f"{path} is damaged. {again}")
    if pickled:
        return _refusal(path, ["of unknown kinds"])
    kind = "an empty file" if not start else f"not a checkpoint (it starts with {start!r})"
    return CheckpointError(f"{path} is {kind}. Give weights saved by torch.save or as safetensors.")


def _has_torch_layout(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def _refusal(path: Path, classes: Sequence[str]) -> CheckpointError:
    """Why a file that holds objects of these classes is not read, and what to do with it."""
    if any(name.startswith("ultralytics.") for name in classes):
        return UltralyticsCheckpointError(
            f"{path} is a checkpoint of an Ultralytics model, not the weights of a backbone. To start from it, use it "
            f"directly: yolo train model={path} data=... To put its backbone, if it has one of ours, into another "
            f"model: lightbackbones convert {path} --model MODEL.yaml -o init.pt"
        )
    shown = ", ".join(classes[:4]) + (", ..." if len(classes) > 4 else "")
    return CheckpointError(
        f"{path} holds pickled Python objects ({shown}), not weights alone. Reading them could run any code, so the "
        "file is refused. If you trust it, load it where it was made and save its weights: "
        "torch.save(model.state_dict(), 'weights.pth')"
    )


def _unwrap(loaded: Any, path: Path) -> Mapping[Any, Any]:
    """The mapping of names to tensors somewhere inside what the file holds."""
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not weights by name (a state dict).")
    for wrapper in WRAPPERS:
        if _holds_weights(loaded.get(wrapper)):
            return _unwrap(loaded[wrapper], path)
    if _is_state_dict(loaded):
        return loaded
    inside = [key for key, value in loaded.items() if _is_state_dict(value)]
    if len(inside) == 1:
        return _unwrap(loaded[inside[0]], path)
    entries = ", ".join(str(key) for key in (inside or loaded)) or "none"
    if inside:
        raise CheckpointError(
            f"{path} holds several sets of weights: {entries}. Save the one you mean alone: "
            "torch.save(torch.load(...)[name], 'weights.pth')"
        )
    raise CheckpointError(f"{path} holds no weights; its entries are: {entries}. Give a file of a model's state dict.")


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and isinstance(inner, Tensor) for key, inner in value.items()
    )


def _holds_weights(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether there are weights within `depth` mappings; a mapping may hold itself."""
    if not isinstance(value, Mapping) or depth == 0:
        return False
    return _is_state_dict(value) or any(_holds_weights(inner, depth - 1) for inner in value.values())


def _without_parallel_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [key for key in tensors if key != AVERAGE_COUNT]
    shared = [prefix for prefix in PARALLEL_PREFIXES if names and all(name.startswith(prefix) for name in names)]
    if not shared:
        return tensors
    return _without_parallel_prefixes({name.removeprefix(shared[0]): tensors[name] for name in names})
