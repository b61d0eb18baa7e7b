"""Writes model YAMLs with comments: a backbone, a neck of one of Ultralytics' models, and a head for a task.

`tools/make_cfg.py` writes `cfg/` with it, and `lightbackbones new` writes a user's own YAMLs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from yolo_lightbackbones import registry
from yolo_lightbackbones.backbone import TAPS, Backbone
from yolo_lightbackbones.configs import finding, timm_series
from yolo_lightbackbones.configs.necks import EXTRA_LEVEL, NECKS, TASKS, Neck
from yolo_lightbackbones.configs.wiring import Line, classifier, detector, reduction
from yolo_lightbackbones.messages import flow, listed, quoted

TASK_TITLES = {
    "detect": "object detection",
    "segment": "instance segmentation",
    "pose": "pose estimation",
    "obb": "oriented object detection",
    "classify": "image classification",
    "semantic": "semantic segmentation",
    "depth": "monocular depth estimation",
}
EXAMPLE_DATA = {
    "detect": "coco.yaml",
    "segment": "coco.yaml",
    "pose": "coco-pose.yaml",
    "obb": "DOTAv1.yaml",
    "classify": "imagenet",
    "semantic": "cityscapes.yaml",
    "depth": "nyu-depth.yaml",
}
SETTINGS = {
    "nc": "number of classes",
    "kpt_shape": "number of keypoints, number of dims (2 for x,y or 3 for x,y,visible)",
    "end2end": "whether to use end-to-end mode",
    "reg_max": "DFL bins",
    "text_model": "encoder of the class names",
}
"""Key of a model YAML -> the comment after it."""
LONGEST_LETTERS = 4
"""Most characters of a variant that is letters and digits, such as `b_k7`; longer ones are names."""
CLASSIFIER_NECK = "yolo26"
"""Generation in the names of classifiers: Ultralytics reads a scale letter only off names that begin like its own."""


def file_name(neck: str, levels: Sequence[str], task: str, family: str) -> str:
    """Name of a YAML, such as `yolov8-p2_repvit.yaml`: Ultralytics' name for neck and head, then the backbone."""
    family = family.rpartition("/")[2].partition(".")[0]  # timm/NAME.TAG
    if task == "classify":
        return f"{CLASSIFIER_NECK}-cls_{family}.yaml"
    extra = "-p2" * (TAPS[0] in levels) + "-p6" * (EXTRA_LEVEL in levels)
    return f"{neck}{extra}{TASKS[task]}_{family}.yaml"


def write(
    backbone: str,
    neck: str,
    *,
    levels: Sequence[str] = TAPS[1:],
    task: str = "detect",
    name: str | None = None,
    scale: str | None = None,
    figures: Mapping[str, str] | None = None,
) -> str:
    """Make the text of a model YAML.

    Args:
        backbone: a family or a series of timm's models (`"repvit"`, `"convnext"`: the scale letter picks the variant)
            or one variant (`"repvit_m1_0"`, `"timm/resnet18"`: the same at every letter, which then scales only the
            neck).
        neck: one of `NECKS`; a classifier uses its scale letters and none of its rows.
        levels: two or more consecutive levels, shallow to deep. P6 is made by the neck.
        task: one of `TASKS`.
        name: the file's name, for the commands in the comments at its top.
        scale: write only this letter; None: all of them.
        figures: scale letter -> text to add to its comment after the variant, such as parameters and GFLOPs.

    Raises:
        ValueError: for an unknown backbone, neck, task or scale, a task that the neck has no head for, or levels that
            do not fit, with what is allowed.
    """
    module, variants, title, source, options = _resolve(backbone)
    if neck not in NECKS:
        raise ValueError(f"There is no neck {neck!r}. Allowed: {', '.join(NECKS)}.")
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}. Allowed: {', '.join(TASKS)}.")
    chosen = NECKS[neck]
    if task != "classify" and task not in chosen.heads:
        others = ", ".join(name for name, other in NECKS.items() if task in other.heads)
        raise ValueError(
            f"{neck} has no head for the task {task!r}. It has heads for {', '.join(chosen.heads)}; necks with a head "
            f"for {task}: {others}."
        )
    letters = [letter for letter in chosen.scales if not isinstance(variants, Mapping) or letter in variants]
    if not letters:
        raise ValueError(
            f"{title} has variants for the scale letters {', '.join(variants)}, and {neck} has the scales "
            f"{', '.join(chosen.scales)}. Choose a variant: {listed(registry.list_backbones(backbone), 100)}."
        )
    if scale is not None:
        if scale not in letters:
            raise ValueError(f"There is no scale {scale!r} of {backbone}. Allowed: {', '.join(letters)}.")
        letters = [scale]
        if isinstance(variants, Mapping):
            module, variants, title, source, options = _resolve(_one_of(module, variants[scale]))
    name = name or file_name(neck, levels, task, backbone)
    settings: dict[str, Any]
    comments = dict(SETTINGS)
    wanted = {key: variants[key] for key in letters} if isinstance(variants, Mapping) else variants
    row: list[Any] = [module, [wanted, options] if options else [wanted]]
    with_backbone = f"with {'an' if title[0] in 'AEIOaeio' else 'a'} {title} backbone{source}"
    if task == "classify":
        trunk, head = classifier(row)
        what = f"Image classification {with_backbone}: pretrains the backbone on folders of images"
        head_title: list[str] = []
        settings = {"nc": 1000}
    else:
        trunk, head = detector(chosen, row, levels, task)
        generation = chosen.title + "-P2" * (TAPS[0] in levels) + "-P6" * (EXTRA_LEVEL in levels)
        outputs = f"{levels[0]}/{reduction(levels[0])} - {levels[-1]}/{reduction(levels[-1])} outputs"
        what = f"{generation} {TASK_TITLES[task]} {with_backbone}, {outputs}"
        head_title = [f"# {generation} head"]
        settings = {"nc": 80, **chosen.heads[task].settings}
        comments["nc"] = chosen.heads[task].about_classes
    lines = [
        "# yolo_lightbackbones, AGPL-3.0 licence",
        "",
        f"# {what}",
        *_commands(name, task, letters, backbone, neck, imgsz=options.get("imgsz")),
        "",
        "# Parameters",
        *(f"{key}: {_flow(value)} # {comments[key]}" for key, value in settings.items()),
        *_scales(module, chosen, letters, variants, title=title, figures=figures or {}),
        "",
        f"# {title} backbone",
        "backbone:",
        "  # [from, repeats, module, args]",
        *map(_line, trunk),
        "",
        *head_title,
        "head:",
        *(text for line in head for text in ([""] * line.gap + [_line(line)])),
    ]
    return "\n".join(lines) + "\n"


def _scales(
    module: str,
    neck: Neck,
    letters: Sequence[str],
    variants: Mapping[str, str] | str,
    *,
    title: str,
    figures: Mapping[str, str],
) -> list[str]:
    """Lines of the `scales:` of a model YAML, with the variant and the figures of each letter as a comment."""
    if len(letters) == 1:
        lines = ["scales: # of the neck"]
    elif isinstance(variants, Mapping):
        lines = ["scales: # neck scaling; the backbone's size is its variant's, chosen by the same letter"]
    else:
        lines = ["scales: # neck scaling; the backbone is the same at every letter"]
    lines.append("  # [depth, width, max_channels]")
    for letter in letters:
        depth, width, limit = neck.scales[letter]
        said = [_called(module, title, variants[letter])] if isinstance(variants, Mapping) else []
        said += [figures[letter]] if letter in figures else []
        lines.append(f"  {letter}: [{depth:.2f}, {width:.2f}, {limit}]" + (f" # {', '.join(said)}" if said else ""))
    return lines


def _resolve(backbone: str) -> tuple[str, Mapping[str, str] | str, str, str, dict[str, Any]]:
    """Module, variant or variants by letter, title, paper and options of a family, a series or a variant.

    Raises:
        ModuleNotFoundError: for a model of timm, if timm is not installed.
        ValueError: for a name that is none of them, an unknown variant, or a family whose card has no scale letters.
    """
    by_family = {cls.family: cls for cls in registry.families().values()}
    wanted = backbone.strip().lower()
    if series := timm_series.SERIES.get(wanted):
        return timm_series.FAMILY, series.letters, series.title, f" of timm (arXiv {series.paper})", {}
    family = by_family.get(wanted)
    if family is not None:
        if not family.card.letters:
            choose = family.choices() if family.is_open else listed(registry.list_backbones(family.family), 100)
            raise ValueError(
                f"The card of {family.card.title} has no variants for scale letters. Choose a variant: "
                f"{family.full_name(choose) if family.is_open else choose}."
            )
        return family.__name__, family.card.letters, family.card.title, _paper(family), {}
    found = registry.find(backbone)
    if found is not None:
        cls, variant = found
        needed = timm_series.needed_options(cls, variant)
        return cls.__name__, variant, _called(cls.__name__, cls.card.title, variant), _paper(cls), needed
    with_letters = [name for name, cls in by_family.items() if cls.card.letters]
    others = "".join(f", or {cls.full_name(cls.choices())}" for cls in by_family.values() if cls.is_open)
    raise ValueError(
        f"There is no backbone {quoted(backbone)}. Allowed: a family ({', '.join(with_letters)}), a series of timm's "
        f"models ({', '.join(timm_series.SERIES)}), or a variant: {listed(registry.list_backbones(), 100)}{others}."
    )


def _one_of(module: str, variant: str) -> str:
    """Full name of a variant."""
    return registry.families()[module].full_name(variant)


def _paper(family: type[Backbone]) -> str:
    if family.is_open:
        return f" of {family.card.title}"
    return f" (arXiv {family.card.paper})" if family.card.paper else ""


def _commands(name: str, task: str, letters: Sequence[str], backbone: str, neck: str, *, imgsz: Any) -> list[str]:
    """Comments with the commands that use the file."""
    small = finding.scaled_name(name, letters[0])
    if small == name and (task == "classify" or len(NECKS[neck].scales) == 1):
        choice = ""
    elif small == name:
        other = f"; others: lightbackbones new --neck {neck} --scale {letters[-1]} ..." if len(letters) > 1 else ""
        choice = f"    # letter: {letters[0]}{other}"
    else:
        choice = f"    # {', '.join(letters[:-1])} or {letters[-1]}; without a letter: {letters[0]}"
    verb = "" if task == "detect" else f"{task} "
    kept = " project=$PWD name=pretrain exist_ok=True" if task == "classify" else ""  # where the next line looks for it
    size = f" imgsz={imgsz}" if imgsz else ""
    lines = [f"# yolo {verb}train model={small} data={EXAMPLE_DATA[task]}{size}{kept}{choice}"]
    if task == "classify":
        detector_file = file_name("yolov5", TAPS[1:], "detect", backbone)
        if finding.find_config(detector_file) is None:  # a variant, or somebody else's family
            lines.append(f"# lightbackbones new --backbone {backbone} --neck yolov5 --output {detector_file}")
        target = f"--model {detector_file} --scale {letters[0]} -o init.pt"
        lines.append(f"# lightbackbones convert pretrain/weights/best.pt {target}")
    return lines


def _called(module: str, title: str, variant: str) -> str:
    """A variant as its paper writes it, `RepViT-M0.9` for `m0_9`; one with a name of its own, `resnet50`, by that."""
    if registry.families()[module].is_open:
        return variant
    return f"{title}-{variant.upper().replace('_', '.') if len(variant) <= LONGEST_LETTERS else variant}"


def _line(line: Line) -> str:
    return f"  - {_flow(line.row)}" + (f" # {line.comment}" if line.comment else "")


def _flow(value: Any) -> str:
    """Write a value as Ultralytics' own YAMLs do, with quotes only around modes."""
    return re.sub(r"(?<=[\[ ])nearest(?=[],])", '"nearest"', flow(value, sys.maxsize))
