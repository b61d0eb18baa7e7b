"""Our backbones against plain textbook forms of them (`reference/`) and against timm's RepViT, in every runtime here.

    python benchmarks/speed.py [--families edgevit repvit_m1_1 ...] [--runtimes onnx ...] [--sizes 320] [--batches 1]
    python benchmarks/speed.py --training [--sizes 320 640]
    python benchmarks/speed.py --share [--runtimes onnx openvino]

No test runs these: they measure time, which a busy machine cannot, and all of it takes hours.

Writes speed.json and speed.md beside this file, or `--output`. Rows that are there already are kept, so an interrupted
run goes on where it was; `--again` measures them again, and failed rows are always measured again.
Ours is folded, and recorded as `plugin/formats.py` says of the format. The opponent has the same weights, is folded as
its authors fold it, and goes the same way into the runtime. Each pair has a process of its own for each runtime.
ratio: median and quartiles, over all rounds, of our time divided by the opponent's in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import backends
import candidates
import harness
import shares
import steps
import torch
from harness import Row
from torch import nn

from yolo_lightbackbones import recording
from yolo_lightbackbones.cli.machine import cores, cpu_name, installed
from yolo_lightbackbones.plugin import formats

DEFAULT_RUNTIMES = [name for name in backends.RUNTIMES if name not in ("torchscript", "litert")]
IMAGES = 4
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LONGEST = 3 * 3600
"""Seconds after which a process is stopped."""

Job = dict[str, Any]


# --- one pair in one runtime, in a process of its own ----------------------------------------------------------------


def measure(job: Job) -> Iterator[Row]:
    """Measure one pair in one runtime at all sizes and batches; the rows lack what is the same in all of them."""
    torch.set_num_threads(job["threads"])
    for size in job["sizes"]:
        for batch in job["batches"]:
            with tempfile.TemporaryDirectory() as folder:
                if job["kind"] == "inference":
                    row = _inference(job, size, batch, Path(folder))
                elif job["kind"] == "training":
                    models = candidates.make(job["model"], training=True)
                    clock = CLOCKS[job["clock"]]
                    row = steps.measure(models, size, batch, job["rounds"], job["seconds"], clock=clock)
                else:
                    ours = _recorded(candidates.make(job["model"])["ours"], job["runtime"])
                    image = torch.from_numpy(_images(size, batch)[0])
                    fixed = {"threads": job["threads"], "rounds": job["rounds"], "clock": CLOCKS[job["clock"]]}
                    row = shares.measure(ours, job["runtime"], image, Path(folder), **fixed)
            yield {"size": size, "batch": batch, **row}


def _images(size: int, batch: int) -> list[harness.Array]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(batch, 3, size, size, generator=generator).numpy() for _ in range(IMAGES)]


def _recorded(ours: nn.Module, runtime: str) -> nn.Module:
    """Have it recorded as the plugin does for the runtime's format."""
    if form := backends.RUNTIMES[runtime].form:
        row = formats.find(form)
        norms = row.norms_elementwise(int8=False)
        recording.record_for(ours, matrix_from=row.matrices_from(int8=False), elementwise_norms=norms)
    return ours


def _inference(job: Job, size: int, batch: int, folder: Path) -> Row:
    models, images = candidates.make(job["model"]), _images(size, batch)
    runtime = backends.RUNTIMES[job["runtime"]]
    opponent = models[candidates.opponent(job["model"])]
    expected = [[out.numpy() for out in backends.outputs(opponent, torch.from_numpy(x))] for x in images]
    _recorded(models["ours"], job["runtime"])
    built, failed = {}, {}
    for name, model in models.items():
        _say("DOING", f"{name} at {size} px, batch {batch}")
        (own := folder / name).mkdir()
        try:
            built[name] = runtime.build(model, torch.from_numpy(images[0]), own, job["threads"]).run
            built[name](images[0])
        except Exception as error:  # exporters raise nearly anything
            built.pop(name, None)
            failed[name] = _reason(str(error) or type(error).__name__)
    row: Row = {}
    if built:
        limits = {"rounds": job["rounds"], "seconds": job["seconds"], "clock": CLOCKS[job["clock"]]}
        try:
            row = harness.race(built, images, expected, tolerance=runtime.tolerance, **limits)
        except harness.DifferentResultsError as error:
            failed["comparison"] = str(error)
    return {**row, "failed": failed} if failed else row


def _reason(text: str) -> str:
    """The last line of an error, shortened."""
    return (text.strip().splitlines() or ["no output"])[-1][:200]


def _say(word: str, text: str) -> None:
    print(f"\n{word} {text}", flush=True)  # on a line of its own, whatever a converter has printed before


def run_apart(job: Job) -> list[Row]:
    """`measure` in a new process; what went wrong there is a row, too."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST)
        out, code, errors = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        out, code, errors = "", 1, f"not ready after {LONGEST} s"
    rows = [json.loads(line.removeprefix("RESULT ")) for line in out.splitlines() if line.startswith("RESULT ")]
    if code:
        doing = [line.removeprefix("DOING ") for line in out.splitlines() if line.startswith("DOING ")]
        why = f"stopped by signal {-code}" if code < 0 else _reason(errors or out)
        known = {(row["size"], row["batch"]) for row in rows}
        reason = {"the process": f"{why} ({doing[-1]})" if doing else why}
        rows += [
            {"size": size, "batch": batch, "failed": reason}
            for size in job["sizes"]
            for batch in job["batches"]
            if (size, batch) not in known
        ]
    return rows


# --- all of them ------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """All rows as Markdown tables: inference by size and batch, training, shares, and what failed."""
    machines = dict.fromkeys(f"{row['machine']}, {row['clock']} clock" for row in rows)
    versions = sorted({row["versions"] for row in rows})
    parts = [
        "`python benchmarks/speed.py`: our time divided by the opponent's, median (quartiles) over interleaved rounds.",
        f"Machine: {'; '.join(machines)}. {', '.join(versions)}.",
    ]
    inference = [row for row in rows if row["kind"] == "inference"]
    for size, batch, threads in sorted({(row["size"], row["batch"], row["threads"]) for row in inference}):
        own = [row for row in inference if (row["size"], row["batch"], row["threads"]) == (size, batch, threads)]
        parts += [f"\n### {size} px, batch {batch}, {threads} thread{'s' * (threads > 1)}\n", _grid(own)]
    if ratios := [row["ratio"][1] for row in inference if "ratio" in row]:
        parts.append(f"\nGeometric mean over all {len(ratios)}: {harness.geometric_mean(ratios):.3f}.")
    parts += _training([row for row in rows if row["kind"] == "training"])
    parts += _shares([row for row in rows if row["kind"] == "share" and "share" in row])
    failed = [
        f"- {row['model']}, {row['runtime']}, {row['size']} px, batch {row['batch']}: {name} failed: {reason}"
        for row in rows
        for name, reason in row.get("failed", {}).items()
    ]
    return "\n".join([*parts, *(["", *failed] if failed else [])]) + "\n"


def _grid(rows: Sequence[Row]) -> str:
    """A line per model and a column per runtime, with geometric means below."""
    names = [name for name in backends.RUNTIMES if any(row["runtime"] == name for row in rows)]
    cells = {(row["model"], row["runtime"]): row for row in rows}
    lines = [
        [f"{model} / {candidates.opponent(model)}", *(_cell(cells.get((model, name))) for name in names)]
        for model in dict.fromkeys(row["model"] for row in rows)
    ]
    means = []
    for name in names:
        ratios = [row["ratio"][1] for row in rows if row["runtime"] == name and "ratio" in row]
        means.append(f"{harness.geometric_mean(ratios):.2f}" if ratios else "")
    titles = [backends.RUNTIMES[name].title for name in names]
    return harness.markdown(["ours / opponent", *titles], [*lines, ["geometric mean", *means]])


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    ours = f", {row['ms']['ours']:.1f} ms" if "ours" in row.get("ms", {}) else ""
    if "share" in row:
        return f"{row['share'][1]:.0%} of the matrix product{ours}"
    return harness.ratio_cell(row) + ours


def _training(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = []
    for row in rows:
        place = [row["model"], f"{row['size']}", f"{row['batch']}", harness.ratio_cell(row)]
        if "bytes" in row:
            ours, other = (row["bytes"][name] for name in ("ours", candidates.opponent(row["model"])))
            place += [f"{row['ms']['ours']:.0f}", f"{ours / other:.3f}", f"{ours / 1e6:.1f}"]
        lines.append([*place, *[""] * (7 - len(place))])
    measured = [row for row in rows if "bytes" in row]
    if measured:
        time = harness.geometric_mean([row["ratio"][1] for row in measured])
        memory = harness.geometric_mean(
            [row["bytes"]["ours"] / row["bytes"][candidates.opponent(row["model"])] for row in measured]
        )
        lines.append(["geometric mean", "", "", f"{time:.2f}", "", f"{memory:.3f}", ""])
    header = ["model", "px", "batch", "time of a step", "ms", "bytes saved for backward", "MB"]
    return ["\n### Training step: forward, backward, SGD\n", harness.markdown(header, lines)]


def _shares(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = []
    for row in rows:
        operators = ", ".join(f"{name} {share:.0%}" for name, share in list(row["operators"].items())[:8])
        place = f"{row['size']} px, batch {row['batch']}"
        rate = [f"{row['gflops']:.1f}", f"{row['limit']:.1f}", f"{row['share'][1]:.0%}"]
        lines.append([row["model"], backends.RUNTIMES[row["runtime"]].title, place, *rate, operators])
    header = ["model", "runtime", "image", "GFLOP/s", "matrix product, GFLOP/s", "share", "time by operator"]
    return ["\n### Share of the machine's matrix product\n", harness.markdown(header, lines)]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(candidates.MODELS), help="families, or variants")
    parser.add_argument("--runtimes", nargs="+", choices=list(backends.RUNTIMES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[320, 640])
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--training", action="store_true", help="training steps instead of inference")
    parser.add_argument("--share", action="store_true", help="share of the machine's matrix product, operator tables")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60, help="fewer rounds if they take longer than this")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: time of the process, if others run")
    parser.add_argument("--again", action="store_true", help="measure rows again that are there already")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.job:
        for row in measure(json.loads(arguments.job)):
            _say("RESULT", json.dumps(row))
        return
    if arguments.training and arguments.share:
        parser.error("--training and --share are two runs: give one of them.")
    try:
        models = candidates.resolve(arguments.families)
    except ValueError as error:
        parser.error(str(error))
    kind = "training" if arguments.training else "share" if arguments.share else "inference"
    _measure_all(kind, models, arguments)


def _measure_all(kind: str, models: Sequence[str], arguments: argparse.Namespace) -> None:
    names = {"inference": DEFAULT_RUNTIMES, "share": list(shares.PROFILERS), "training": ["eager"]}[kind]
    if kind != "training" and arguments.runtimes:
        names = [name for name in arguments.runtimes if kind == "inference" or name in shares.PROFILERS]
    if kind == "share":
        models = [model for model in models if candidates.opponent(model) == "reference"]  # timm's is RepViT's graph
    batches = arguments.batches or {"inference": [1, 8], "share": [1], "training": [2]}[kind]
    results = harness.read(arguments.output)
    machine = f"{cpu_name()}, {cores()} cores"
    for name in names:
        runtime = backends.RUNTIMES[name]
        if not backends.is_installed(runtime):
            print(f"{runtime.title} is left out: {runtime.package} is not installed.", file=sys.stderr)
            continue
        version = f"{runtime.package} {installed(runtime.package, runtime.package.replace('_', '-'))}"
        for model in models:
            common = {
                **{"kind": kind, "model": model, "runtime": name, "threads": arguments.threads},
                **{"machine": machine, "clock": arguments.clock},
            }
            for size in arguments.sizes:
                places = [{**common, "size": size, "batch": n} for n in batches if n == 1 or runtime.batches]
                wanted = [
                    place["batch"]
                    for place in places
                    if arguments.again or "failed" in results.get(harness.key(place), {"failed": {}})
                ]
                if not wanted:
                    continue
                limits = {"rounds": arguments.rounds, "seconds": arguments.seconds}
                for measured in run_apart({**common, **limits, "sizes": [size], "batches": wanted}):
                    row = {**common, **measured, "versions": version}
                    results[harness.key(row)] = row
                    print(model, name, f"{row['size']} px, batch {row['batch']}:", _cell(row), flush=True)
                harness.write(arguments.output, results.values(), table(list(results.values())))


if __name__ == "__main__":
    main()
