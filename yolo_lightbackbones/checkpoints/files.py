"""Reads the tensors of a weights file; runs no code from the file, and changes no state of the process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from yolo_lightbackbones.checkpoints import archives
from yolo_lightbackbones.checkpoints.errors import CheckpointError, UltralyticsCheckpointError
from yolo_lightbackbones.checkpoints.inert import TensorRef, kind_of
from yolo_lightbackbones.messages import flow, listed, printable

SUFFIXES = (".pth", ".pt", ".safetensors")
"""Usual suffixes of weights files; a file with any other suffix is read like `.pth`."""

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
"""Keys under which training scripts store the weights, in the order of the search.

Plain weights come before averaged ones, because the published evaluation scripts read the plain ones.
"""

PARALLEL_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""

AVERAGE_COUNT = "n_averaged"
"""Counter that torch.optim.swa_utils.AveragedModel stores beside its module."""

MAX_DEPTH = 8
"""Deepest nesting of mappings searched for weights, and most prefixes removed."""

LONGEST_NAME = 200
"""Longest name of a parameter in characters; the longest of ours has 60."""

MOST_TENSORS = 50_000
"""Most tensors in one set of weights; the largest backbone has 700, a detector around it 2,000."""


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Read the weights of a file to the CPU, and the names of entries among them that are not tensors.

    Wrappers of training scripts are opened, prefixes of parallel training are removed. Tensors that are sparse,
    quantised or without values in the file are on the meta device.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is not a checkpoint, is damaged, cannot be read, would need far more memory than it
            has bytes, or contains objects whose loading would run code.
    """
    path = Path(path)
    shown = flow(path, 1000)
    advice = f"Give the path of a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file."
    try:
        file = archives.open_regular(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no weights file {shown}. {advice}") from error
    except archives.UnreadableError as error:
        raise CheckpointError(f"{shown} {error} {advice}") from error
    with file:
        try:
            contents = archives.read(file, safetensors=path.suffix.lower() == ".safetensors")
            found = _unwrap(contents.value, shown)
            tensors, others = _sorted(found)
            return contents.tensors(tensors), others
        except archives.UnreadableError as error:
            raise CheckpointError(f"{shown} {error}") from error
        except archives.ForeignError as error:
            raise _refusal(shown, error.names) from error
        except OSError as error:
            raise CheckpointError(f"{shown} cannot be read: {error.strerror}.") from error


def _refusal(shown: str, classes: Sequence[str]) -> CheckpointError:
    """The error for a file with objects of these classes: why it is not read, and what to do with it."""
    if any(name.startswith("ultralytics.") for name in classes):
        return UltralyticsCheckpointError(
            f"{shown} is a checkpoint of an Ultralytics model, not the weights of a backbone. To start from it, use it "
            f"directly: yolo train model={shown} data=... To put its backbone, if it has one of ours, into another "
            f"model: lightbackbones convert {shown} --model MODEL.yaml -o init.pt"
        )
    return CheckpointError(
        f"{shown} holds pickled Python objects ({listed(classes, 4)}), not only weights. Reading them could run any "
        "code, so the file is refused. If you trust it, load it where it was made and save its weights: "
        "torch.save(model.state_dict(), 'weights.pth')"
    )


def _unwrap(loaded: Any, shown: str) -> Mapping[Any, Any]:
    """Find the mapping from names to tensors inside the content of a file."""
    depths = _depths(loaded)
    opened: set[int] = set()  # a mapping may contain itself
    while isinstance(loaded, Mapping):
        opened.add(id(loaded))
        wrapped = [loaded[key] for key in WRAPPERS if depths.get(id(loaded.get(key)), MAX_DEPTH) < MAX_DEPTH]
        inner = next((value for value in wrapped if id(value) not in opened), None)
        if inner is None and depths.get(id(loaded)) == 0:
            return loaded
        if inner is None:
            inside = [key for key, value in loaded.items() if depths.get(id(value)) == 0]
            if len(inside) != 1:
                raise _without_weights(shown, inside, loaded)
            inner = loaded[inside[0]]
        loaded = inner
    raise CheckpointError(f"{shown} holds a {printable(kind_of(loaded))}, not weights by name (a state dict).")


def _without_weights(shown: str, inside: Sequence[Any], loaded: Mapping[Any, Any]) -> CheckpointError:
    if inside:
        return CheckpointError(
            f"{shown} holds several sets of weights: {listed(inside)}. Save only the one you mean: "
            "torch.save(torch.load(...)[name], 'weights.pth')"
        )
    return CheckpointError(
        f"{shown} holds no weights; its entries are: {listed(loaded) or 'none'}. Give a file of a model's state dict."
    )


def _depths(loaded: Any) -> dict[int, int]:
    """Levels from every mapping down to the weights inside it, by the id of the mapping.

    Each mapping is visited once: in a small file, shared mappings can make billions of paths.
    """
    mappings: dict[int, Mapping[Any, Any]] = {}
    holders: dict[int, list[int]] = {}
    waiting = [loaded] if isinstance(loaded, Mapping) else []
    while waiting:
        mapping = waiting.pop()
        if id(mapping) in mappings:
            continue
        mappings[id(mapping)] = mapping
        for value in mapping.values():
            if isinstance(value, Mapping):
                holders.setdefault(id(value), []).append(id(mapping))
                waiting.append(value)
    depths = {
        number: 0
        for number, mapping in mappings.items()
        if any(isinstance(key, str) and isinstance(value, TensorRef | Tensor) for key, value in mapping.items())
    }
    level = list(depths)
    for depth in range(1, MAX_DEPTH):
        level = [holder for number in level for holder in holders.get(number, ())]
        level = [number for number in dict.fromkeys(level) if number not in depths]
        depths.update(dict.fromkeys(level, depth))
    return depths


def _sorted(found: Mapping[Any, Any]) -> tuple[dict[str, TensorRef | Tensor], list[str]]:
    """Separate the tensors by name, without prefixes of parallel training, from descriptions of all other entries."""
    tensors: dict[str, TensorRef | Tensor] = {}
    others = []
    for key, value in found.items():
        if isinstance(value, TensorRef | Tensor) and len(name := str(key)) <= LONGEST_NAME:
            tensors[name] = value
        else:
            others.append(f"{listed([key])} ({printable(kind_of(value))})")
    if len(tensors) > MOST_TENSORS:
        raise archives.UnreadableError(
            f"holds {len(tensors):,} tensors; more than {MOST_TENSORS:,} belong to no model with a backbone of ours."
        )
    for _ in range(MAX_DEPTH):
        names = [key for key in tensors if key != AVERAGE_COUNT]
        shared = [prefix for prefix in PARALLEL_PREFIXES if names and all(name.startswith(prefix) for name in names)]
        if not shared:
            break
        tensors = {name.removeprefix(shared[0]): tensors[name] for name in names}
    return tensors, others
