"""Files that appear whole or not at all, and values quoted in messages within bounds."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from yolo_lightbackbones import messages, writing


def test_a_file_appears_whole_with_the_usual_permissions(tmp_path: Path) -> None:
    (plain := tmp_path / "plain").write_text("")
    with writing.written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "half"
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    (tmp_path / "a.txt").chmod(0o640)
    writing.write_text(tmp_path / "a.txt", "ä\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "plain"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    writing.write_text(tmp_path / "a.txt", "old")

    def interrupted() -> None:
        with writing.written_whole(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_links_under_the_former_temporary_name_are_not_followed(tmp_path: Path) -> None:
    (victim := tmp_path / "victim").write_text("precious")
    (folder := tmp_path / "folder").mkdir()
    (folder / f".a.txt.{os.getpid()}").symlink_to(victim)  # the name that an attacker could foresee
    writing.write_text(folder / "a.txt", "mine")
    assert victim.read_text() == "precious"
    assert (folder / "a.txt").read_text() == "mine"


def test_a_taken_temporary_name_is_an_error_and_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (victim := tmp_path / "victim").write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / f".a.txt.guessed{writing.ENDING}").symlink_to(victim)
    with pytest.raises(writing.WriteError, match=r"a\.txt could not be written: File exists"):
        writing.write_text(tmp_path / "a.txt", "mine")
    assert victim.read_text() == "precious"


def test_two_writers_with_one_pid_do_not_mix(tmp_path: Path) -> None:
    with writing.written_whole(tmp_path / "a") as first, writing.written_whole(tmp_path / "a") as second:
        assert first != second
        first.write_text("1" * 1000)
        second.write_text("2")
    assert (tmp_path / "a").read_text() == "1" * 1000  # the outer one ends last


def test_leftovers_of_killed_runs_are_swept_a_day_later(tmp_path: Path) -> None:
    old, young = tmp_path / f".a.0123{writing.ENDING}", tmp_path / f".a.4567{writing.ENDING}"
    others = [tmp_path / f".b.0123{writing.ENDING}", tmp_path / ".a.mine"]
    yesterday = time.time() - 25 * 60 * 60
    for path in (old, young, *others):
        path.write_text("")
        if path is not young:
            os.utime(path, (yesterday, yesterday))
    writing.write_text(tmp_path / "a", "")
    assert not old.exists()
    assert all(path.exists() for path in (young, *others))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_and_a_read_only_one_name_the_file(tmp_path: Path, number: int) -> None:
    target = tmp_path / "a.txt"
    with (
        pytest.raises(writing.WriteError) as caught,
        writing.written_whole(target),
    ):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"{target} could not be written: {os.strerror(number)}"
    assert caught.value.errno == number


def test_whole_folders_are_named_where_the_error_names_nothing(tmp_path: Path) -> None:
    def fail(error: OSError) -> None:
        with writing.naming(tmp_path / "folder"):
            raise error

    with pytest.raises(writing.WriteError, match=r"^.*/folder could not be written: No space left on device$"):
        fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(FileExistsError, match="mine"):
        fail(FileExistsError(errno.EEXIST, "mine"))
    with pytest.raises(writing.WriteError, match=r"^more exact$"):
        fail(writing.WriteError(errno.ENOSPC, "more exact"))


def test_errors_that_are_not_of_writing_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), writing.written_whole(tmp_path / "a"):
        (tmp_path / "other").read_text()
    with pytest.raises(writing.WriteError, match=r"none/a could not be written: No such file"):
        writing.write_text(tmp_path / "none" / "a", "")


def test_long_names_have_temporary_ones(tmp_path: Path) -> None:
    writing.write_text(tmp_path / ("é" * 120), "x")
    assert os.listdir(tmp_path) == ["é" * 120]


# --- quoting ----------------------------------------------------------------------------------------------------------


def bomb(levels: int = 8) -> list[object]:
    value: list[object] = ["x"] * 9
    for _ in range(levels):
        value = [value] * 9
    return value


def test_quotations_are_bounded() -> None:
    start = time.monotonic()
    for quotation in (messages.quoted(bomb()), messages.flow(bomb()), messages.flow({"a": bomb()})):
        assert len(quotation) < 210
        assert quotation.endswith(messages.CUT)
    assert len(messages.quoted("y" * 10**6)) < 130
    assert messages.quoted(10**5000) == "<a whole number of 16610 bits>"
    assert time.monotonic() - start < 1


def test_a_value_within_itself_is_cut() -> None:
    value: list[object] = [1]
    value.append({"again": value})
    assert messages.flow(value) == "[1, {again: [...]}]"
    assert messages.quoted(value) == "[1, {'again': [...]}]"


@pytest.mark.parametrize(
    ("value", "python", "yaml"),
    [
        ("m0_9", "'m0_9'", "m0_9"),
        ("a\nb\x1b[31m\udc80", "'a\\nb\\x1b[31m\\udc80'", "a\\nb\\x1b[31m\\udc80"),
        (
            [-1, 1, "RepViT", ["m0_9", {"drop_path_rate": 0.1}]],
            "[-1, 1, 'RepViT', ['m0_9', {'drop_path_rate': 0.1}]]",
            "[-1, 1, RepViT, [m0_9, {drop_path_rate: 0.1}]]",
        ),
        ((1,), "(1,)", "[1]"),
        (True, "True", "True"),
        (None, "None", "None"),
        (object(), "<object>", "<object>"),
    ],
)
def test_quotations(value: object, python: str, yaml: str) -> None:
    assert messages.quoted(value) == python
    assert messages.flow(value) == yaml


def test_lists_say_how_many_more_there_are() -> None:
    assert messages.listed(["a", "b"]) == "a, b"
    assert messages.listed(f"key{i}" for i in range(20_000)).endswith("key11, ... (19,988 more)")
    assert messages.listed([]) == ""
