"""Does pretraining arrive? A backbone that has learned to tell digits apart, in a detector that sees few of them.

    python benchmarks/transfer.py [--families repvit edgevit] [--starts scratch pretrained] [--seeds 0] [--trial lr0=LR]

No test runs this: it takes hours.

Per family: `yolo classify train` on a folder of single digits, drawn from the scans of the detection set's train split
alone; `lightbackbones convert` of its best.pt; and `yolo train` on a tenth of the detection set, from that and from
scratch, with the family's recipes for few images; `--trial` tries something else than theirs. Writes
docs/transfer.json as results come; runs that are there with the recipes' present settings are not repeated. At the end,
or with `--report` alone, docs/accuracy.md gets the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import yaml
from learning import PAGE, data_yaml, spread, told, tried
from pages import with_part

from yolo_lightbackbones.writing import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "transfer.json"
FAMILIES = ("repvit", "edgevit")
SIDE = 64  # pixels of a single digit
COPIES = 2  # of each scan, in other colours
STARTS = {"scratch": "few_images", "pretrained": "few_images_pretrained"}
"""Start, without weights or with those of the classifier's backbone -> which of the family's recipes."""
CLASSIFY = {"imgsz": SIDE, "epochs": 12, "batch": 32, "fliplr": 0.0}
DETECT = {"imgsz": 128, "epochs": 40, "batch": 8, "nbs": 8, "fliplr": 0.0, "fraction": 0.1}

Row = dict[str, Any]


def single_digits(detection: Path, folder: Path) -> Path:
    """An image folder, a class each, of the scans that the detection set's train images were drawn from."""
    import cv2
    import numpy as np
    from sklearn.datasets import load_digits

    from yolo_lightbackbones.datasets.digits import CLASS_NAMES

    if folder.is_dir():
        return folder
    half_made = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(half_made, ignore_errors=True)
    sources = json.loads((detection / "sources.json").read_text())["images"]
    scans = sorted({scan for name, used in sources.items() if name.startswith("train/") for scan in used})
    bundle, rng = load_digits(), np.random.default_rng(0)
    for number, scan in enumerate(scans):
        split = "val" if number % 10 == 0 else "train"
        place = half_made / split / CLASS_NAMES[bundle.target[scan]]
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(COPIES):
            ink = cv2.resize(bundle.images[scan] / 16, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).clip(0, 1)[
                ..., None
            ]
            paper, pen = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
            if abs(paper.mean() - pen.mean()) < 60:
                pen = 255 - pen if abs(paper.mean() - 127) > 30 else np.zeros(3)
            picture = paper + ink * (pen - paper) + rng.normal(0, 5, (SIDE, SIDE, 3))
            cv2.imwrite(str(place / f"{scan}-{copy}.png"), picture.clip(0, 255).astype(np.uint8))
    return half_made.rename(folder)


def classifier(family: str, digits: Path, folder: Path) -> Path:
    """Checkpoint of a classifier of single digits."""
    name = f"{family}-cls"
    best = folder / name / "weights" / "best.pt"
    finished = folder / f"{name}.finished"  # Ultralytics writes best.pt after the first epoch
    if not finished.is_file():
        yolo = Path(sysconfig.get_path("scripts")) / "yolo"
        options = [f"{key}={value}" for key, value in {**CLASSIFY, "project": folder, "name": name}.items()]
        quiet = ["workers=0", "amp=False", "plots=False", "exist_ok=True"]
        command = [str(yolo), "classify", "train", f"model={name}.yaml", f"data={digits}", *options, *quiet]
        subprocess.run(command, check=True, env={**os.environ, "YOLO_AUTOINSTALL": "false"})
        finished.touch()
    return best


def pretrained(family: str, seed: int, best: Path, folder: Path) -> Path:
    """A detector's checkpoint with the classifier's backbone; each seed has a neck and a head of its own."""
    import torch

    from yolo_lightbackbones.cli.convert import convert

    target = folder / f"{family}-init-{seed}.pt"
    torch.manual_seed(seed)
    convert(str(best), model=f"yolov5_{family}.yaml", output=target, scale="n", force=True)
    return target


def detect(run: Row, *, data: str, best: Path, folder: Path) -> Row:
    """Train on a tenth of the pictures; mAP on the test split, and on the val split for choosing a recipe."""
    from ultralytics import YOLO

    family, start, seed = run["family"], run["start"], run["seed"]
    settings = settings_of(run)
    name = "-".join(map(str, [family, start, seed, *(text for pair in run.get("trial", {}).items() for text in pair)]))
    weights = str(pretrained(family, seed, best, folder)) if start == "pretrained" else False
    quiet = {"workers": 0, "amp": False, "plots": False, "verbose": False, "exist_ok": True, "val": False}
    detector = YOLO(f"yolov5n_{family}.yaml")
    detector.train(data=data, project=str(folder), name=name, pretrained=weights, **settings, **quiet)
    last = folder / name / "weights" / "last.pt"
    options = {"imgsz": DETECT["imgsz"], "plots": False, "verbose": False, "workers": 0, "exist_ok": True}
    found: dict[str, float] = {}
    for split, prefix in (("val", "val_"), ("test", "")):
        metrics = YOLO(last).val(data=data, project=str(folder), name=f"{name}-{split}", split=split, **options)
        found |= {f"{prefix}map50": metrics.box.map50, f"{prefix}map": metrics.box.map}
    return {**run, "settings": settings, **found}


def run_of(row: Row) -> Row:
    """Which run a result is of."""
    return {key: row[key] for key in ("family", "start", "seed", "trial") if key in row}


def settings_of(run: Row) -> dict[str, Any]:
    """What a run is given: the recipe of its start, the size of these runs, the seed, and what is tried instead."""
    file = ROOT / "cfg" / "recipes" / f"{run['family']}_{STARTS[run['start']]}.yaml"
    return {**yaml.safe_load(file.read_text()), **DETECT, "seed": run["seed"], **run.get("trial", {})}


def results() -> list[Row]:
    """What docs/transfer.json has of runs with the present settings."""
    rows: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    return [row for row in rows if row["settings"] == settings_of(row)]


def optimizer_of(runs: dict[int, Row]) -> str:
    return str(next(iter(runs.values()))["settings"]["optimizer"])


def preferred(runs: dict[int, Row]) -> tuple[int, float]:
    """What is compared of several ways to train: those with most seeds, then those with the best mAP50, val split."""
    return len(runs), statistics.mean(row["val_map50"] for row in runs.values())


def with_table(page: str, rows: list[Row]) -> str:
    """The page with the table of these results between its marks."""
    detector, classifier = (", ".join(f"{k} {v}" for k, v in settings.items()) for settings in (DETECT, CLASSIFY))
    lines = [
        f"Detector: {detector}. Classifier: {classifier}. Mean and half the",
        "range of the seeds. The last column compares with the way from scratch that the val split prefers of those",
        "with the same optimizer.",
        "",
        "| YOLOv5n on | start | seeds | mAP50, val | mAP50 | mAP50-95 | better than from scratch in |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], dict[int, Row]] = {}
    order = [(family, start) for family in FAMILIES for start in STARTS]
    for row in sorted(rows, key=lambda row: (order.index((row["family"], row["start"])), told(row))):
        groups.setdefault((row["family"], row["start"], told(row)), {})[row["seed"]] = row
    for (family, start, trial), runs in groups.items():
        scratches = [
            rows
            for (of, kind, _), rows in groups.items()
            if (of, kind) == (family, "scratch") and optimizer_of(rows) == optimizer_of(runs)
        ]
        best = max(scratches, key=preferred, default={})
        scratch = {seed: row["map50"] for seed, row in best.items()}
        pairs = [(scratch[seed], row["map50"]) for seed, row in runs.items() if seed in scratch]
        won = f"{sum(b > a for a, b in pairs)} of {len(pairs)} seeds" if pairs and start != "scratch" else ""
        figures = [spread(row[name] for row in runs.values()) for name in ("val_map50", "map50", "map")]
        way = f"{start}, {trial}" if trial else start
        lines.append(f"| {family} | {way} | {len(runs)} | {' | '.join(figures)} | {won} |")
    return with_part(page, "transfer", "\n".join(lines))


def report() -> None:
    write_text(PAGE, with_table(PAGE.read_text(), results()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--starts", nargs="*", default=STARTS, choices=STARTS)
    parser.add_argument(
        "--trial", nargs="*", default=[], metavar="NAME=VALUE", help="instead of what the recipe has: lr0=0.002"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "transfer")
    parser.add_argument("--report", action="store_true", help="write the table from the results that are there")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    trial = tried(arguments.trial)
    data = data_yaml("digits", "", folder)
    digits = single_digits(folder / "digits", folder / "single-digits")
    for family in arguments.families:
        best = classifier(family, digits, folder)
        for start in arguments.starts:
            for seed in arguments.seeds:
                run = {"family": family, "start": start, "seed": seed}
                run |= {"trial": trial} if trial else {}
                if run in map(run_of, results()):
                    continue
                row = detect(run, data=data, best=best, folder=folder)
                rows = [*results(), row]  # read again: another process may have added one meanwhile
                write_text(RESULTS, json.dumps(rows, indent=1) + "\n")
                print("RESULT", row, flush=True)
    report()


if __name__ == "__main__":
    main()
