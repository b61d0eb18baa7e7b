"""Weights files of strangers: damaged, made to hang or to run code; and threads that read them side by side."""

from __future__ import annotations

import itertools
import os
import pickle
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Call
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from weight_files import archive, safetensors, saved, write

from yolo_lightbackbones.checkpoints import archives, files, modules
from yolo_lightbackbones.checkpoints.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("one_thread")


def storage(elements: int = 4, key: bytes = b"0") -> bytes:
    """Instructions for a storage of float32."""
    text = b"".join(b"X" + struct.pack("<I", len(part)) + part for part in (b"storage",))
    name = b"X" + struct.pack("<I", len(key)) + key
    number = b"\x8a\x08" + struct.pack("<q", elements)
    return b"(" + text + b"ctorch\nFloatStorage\n" + name + b"X\x03\x00\x00\x00cpu" + number + b"tQ"


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], elements: int = 4, offset: int = 0) -> bytes:
    """Instructions for a tensor of float32."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x09" + value.to_bytes(9, "little", signed=True) for value in values) + b"t"

    start = numbers((offset,))[1:-1]
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    rest = b"\x89ccollections\nOrderedDict\n)R"
    return function + b"(" + storage(elements) + start + numbers(shape) + numbers(strides) + rest + b"tR"


def entries(*pairs: bytes) -> bytes:
    """A pickle of a dictionary: names and instructions in turn."""
    return b"\x80\x02}(" + b"".join(pairs) + b"u."


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def refused(path: Path, match: str, seconds: float = 1.0) -> str:
    """The message; `seconds` of this thread's own time, since machines can be busy."""
    start = time.thread_time()
    with pytest.raises(CheckpointError, match=match) as caught:
        files.read_tensors(path)
    assert time.thread_time() - start < seconds
    assert len(str(caught.value)) < 2000
    return str(caught.value)


# --- what is read is what torch reads ---------------------------------------------------------------------------------


def every_kind() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(4, 6, generator=generator)
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64)
    types += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    kinds = {str(dtype): (base * 5).to(dtype) for dtype in types}
    kinds["float8"] = base.to(torch.float8_e4m3fn)
    kinds |= {"transposed": base.t(), "slice": base[1:, ::2], "row": base[:1].expand(5, 6), "empty": torch.empty(0, 3)}
    return {**kinds, "number": torch.tensor(3.0), "parameter": nn.Parameter(base), "shared": base}


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_every_kind_of_tensor(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    state = every_kind()
    if kind == "safetensors":
        save_file({name: value.detach().clone().contiguous() for name, value in state.items()}, path, {"by": "us"})
        expected = load_file(path)
    else:
        if kind == "old":  # which torch cannot read back
            del state["float8"]
        write(path, saved(state, old=kind == "old"))
        expected = torch.load(path, weights_only=True)
    found, others = files.read_tensors(path)
    assert (found.keys(), others) == (expected.keys(), [])
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        exact = {"rtol": 0.0, "atol": 0.0}
        wide = torch.float32 if "float8" in str(value.dtype) else value.dtype
        torch.testing.assert_close(found[name].to(wide), value.detach().to(wide), **exact)


@pytest.mark.parametrize("old", [False, True])
def test_the_process_has_no_say(old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an environment variable, nor torch's default device and dtype."""
    path = write(tmp_path / "x.pth", saved({"w": torch.arange(6.0).view(2, 3)}, old=old))
    for variable in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        with monkeypatch.context() as patch, torch.device("meta"):
            patch.setenv(variable, "1")
            found = files.read_tensors(path)[0]["w"]
        assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_changed_byte_of_a_weight_is_told(tmp_path: Path) -> None:
    content = saved({"w": torch.full((100,), 1.5)})
    place = content.index(struct.pack("<f", 1.5) * 100)
    write(tmp_path / "x.pth", content[: place + 43] + b"\x00" + content[place + 44 :])
    refused(tmp_path / "x.pth", "is damaged: the checksum of a part of it is wrong")


def test_files_that_were_saved_without_checksums(tmp_path: Path) -> None:
    with_them = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        write(tmp_path / "x.pth", saved({"w": torch.ones(3)}))
    finally:
        torch.serialization.set_crc32_options(with_them)
    assert files.read_tensors(tmp_path / "x.pth")[0]["w"].tolist() == [1, 1, 1]


# --- files that never end, or expand ----------------------------------------------------------------------------------


def shared_mappings() -> Any:
    bomb: Any = {"a": 1}
    for _ in range(12):
        bomb = {"model": bomb, **{f"k{i}": bomb for i in range(40)}}
    return bomb


def holding_itself(content: Any) -> Any:
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (shared_mappings, r"holds no weights; its entries are: model, k0, .*\(29 more\)"),
        (lambda: holding_itself({"epoch": 1}), "holds no weights; its entries are: epoch, model"),
        (
            lambda: holding_itself({"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1)}}),
            "several sets of weights: a, b",
        ),
        (lambda: {f"entry {i}" * 50: i for i in range(20_000)}, r"holds no weights; .*\(19,988 more\)"),
        (lambda: {"\x1b[2J\n": 1}, r"entries are: \\x1b\[2J\\n"),
    ],
    ids=["shared", "itself", "itself twice", "many", "control"],
)
def test_walks_and_messages_end(content: Callable[[], Any], match: str, tmp_path: Path) -> None:
    refused(write(tmp_path / "x.pth", saved(content())), match)


def test_names_that_are_too_long_and_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.ones(1)
    write(tmp_path / "x.pth", saved({f"{i:06}" * 40: value for i in range(100)}))
    tensors, others = files.read_tensors(tmp_path / "x.pth")
    assert not tensors
    assert max(map(len, others)) < 100
    write(tmp_path / "x.pth", saved({f"w{i}": value for i in range(11)}))
    monkeypatch.setattr(files, "MOST_TENSORS", 10)
    refused(tmp_path / "x.pth", "holds 11 tensors; more than 10 belong to no model")


def test_weights_that_hold_themselves(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", saved(holding_itself({"w": torch.ones(2), "epoch": 1})))
    tensors, others = files.read_tensors(tmp_path / "x.pth")
    assert tensors.keys() == {"w"}
    assert others == ["epoch (int)", "model (dict)"]


def test_prefixes_without_end(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", saved({"module." * 20 + "w": torch.ones(2)}))
    assert list(files.read_tensors(tmp_path / "x.pth")[0]) == ["module." * 12 + "w"]


@pytest.mark.parametrize("old", [False, True])
def test_few_values_that_stand_for_many(old: bool, tmp_path: Path) -> None:
    write(tmp_path / "x.pth", saved({"w": torch.zeros(1).expand(10**9, 54)}, old=old))
    refused(tmp_path / "x.pth", r"declares tensors of 216000000000 bytes, which it cannot hold")


@pytest.mark.parametrize(
    ("pickled", "match"),
    [
        (entries(text("w"), tensor((5,), (1,))), "lies outside its memory"),
        (entries(text("w"), tensor((4,), (1,), offset=1)), "lies outside its memory"),
        (entries(text("w"), tensor((2, 2), (1 << 47, 1))), "lies outside its memory"),
        (entries(text("w"), tensor((4,), (1,), elements=5)), "values that it names are missing"),
        (entries(text("w"), tensor((-1,), (1,))), "impossible shape"),
        (entries(text("w"), tensor((1 << 62,), (0,))), "impossible shape"),
        (entries(text("w"), tensor((1 << 40, 1 << 40), (0, 0))), "which it cannot hold"),
        (entries(text("w"), tensor((1,) * 33, (1,) * 33)), "proper shape"),
        (entries(text("w"), tensor((4,), (1, 1))), "more sides than strides"),
        (entries(text("w"), tensor((4,), (1,), elements=-1)), "no known kind or size"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "cut off"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b"abc.", "cut off"),
        (b"\x80\x02K\x01r\xff\xff\xff\xff0" * 3 + b"}.", "holds no weights"),
        (b"\x80\x02j\xff\xff\xff\xff.", "nothing is remembered"),
        (b"\x80\x02" + b"K\x010" * 1_100_000 + b"}.", "more than 2,000,000 instructions"),
        (b"\x80\x02" + b"(" * 100_000 + b".", "instruction"),
        (b"\x80\x02" + b"}" + b"\x85" * 100_000 + b".", "holds a tuple"),
        (
            b"\x80\x02K\x07" + b"\x86\x86"[:0] + b"2\x86q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01\x86.",
            "holds a tuple",
        ),
        (b"\x80\x02}" + b"K\x07q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"K\x01s.", "its entries are: <tuple>"),
        (b"\x80\x02cbuiltins\nset\n\x85.", "holds a tuple"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "something else than the memory"),
        (b"\x80\x02(K\x01K\x02K\x03d.", "unknown instruction"),
        (b"\x80\x02K\x01K\x02R.", "a call of a int"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01b.", "attributes for a reference"),
        (b"\x80\x02", "cut off"),
        (b"", "cut off"),
    ],
    ids=itertools.count(),
)
def test_pickles_that_are_wrong(pickled: bytes, match: str, tmp_path: Path) -> None:
    write(tmp_path / "x.pth", archive(pickled, {"data/0": bytes(16)}))
    refused(tmp_path / "x.pth", match, seconds=5)


def test_a_pickle_written_by_hand_is_read(tmp_path: Path) -> None:
    """Those above are refused for what is wrong with them."""
    values = struct.pack("<4f", 1, 2, 3, 4)
    write(tmp_path / "x.pth", archive(entries(text("w"), tensor((2, 2), (1, 2))), {"data/0": values}))
    assert files.read_tensors(tmp_path / "x.pth")[0]["w"].tolist() == [[1, 3], [2, 4]]


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        b"cposix\nmkdir\n(X\x08\x00\x00\x00executedtR",
        b"\x8c\x05posix\x8c\x05mkdir\x93(X\x08\x00\x00\x00executedtR",
        b"X\x05\x00\x00\x00posixq\x010X\x05\x00\x00\x00mkdirq\x020h\x01h\x02\x93X\x08\x00\x00\x00executed\x85R",
        b"(X\x08\x00\x00\x00executediposix\nmkdir\n",
        b"(cposix\nmkdir\nX\x08\x00\x00\x00executedo",
        b"cposix\nmkdir\nX\x08\x00\x00\x00executed\x85}\x92",
        b"\x82\x01X\x08\x00\x00\x00executed\x85R",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nmkdir\nctorch\nTensor\nX\x08\x00\x00\x00executed\x85}tR",
        b"cbuiltins\ngetattr\n(cposix\nmkdir\nX\x08\x00\x00\x00__call__tR",
        b"ctorch.hub\nload\n)R",
        b"ctorch\nload\nX\x01\x00\x00\x00x\x85R",
        b"ctorch.storage\n_load_from_bytes\nC\x01x\x85R",
        b"cultralytics.nn.tasks\nDetectionModel\n}\x85R",
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
def test_calls_are_refused_and_never_made(
    program: bytes, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = entries(text("w"), tensor((4,), (1,)), text("x"), program)
    if kind == "zip":
        content = archive(pickled, {"data/0": bytes(16)})
    elif kind == "old":
        ones = [pickle.dumps(value, 2) for value in (archives.MAGIC, archives.PROTOCOL, {"little_endian": True})]
        content = b"".join(ones) + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16)
    else:
        content = pickled
    with torch.serialization.safe_globals([os.mkdir, nn.Linear]):
        refused(write(tmp_path / "x.pth", content), r"x\.pth (holds pickled|is )")
        with pytest.raises(archives.UnreadableError):
            modules.copy_checked(write(tmp_path / "x.pt", content), tmp_path / "copy.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt", "x.pth"]


def test_refused_classes_are_named_within_bounds(tmp_path: Path) -> None:
    names = b"".join(b"cevil\x1b[2J\nC%d\n0" % i for i in range(5000))
    write(tmp_path / "x.pth", archive(b"\x80\x02" + names + b"}."))
    message = refused(tmp_path / "x.pth", r"evil\\x1b\[2J\.C0, .*\.C3, \.\.\. \(4,996 more\)")
    assert "\x1b" not in message


# --- archives and headers ---------------------------------------------------------------------------------------------


W = entries(text("w"), tensor((4,), (1,)))


def overlapping() -> bytes:
    """An archive in which a hundred names share the bytes of one record."""
    content = bytearray(archive(W, {f"data/{i:03}": bytes(100_000) for i in range(2)}))
    first, directory = content.index(b"archive/data/000"), content.rindex(b"PK\x01\x02")
    content[directory + 42 : directory + 46] = struct.pack("<I", first - 30)
    return bytes(content)


def on_two_disks() -> bytes:
    """An archive that says so, in the record of large archives before its last one."""
    content = archive(W, {"data/0": bytes(16)})
    return content[:-22] + b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + content[-22:]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lambda: archive(W, {"data/0": bytes(16)}, zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
        (lambda: archive(W, {"data/0": bytes(10**8)}, zipfile.ZIP_BZIP2), "is compressed or encrypted"),
        (overlapping, "is damaged"),
        (on_two_disks, "is damaged: its directory cannot be read"),
        (
            lambda: archive(W, {"data/0": bytes(16)}).replace(b"PK\x01\x02", b"PK\x01\x03", 1),
            "directory cannot be read",
        ),
        (lambda: archive(W, {"data/\u00e9": bytes(16)}).replace("\u00e9".encode(), b"\xaa\xaa"), "is damaged"),
        (lambda: archive(W, {"constants.pkl": b""}), "is a TorchScript archive"),
        (lambda: archive(W, {"byteorder": b"big"}), "another byte order"),
        (lambda: archive(W, {}), "values that it names are missing"),
        (lambda: archive(W, {"data/0": bytes(8)}), "values that it names are missing"),
        (lambda: archive(W).replace(b"archive/data.pkl", b"archive/data.pkk"), "some other zip archive"),
        (lambda: b"PK\x03\x04", "damaged or cut off"),
        (lambda: pickle.dumps({"a": 1}, 2), "a pickle that torch.save has not written"),
    ],
    ids=itertools.count(),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_wrong(content: Callable[[], bytes], match: str, tmp_path: Path) -> None:
    refused(write(tmp_path / "x.pth", content()), match)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"w": F32}, b"1234567"),
        safetensors({"w": {**F32, "shape": [3]}}, bytes(8)),
        safetensors({"w": {**F32, "shape": [1 << 62]}}, bytes(8)),
        safetensors({"w": {**F32, "shape": [-2]}}, bytes(8)),
        safetensors({"w": {**F32, "shape": [True, 2]}}, bytes(8)),
        safetensors({"w": {**F32, "data_offsets": [8, 0]}}, bytes(8)),
        safetensors({"w": {**F32, "data_offsets": [0, 8.0]}}, bytes(8)),
        safetensors({"w": {**F32, "dtype": "F5"}}, bytes(8)),
        safetensors({"w": 3}),
        safetensors([1, 2]),
        safetensors(b"[" * 200_000),
        safetensors(b"9" * 10_000),
        safetensors(b"\xff\xfe{}"),
        safetensors(b"", length=1 << 63),
        safetensors(b" " * 11_000_000),
        safetensors({"\x1b[2J\n" * 100: 3}),
        b"1234567",
        b"",
    ],
    ids=itertools.count(),
)
def test_headers_that_are_wrong(content: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path / "x.safetensors", content), "not a safetensors file, or it is damaged or cut off")


def test_a_header_without_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", safetensors({"__metadata__": {"a": "b"}}))
    refused(path, "holds no weights; its entries are: none")


# --- things that are no files -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_pipes_and_devices_are_not_waited_for(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    refused(tmp_path / f"pipe{suffix}", "is no regular file but a pipe, a device or the like")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    refused(tmp_path / f"zero{suffix}", "is no regular file but a pipe, a device or the like")


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0b.pth", "x/y.pth"):
        with pytest.raises(FileNotFoundError, match="There is no weights file"):
            files.read_tensors(tmp_path / name)
    refused(tmp_path / ("x" * 5000 + ".pth"), "cannot be read: File name too long")
    write(tmp_path / "a\n\x1b[2J.pth", b"")
    assert "a\\n\\x1b[2J.pth is an empty file" in refused(tmp_path / "a\n\x1b[2J.pth", "an empty file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="whoever runs this may read everything")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", W).chmod(0)
    refused(tmp_path / "x.pth", "cannot be read: Permission denied")


# --- whole models -----------------------------------------------------------------------------------------------------


def test_a_checked_copy_is_what_torch_reads(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).half()
    write(tmp_path / "x.pt", saved({"model": net, "path": tmp_path, "epoch": 3}))
    modules.copy_checked(tmp_path / "x.pt", tmp_path / "copy.pt")
    copied = torch.load(tmp_path / "copy.pt", weights_only=False)
    assert (copied["path"], copied["epoch"]) == (tmp_path, 3)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(copied["model"].state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lambda: Call(nn.Linear, 2, 2), r"calls torch\.nn\.modules\.linear\.Linear"),
        (lambda: Call(nn.Identity), r"calls torch\.nn\.modules\.linear\.Identity"),
        (lambda: Call(getattr, nn.Linear, "load_state_dict"), "calls builtins.getattr, keeps"),
        (lambda: [nn.Linear], "keeps torch.nn.modules.linear.Linear"),
        (lambda: {"a": (1, {"b": nn.Linear})}, "keeps torch.nn.modules.linear.Linear"),
        (lambda: nn.Parameter(torch.zeros(1).expand(10**9, 54)), "declares tensors of 2160000000.. bytes"),
    ],
    ids=itertools.count(),
)
def test_models_that_do_more_than_exist(content: Callable[[], Any], match: str, tmp_path: Path) -> None:
    write(tmp_path / "x.pt", saved({"model": nn.Linear(2, 2), "x": content()}))
    with pytest.raises(archives.UnreadableError, match=match):
        modules.copy_checked(tmp_path / "x.pt", tmp_path / "copy.pt")
    assert not (tmp_path / "copy.pt").exists()


def test_methods_and_numbers_of_old_checkpoints_are_let_through(tmp_path: Path) -> None:
    import numpy as np

    layer = nn.Linear(2, 2)
    layer.called = layer.forward  # type: ignore[assignment] # as some exporters leave it
    write(tmp_path / "x.pt", saved({"model": layer, "best": np.float64(0.5)}))
    modules.copy_checked(tmp_path / "x.pt", tmp_path / "copy.pt")
    assert torch.load(tmp_path / "copy.pt", weights_only=False)["best"] == 0.5


# --- threads ----------------------------------------------------------------------------------------------------------


class Allowed:
    """A class that somebody else has put on torch's list, and which is not safe in our hands."""

    def __init__(self, trace: Path) -> None:
        trace.mkdir()


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Some read weights, some load what torch's list allows, some read what must not be read."""
    good = write(tmp_path / "good.pth", saved({"model": {f"w{i}": torch.ones(8) for i in range(40)}}))
    allowed = write(tmp_path / "allowed.pth", saved({"a": Call(os.path.join, "a", "b"), "w": torch.ones(2)}))
    hostile = write(tmp_path / "hostile.pth", saved({"w": torch.ones(2), "x": Call(Allowed, tmp_path / "executed")}))
    problems: list[str] = []
    counts = dict.fromkeys(("good", "allowed", "hostile"), 0)
    until = time.monotonic() + 1.5

    def repeat(name: str, once: Callable[[], None]) -> None:
        try:
            while time.monotonic() < until:
                once()
                counts[name] += 1
        except BaseException as error:
            problems.append(f"{name}: {type(error).__name__}: {error}")

    def read_good() -> None:
        assert len(files.read_tensors(good)[0]) == 40

    def load_allowed() -> None:
        assert torch.load(allowed, weights_only=True)["a"] == os.path.join("a", "b")
        assert set(torch.serialization.get_safe_globals()) == before

    def read_hostile() -> None:
        with pytest.raises(CheckpointError, match="pickled Python objects"):
            files.read_tensors(hostile)

    with torch.serialization.safe_globals([os.path.join, Allowed, type(tmp_path)]):
        before = set(torch.serialization.get_safe_globals())
        jobs = [("good", read_good)] * 3 + [("allowed", load_allowed)] * 3 + [("hostile", read_hostile)] * 2
        threads = [threading.Thread(target=repeat, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    assert min(counts.values()) > 5
    assert not (tmp_path / "executed").exists()
