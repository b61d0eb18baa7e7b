"""Exports with raw heads: the maps of the last convolutions as separate outputs, decoded after the runtime.

Integer activations share one scale per tensor. In a decoded output, boxes of up to 640 pixels stand beside scores of 0
to 1, and the softmax over bins and the grid arithmetic before it are rounded, too. Raw maps have a scale each.

    with raw_heads.asked():
        YOLO("best.pt").export(format="litert", quantize=8, data="my.yaml")

Outputs, for each level from the finest (stride 8) to the coarsest: box logits (B, 4 * reg_max, h, w), class logits
(B, classes, h, w), and for Segment, Pose and OBB the level's third map; last, for Segment, the prototypes. Of a head
with a one-to-one branch (YOLOv10, YOLO26), the branch is exported that the model would use: the one-to-one branch,
except with `end2end=False`. `raw_files` describes the metadata, `decoding` the arithmetic.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolo_lightbackbones.messages import listed
from yolo_lightbackbones.plugin import formats, raw_files, releases
from yolo_lightbackbones.plugin.decoding import Layout, decode
from yolo_lightbackbones.plugin.raw_files import RawHeadError

_asked: contextvars.ContextVar[bool] = contextvars.ContextVar("raw_heads_asked", default=False)

OTHER_HEADS = ("WorldDetect", "YOLOEDetect")
"""Subclasses of Detect whose classes depend on a prompt."""

HEADS = "Detect, Segment, Pose and OBB"


@contextlib.contextmanager
def asked() -> Iterator[None]:
    """Inside this block, every export of this thread or task writes a raw head."""
    token = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(token)


def is_asked() -> bool:
    """Whether exports write raw heads here."""
    return _asked.get()


class RawHead(nn.Module):
    """The convolutions of a detection head, without what follows them.

    Args:
        head: a head of Ultralytics (Detect, Segment, Pose, OBB or a subclass).
        strides: strides of its levels, in pixels.
        classes: number of classes.
    """

    def __init__(self, head: Any, strides: Sequence[int], classes: int) -> None:
        super().__init__()
        branch = _branch(head)
        self.box, self.classes = branch["box_head"], branch["cls_head"]
        self.extra: nn.ModuleList | None = None
        key = next((key for key in ("mask_head", "pose_head", "angle_head") if key in branch), None)
        kind = {None: "", "mask_head": "masks", "pose_head": "keypoints", "angle_head": "angle"}[key]
        if key is not None:
            self.extra = branch[key]
            if "kpts_head" in branch:  # Pose26 predicts keypoints and their spread from the same features
                pairs = zip(branch[key], branch["kpts_head"], strict=True)
                self.extra = nn.ModuleList(nn.Sequential(*pair) for pair in pairs)
        if "kpts_head" in branch or _is_a(head, "OBB26"):
            kind += "26"
        self.proto: nn.Module | None = getattr(head, "proto", None)
        self._proto_takes_all = _is_a(head, "Segment26")
        points = getattr(head, "kpt_shape", (0, 0))
        self.layout = Layout(
            tuple(strides),
            int(head.reg_max),
            classes,
            kind,
            (int(points[0]), int(points[1])),
            bool(getattr(head, "end2end", False)),
            int(head.max_det),
        )

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map the features of the levels, (B, C, h, w) each, to raw maps in the order of `Layout.names`."""
        maps = []
        for level, (box, classes) in enumerate(zip(self.box, self.classes, strict=True)):
            maps += [box(x[level]), classes(x[level])]
            if self.extra is not None:
                maps.append(self.extra[level](x[level]))
        if self.proto is not None:
            maps.append(self.proto(list(x) if self._proto_takes_all else x[0]))
        return tuple(maps)


def _branch(head: Any) -> dict[str, Any]:
    """Convolutions of the branch that the head uses: name, as in its method `forward_head` -> one per level."""
    branch: dict[str, Any] = head.one2one if getattr(head, "end2end", False) else head.one2many
    return branch


def prepare(exporter: Any) -> None:
    """Let an export that is about to start write a raw head.

    Raises:
        RawHeadError: if the model, the format or the arguments do not allow a raw head.
    """
    model, options = exporter.model, exporter.args
    _refuse_misfits(model, options)
    head = model.model[-1]
    raw = RawHead(head, [int(stride) for stride in model.stride], len(model.names))
    _prove(model, head, raw, exporter.im)
    for mark in ("i", "f", "type", "np"):
        setattr(raw, mark, getattr(head, mark))
    model.model[-1] = raw.eval()
    with torch.no_grad():
        exporter.output_shape = tuple(tuple(value.shape) for value in model(exporter.im))
    exporter.metadata = raw_files.to_metadata(raw.layout, exporter.metadata)
    exporter.export_onnx = _with_names(exporter.export_onnx, exporter, raw)
    if problem := raw_files.misfit():
        releases.warn_without(raw_files.UNREADABLE, problem)


def _refuse_misfits(model: Any, options: Any) -> None:
    head = model.model[-1] if isinstance(getattr(model, "model", None), nn.Sequential) else model
    name = type(head).__name__
    if not _is_a(head, "Detect") or any(_is_a(head, other) for other in OTHER_HEADS):
        raise RawHeadError(
            f"A raw head is asked for, but this model ends in {name}; raw heads exist for {HEADS}. "
            "Export it without a raw head."
        )
    if getattr(options, "nms", False):
        raise RawHeadError("A raw head is asked for together with nms=True, which needs decoded boxes. Leave one out.")
    if not formats.find(options.format).raw_heads:
        raise RawHeadError(
            f"A raw head is asked for in format={options.format}, but raw heads were tested only as "
            f"{listed(formats.with_raw_heads())}. Choose one of these, or export without a raw head."
        )
    if len(model.names) != head.nc:
        raise RawHeadError(
            f"A raw head is asked for, but the model has {len(model.names)} names for {head.nc} classes. "
            "Give each class one name."
        )


def _prove(model: nn.Module, head: nn.Module, raw: RawHead, image: Tensor) -> None:
    """Compare the decoded maps with the head's own output, on random features of the sizes of this export.

    Raises:
        RawHeadError: if they differ: this is not the head that we know.
    """
    shapes: list[torch.Size] = []

    def note(_: nn.Module, given: tuple[list[Tensor]]) -> None:
        shapes.extend(x.shape for x in given[0])

    handle = head.register_forward_pre_hook(note)
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    random = torch.Generator().manual_seed(0)
    features = [torch.randn(1, *shape[1:], generator=random) for shape in shapes]
    own, ours = copy.deepcopy(head).cpu().float().eval(), copy.deepcopy(raw).cpu().float().eval()
    for method in ("_get_decode_boxes", "kpts_decode"):  # some formats replace them by others with other units
        vars(own).pop(method, None)
    try:
        with torch.no_grad():
            expected = own([*features])
            decoded = decode(ours(features), raw.layout)
        expected = [*expected] if isinstance(expected, tuple) else [expected]
        scale = max(float(value.abs().max()) for value in expected)
        for seen, wanted in zip(decoded, expected, strict=True):
            torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-5 * scale)
    except Exception as error:  # any error means that this is not the head that we know
        raise RawHeadError(
            f"A raw head is asked for, but {type(head).__name__} of Ultralytics {releases.version()} does not compute "
            f"what this release of yolo_lightbackbones decodes ({releases.TESTED_VERSIONS} do). Export it without a "
            "raw head."
        ) from error


def _with_names(step: Callable[..., Any], exporter: Any, raw: RawHead) -> Callable[..., Any]:
    """Let the exporter's ONNX step name the outputs; the exporter knows names for decoded outputs only."""

    @functools.wraps(step)
    def export_onnx(*args: Any, **kwargs: Any) -> Any:
        file = step(*args, **kwargs)
        if exporter.model.model[-1] is raw:  # the exporter may be used again
            _name_outputs(str(file), raw.layout.names, any_size=bool(exporter.args.dynamic))
        return file

    return export_onnx


def _name_outputs(file: str, names: Sequence[str], *, any_size: bool) -> None:
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load(file)
    new = {output.name: name for output, name in zip(model.graph.output, names, strict=True)}
    for node in model.graph.node:
        for listed_names in (node.input, node.output):
            listed_names[:] = [new.get(name, name) for name in listed_names]
    for output in model.graph.output:
        output.name = new[output.name]
        if any_size:
            batch, _, height, width = output.type.tensor_type.shape.dim
            batch.dim_param = "batch"
            for side, name in ((height, "height"), (width, "width")):
                side.dim_param = f"{output.name}_{name}"
    onnx.save(model, file)


def _is_a(module: Any, name: str) -> bool:
    """Whether a module is of Ultralytics' class of that name, or of a subclass."""
    return any(cls.__name__ == name and cls.__module__.startswith("ultralytics.") for cls in type(module).__mro__)
