"""Do detectors on these backbones learn as well as the stock ones? Same recipe, same data, several seeds.

    python benchmarks/learning.py --data bccd=bccd.yaml digits --scales n s --seeds 0 1 2

No test runs this: it takes hours, and BCCD is not in the project.

Every run is `yolo train cfg=RECIPE model=... data=... seed=...` in a process of its own, then `yolo val split=test` of
its best.pt. Results are added to docs/accuracy.json as they come, and runs that are there with the recipe's present
settings are not repeated, so that the command can be interrupted and given again; `--jobs 2` runs two at a time. At the
end, or with `--report` alone, docs/accuracy.md gets the tables and docs/accuracy-DATA.png the learning curves.

BCCD: github.com/Shenggan/BCCD_Dataset with its own splits, as a YOLO data set. digits: drawn here, 800 images to train
on, 200 to validate with and 200 to test on.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pages import with_part

from yolo_lightbackbones.writing import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "accuracy.json"
PAGE = ROOT / "docs" / "accuracy.md"
FAMILIES = ("edgevit", "parcnet", "repvit", "conv2former")
MODELS = ("stock", *FAMILIES)
SIZES: dict[str, dict[str, Any]] = {
    "bccd": {"imgsz": 128, "epochs": 25},
    "digits": {"imgsz": 128, "epochs": 6, "fliplr": 0.0},
}
"""Beside the recipe. Sized to two CPU cores: small images, few epochs; a mirrored digit is not a digit."""
SIZED = ("imgsz", "epochs")
"""What a trial can change of a size: it is then another size, with a table of its own."""
BAR = 0.97
OPTIONS = ("init", "tap_norm")
"""What can be tried of the backbone row in the model YAML; everything else is an argument of `yolo train`."""

Row = dict[str, Any]


def yaml_of(model: str, scale: str) -> str:
    return f"yolov5{scale}.yaml" if model == "stock" else f"yolov5{scale}_{model}.yaml"


def recipe_of(model: str) -> str:
    return f"{'yolov5' if model == 'stock' else model}_few_images.yaml"


def settings_of(row: Row) -> dict[str, Any]:
    """What a run is given: the recipe, the size of the data set's runs, the seed, and what is tried instead."""
    recipe: dict[str, Any] = yaml.safe_load((ROOT / "cfg" / "recipes" / recipe_of(row["model"])).read_text())
    return {**recipe, **SIZES[row["data"]], "seed": row["seed"], **row.get("trial", {})}


def size_of(row: Row) -> str:
    size = {name: row.get("trial", {}).get(name, value) for name, value in SIZES[row["data"]].items()}
    return ", ".join(f"{name} {value}" for name, value in size.items())


def model_of(row: Row, folder: Path) -> str:
    """The model YAML of a run; one of its own where an option of the backbone row is tried."""
    name = yaml_of(row["model"], row["scale"])
    options = {option: value for option, value in row.get("trial", {}).items() if option in OPTIONS}
    if not options:
        return name
    config = yaml.safe_load((ROOT / "cfg" / yaml_of(row["model"], "")).read_text())
    config["backbone"][0][3].append(options)
    (file := folder / "-".join(map(str, options.values())) / name).parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config))
    return str(file)


# --- one run, in a process of its own ---------------------------------------------------------------------------------


def train(row: Row, data: str, folder: str) -> Row:
    """Train and test one detector; returns the row with its results."""
    import torch
    from ultralytics import YOLO
    from ultralytics.utils.torch_utils import get_flops

    settings = settings_of(row)
    other = "".join(f"-{name}-{value}" for name, value in row.get("trial", {}).items())
    name = f"{row['data']}-{row['scale']}-{row['model']}-{row['seed']}{other}"
    quiet = {"workers": 0, "amp": False, "plots": False, "verbose": False, "exist_ok": True}
    detector = YOLO(model := model_of(row, Path(folder)))
    arguments = {name: value for name, value in settings.items() if name not in OPTIONS}
    detector.train(data=data, project=folder, name=name, **arguments, **quiet)
    weights = Path(folder, name, "weights", "best.pt")
    options = {"imgsz": settings["imgsz"], "split": "test", "plots": False, "verbose": False, "workers": 0}
    tested = YOLO(weights).val(data=data, project=folder, name=f"{name}-test", exist_ok=True, **options)
    with (weights.parent.parent / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    curve = [float(line["metrics/mAP50-95(B)"]) for line in lines]
    ends = [0.0, *(float(line["time"]) for line in lines)]
    seconds = statistics.median(end - start for start, end in pairwise(ends))  # of an epoch; a run may have been paused
    images = len(detector.trainer.train_loader.dataset)
    network = YOLO(model).model
    return row | {
        "settings": settings,
        "map50": float(tested.box.map50),
        "map": float(tested.box.map),
        "curve": curve,
        "images_per_second": images / seconds,
        "parameters": sum(p.numel() for p in network.parameters()),
        "gflops": get_flops(network, 640),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }


def run_apart(row: Row, data: str, folder: Path) -> Row | None:
    environment = {**os.environ, "YOLO_AUTOINSTALL": "false"}
    command = [sys.executable, __file__, "--job", json.dumps([row, data, str(folder)])]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        reason = (process.stderr.strip() or "no output").splitlines()[-1]
        print(f"failed: {row}: {reason}", file=sys.stderr, flush=True)
        return None
    result: Row = json.loads(lines[-1].removeprefix("RESULT "))
    return result


# --- the report -------------------------------------------------------------------------------------------------------


def key(row: Row) -> tuple[str, str, str, int, str, str]:
    return row["data"], row["scale"], row["model"], row["seed"], size_of(row), trial_of(row)


def trial_of(row: Row) -> str:
    return told(row, without=SIZED)


def told(row: Row, without: tuple[str, ...] = ()) -> str:
    """What a run tries instead of what is set, in words for a table."""
    return ", ".join(f"{name} {value}" for name, value in row.get("trial", {}).items() if name not in without)


def tried(given: list[str]) -> dict[str, Any]:
    """What `--trial` says: NAME=VALUE, as in a YAML."""
    return {name: yaml.safe_load(value) for name, value in (entry.partition("=")[::2] for entry in given)}


def load() -> list[Row]:
    """The results of runs with the present settings; those of others are left to the history of the file."""
    rows: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    return [row for row in rows if row["settings"] == settings_of(row)]


def spread(values: Iterable[float]) -> str:
    values = list(values)
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.3f} ± {half:.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def epochs_to(curve: list[float], share: float = 0.9) -> int:
    """The first epoch whose mAP50-95 on the val split reaches this share of the last epoch's."""
    return next(i for i, value in enumerate(curve, start=1) if value >= share * curve[-1])


def tables(rows: list[Row]) -> str:
    """A table for each data set, scale and size with the recipe, and for what was tried with all models."""
    parts = []
    ordered = sorted(rows, key=lambda row: (trial_of(row), row["data"], row["scale"], row["settings"]["epochs"]))
    groups = dict.fromkeys((trial_of(row), row["data"], row["scale"], size_of(row)) for row in ordered)
    for trial, data, scale, size in groups:
        same = [r for r in rows if (trial_of(r), r["data"], r["scale"], size_of(r)) == (trial, data, scale, size)]
        own = {model: [r for r in same if r["model"] == model] for model in MODELS}
        if trial and not all(own.values()):
            continue
        stock = {r["seed"]: r["map"] for r in own["stock"]}
        parts.append(
            f"### {data}, scale {scale} ({size}){f': {trial}' if trial else ''}\n\n"
            "| model | M parameters | GFLOPs @640 | seeds | mAP50 | mAP50-95 | of stock | epochs to 90 % | images/s |\n"
            "|---|---|---|---|---|---|---|---|---|"
        )
        for model, found in own.items():
            if not found:
                continue
            pairs = [(r["map"], stock[r["seed"]]) for r in found if r["seed"] in stock]  # seeds that both have
            ratio = sum(mine for mine, _ in pairs) / sum(theirs for _, theirs in pairs) if pairs else None
            share = "" if ratio is None else f"**{ratio:.2f}**" if ratio < BAR else f"{ratio:.2f}"
            cells = [
                yaml_of(model, scale).removesuffix(".yaml"),
                f"{found[0]['parameters'] / 1e6:.2f}",
                f"{found[0]['gflops']:.1f}",
                len(found),
                spread(r["map50"] for r in found),
                spread(r["map"] for r in found),
                share,
                round(statistics.mean(epochs_to(r["curve"]) for r in found)),
                round(statistics.mean(r["images_per_second"] for r in found), 1),
            ]
            parts.append("| " + " | ".join(map(str, cells)) + " |")
        parts.append("")
    return "\n".join(parts)


def trials(rows: list[Row]) -> str:
    """What was tried instead of a recipe's own setting, beside what the recipe gives with the same seeds."""
    lines = ["| data | model | tried | seeds | val mAP50-95 | with the recipe |", "|---|---|---|---|---|---|"]
    for *run, trial in dict.fromkeys((r["data"], size_of(r), r["scale"], r["model"], trial_of(r)) for r in rows):
        same = [r for r in rows if [r["data"], size_of(r), r["scale"], r["model"]] == run]
        found = {r["seed"]: r["curve"][-1] for r in same if trial_of(r) == trial}
        recipe = [r["curve"][-1] for r in same if not trial_of(r) and r["seed"] in found]
        if trial:
            data, size, scale, model = run
            usual = size_of({"data": data}).split(", ")
            of = ", ".join([data, *(part for part in size.split(", ") if part not in usual)])
            beside = spread(recipe) if len(recipe) == len(found) else ""
            name = yaml_of(model, scale).removesuffix(".yaml")
            cells = [of, name, trial, len(found), spread(found.values()), beside]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    about = "Recipes and model YAMLs were chosen by these, mAP50-95 of the last epoch on the val split.\n\n"
    return f"### By the val split\n\n{about}" + "\n".join(lines) if len(lines) > 2 else ""


def draw(rows: list[Row]) -> list[Path]:
    """The learning curves of each data set, mean over the seeds, as small pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    files = []
    for data in dict.fromkeys(row["data"] for row in rows):
        scales = sorted({row["scale"] for row in rows if row["data"] == data}, key="nsmlx".index)
        figure, axes = plt.subplots(1, len(scales), figsize=(5 * len(scales), 3.4), squeeze=False, sharey=True)
        for axis, scale in zip(axes[0], scales, strict=True):
            for model in MODELS:
                curves = [r["curve"] for r in rows if (r["data"], r["scale"], r["model"]) == (data, scale, model)]
                if curves:
                    mean = [statistics.mean(values) for values in zip(*curves, strict=False)]
                    stock = {"color": "black", "linestyle": "--"}
                    style = stock if model == "stock" else {"color": f"C{FAMILIES.index(model)}"}
                    axis.plot(range(1, len(mean) + 1), mean, label=f"{model} ({len(curves)})", **style)
            axis.set(title=f"{data}, scale {scale}", xlabel="epoch", ylabel="mAP50-95, val split")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(file := PAGE.parent / f"accuracy-{data}.png", dpi=90)
        plt.close(figure)
        files.append(file)
    return files


def report() -> None:
    every = load()
    if all(map(trial_of, every)):
        sys.exit(f"error: {RESULTS} has no results with the present recipes. Run without --report first.")
    usual = [row for row in every if not row.get("trial")]
    pictures = "\n".join(f"![Learning curves on {file.stem}]({file.name})" for file in draw(usual))
    write_text(PAGE, with_tables(PAGE.read_text(), every, pictures))


def with_tables(page: str, every: list[Row], pictures: str) -> str:
    """The page with the tables of these results in its two parts: with the recipes, and what else was tried."""
    rows = [row for row in every if not trial_of(row)]
    learning = (
        "Made by `python benchmarks/learning.py`, test split of each data set: mean and half the range of the seeds,\n"
        f"in bold where a family is below {BAR} of the stock model of the same letter with the same seeds.\n"
        f"{rows[0]['machine']}, torch {rows[0]['torch']}.\n"
        "Images per second are of training with validation, with other programs running.\n\n"
        f"{tables(rows)}\n{pictures}"
    )
    others = f"{tables([row for row in every if trial_of(row)])}\n{trials(every)}"
    return with_part(with_part(page, "learning", learning), "tried", others)


# --- all of it --------------------------------------------------------------------------------------------------------


def data_yaml(name: str, given: str, folder: Path) -> str:
    if name not in SIZES:
        sys.exit(f"error: the data is {name}; the sizes of runs are known for {', '.join(SIZES)}.")
    if given:
        return str(Path(given).absolute())
    if name != "digits":
        sys.exit(f"error: where is {name}? Give --data {name}=FILE.yaml")
    from yolo_lightbackbones.datasets.digits import build_digits

    digits = build_digits(folder / "digits", train_images=800, val_images=400)
    pictures = sorted((digits / "images" / "val").iterdir())
    for split, files in (("val", pictures[:200]), ("test", pictures[200:])):
        for source in (s for file in files for s in (file, digits / "labels" / "val" / f"{file.stem}.txt")):
            # A folder for each: Ultralytics has one label cache for a folder, and runs at a time would swap it.
            target = folder / "digits-held-out" / source.parent.parent.name / split / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
                shutil.copyfile(source, target)
    held_out = "val: digits-held-out/images/val\ntest: digits-held-out/images/test"
    (file := folder / "digits.yaml").write_text(f"path: {folder}\ntrain: digits/images/train\n{held_out}\nnc: 10\n")
    return str(file)


def cache_labels(data: str) -> None:
    """Write Ultralytics' label caches, which runs that begin at the same time would all write."""
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    splits = check_det_dataset(data)
    if not splits.get("test"):  # the others are asked for by Ultralytics
        sys.exit(f"error: {data} has no test split. Runs are chosen by the val split and compared on the test split.")
    for split in ("train", "val", "test"):
        YOLODataset(img_path=splits[split], data=splits, task="detect")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=["digits"], metavar="NAME[=YAML]", help="bccd=FILE, digits")
    parser.add_argument("--scales", nargs="*", default=["n", "s"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "learning", help="for the runs themselves")
    parser.add_argument(
        "--trial",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="instead of what is set: lr0=0.002, init=published, epochs=10",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--report", action="store_true", help="write the page from the results that are there")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print("RESULT " + json.dumps(train(*json.loads(arguments.job))))
        return
    if not arguments.report:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        rows = load()
        trial = tried(arguments.trial)
        wanted: list[tuple[Row, str]] = []
        for entry in arguments.data:
            name, _, given = entry.partition("=")
            data = data_yaml(name, given, arguments.folder.absolute())
            cache_labels(data)
            wanted += [
                (
                    {"data": name, "scale": scale, "model": model, "seed": seed, **({"trial": trial} if trial else {})},
                    data,
                )
                for seed in arguments.seeds
                for scale in arguments.scales
                for model in arguments.models
            ]
        wanted = [(row, data) for row, data in wanted if key(row) not in {key(found) for found in rows}]
        wanted.sort(key=lambda entry: entry[0]["seed"])  # whole rounds first, in case of an interruption
        failed = 0
        with ThreadPoolExecutor(arguments.jobs) as pool:
            runs = [pool.submit(run_apart, row, data, arguments.folder.absolute()) for row, data in wanted]
            for run in runs:
                if (row := run.result()) is None:
                    failed += 1
                else:
                    rows = sorted([*load(), row], key=key)
                    write_text(RESULTS, json.dumps(rows, indent=1) + "\n")
                    print(*key(row), f"mAP50 {row['map50']:.3f}, mAP50-95 {row['map']:.3f}", flush=True)
        if failed:
            sys.exit(f"error: {failed} of {len(wanted)} runs failed. The page is as it was: see --report.")
    report()


if __name__ == "__main__":
    main()
