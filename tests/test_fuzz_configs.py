"""Model configs and YAML texts damaged at random: every one is built or refused in one message, soon.

The cases are the same in every run. A longer run: `FUZZ_CASES=20000 pytest tests/test_fuzz_configs.py`.
"""

from __future__ import annotations

import copy
import datetime
import functools
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics.nn import tasks
from ultralytics.nn.modules.conv import Conv

from yolo_lightbackbones import plugin, registry
from yolo_lightbackbones.cli import untrusted
from yolo_lightbackbones.cli.common import UserError
from yolo_lightbackbones.messages import quoted
from yolo_lightbackbones.plugin import block_rows, hints, rows
from yolo_lightbackbones.plugin.row import TAP, ConfigError, modules

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
PARSED = 10
"""Of so many configs that pass the checks, one is parsed by Ultralytics."""
SECONDS = 5

CFG = Path(__file__).resolve().parent.parent / "cfg"
PACKAGE = Path(rows.__file__).resolve().parent.parent
SEAM = {"parse_model.py", "parser.py", "patching.py"}
"""Files of ours that an error of Ultralytics' own parser passes through."""

BLOCKS = """
nc: 3
scales: {n: [0.33, 0.25, 1024], s: [1.0, 0.50, 512]}
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 3, RepViTBlock, [128, {squeeze: true, mlp_ratio: 2, drop_path: 0.1}]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 2, LGLBlock, [128, {sr_ratio: 2, head_dim: 32}]]
  - [-1, 1, ParCBlock, [128, {length: 7, dropout: 0.1}]]
head:
  - [[-1, 2], 1, Concat, [1]]
  - [-1, 1, ConvModBlock, [64, {kernel_size: 7, layer_scale: 0.1}]]
  - [[6], 1, Detect, [nc]]
"""

SEVERAL = """
nc: 3
scales: {n: [0.33, 0.25, 1024], s: [1.0, 0.50, 512]}
backbone:
  - [-1, 1, nn.Identity, []]
  - [0, 1, Channels, [0, 3]]
  - [-1, 1, EdgeViT, [xxs]]
  - [0, 1, Conv, [64, 3, 2]]
  - [-1, 1, RepViT, [{n: m0_6, s: m0_9}, {tap_norm: batch}]]
  - [2, 1, Tap, [P4]]
  - [4, 1, Tap, [P3]]
head:
  - [[-1, 5], 1, Concat, [1]]
  - [[5, 7], 1, Detect, [nc]]
"""
"""Two backbones, one of them behind a stem."""


@functools.cache
def bases() -> list[dict[str, Any]]:
    texts = [path.read_text(encoding="utf-8") for path in sorted(CFG.glob("*.yaml"))]
    return [config for config in map(yaml.safe_load, [*texts, *[BLOCKS, SEVERAL] * 20]) if "head" in config]


def bomb() -> Any:
    """Nine values, nine times, and so on: 4,782,969 of them."""
    value: Any = "x"
    for _ in range(7):
        value = [value] * 9
    return value


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def endless() -> Any:
    value: list[Any] = [1]
    value.append(value)
    return value


def endless_mapping() -> Any:
    value: dict[str, Any] = {"drop_path_rate": 0.1}
    value["n"] = value
    return value


WORDS = """
n m P2 P3 P5 P9 Tap Index Channels EdgeViT RepViT ParCNet Conv2Former RepViTBlock LGLBlock repvit_m0_9 LGL m0.9 xxs
edgeformer_s pretrained tap_norm drop_path_rate nc Conv Detect Concat nn.Identity nn.Upsample nowhere 1e-6 ...
"""

HOSTILE: list[Callable[[], Any]] = [
    bomb,
    endless,
    endless_mapping,
    lambda: nest(30),
    lambda: nest(300),
    lambda: {f"option{i}": i for i in range(5000)},
    lambda: dict.fromkeys(("n", "s", "m", "l", "x"), "m0_6"),
    lambda: "m" * 100_000,
    lambda: "line\nbreak\x1b[31m\0\ud800",
    lambda: datetime.date(2026, 1, 1),
    lambda: b"\xff" * 50,
    lambda: {1, 2},
    lambda: {None: 1, 2.5: 2, b"x": 3, (1, 2): 4},
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: -float("inf"),
    lambda: 1e300,
    lambda: 2**63,
    lambda: -(2**63),
    lambda: 10**5000,
    lambda: 0,
    lambda: -1,
    lambda: 3.7,
    lambda: True,
    lambda: None,
    list,
    dict,
    str,
    lambda: (1, "P3"),
    lambda: [[[]]],
    lambda: "9" * 60,
    lambda: "-" * 150 + "1",
    lambda: "[" * 100,
    lambda: [1e9, 1e9, 1e9],
    *[functools.partial(str, word) for word in WORDS.split()],
]


def places(value: Any, found: list[tuple[Any, Any]], seen: set[int]) -> list[tuple[Any, Any]]:
    """Every container and key in a config."""
    if id(value) not in seen and len(found) < 5000 and isinstance(value, list | dict):
        seen.add(id(value))
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            places(value[key], found, seen)
    return found


def mutate(config: dict[str, Any], rng: random.Random) -> None:
    """One thing wrong, or several."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        every = places(config, [], set())
        if not every:
            return
        leaves = [(held, at) for held, at in every if not isinstance(held[at], list | dict)]
        holder, key = rng.choice(leaves if leaves and rng.random() < 0.6 else every)
        other, other_key = rng.choice(every)
        kind = rng.randrange(8)
        if kind == 0:
            holder[key] = rng.choice(HOSTILE)()
        elif kind <= 2:
            holder[key] = rng.choice((*WORDS.split(), *range(-3, 9), 0.5, 64, 100, 1024))
        elif kind == 3:
            holder[key], other[other_key] = other[other_key], holder[key]
        elif kind == 4:
            del holder[key]
        elif kind == 5:
            holder[key] = rng.choice(([holder[key]], {"n": holder[key]}, [holder[key]] * 3, quoted(holder[key], 500)))
        elif kind == 6:
            holder[key] = rng.choice((config, holder, other))  # what an alias to a parent makes
        elif isinstance(holder, list):
            holder.insert(key, rng.choice((rng.choice(HOSTILE)(), other[other_key])))
        else:
            holder[rng.choice((*WORDS.split(), None, 3, b"x", datetime.date(2026, 1, 1)))] = other[other_key]


class TooLongError(Exception):
    pass


@contextmanager
def limit() -> Iterator[None]:
    """At most `SECONDS` of this process's own time, whatever else runs on the machine."""

    def stop(*_: Any) -> None:
        raise TooLongError

    if not hasattr(signal, "ITIMER_PROF"):
        start = time.process_time()
        yield
        if time.process_time() - start > SECONDS:
            raise TooLongError
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def check(config: Any) -> str:
    """What the seam does with a config, before Ultralytics' parser gets it."""
    families = registry.families()

    def count(before: Any) -> int:
        """As many channels as may be: an error of the parser for damaged rows comes in `parse`."""
        return len(before)

    try:
        if rows.names_backbone(config, families):
            config = rows.translate(config, 3, families, count)
        if block_rows.names_block(config, registry.block_rows()):
            block_rows.check_blocks(config, registry.block_rows())
        for module in set(modules(config)) - set(vars(tasks)) - set(registry.block_rows()):
            hints.explain_unknown(config, module, [*families, TAP, *registry.block_rows()])
    except ConfigError as error:
        message = str(error)
        assert len(message) < 1500, message
        assert message.isprintable(), message
        return "refused"
    return "passed"


def parse(config: Any) -> None:
    """The real thing, without memory. Errors of Ultralytics' own are its business; none comes from within our files."""
    try:
        with torch.device("meta"):
            tasks.parse_model(config, 3, verbose=False)
    except TooLongError:
        raise
    except ConfigError as error:  # rows before a backbone are built to count their channels
        if "which it takes its input from, cannot be built" not in str(error) or error.__cause__ is None:
            raise
        not_from(error.__cause__, PACKAGE, but={*SEAM, "inputs.py", "rows.py"})
    except Exception as error:
        not_from(error, PACKAGE, but=SEAM)


def not_from(error: BaseException, package: Path, but: set[str]) -> None:
    """The error comes from none of the package's files, but for some."""
    files = [Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__)]
    assert {file.name for file in files if file.is_relative_to(package)} <= but, traceback.format_exc()


@pytest.fixture
def _unchanged() -> Iterator[None]:
    """Nothing that others see is another after all those cases."""

    def state() -> tuple[Any, ...]:
        return (
            Conv.default_act,
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            [*warnings.filters],
            sys.getrecursionlimit(),
            list(registry.families().items()),
            tasks.parse_model,
        )

    plugin.register()
    parse(copy.deepcopy(bases()[-1]))  # what is imported with the first model brings its own filters of warnings
    before = state()
    yield
    assert state() == before


@pytest.mark.usefixtures("_unchanged", "one_thread")
def test_damaged_configs() -> None:
    outcomes = {"refused": 0, "passed": 0}
    for case in range(CASES):
        rng = random.Random(case)
        config = copy.deepcopy(rng.choice(bases()))
        config["scale"] = rng.choice(("", "", "n", "s", "x"))
        mutate(config, rng)
        try:
            with limit():
                outcome = check(config)
                outcomes[outcome] += 1
                if outcome == "passed" and outcomes[outcome] % PARSED == 0:
                    parse(copy.deepcopy(config))
        except BaseException:
            print(f"case {case}", file=sys.stderr)
            raise
    assert min(outcomes.values()) > CASES / 20, outcomes  # or else the damage tells us nothing


# --- files, as the commands read them ---------------------------------------------------------------------------------

PIECES = [
    "&a ", "*a", "<<: *a", "[", "]", "{", "}", ": ", "- ", "\n", "  ", "\t", "'", '"', "|", ">", "#", "%", "!!binary x",
    "!!set {a, b}", "!!python/object/apply:os.system [id]", "!!timestamp 2026-99-99", "2026-01-01", "0x" + "f" * 99,
    "9" * 5000, ".inf", "? [a]", "---\n", "...\n", "\x07", "\ud7ff", "~", "&a [*a]", "1e999", "[" * 100,
]  # fmt: skip


@pytest.mark.usefixtures("_unchanged", "one_thread")
def test_damaged_files(tmp_path: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(CFG.glob("*.yaml"))]
    file = tmp_path / "model.yaml"
    outcomes = {"refused": 0, "passed": 0}
    for case in range(CASES // 4):
        rng = random.Random(case)
        text = rng.choice(texts)[: rng.choice((None, 300))]
        for _ in range(rng.choice((1, 2, 5))):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(PIECES) * rng.choice((1, 1, 1, 40)) + text[at + rng.choice((0, 0, 1, 5)) :]
        file.write_text(text, encoding="utf-8")
        message = ""
        try:
            with limit():
                untrusted.check_file(file)
                config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
                if isinstance(config, dict):
                    untrusted.check_model(config, "model.yaml")
        except (UserError, ConfigError) as error:
            message = str(error)
        except BaseException:
            print(f"case {case}", file=sys.stderr)
            raise
        assert len(message) < 1500
        outcomes["refused" if message else "passed"] += 1
    assert min(outcomes.values()) > CASES / 80, outcomes
