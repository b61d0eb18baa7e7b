"""Checks checkpoints that pickle whole models, for a loader that knows the models' classes; this module knows none.

A restricted loader calls the classes on its list, and a model's constructor may evaluate texts of its configuration. A
file saved by a trainer does not need that: pickled modules are created empty and then filled. So the loader gets a copy
of the file that does nothing else.
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
from yolo_lightbackbones.checkpoints.inert import Global, Instance, MalformedError, TensorRef, walk
from yolo_lightbackbones.messages import listed

RESIZING = "torchvision.transforms.functional.InterpolationMode"

NUMBERS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")

CALLS = {
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    RESIZING,
}
"""Classes that a checkpoint may call with any arguments: paths, and the resizing of a classifier's images."""

METHODS = ("forward", "forward_fuse")
"""Methods of modules that a checkpoint may look up with `getattr`; it may also look up members of `RESIZING`."""


def copy_checked(path: Path, place: Path) -> None:
    """Copy a `torch.save` archive to `place` after every instruction of its pickle was checked.

    Raises:
        FileNotFoundError: if there is no such file.
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
        # Records are written anew: in a malformed archive two programs may see different records.
        with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as copy:
            for name, span in records.items():
                copy.writestr(zipfile.ZipInfo(f"archive/{name}"), archives.read_span(file, span))


def _problems(value: Any, instances: list[Instance], foreign: Iterable[str]) -> Iterable[str]:
    """Yield what a pickle does besides creating and filling objects; a call counts even if its result is not kept."""
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
            # The state gives the byte order; it could also describe the values in memory wrongly.
            plain = [(3, order, None, None, None, -1, -1, 0) for order in "<>|="]
            harmless = re.fullmatch("[fiub][1248]", kind) is not None and all(state in plain for state in states)
        case Instance(arguments=(Instance(of="numpy.dtype"), bytes() | Instance(of="encode"))):
            harmless = instance.of in NUMBERS  # of metrics
    return harmless
