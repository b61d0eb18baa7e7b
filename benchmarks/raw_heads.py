"""Measures how much mAP INT8 costs in every format, with the decoded output of `yolo export` and with a raw head.

    python benchmarks/raw_heads.py --data digits.yaml --imgsz 128 yolov5n_edgevit=best.pt ... [--only FORMAT ...]

No test runs this: it takes hours, and packages of LiteRT and RKNN come from the network (`benchmarks/formats.py`).

Writes docs/raw-heads.json and docs/raw-heads.md; rows that are there already stay, `--again` measures them anew. Each
export runs in a process of its own; a failed one is a row as well. mAP50-95: on the val split, of the exported file
minus that of the PyTorch model. RKNN runs in Rockchip's simulator, as the exporter has built the model, behind
Ultralytics' code for the board.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from formats import FORMATS, Format, run_apart, versions
from pages import with_part

from yolo_lightbackbones.plugin.proof import LIMITS
from yolo_lightbackbones.writing import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "raw-heads.json"
PAGE = ROOT / "docs" / "raw-heads.md"
Row = dict[str, Any]


def int8_formats() -> list[Format]:
    """The rows of the export matrix with integer activations or weights, and RKNN, whose row there is in float16."""
    rknn = next(row for row in FORMATS if row.name == "rknn")
    note = "Rockchip's simulator of an RK3588"
    rows = [row for row in FORMATS if row.precision == "int8"]
    return [*rows, replace(rknn, arguments={"quantize": 8}, precision="int8", calibrates=True, note=note)]


# --- one export, in a process of its own ------------------------------------------------------------------------------


def measure(chosen: Format, weights: str, *, raw: bool, data: str, imgsz: int, reference: float | None) -> Row:
    """Export one detector and validate the file."""
    from ultralytics import YOLO

    from yolo_lightbackbones.plugin import proof, raw_heads

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shutil.copy(weights, checkpoint := Path(folder, "model.pt"))
        options = {**chosen.arguments, **({"data": data} if chosen.calibrates else {})}
        asked = raw_heads.asked() if raw else contextlib.nullcontext()
        with asked, _kept_simulators() as simulators:
            file = Path(str(YOLO(checkpoint).export(format=chosen.name, imgsz=imgsz, verbose=False, **options)))
        detector = YOLO(checkpoint)
        exported = _on_simulator(simulators[0], file) if chosen.name == "rknn" else proof.opened(file, detector)
        row = {"megabytes": round(proof.megabytes(file), 1), "map": proof.validate(exported, data, imgsz)}
        return {**row, "reference_map": proof.validate(detector, data, imgsz) if reference is None else reference}


@contextlib.contextmanager
def _kept_simulators() -> Iterator[list[Any]]:
    """Every `RKNN` that the exporter makes in this block: a file cannot be run in the simulator later."""
    try:
        from rknn import api
    except ImportError:
        yield []
        return
    kept: list[Any] = []
    original = api.RKNN

    def make(*args: Any, **options: Any) -> Any:
        kept.append(original(*args, **options))
        return kept[-1]

    api.RKNN = make
    try:
        yield kept
    finally:
        api.RKNN = original


def _on_simulator(rknn: Any, folder: Path) -> Any:
    """A module that can be validated: Ultralytics' backend for the board, with the simulator in the board's place."""
    import torch
    from ultralytics.nn.backends.rknn import RKNNBackend

    if failed := rknn.init_runtime():
        raise RuntimeError(f"rknn-toolkit2 gives up with the code {failed}")

    class Board:
        def inference(self, inputs: list[Any]) -> Any:
            return rknn.inference(inputs=inputs, data_format=["nhwc"])

    def load_model(self: Any, weight: Path) -> None:
        self.model = Board()
        self.apply_metadata(self.read_metadata(weight))

    backend = type("RKNNBackend", (RKNNBackend,), {"load_model": load_model})(folder, torch.device("cpu"))

    class Simulator(torch.nn.Module):
        stride = torch.tensor([8, 16, 32])
        names = backend.names

        def forward(self, x: Any, *_args: Any, **_options: Any) -> Any:
            return torch.as_tensor(backend.forward(x.permute(0, 2, 3, 1))[0])

    return Simulator()


# --- the table --------------------------------------------------------------------------------------------------------


def key_of(row: Row) -> tuple[str, str, str, bool]:
    return row["data"], row["format"], row["model"], row["raw"]


def missed(row: Row) -> bool:
    """Whether the export changes mAP50-95 by more than INT8 may."""
    return bool(round(abs(row["map"] - row["reference_map"]), 4) > LIMITS["int8"].map)


def cell(row: Row | None) -> str:
    """The change of mAP50-95, in bold where it is too large."""
    if row is None:
        return ""
    if "failed" in row:
        return f"failed: {row['failed'].replace('|', '/')}"
    change = f"{row['map'] - row['reference_map']:+.4f}"
    return f"**{change}**" if missed(row) else change


def table(rows: list[Row]) -> str:
    """Per data set, format and model one line: the change with the decoded output, and with a raw head."""
    found = {key_of(row): row for row in rows}
    lines = [
        "| data | format | model | PyTorch | decoded | raw head | size, MB | versions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data, label, model in dict.fromkeys(key[:3] for key in found):
        pair = [found.get((data, label, model, raw)) for raw in (False, True)]
        measured = [row for row in pair if row and "map" in row]
        reference = f"{measured[0]['reference_map']:.4f}" if measured else ""
        size = str(measured[-1]["megabytes"]) if measured else ""
        used = next(row["versions"] for row in pair if row)
        cells = [data, f"`{label}`", model, reference, *map(cell, pair), size, used]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(results: dict[tuple[str, str, str, bool], Row]) -> None:
    """The rows as JSON and as a table on the page, by data set, format and model."""
    labels = [chosen.label for chosen in int8_formats()]
    order = sorted(results, key=lambda key: (key[0], labels.index(key[1]), *key[2:]))
    rows = [results[key] for key in order]
    write_text(RESULTS, json.dumps(rows, indent=1) + "\n")
    head = f"Changes of mAP50-95, in bold where they are more than {LIMITS['int8'].map}."
    write_text(PAGE, with_part(PAGE.read_text(), "raw heads", f"{head}\n\n{table(rows)}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", metavar="MODEL=FILE", help="trained detectors")
    parser.add_argument("--data", default="digits.yaml", help="what they were trained on: calibration, mAP")
    parser.add_argument("--imgsz", type=int, default=128)
    parser.add_argument("--only", nargs="*", metavar="FORMAT", help="formats as the table has them")
    parser.add_argument("--heads", nargs="*", choices=("decoded", "raw"), default=("raw", "decoded"))
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there already")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        number, file, options = json.loads(arguments.job)
        print("RESULT " + json.dumps(measure(int8_formats()[number], file, **options)))
        return

    results = {key_of(row): row for row in (json.loads(RESULTS.read_text()) if RESULTS.is_file() else [])}
    for chosen in int8_formats():
        if arguments.only and chosen.label not in arguments.only:
            continue
        for entry in arguments.weights:
            model, _, file = entry.partition("=")
            for raw in (head == "raw" for head in arguments.heads):
                own = {"data": Path(arguments.data).stem, "format": chosen.label, "model": model, "raw": raw}
                if not arguments.again and "map" in results.get(key_of(own), {}):
                    continue
                known = [row for row in results.values() if "map" in row and "reference_map" in row]
                same = [row for row in known if (row["data"], row["model"]) == (own["data"], model)]
                reference = same[0]["reference_map"] if same and not arguments.again else None
                given = {"data": arguments.data, "imgsz": arguments.imgsz}
                options = {**given, "raw": raw, "reference": reference}
                job = (int8_formats().index(chosen), str(Path(file).resolve()), options)
                result = run_apart(__file__, chosen, *job)
                row = {**own, "imgsz": arguments.imgsz, **result, "versions": versions(chosen)}
                results[key_of(row)] = row
                print(table([row]).splitlines()[-1], flush=True)
                write(results)


if __name__ == "__main__":
    main()
