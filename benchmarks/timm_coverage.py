"""Coverage of timm: each of its architectures as a `Timm` backbone, built, run, folded, and exported to ONNX.

    python benchmarks/timm_coverage.py                     # what docs/timm.json lacks; can be stopped and started again
    python benchmarks/timm_coverage.py --again NAME ...    # these models again; without names, all
    python benchmarks/timm_coverage.py --check             # fails if docs/timm.md is not what docs/timm.json says

No test runs these: they take half an hour; tests/test_timm_coverage.py runs two models and checks the page.

Writes docs/timm.json and docs/timm.md. An architecture is a module of timm and the first word of the names in it,
without the digits of a size: `resnet` for resnet18 and resnet50. The variant with the fewest parameters stands for it.
A worker process does one model after the other within limits of time and memory; when it dies, one row says so and
another worker goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import selectors
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from yolo_lightbackbones import timm_catalogue
from yolo_lightbackbones.writing import write_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATA, PAGE = DOCS / "timm.json", DOCS / "timm.md"

TAPS = ("P3", "P4", "P5")
"""Taps that the necks of YOLO take from a backbone."""
REDUCTIONS = {8, 16, 32}
IMAGE = (64, 96)
"""Height and width of the image for a model that takes any; for others, the smallest that they take is tried."""
TOLERANCE = 1e-3
"""Largest difference, as a share of the root mean square of a feature map, between models that are equal."""
ROUNDING = 1e-5
"""Difference above which folding is judged in float64: random layers can make much of the rounding of float32."""
LARGEST_RUN = 50_000_000
"""Most parameters of a model that is run; a larger one is only built without memory."""
LARGEST_EXPORT = 15_000_000
"""Most parameters of a model that is exported to ONNX."""
SECONDS, GIBIBYTES = 240, 10
"""Limits of a worker, for one model."""

Row = dict[str, Any]

# --- which models -----------------------------------------------------------------------------------------------------


def architectures() -> dict[str, list[str]]:
    """All models of timm by architecture: `"resnet/resnet"` -> names; models for timm's own tests are left out."""
    from timm.models import list_models, list_modules

    found: dict[str, list[str]] = {}
    for module in list_modules():
        for name in list_models(module=module, include_tags=False):
            if not name.startswith("test_"):
                found.setdefault(f"{module}/{_word(name)}", []).append(name)
    return found


def _word(name: str) -> str:
    """First word of a name, without where its weights are from and without the digits of a size: `tf_mixnet_s`."""
    first = re.sub(r"^(tf|legacy|gluon)_", "", name).split("_")[0]
    return re.sub(r"(?<![v\d])\d+[a-z]?$", "", first)


_LARGE = re.compile(r"_(x*large|x*huge|x*giant|gigantic|enormous|so\d+m|\d+b)(?![a-z])")


def smallest(names: Sequence[str]) -> tuple[str, int]:
    """The model with the fewest parameters, and their number; names that say large are left out if others do not."""
    likely = [name for name in names if not _LARGE.search(name)] or names
    return min(((name, parameters(name)) for name in likely), key=lambda pair: pair[1])


def parameters(name: str) -> int:
    """Parameters of a model of timm."""
    return sum(parameter.numel() for parameter in timm_catalogue.without_values(name).parameters())


# --- one model --------------------------------------------------------------------------------------------------------


def measure(name: str, count: int, *, export: bool = True) -> Row:
    """Try one model as a backbone with the taps P3 to P5; returns its row of the page.

    Args:
        name: a name of timm.
        count: its parameters.
        export: whether to export it to ONNX.
    """
    row: Row = {"name": name, "parameters": count}
    try:
        options, reductions = _options(name)
        row |= {"reductions": reductions, "options": options}
    except ValueError as error:
        return {**row, "reductions": reported_reductions(name), "refused": str(error)}
    if count > LARGEST_RUN:
        return {**row, "not_run": f"{count / 1e6:.0f} M parameters"}
    return {**row, **_run(name, options, export and count <= LARGEST_EXPORT)}


def _options(name: str) -> tuple[dict[str, Any], list[int]]:
    """Options with which a row of this model can be built, and the reductions of all its maps.

    Raises:
        ValueError: our refusal, if there are none.
    """
    import torch

    from yolo_lightbackbones import create_backbone

    options: dict[str, Any] = {}
    for _ in range(3):
        try:
            with torch.device("meta"):
                create_backbone(f"timm/{name}", taps=TAPS, **options)
                return options, list(create_backbone(f"timm/{name}", taps=None, **options).reductions)
        except ValueError as error:
            more = suggested(str(error))
            if not more or more.items() <= options.items():
                raise
            options |= more
    raise AssertionError(f"{name} asks for one option after the other: {options}.")


def suggested(refusal: str) -> dict[str, Any]:
    """The option that a refusal of ours says to write."""
    if size := re.search(r"imgsz: (\d+)", refusal):
        return {"imgsz": int(size[1])}
    return {"pyramid": "simple"} if "pyramid: simple" in refusal else {}


def reported_reductions(name: str) -> list[int]:
    """The reductions that timm itself reports, none if it does not say."""
    with contextlib.suppress(Exception):  # of a model that cannot be built
        return sorted({info["reduction"] for info in timm_catalogue.reported(timm_catalogue.without_values(name))})
    return []


def _run(name: str, options: dict[str, Any], export: bool) -> Row:
    import torch

    from yolo_lightbackbones import create_backbone, fuse

    torch.manual_seed(0)
    backbone = create_backbone(f"timm/{name}", taps=TAPS, **options).eval()
    randomise(backbone)
    divisor = backbone.size_divisibility
    size = backbone.image_size or tuple(-(-side // divisor) * divisor for side in IMAGE)
    row: Row = {"size": list(size)}
    image = torch.rand(1, 3, *size)
    with torch.inference_mode():
        wanted = backbone(image)
        shapes = [list(each.shape[1:]) for each in wanted]
        expected = [[width, *(side // each for side in size)] for width, each in _widths(backbone)]
        if shapes != expected:
            return {**row, "failed": f"its maps are {shapes}, not {expected}"}
        if not all(each.isfinite().all() for each in wanted):
            return {**row, "failed": "its maps are not finite"}
        folded = fuse(backbone)
        row["folded"] = difference(folded(image), wanted)
        if row["folded"] > ROUNDING:
            exact = backbone.double()(image.double())
            row["rounding"] = difference([each.double() for each in wanted], exact)
            row["folded"] = difference(fuse(backbone)(image.double()), exact)
    if export:
        row["onnx"] = _onnx(folded, image, wanted)
    return row


def _widths(backbone: Any) -> list[tuple[int, int]]:
    return list(zip(backbone.out_channels, backbone.reductions, strict=True))


def randomise(module: Any) -> None:
    """Give norms and layer scales values as after a training: fresh ones hide mistakes in folding."""
    import torch

    with torch.no_grad():
        for part in module.modules():
            if getattr(part, "running_var", None) is not None:
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
        for values in module.parameters():
            if values.ndim < 2:
                values.add_(torch.randn_like(values) * 0.1)


def difference(given: Iterable[Any], wanted: Iterable[Any]) -> float:
    """Largest difference of two lists of maps, as a share of the root mean square of each map."""
    pairs = zip(given, wanted, strict=True)
    return max(float((one - other).abs().max() / other.square().mean().sqrt().clamp(min=1e-12)) for one, other in pairs)


def _onnx(folded: Any, image: Any, wanted: Sequence[Any]) -> dict[str, Any]:
    """Export a folded backbone and compare onnxruntime with PyTorch."""
    import onnxruntime
    import torch

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder, "model.onnx")
        try:
            torch.onnx.export(folded, (image,), str(file), dynamo=False, opset_version=18, input_names=["image"])
            quiet = onnxruntime.SessionOptions()
            quiet.log_severity_level = 3
            session = onnxruntime.InferenceSession(str(file), quiet, providers=["CPUExecutionProvider"])
            maps = session.run(None, {"image": image.numpy()})
        except Exception as error:  # of torch's exporter or of onnxruntime
            return {"problem": f"{type(error).__name__}: {_first_line(error)}"}
        return {"error": difference(map(torch.from_numpy, maps), wanted)}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


# --- a worker, and who watches it -------------------------------------------------------------------------------------


def work() -> None:
    """Read jobs from stdin, one JSON list `[architecture, names]` a line, and write a row for each to stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES << 30, GIBIBYTES << 30))
    import torch

    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        architecture, names = json.loads(line)
        row: Row = {"name": names[0], "reductions": []}
        try:
            chosen, count = smallest(names)
            row = {"name": chosen, "parameters": count, "reductions": reported_reductions(chosen)}
            row = measure(chosen, count)
        except Exception as error:  # what this program looks for
            row["failed"] = f"{type(error).__name__}: {_first_line(error)}"
        out.write(json.dumps({"architecture": architecture, "models": len(names), **row}) + "\n")
        out.flush()


def measured(jobs: Sequence[tuple[str, list[str]]]) -> Iterator[Row]:
    """Have workers do the jobs in turn, and yield a row for each; a worker that dies or hangs gives one as well."""
    waiting = list(jobs)
    while waiting:
        command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--worker"]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdin is not None
        assert worker.stdout is not None
        with worker, selectors.DefaultSelector() as ready:
            ready.register(worker.stdout, selectors.EVENT_READ)
            while waiting:
                architecture, names = waiting[0]
                with contextlib.suppress(BrokenPipeError):
                    worker.stdin.write(json.dumps([architecture, names]) + "\n")
                    worker.stdin.flush()
                answered = ready.select(SECONDS)
                line = worker.stdout.readline() if answered else ""
                waiting.pop(0)
                if line:
                    yield json.loads(line)
                    continue
                worker.kill()
                why = f"its process ended with code {worker.wait()}" if answered else f"it took more than {SECONDS} s"
                yield {"architecture": architecture, "models": len(names), "name": names[0], "failed": why}
                break
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()


# --- the page ---------------------------------------------------------------------------------------------------------

ABOVE = """# Models of timm

Any model of [timm](https://github.com/huggingface/pytorch-image-models) whose feature maps have the right sizes is a
backbone: `- [-1, 1, Timm, [NAME]]` as row 0 of a model YAML. `lightbackbones new --backbone timm/NAME` writes such a
YAML, and `lightbackbones list --timm 'PATTERN'` looks for names.

This page says what came of building each architecture of timm once: the smallest variant of each, with random weights,
folded and compared with itself, exported to ONNX and run in onnxruntime. Larger variants of an architecture that works
work in general, but were not run. Differences are the largest of a feature map as a share of its root mean square;
models count as equal up to {tolerance}, or twice what the rounding of float32 alone makes. ONNX is left out for models
above {export} M parameters, and models above {run} M parameters were only built without memory.

`benchmarks/timm_coverage.py` writes this page from `docs/timm.json`. timm {timm}, PyTorch {torch}.
"""


def page(document: dict[str, Any]) -> str:
    """The text of the page."""
    rows = sorted(document["rows"], key=lambda row: (row["architecture"], row["name"]))
    above = ABOVE.format(
        tolerance=f"{TOLERANCE:g}", export=LARGEST_EXPORT // 10**6, run=LARGEST_RUN // 10**6, **document["versions"]
    )
    kinds = {kind: [row for row in rows if kind_of(row) == kind] for kind in KINDS}
    return "\n".join([above, _summary(rows, kinds), *(_section(kind, kinds[kind]) for kind in KINDS if kinds[kind])])


KINDS = {
    "any size": "They work at any size",
    "one size": "They work at one size",
    "pyramid": "They work with a pyramid from one map",
    "refused": "They are refused",
    "failed": "They fail",
}
BEFORE = {
    "any size": "Height and width are multiples of 32 (of 64 for MobileViTv2, and where the maps go to 1/64).",
    "one size": "The row says the size, as `imgsz: 224` or `imgsz: [224, 320]`; other images are refused. The size in "
    "the table is the one of timm's weights; most of these can be built for others.",
    "pyramid": "They have maps of one size, as ViTs have; P2 to P5 are made from the last one.",
    "refused": "The sentence is the error message. It comes before anything is built.",
    "failed": "These are mistakes of ours.",
}


def kind_of(row: Row) -> str:
    """The table in which a row belongs."""
    if "refused" in row:
        return "refused"
    if "failed" in row or row.get("folded", 0) > TOLERANCE:
        return "failed"
    if "pyramid" in row["options"]:
        return "pyramid"
    return "one size" if "imgsz" in row["options"] else "any size"


def _summary(rows: list[Row], kinds: dict[str, list[Row]]) -> str:
    hierarchical = [row for row in rows if "pyramid" not in row.get("options", {})]
    able = [row for row in hierarchical if set(row.get("reductions", ())) >= REDUCTIONS]
    works = [row for row in able if kind_of(row) in ("any size", "one size")]
    exported = [row["onnx"] for row in rows if "onnx" in row]
    equal = [row for row in rows if row.get("onnx", {}).get("error", 1) <= max(TOLERANCE, 2 * row.get("rounding", 0))]
    count = Counter({KINDS[kind].partition(" ")[2]: len(kinds[kind]) for kind in KINDS})
    lines = [f"| {what} | {number} |" for what, number in count.items() if number]
    return "\n".join(
        [
            "| architectures that | number |",
            "|---|---|",
            *lines,
            f"| have maps at 1/8, 1/16 and 1/32 | {len(able)} |",
            f"| of these, work | {len(works)} ({100 * len(works) / max(len(able), 1):.1f} %) |",
            f"| were exported to ONNX and run there | {len(exported)} |",
            f"| of these, are equal there | {len(equal)} |",
            "",
        ]
    )


def _section(kind: str, rows: list[Row]) -> str:
    columns = ["architecture", "smallest variant", "parameters, M"]
    columns += ["why"] if kind in ("refused", "failed") else ["row 0", "folded", "ONNX"]
    lines = [columns, ["---"] * len(columns), *(_cells(kind, row) for row in rows)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"## {KINDS[kind]}\n\n{BEFORE[kind]}\n\n{table}"


def _cells(kind: str, row: Row) -> list[str]:
    count = f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else ""
    start = [row["architecture"], f"`{row['name']}`", count]
    if kind == "refused":
        return [*start, row["refused"].replace("|", "\\|")]
    if kind == "failed":
        return [*start, row.get("failed", f"folded, it differs by {row.get('folded', 0):.1e}").replace("|", "\\|")]
    options = ", ".join(f"{key}: {value}" for key, value in row["options"].items())
    written = f"`[-1, 1, Timm, [{row['name']}{f', {{{options}}}' if options else ''}]]`"
    folded = f"{row['folded']:.0e}" if "folded" in row else f"not run: {row['not_run']}"
    return [*start, written, folded, _onnx_cell(row.get("onnx"))]


def _onnx_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return found["problem"].replace("|", "\\|") if "problem" in found else f"{found['error']:.0e}"


# --- command ----------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    parser.add_argument("--again", nargs="*", metavar="NAME", help="measure these models again; without names, all")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return 0
    document = json.loads(DATA.read_text(encoding="utf-8")) if DATA.is_file() else {"rows": []}
    if options.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page(document):
            sys.exit(f"error: {PAGE.name} is out of date; run: python benchmarks/timm_coverage.py")
        return 0
    known = architectures()
    again = options.again
    kept = [] if again == [] else [row for row in document["rows"] if row["name"] not in (again or ())]
    rows = {row["architecture"]: row for row in kept if row["architecture"] in known}
    jobs = [(architecture, names) for architecture, names in known.items() if architecture not in rows]
    document["versions"] = {package: version(package).partition("+")[0] for package in ("timm", "torch")}
    for number, row in enumerate(measured(jobs), 1):
        rows[row["architecture"]] = row
        document["rows"] = [rows[architecture] for architecture in sorted(rows)]
        write_text(DATA, json.dumps(document, indent=1) + "\n")
        why = row.get("failed", row.get("refused", ""))
        print(f"{number}/{len(jobs)} {row['name']}: {kind_of(row)} {why}", flush=True)
    write_text(PAGE, page(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
