"""Checkpoints that pickle whole models, for a loader that knows the models' classes; this module knows none.

A restricted loader calls what is on its list, and a model's constructor may evaluate texts of the configuration that it
is given. A file that some trainer has saved has no need of that: pickled modules are created empty and then filled. So
what such a loader gets is a copy in which nothing else can happen.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yolo_lightbackbones.checkpoints import archives
from yolo_lightbackbones.checkpoints.pickles import Global, Instance, MalformedError, TensorRef, walk
from yolo_lightbackbones.messages import listed

RESIZING = "torchvision.transforms.functional.InterpolationMode"

NUMBERS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")

CALLS = {
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    RESIZING,
}
"""Classes that a checkpoint may call with any arguments: paths, and the resizing of a classifier's images."""

METHODS = ("forward", "forward_fuse")
"""Methods of modules that a checkpoint may hold, looked up with `getattr`; of an enumeration, its members."""


def copy_checked(path: Path, place: Path) -> None:
    """Write a `torch.save` archive anew, having followed every instruction of its pickle.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableError: if it is damaged, of the older format, would need far more memory than it has bytes, or does
            anything but create objects and fill them.
    """
    with archives.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != archives.ZIP:
            raise archives.UnreadableError(
                "has the format of torch before 1.6. Load it where it was made and save it again."
            )
        records = archives.zip_records(file, size)
        reader = archives.interpreter(file, records["data.pkl"], size)
        try:
            value = reader.load()
        except MalformedError as error:
            raise archives.UnreadableError(f"is damaged, or no checkpoint of a model: {error}.") from error
        if problems := dict.fromkeys(_problems(value, reader.instances, reader.foreign)):
            raise archives.UnreadableError(
                f"does more than create objects and fill them ({listed(problems, 4)}), which could run any code. "
                "Train from it only if you trust it; or load it where it was made and save its weights: "
                "torch.save(model.state_dict(), 'weights.pth')"
            )
        tensors = {id(part): part for part in walk([value, *reader.instances]) if type(part) is TensorRef}
        archives.check_size(4 * sum(math.prod(tensor.shape) for tensor in tensors.values()), size)
        # Anew and not as it is: two programs may see different records in one odd archive.
        with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as copy:
            for name, span in records.items():
                copy.writestr(zipfile.ZipInfo(f"archive/{name}"), archives.read_span(file, span))


def _problems(value: Any, instances: list[Instance], foreign: Iterable[str]) -> Iterable[str]:
    """What a pickle does beyond that; every call counts, whether or not its result is kept."""
    for instance in instances:
        if not _is_harmless(instance):
            yield f"calls {instance.of}"
    names = set(foreign)
    for part in walk([value, *(instance for instance in instances if instance.of != "builtins.getattr")]):
        # A class in the place of a layer would be called when the model runs.
        if type(part) is Global and part.name in names:
            yield f"keeps {part.name}"


def _is_harmless(instance: Instance) -> bool:
    harmless = instance.of in CALLS
    match instance:
        case Instance(arguments=(), called=called):
            harmless = not called or instance.of.endswith("SimpleNamespace")
        case Instance(of="builtins.getattr", arguments=(Global(name=name), str() as member)) if name == RESIZING:
            harmless = member.isupper()
        case Instance(of="builtins.getattr", arguments=(Global() | Instance(), str() as member)):
            harmless = member in METHODS
        case Instance(of="numpy.dtype", arguments=(str() as kind, *_), states=states):
            # The state says the order of bytes; it could also say what is in memory, wrongly.
            plain = [(3, order, None, None, None, -1, -1, 0) for order in "<>|="]
            harmless = re.fullmatch("[fiub][1248]", kind) is not None and all(state in plain for state in states)
        case Instance(arguments=(Instance(of="numpy.dtype"), bytes() | Instance(of="encode"))):
            harmless = instance.of in NUMBERS  # of metrics
    return harmless
