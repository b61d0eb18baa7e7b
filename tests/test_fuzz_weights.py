"""Weights files that are nearly right: each is read or refused with our own error."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickletools
import random
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hostile import Call
from safetensors.torch import save
from torch import nn
from weight_files import archive, process_state, safetensors, saved, write

from yolo_lightbackbones.checkpoints import archives, files, modules
from yolo_lightbackbones.checkpoints.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("one_thread")

FUZZED = int(os.environ.get("FUZZED_WEIGHTS", "500"))
"""Files that the fuzzer makes."""


class Fuzzer:
    """Makes files that are nearly right; the same ones for the same seed."""

    def __init__(self, seed: int, trace: Path) -> None:
        self.random = random.Random(seed)
        state = {f"stages.0.blocks.{i}.w": torch.arange(12.0).view(3, 4) for i in range(3)}
        state["stem.half"] = torch.ones(5).half()
        wrapped = {"model": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}}
        net = {"model": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "ema": None, "x": Path("a")}
        hostile = {**state, "x": Call(os.mkdir, str(trace))}
        self.torch = [saved(content) for content in (state, wrapped, net, hostile)]
        self.old = [saved(content, old=True) for content in (state, wrapped, hostile)]
        self.safetensors = [save(state), save(state, {"format": "pt"})]
        self.globals = [b"cposix\nmkdir\n", b"cbuiltins\neval\n", b"cultralytics.nn.tasks\nDetectionModel\n"]

    def file(self) -> tuple[str, bytes]:
        """A suffix and a content."""
        kind = self.random.randrange(6)
        if kind == 0:
            content = self.random.choice(self.safetensors)
            return ".safetensors", self.header(content) if self.random.random() < 0.7 else self.bytes(content)
        if kind == 1:
            return ".pth", self.bytes(self.random.choice(self.old))
        if kind == 2:
            return ".pt", self.old_pickles(self.random.choice(self.old))
        if kind == 3:
            return ".pt", self.bytes(self.random.choice(self.torch))
        return ".pt", self.archive(self.random.choice(self.torch))

    def bytes(self, content: bytes) -> bytes:
        """Bytes changed, cut off, moved, or taken from another file."""
        changed = bytearray(content)
        for _ in range(self.random.choice((1, 1, 2, 5, 20))):
            place = self.random.randrange(len(changed) or 1)
            action = self.random.randrange(6)
            if action < 2 and changed:
                changed[place] = self.random.randrange(256)
            elif action == 2:
                changed[place : place + self.random.randrange(100)] = b""
            elif action == 3:
                other = self.random.choice(self.torch + self.old + self.safetensors)
                start = self.random.randrange(len(other))
                changed[place:place] = other[start : start + self.random.randrange(1000)]
            elif action == 4:
                changed[place : place + 8] = self.random.choice((b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << 40)))
            elif self.random.random() < 0.2:
                del changed[place:]
        return bytes(changed)

    def pickle(self, content: bytes) -> bytes:
        """Instructions left out, doubled, exchanged, or with other arguments."""
        starts = [place for _, _, place in pickletools.genops(content)] + [len(content)]
        parts = [content[a:b] for a, b in itertools.pairwise(starts)]
        for _ in range(self.random.choice((1, 1, 2, 4))):
            place = self.random.randrange(len(parts))
            action = self.random.randrange(6)
            if action == 0:
                parts[place] = b""
            elif action == 1:
                parts[place] *= self.random.choice((2, 3, 1000))
            elif action == 2:
                other = self.random.randrange(len(parts))
                parts[place], parts[other] = parts[other], parts[place]
            elif action == 3:
                parts[place] = self.random.choice(self.globals)
            elif action == 4:
                parts[place] = self.random.choice(
                    (b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"N", b")", b"}")
                )
            else:
                parts[place] = self.bytes(parts[place])
        return b"".join(parts)

    def archive(self, content: bytes) -> bytes:
        """With a changed pickle, and checksums that are right."""
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            records = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
        pickled = self.pickle(records.pop("data.pkl"))
        if self.random.random() < 0.2:
            records.pop(self.random.choice(list(records)))
        if self.random.random() < 0.2:
            name = self.random.choice(list(records))
            records[name] = self.bytes(records[name])
        return archive(pickled, records)

    def old_pickles(self, content: bytes) -> bytes:
        """With one of the five pickles at the start changed."""
        stream = io.BytesIO(content)
        pickles = []
        for _ in range(5):
            start = stream.tell()
            for _ in pickletools.genops(stream):
                pass
            pickles.append(content[start : stream.tell()])
        place = self.random.choice((0, 1, 2, 3, 3, 3, 3, 4))
        pickles[place] = self.pickle(pickles[place])
        return b"".join(pickles) + stream.read()

    def header(self, content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        name = self.random.choice(list(header))
        odd = [None, -1, 1 << 70, "F32", [], {}, [1, 2, 3], [0, 1 << 62], 1.5, "x" * 1000, [[[]]], True]
        if isinstance(header[name], dict) and self.random.random() < 0.8:
            header[name][self.random.choice(["dtype", "shape", "data_offsets"])] = self.random.choice(odd)
        else:
            header[name] = self.random.choice(odd)
        return safetensors(header, content[8 + length :])


def test_files_that_are_nearly_right(tmp_path: Path) -> None:
    """Each is read or refused with our own error, in time, with nothing run and nothing made that is far larger."""
    fuzzer = Fuzzer(0, tmp_path / "executed")
    outcomes = {"read": 0, "refused": 0, "copied": 0}
    before = process_state()
    for number in range(FUZZED):
        suffix, content = fuzzer.file()
        path = write(tmp_path / f"x{suffix}", content)
        start = time.thread_time()
        tensors, others, message = {}, [], "nothing was wrong with it"
        try:
            tensors, others = files.read_tensors(path)
            outcomes["read"] += 1
        except CheckpointError as error:
            outcomes["refused"] += 1
            message = str(error)
        except Exception as error:
            raise AssertionError(f"file {number}: {content[:2000]!r}") from error
        if suffix == ".pt":
            try:
                modules.copy_checked(path, tmp_path / "copy.pt")
                outcomes["copied"] += 1
            except archives.UnreadableError:
                pass
            except Exception as error:
                raise AssertionError(f"file {number}, as a whole model: {content[:2000]!r}") from error
        assert time.thread_time() - start < 5, number
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 4 * len(content) + (1 << 26)
        assert max(map(len, others), default=0) < 500
        assert 20 < len(message) < 2000, number
        assert message.isprintable(), number
    assert process_state() == before
    assert not (tmp_path / "executed").exists()
    assert min(outcomes.values()) > FUZZED // 50, outcomes  # both ways are taken
