"""Writes the model YAMLs in cfg/ for every shipped family, neck and task, with figures counted on the built models.

    python tools/make_cfg.py            # make cfg

No test runs this: it takes minutes. `tests/test_configs.py` compares its output with cfg/.

The necks are data in `yolo_lightbackbones/configs/necks.py`; `yolo_lightbackbones/configs/writer.py` makes the text.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ultralytics.utils import torch_utils

from yolo_lightbackbones import registry
from yolo_lightbackbones.backbone import TAPS
from yolo_lightbackbones.cli import models
from yolo_lightbackbones.configs import finding, timm_series, writer
from yolo_lightbackbones.configs.necks import LEVELS, NECKS
from yolo_lightbackbones.writing import write_text

P3_P5 = TAPS[1:]
DETECTORS = (
    ("yolov5", P3_P5),
    ("yolov5", LEVELS[1:]),
    ("yolov8", P3_P5),
    ("yolov8", TAPS),
    ("yolov8-worldv2", P3_P5),
    ("yolov9t", P3_P5),
    ("yolov9s", P3_P5),
    ("yolov10", P3_P5),
    ("yolov10m", P3_P5),
    ("yolov10l", P3_P5),
    ("yolov10x", P3_P5),
    ("yolo11", P3_P5),
    ("yolo12", P3_P5),
    ("yolo26", P3_P5),
    ("yolo26", TAPS),
    ("yolo26", LEVELS[1:]),
    ("yoloe-26", P3_P5),
    ("rtdetr", P3_P5),
)
OTHER_TASKS = {
    "yolo11": ("segment", "pose", "obb"),
    "yolo26": ("segment", "pose", "obb", "semantic", "depth"),
    "yoloe-26": ("segment",),
}
FEW = ("parc",)
"""Families of comparison models: only a YOLOv5 and a YOLO11 detector each, and classifiers. The package has other
families for the same purpose; `lightbackbones new` writes the rest."""
FEW_DETECTORS = (("yolov5", P3_P5), ("yolo11", P3_P5))
IMAGE_SIZE = {"classify": 224}  # pixels; others 640
BY_HAND = ("yolo11_repvit-neck.yaml", "yolo11_repvit-rgbir.yaml")
"""Files written by hand; only their figures are updated here."""
FIGURES = re.compile(r"[, #]*[\d,]+ parameters, [\d.]+ GFLOPs")


@dataclass(frozen=True)
class Model:
    """One file of cfg/."""

    name: str
    family: str
    neck: str
    levels: tuple[str, ...] = P3_P5
    task: str = "detect"

    def text(self, figures: dict[str, str] | None = None, scale: str | None = None) -> str:
        return writer.write(
            self.family, self.neck, levels=self.levels, task=self.task, name=self.name, scale=scale, figures=figures
        )


def all_models() -> Iterator[Model]:
    """List all files in cfg/ that are generated."""
    for family in (cls.family for cls in registry.built_in() if cls.card.letters):
        wanted = [(neck, levels, "detect") for neck, levels in (FEW_DETECTORS if family in FEW else DETECTORS)]
        if family not in FEW:
            wanted += [(neck, P3_P5, task) for neck, tasks in OTHER_TASKS.items() for task in tasks]
        wanted += [(writer.CLASSIFIER_NECK, P3_P5, "classify")]
        for neck, levels, task in wanted:
            if not set(NECKS[neck].scales) & set(letters(family)):  # no EdgeViT is as large as YOLOv10x
                continue
            yield Model(writer.file_name(neck, levels, task, family), family, neck, levels, task)
        yield Model(f"{family}-cls.yaml", family, writer.CLASSIFIER_NECK, P3_P5, "classify")
    for series in timm_series.SERIES:
        yield Model(writer.file_name("yolo11", P3_P5, "detect", series), series, "yolo11")


def figures(model: Model) -> dict[str, str]:
    """Build the model for each scale letter, and count it: letter -> parameters and GFLOPs."""
    # Ultralytics reads the scale letter from the name, which has no place for it in `repvit-cls.yaml`. In
    # `rtdetr_repvit.yaml` there is none either; then the only scale is taken.
    name = writer.file_name(model.neck, model.levels, model.task, model.family)
    with tempfile.TemporaryDirectory() as folder:
        counted = {}
        for letter in (letter for letter in letters(model.family) if letter in NECKS[model.neck].scales):
            file = Path(folder, finding.scaled_name(name, letter))
            write_text(file, model.text(scale=letter))
            counted[letter] = count(file, IMAGE_SIZE.get(model.task, 640))
    return counted


def letters(family: str) -> list[str]:
    """The scale letters of a family, or of a series of timm's models."""
    if series := timm_series.SERIES.get(family):
        return list(series.letters)
    return next(list(cls.card.letters) for cls in registry.built_in() if cls.family == family)


def count(file: Path, size: int = 640) -> str:
    with models.quiet_ultralytics():
        net = models.build(models.read_yaml(str(file), None, assume_first=True), str(file), 3)
    return f"{sum(p.numel() for p in net.parameters()):,} parameters, {torch_utils.get_flops(net, size):.1f} GFLOPs"


def by_hand(name: str) -> None:
    """Update the figures in a file that is written by hand."""
    file = finding.config_dir() / name
    text = FIGURES.sub("", file.read_text())
    for letter in letters("repvit"):
        figure = count(file.with_name(finding.scaled_name(name, letter)))
        text = re.sub(rf"^(  {letter}: .*)$", rf"\g<1>, {figure}", text, flags=re.MULTILINE)
    write_text(file, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="files to write, such as yolo11_repvit.yaml; default: all")
    wanted = parser.parse_args().names
    known: dict[str, Model | None] = {**{model.name: model for model in all_models()}, **dict.fromkeys(BY_HAND)}
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"error: no file {unknown[0]}. Allowed: {', '.join(known)}")
    for name in wanted or known:
        if (model := known[name]) is None:
            by_hand(name)
        else:
            write_text(finding.config_dir() / name, model.text(figures(model)))
        print(name, flush=True)


if __name__ == "__main__":
    main()
