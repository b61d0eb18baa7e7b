"""`lightbackbones compare`: parameters, multiply-adds and latency of backbones and models, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_lightbackbones.cli import completion, targets
from yolo_lightbackbones.cli.common import (
    IMAGE_SIZE_HELP,
    UserError,
    check_picture,
    errors_for_users,
    image_size,
    messages,
    print_json,
    progress,
)
from yolo_lightbackbones.drawing import new_figure, save_figure

WARM_UP = 3
"""Rounds before the measured ones."""


def compare(
    names: Annotated[list[str], typer.Argument(metavar="TARGET", help=targets.HELP, autocompletion=completion.targets)],
    *,
    imgsz: Annotated[str, typer.Option("--imgsz", help=IMAGE_SIZE_HELP)] = "640",
    repeats: Annotated[int, typer.Option("--repeats", help="Rounds; in each, every target is timed once.")] = 20,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads of PyTorch; by default PyTorch chooses.")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option("--scale", "-s", help="Scale letter of YAMLs whose names have none; else the first."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw latency against parameters or accuracy: *.png.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite an existing picture.")] = False,
) -> None:
    """Compare backbones and models here: on this CPU, folded for inference, float32, one image at a time.

    They take turns, A B C A B C ..., so a machine that slows down slows all of them down. The ratio to the first one is
    the median of its ratios in all rounds. Detectors are timed without non-maximum suppression.
    """
    with errors_for_users():
        size = image_size(imgsz)
        _check_options(names, repeats, threads, output, force)
        found = []
        with messages().status("Reading"):
            for name in names:
                found.append(targets.find(name, _scale_for(name, scale), size))
                found[-1].check(size)
        document = _measure(found, size, repeats, threads)
        if output is not None:
            _draw(document, output)
    if as_json:
        print_json(document)
    else:
        _print(document)
    if output is not None:
        report = messages() if as_json else Console(highlight=False, soft_wrap=True)
        report.print(f"Wrote {output}.", markup=False)


def _check_options(names: list[str], repeats: int, threads: int | None, output: Path | None, force: bool) -> None:
    """Refuse, before any work is done, options that would fail after it."""
    if len(names) < 2:
        raise UserError(f"There is nothing to compare {names[0]} with. Name two or more.")
    for option, value in (("--repeats", repeats), ("--threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; it must be at least 1.")
    if output is not None:
        check_picture(output, "picture", force)


def _scale_for(name: str, scale: str | None) -> str | None:
    """The letter given on the command line, for the YAMLs whose names give none."""
    if scale is None or Path(name).suffix not in {".yaml", ".yml"}:
        return None
    from yolo_lightbackbones.cli.models import quiet_ultralytics

    with quiet_ultralytics():
        from ultralytics.nn.tasks import guess_model_scale

        return None if guess_model_scale(name) else scale


# --- measuring --------------------------------------------------------------------------------------------------------


def _measure(found: list[targets.Target], size: tuple[int, int], repeats: int, threads: int | None) -> dict[str, Any]:
    """Count and time the targets; all results as plain data."""
    import torch

    from yolo_lightbackbones.cli.machine import cores, cpu_name
    from yolo_lightbackbones.measure import timing

    with messages().status("Counting"):
        costs = [target.count(size).total for target in found]
    with messages().status("Folding"):
        images = [torch.rand(1, target.channels, *size) for target in found]
        runs = [_run(target, image) for target, image in zip(found, images, strict=True)]
    calls = len(runs) * (repeats + WARM_UP)
    with _threads(threads) as used, torch.inference_mode(), progress("Measuring", calls) as advance:
        latencies = timing.interleaved(runs, repeats, warm_up=WARM_UP, progress=advance)
    results = []
    for target, counted, latency in zip(found, costs, latencies, strict=True):
        figures = target.figures
        results.append(
            {
                "name": target.name,
                "kind": target.kind,
                "parameters": counted.parameters,
                "macs": counted.macs,
                "latency_ms": asdict(latency),
                "ratio": timing.ratio(latency, latencies[0]),
                "top1": figures.top1 if figures else None,
                "top1_source": figures.source if figures else None,
            }
        )
    return {
        "machine": {"processor": cpu_name(), "cores": cores(), "threads": used, "torch": torch.__version__},
        "imgsz": size,
        "repeats": repeats,
        "results": results,
    }


def _run(target: targets.Target, image: Any) -> Any:
    """The function to time: the target, folded for inference, on one image."""
    from yolo_lightbackbones import fusion
    from yolo_lightbackbones.cli.models import quiet_ultralytics

    if target.variant:
        folded = fusion.fuse(target.module)
    else:
        with quiet_ultralytics():
            folded = target.module.fuse(verbose=False).eval()
    return lambda: folded(image)


@contextlib.contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    """Run PyTorch with this number of threads, or its own choice; gives the number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


# --- output -----------------------------------------------------------------------------------------------------------


def _print(document: dict[str, Any]) -> None:
    height, width = document["imgsz"]
    title = f"At {height} x {width} (height x width), folded, float32, batch 1, {document['repeats']} rounds"
    table = Table("", title=title, title_justify="left")
    for heading in ("parameters\n(M)", "GMACs", "median\n(ms)", "middle half\n(ms)", "ratio to\nthe first"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in document["results"]:
        latency = result["latency_ms"]
        table.add_row(
            escape(result["name"]),
            f"{result['parameters'] / 1e6:.2f}",
            f"{result['macs'] / 1e9:.2f}",
            f"{latency['median']:.1f}",
            f"{latency['low']:.1f} to {latency['high']:.1f}",
            f"{result['ratio']:.2f}",
        )
    Console(highlight=False).print(table)
    text = Console(highlight=False, soft_wrap=True)
    text.print(f"{_machine(document)}. Parameters and GMACs are counted before folding.", markup=False)


def _machine(document: dict[str, Any]) -> str:
    machine = document["machine"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    return f"{machine['processor']}, {threads}, torch {machine['torch']}"


def _draw(document: dict[str, Any], path: Path) -> None:
    """Latency against published accuracy, where all have one, or else against parameters."""
    results = document["results"]
    accurate = all(result["top1"] is not None for result in results)
    heights = [result["top1"] if accurate else result["parameters"] / 1e6 for result in results]
    figure = new_figure(6.4, 4.4)
    axes = figure.add_subplot()
    for result, value in zip(results, heights, strict=True):
        latency = result["latency_ms"]
        spread = [[latency["median"] - latency["low"]], [latency["high"] - latency["median"]]]
        axes.errorbar(latency["median"], value, xerr=spread, fmt="o", capsize=3)
        name = result["name"].replace("$", r"\$")  # a dollar sign would begin a formula
        axes.annotate(name, (latency["median"], value), textcoords="offset points", xytext=(5, 6))
    axes.margins(x=0.2, y=0.15)
    height, width = document["imgsz"]
    label = "published ImageNet top-1 (%)" if accurate else "parameters (M)"
    axes.set(xlabel=f"latency at {height} x {width} (ms, median and middle half)", ylabel=label)
    axes.set_title(_machine(document), fontsize="small")
    axes.grid(alpha=0.3)
    save_figure(figure, path)
