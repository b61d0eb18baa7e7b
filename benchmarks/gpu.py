"""Measures TensorRT engines and training steps of every family beside the stock models, on a CUDA machine.

    python benchmarks/gpu.py --out FOLDER              # under 8 minutes, on a machine with CUDA and TensorRT
    python benchmarks/gpu.py --out FOLDER --dry-run    # on a CPU: ONNX instead of TensorRT, small images, few steps

No test runs these: they take minutes. tests/test_gpu_benchmark.py makes a smaller dry run.

Writes FOLDER/gpu.json after every row, and FOLDER/gpu.md at the end. Nothing is downloaded: the detectors have random
weights that react to the image (or those of `--weights`), and the images are the digits. A row that fails says why. A
row for which no time is left is listed as such.

step ms, peak MB: a training step with AMP (forward, loss, backward, SGD) on random boxes, and the GPU memory it takes.
worst box, worst score: largest difference of a box coordinate (pixels) and of a class score from PyTorch in float32.
ms, of stock: median time of one image, and its ratio to the stock model's engine; both take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_lightbackbones.measure.timing import interleaved, ratio
from yolo_lightbackbones.messages import printable
from yolo_lightbackbones.writing import write_text

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("edgevit", "parcnet", "repvit", "conv2former")
STOCK = ("yolov5n", "yolo11n")
MODELS = tuple(name for stock in STOCK for name in (stock, *(f"{stock}_{family}" for family in FAMILIES)))
MINUTES = 7.5
IMAGES = 4
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Sizes of the images, batches and loops: those for a GPU by default, smaller ones in a dry run."""

    device: str = "cuda:0"
    format: str = "engine"
    precisions: tuple[int | None, ...] = (16, 8)
    """Values of Ultralytics' `quantize=`."""
    imgsz: int = 640
    batch: int = 16
    steps: int = 10
    repeats: int = 100


DRY = Settings("cpu", "onnx", (None, 8), imgsz=64, batch=2, steps=2, repeats=3)


@dataclass(frozen=True)
class Job:
    """A row to measure: a training step (`precision` is "amp"), or an exported file."""

    model: str
    precision: int | str | None

    @property
    def is_training(self) -> bool:
        return self.precision == "amp"


def plan(models: Sequence[str], settings: Settings) -> list[Job]:
    """Training first, because it takes seconds; then engine after engine, the stock model before its families."""
    jobs = [Job(model, "amp") for model in models]
    for stock in STOCK:
        own = [model for model in models if model.split("_")[0] == stock]
        jobs += [Job(model, precision) for precision in settings.precisions for model in own]
    return jobs


@dataclass
class Budget:
    """Stops before a job that would not end in time, if it takes as long as the longest of its kind so far."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    longest: dict[bool, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.end = self.clock() + self.seconds

    def allows(self, job: Job) -> bool:
        return self.clock() + self.longest.get(job.is_training, 0.0) <= self.end

    @contextlib.contextmanager
    def spent_on(self, job: Job) -> Iterator[None]:
        begin = self.clock()
        yield
        taken = self.clock() - begin
        self.longest[job.is_training] = max(taken, self.longest.get(job.is_training, 0.0))


def measured(jobs: Sequence[Job], measure: Callable[[Job], Row], budget: Budget) -> Iterator[Row]:
    """A row per job; an error is a row as well."""
    for job in jobs:
        row: Row = {"model": job.model, "precision": job.precision}
        if not budget.allows(job):
            yield {**row, "failed": "no time was left"}
            continue
        with budget.spent_on(job):
            try:
                row |= measure(job)
            except Exception as error:  # whatever TensorRT raises, the other rows are still of use
                row["failed"] = printable(f"{type(error).__name__}: {error}")[:300]
        yield row


class Bench:
    """Measures the jobs. The stock models' files stay loaded, because their families are compared with them."""

    def __init__(self, settings: Settings, folder: Path, weights: dict[str, str]) -> None:
        self.settings, self.folder, self.weights = settings, folder, weights
        self.stock: dict[tuple[str, int | str | None], Callable[[], object]] = {}

    def measure(self, job: Job) -> Row:
        return self.train(job) if job.is_training else self.export(job)

    def train(self, job: Job) -> Row:
        """Time training steps with AMP.

        Raises:
            RuntimeError: if a loss is not finite.
        """
        import torch
        from ultralytics.cfg import get_cfg

        settings, cuda = self.settings, self.settings.device.startswith("cuda")
        model = self._detector(job.model).model.to(settings.device).train()
        model.args = get_cfg(overrides={"model": job.model})
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        scaler = torch.amp.GradScaler("cuda", enabled=cuda)
        batch = self._batch()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        losses: list[float] = []

        def step() -> None:
            with torch.autocast("cuda" if cuda else "cpu", torch.float16 if cuda else torch.bfloat16):
                loss = model(batch)[0].sum()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(float(loss.detach()))  # waits for the GPU

        (latency,) = interleaved([step], settings.steps)
        if not all(map(math.isfinite, losses)):
            raise RuntimeError(f"the loss of step {[*map(math.isfinite, losses)].index(False)} is not finite")
        row: Row = {"step_ms": round(latency.median, 1), "first_loss": losses[0], "last_loss": losses[-1]}
        return row | ({"peak_mb": round(torch.cuda.max_memory_allocated() / 1e6)} if cuda else {})

    def export(self, job: Job) -> Row:
        """Export, compare with PyTorch, and time the file beside the stock model's."""
        import torch
        from ultralytics import YOLO
        from ultralytics.nn.autobackend import AutoBackend

        settings = self.settings
        (folder := self.folder / f"{job.model}-{job.precision}").mkdir()
        self._detector(job.model).save(checkpoint := folder / "best.pt")
        calibration = {"data": "digits.yaml", "fraction": 0.1} if job.precision == 8 else {}
        begin = time.perf_counter()
        file = YOLO(checkpoint).export(
            format=settings.format,
            quantize=job.precision,
            imgsz=settings.imgsz,
            device=settings.device.removeprefix("cuda:"),
            verbose=False,
            **calibration,
        )
        row: Row = {"export_s": round(time.perf_counter() - begin, 1)}
        exported = AutoBackend(str(file), device=torch.device(settings.device))
        plain = YOLO(checkpoint).model.float().eval().to(settings.device)
        inputs = [image.to(settings.device) for image in self._images()]
        with torch.inference_mode():
            pairs = [(_output(exported(x)), _output(plain(x))) for x in inputs]
        differences = [(seen - wanted).abs() for seen, wanted in pairs]
        row["box_px"] = max(float(difference[:, :4].max()) for difference in differences)
        row["score"] = max(float(difference[:, 4:].max()) for difference in differences)
        if not math.isfinite(row["box_px"] + row["score"]):
            raise RuntimeError("the exported file gives values that are not finite")

        def run() -> None:
            with torch.inference_mode():
                _output(exported(inputs[0])).cpu()  # waits for the GPU

        stock = self.stock.setdefault((job.model.split("_")[0], job.precision), run)
        latency, reference = interleaved([run, stock], settings.repeats)
        return row | {"ms": round(latency.median, 3), "of_stock": round(ratio(latency, reference), 2)}

    def _detector(self, name: str) -> Any:
        from ultralytics import YOLO

        if name in self.weights:
            return YOLO(self.weights[name])
        sys.path.insert(0, str(ROOT / "tests"))
        from detectors import awake_detector

        return awake_detector(f"{name}.yaml")

    def _batch(self) -> dict[str, Any]:
        """Random images, with four boxes each."""
        import torch

        generator, (batch, imgsz) = torch.Generator().manual_seed(0), (self.settings.batch, self.settings.imgsz)
        boxes = 4 * batch
        made = {
            "img": torch.rand(batch, 3, imgsz, imgsz, generator=generator),
            "cls": torch.randint(0, 10, (boxes, 1), generator=generator).float(),
            "bboxes": 0.3 + 0.4 * torch.rand(boxes, 4, generator=generator),
            "batch_idx": torch.arange(batch).repeat_interleave(4).float(),
        }
        return {key: value.to(self.settings.device) for key, value in made.items()}

    def _images(self) -> list[Any]:
        """Digits as (1, 3, H, W) in 0..1."""
        import cv2
        import torch

        from yolo_lightbackbones.datasets.digits import build_digits

        digits = build_digits(self.folder / "digits", train_images=1, val_images=IMAGES) / "images" / "val"
        size = (self.settings.imgsz, self.settings.imgsz)
        pictures = [cv2.resize(cv2.imread(str(path)), size)[..., ::-1].copy() for path in sorted(digits.iterdir())]
        return [torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous().float() / 255 for picture in pictures]


def _output(out: Any) -> Any:
    import torch

    return torch.as_tensor(out[0] if isinstance(out, tuple | list) else out).float()


def table(rows: Sequence[Row], settings: Settings) -> str:
    """The rows as two tables: training, and exported files."""
    lines = ["| model | step, ms | peak, MB | loss | |", "|---|---|---|---|---|"]
    for row in (row for row in rows if row["precision"] == "amp"):
        loss = f"{row['first_loss']:.2f} to {row['last_loss']:.2f}" if "last_loss" in row else ""
        cells = [row["model"], row.get("step_ms", ""), row.get("peak_mb", ""), loss, row.get("failed", "")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| model | file | worst box, px | worst score | ms | of stock | export, s | |", f"|{'---|' * 8}"]
    for row in (row for row in rows if row["precision"] != "amp"):
        errors = [f"{row[key]:.1e}" if key in row else "" for key in ("box_px", "score")]
        kind = f"{settings.format} {row['precision'] or 32}"
        rest = [row.get(key, "") for key in ("ms", "of_stock", "export_s", "failed")]
        lines.append(f"| {' | '.join(map(str, [row['model'], kind, *errors, *rest]))} |")
    return "\n".join(lines)


def about(settings: Settings) -> Row:
    """The machine and the versions."""
    import importlib.metadata

    import torch

    packages = {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}
    wanted = [
        name for name in packages if name and name.lower().startswith(("tensorrt", "onnx", "torch", "ultralytics"))
    ]
    cuda = settings.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(0) if cuda else platform.processor() or platform.machine(),
        "versions": {name: packages[name] for name in sorted(wanted)},
        "dry_run": settings == DRY,
        "imgsz": settings.imgsz,
        "batch": settings.batch,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with ONNX instead of TensorRT")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no row is begun that would end later")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--weights", nargs="*", default=[], metavar="MODEL=FILE", help="trained detectors")
    given = parser.parse_args(arguments)

    import torch

    if not given.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry-run tries everything but TensorRT on a CPU.")
    settings, budget = DRY if given.dry_run else Settings(), Budget(60 * given.minutes)
    given.out.mkdir(parents=True, exist_ok=True)
    report: Row = {**about(settings), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, Path(folder), dict(entry.split("=", 1) for entry in given.weights))
        for row in measured(plan(given.models, settings), bench.measure, budget):
            report["rows"].append(row)
            write_text(given.out / "gpu.json", json.dumps(report, indent=1) + "\n")  # each time: time may run out
            print(row, flush=True)
    write_text(given.out / "gpu.md", table(report["rows"], settings) + "\n")
    return int(any("failed" in row for row in report["rows"]))


if __name__ == "__main__":
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    sys.exit(main())
