"""The commands that pages print: how they are found, checked against the code, and run.

Run as a program (`python commands.py JOBS`) it is the parent of many short processes: it imports Ultralytics' command
line, which is all that the `yolo` script does before it reads its arguments, and forks once for every command.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.abc
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import forking
from places import REPOSITORY

PROGRAMS = ("yolo", "lightbackbones", "lightbackbones-edge", "python", "pip", "make", "jupyter")
INSTALLERS = ("pip", "make")
"""They need the network or an environment of their own: what they name is checked, and they are not run."""

TRAINING = "epochs=1 imgsz=64 batch=4 workers=0 plots=False deterministic=False verbose=False device=cpu"
APPENDED: dict[tuple[str, str], str] = {
    ("yolo", "train"): TRAINING,
    # an untrained detector finds nothing that Ultralytics' lowest score lets through
    ("yolo", "val"): "imgsz=64 batch=4 workers=0 plots=False conf=0.000001 max_det=5 device=cpu",
    ("yolo", "export"): "imgsz=64 device=cpu",
    ("lightbackbones", "compare"): "--imgsz 64 --repeats 3",
    ("python", "examples/frozen_finetuning.py"): "--epochs 1 --imgsz 64 --batch 4 --workers 0",
    ("python", "examples/custom_backbone.py"): "--imgsz 64",
    ("python", "examples/tap_features.py"): "--imgsz 64",
    ("python", "examples/torchvision_detectors.py"): "--steps 1",
    ("python", "examples/smp_segmenters.py"): "--steps 1",
}
"""Words that the tests append to a printed command, by program and first word; they override the printed ones."""


@dataclass(frozen=True)
class Block:
    """Commands that stand together on a page."""

    page: str
    line: int
    commands: tuple[str, ...]
    """One line each, with their comments."""
    reason: str | None = None
    """Why no test runs them, in the page's own words."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


# --- finding ----------------------------------------------------------------------------------------------------------

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"No test runs (?:this|these|them): (.+?)(?:[.;)]\s|[.;)]$)", re.DOTALL)
HEADER = re.compile(r"^#\s+((?:yolo|lightbackbones|python|pip) \S.*)$")
INDENTED = re.compile(rf"^    ((?:\w+=\S+ )?(?:{'|'.join(PROGRAMS)}) [^\s(].*)$")


def blocks(page: Path) -> list[Block]:
    """All commands of a page of Markdown, of a YAML's head or of a script's docstring, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(REPOSITORY).as_posix()
    if page.suffix == ".md":
        found = []
        for fence in FENCE.finditer(text):
            if fence[1] not in {"sh", "bash", "shell", "console"}:
                continue
            above = text[: fence.start()].rstrip("\n").rpartition("\n\n")[2]
            lines = tuple(line for line in fence[2].splitlines() if line and not line.startswith("#"))
            reason = NOT_RUN.search(above)
            number = text.count("\n", 0, fence.start()) + 2
            found.append(Block(name, number, lines, " ".join(reason[1].split()) if reason else None))
        return found
    pattern = HEADER if page.suffix == ".yaml" else INDENTED
    if page.suffix == ".py":
        text = ast.get_docstring(ast.parse(text), clean=False) or ""
    matched = [(number, pattern.match(line)) for number, line in enumerate(text.splitlines(), 1)]
    numbered = [(number, match[1]) for number, match in matched if match]
    if not numbered:
        return []
    reason = NOT_RUN.search(text)
    lines = tuple(command for _, command in numbered)
    return [Block(name, numbered[0][0], lines, " ".join(reason[1].split()) if reason else None)]


def mentions(page: Path) -> list[str]:
    """Commands within the sentences and tables of a Markdown page."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    return [span for span in spans if re.match(rf"(?:{'|'.join(PROGRAMS)}) \S", span)]


def hidden(page: Path) -> list[str]:
    """Lines of a Markdown page that look like commands and stand in no block that is run."""
    text = page.read_text(encoding="utf-8")
    shown = [fence[2] for fence in FENCE.finditer(text) if not fence[1]]  # no language
    outside = FENCE.sub("", text).splitlines()
    unlabelled = [f"    {line}" for block in shown for line in block.splitlines()]
    return [line.strip() for line in [*outside, *unlabelled] if INDENTED.match(line)]


def words(command: str) -> list[str]:
    """A command's words, without its comment and the variables in front of it."""
    found = shlex.split(command, comments=True)
    while found and re.fullmatch(r"\w+=.*", found[0]):
        del found[0]
    return found


def appended(command: Sequence[str]) -> list[str]:
    """The words that the tests append to a command."""
    for (program, word), more in APPENDED.items():
        if command[0] == program and word in command[1:3]:
            return more.split()
    return []


# --- checking without running -----------------------------------------------------------------------------------------


def problem(command: str) -> str | None:
    """The problem of a command that is not run; None if everything that it names exists.

    `...`, words in capitals (FILE.yaml, FOLDER) and optional parts in brackets stand for what the reader fills in.
    """
    command = re.sub(r"[\[\]](?![^\[\]]*\")", " ", command) if not command.startswith("pip") else command
    program, *rest = [word for word in words(command) if word != "..."]
    return CHECKS[program](rest) if program in CHECKS else None


def _make(rest: list[str]) -> str | None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    variables = re.findall(r"^([A-Z]+) [:?]=", makefile, re.MULTILINE)
    known = [word for word in rest if word in targets or word.partition("=")[0] in variables]
    return next((f"the Makefile has no target {word}" for word in rest if word not in known), None)


def _pip(rest: list[str]) -> str | None:
    for word in rest:
        for name, place in {"yolo-lightbackbones": ".", "lightbackbones-edge": "./edge"}.items():
            if name in word.replace("_", "-"):
                return f"the package is on no index; in a clone it is `{place}`"
        asked = re.fullmatch(r"\.(?:/(\w+))?\[([\w,-]+)\]", word)
        for extra in asked[2].split(",") if asked else []:
            file = Path(asked[1] or "", "pyproject.toml")  # type: ignore[index]
            project = (REPOSITORY / file).read_text()
            extras = project.partition("[project.optional-dependencies]")[2]
            if not re.search(rf"^{extra} = \[", extras, re.MULTILINE):
                return f"{file} has no extra {extra}"
    return None


def _edge(rest: list[str]) -> str | None:
    return _python(["edge/src/lightbackbones_edge/command.py", *rest])


def _python(rest: list[str]) -> str | None:
    if rest[0].startswith("-"):
        return None
    script = REPOSITORY / rest[0]
    if not script.is_file():
        return f"there is no {rest[0]}"
    text = script.read_text(encoding="utf-8")
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return next((f"{rest[0]} has no option {option}" for option in options if f'"{option}"' not in text), None)


def _lightbackbones(rest: list[str]) -> str | None:
    import typer.main

    from yolo_lightbackbones.cli import app

    group = typer.main.get_command(app)
    known: Any = group
    if not rest[0].startswith("-"):
        known = group.commands.get(rest[0])  # type: ignore[attr-defined]
        if known is None:
            return f"lightbackbones has no command {rest[0]}"
    options = {option for parameter in known.params for option in parameter.opts}
    return next((f"it has no option {word}" for word in rest if word.startswith("-") and word not in options), None)


def _yolo(rest: list[str]) -> str | None:
    from ultralytics.cfg import DEFAULT_CFG_DICT, MODES, TASKS

    for word in rest:
        key, equals, _ = word.partition("=")
        if equals and key not in DEFAULT_CFG_DICT:
            return f"yolo has no argument {key}"
        if not equals and key not in {*MODES, *TASKS, "settings"}:
            return f"yolo has no mode or task {key}"
    return None


CHECKS = {
    "make": _make,
    "pip": _pip,
    "python": _python,
    "lightbackbones": _lightbackbones,
    "lightbackbones-edge": _edge,
    "yolo": _yolo,
}


# --- running ----------------------------------------------------------------------------------------------------------

QUIET = {
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",  # NCNN's threads otherwise wait at full speed
}
"""Variables of every command, and of the process that it is forked off."""


@dataclass(frozen=True)
class Installation:
    """Where the package is: an interpreter, its scripts, and what its processes have in their environment."""

    python: Path
    scripts: Path
    yolo: Path
    """The stock script, of whichever environment."""
    variables: Mapping[str, str] = field(default_factory=dict)

    def through(self, socket: str) -> list[str]:
        """The beginning of a command that has its rest run by the process at this address (`forking.py`)."""
        return [str(self.python), "-I", "-S", forking.__file__, "run", socket]

    def write_commands(self, folder: Path, socket: str) -> Path:
        """A folder for PATH whose commands add APPENDED to their words and have the real ones run (`forking.py`)."""
        folder.mkdir()
        real = {
            "yolo": [self.yolo],
            "lightbackbones": [self.scripts / "lightbackbones"],
            "lightbackbones-edge": [self.scripts / "lightbackbones-edge"],
            "python": [],
        }
        python = shlex.quote(str(self.python))
        client = shlex.join(self.through(socket))
        for program, start in real.items():
            cases = "".join(
                f'*" {word} "*) set -- "$@" {more} ;;\n' for (name, word), more in APPENDED.items() if name == program
            )
            script = (
                f'#!/bin/sh\ncase " $1 $2 " in\n{cases}esac\n'
                f'[ {program} = python ] && case "$1" in -*) exec {python} "$@" ;; esac\n'
                f'exec {client} {shlex.join(map(str, start))} "$@"\n'
            )
            (folder / program).write_text(script)
            (folder / program).chmod(0o755)
        return folder


Server = Callable[[Installation], str]
"""From an installation to the address of the process that forks its commands."""


@contextlib.contextmanager
def forking_server(installation: Installation, folder: Path) -> Iterator[str]:
    """The address of a process that forks the commands of this installation."""
    address = str(folder / "commands")
    start = [str(installation.python), forking.__file__, "serve", address]
    variables = {**installation.variables, **QUIET}
    with subprocess.Popen(start, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        yield address
        server.stdin.close()


def run(block: Block, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a block's commands in bash, one process each, and stop at the first that fails.

    Raises:
        AssertionError: a command ended with something else than 0.
    """
    lines = [line for line in block.commands if words(line)[0] not in INSTALLERS]
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(lines)],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{block}: exit code {done.returncode}\n{done.stdout[-4000:]}"


# --- many commands, a fork each ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command of a block, up to where a training would begin."""

    folder: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    started: dict[str, Any]
    """Of a training: its task, its arguments, and the classes of its model's layers. Empty for everything else."""


def run_forked(
    jobs: Sequence[Job], scratch: Path, through: Sequence[str], environment: Mapping[str, str]
) -> list[Ended]:
    """Each job in a process of its own, one after the other; a training ends where its first epoch would begin.

    Their parent is run by `Installation.through`.
    """
    scratch.mkdir()
    (scratch / "jobs.json").write_text(json.dumps([[job.folder, *job.words] for job in jobs]))
    command = [*through, __file__, str(scratch)]
    parent = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=900, check=False)
    assert parent.returncode == 0, parent.stderr[-4000:]
    return [Ended(**json.loads((scratch / f"{number}.json").read_text())) for number in range(len(jobs))]


class _StopTrainings(importlib.abc.MetaPathFinder):
    """Replaces `train` of Ultralytics' trainers when their module is imported: importing it here would be too early."""

    def __init__(self, report: Path) -> None:
        self.report = report

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != "ultralytics.engine.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec
        assert spec.loader
        load, report = spec.loader.exec_module, self.report

        def stop(trainer: Any) -> None:
            # the summary, whose GFLOPs take longer than the model itself, is left out
            sys.modules["ultralytics.nn.tasks"].BaseModel.info = lambda *_, **__: None  # type: ignore[attr-defined]
            trainer.setup_model()  # for the data set's classes, with the pretrained weights
            layers = [type(layer).__name__ for layer in trainer.model.model]
            arguments = {key: value for key, value in vars(trainer.args).items() if isinstance(value, str | float)}
            report.write_text(json.dumps({"task": trainer.args.task, "layers": layers, "arguments": arguments}))
            sys.exit(0)

        def load_and_replace(module: ModuleType) -> None:
            load(module)
            module.BaseTrainer.train = stop  # type: ignore[attr-defined]

        spec.loader.exec_module = load_and_replace  # type: ignore[method-assign]
        return spec


def _run_here(job: Sequence[str], report: Path) -> None:
    folder, program, *rest = job
    os.chdir(folder)
    sys.argv = [program, *rest]
    if program == "yolo":
        import ultralytics.cfg

        sys.meta_path.insert(0, _StopTrainings(report))
        ultralytics.cfg.ARGV = sys.argv
        ultralytics.cfg.entrypoint()
    elif program == "lightbackbones":
        from yolo_lightbackbones.cli import app

        app(rest)
    else:
        import runpy

        sys.argv = rest
        sys.path.insert(0, str(Path(rest[0]).resolve().parent))
        runpy.run_path(rest[0], run_name="__main__")


def _fork_all(scratch: Path) -> Iterator[int]:
    import ultralytics.cfg  # noqa: F401  # the `yolo` script's only import

    forking.prepare()

    early = [name for name in sys.modules if name.startswith("ultralytics.") and name.split(".")[1] in {"nn", "engine"}]
    assert not early, f"imported before the arguments are read: {early}"
    for number, job in enumerate(json.loads((scratch / "jobs.json").read_text())):
        output, report = scratch / f"{number}.txt", scratch / f"{number}.started"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                _run_here(job, report)
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        started = json.loads(report.read_text()) if report.is_file() else {}
        ended_as = {
            "code": os.waitstatus_to_exitcode(status),
            "output": output.read_text(errors="replace"),
            "started": started,
        }
        (scratch / f"{number}.json").write_text(json.dumps(ended_as))
        yield number


if __name__ == "__main__":
    for _ in _fork_all(Path(sys.argv[1])):
        pass
