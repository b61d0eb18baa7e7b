"""What the commands share: how a mistake of the user's is told, what is written, what options mean."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from yolo_lightbackbones import drawing
from yolo_lightbackbones.messages import printable, quoted

IMAGE_SIZE_HELP = "Side of the image in pixels, or height,width."


class UserError(Exception):
    """Something the user can put right; its text is all there is to say."""


@contextlib.contextmanager
def errors_for_users() -> Iterator[None]:
    """A mistake of the user's becomes a message on stderr and exit code 1."""
    try:
        yield
    except BrokenPipeError:  # whoever read our output has enough
        raise
    except (UserError, ValueError, OSError) as error:
        messages().print(f"Error: {printable_lines(error)}", markup=False)
        raise typer.Exit(1) from error


def messages() -> Console:
    """For what is no result, on stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def printable_lines(text: object) -> str:
    """A text of several lines that every terminal can print: names of files may hold its codes, or no characters."""
    return "\n".join(map(printable, str(text).split("\n")))


@contextlib.contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on stderr, on terminals only, which goes when it is full; gives what advances it by one."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


def print_json(document: Any) -> None:
    """One document on stdout, in which a number that is none is no number either."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def image_size(text: str) -> tuple[int, int]:
    """Height and width out of `640` or `480,640`.

    Raises:
        UserError: for anything else.
    """
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})?", text.strip()):
        raise UserError(f"The image size is {quoted(text)}; write one number of pixels, 640, or height,width: 480,640.")
    height, _, width = text.strip().partition(",")
    return int(height), int(width or height)


def check_image_size(size: tuple[int, int], divisor: int, what: str) -> None:
    """Refuse a size that a model cannot take.

    Raises:
        UserError: with the next larger size that fits.
    """
    if any(side % divisor for side in size):
        fit = ",".join(dict.fromkeys(str(-(-side // divisor) * divisor) for side in size))
        height, width = size
        raise UserError(
            f"The image is {height} x {width} (height x width); {what} needs multiples of {divisor}. "
            f"Write for example --imgsz {fit}."
        )


def check_new_file(path: Path, force: bool) -> None:
    """Refuse before any work what could not be written after it.

    Raises:
        UserError: if there is no such folder, or something of that name.
    """
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give the name of a file.")
    if path.exists() and not force:
        raise UserError(f"{path} exists already. Add --force to overwrite it, or choose another name.")


def check_suffix(path: Path, what: str, suffixes: Sequence[str]) -> None:
    """Refuse a kind of file that cannot be written.

    Raises:
        UserError: with the kinds that can.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(f"The {what} is {path}; its suffix must be one of {', '.join(suffixes)}.")


def check_picture(path: Path, what: str, force: bool) -> None:
    """Refuse before any work a picture that could not be drawn after it.

    Raises:
        UserError: for a suffix, a place or a name that is taken, as above, or without matplotlib.
    """
    check_suffix(path, what, drawing.FORMATS)
    check_new_file(path, force)
    try:
        drawing.check_matplotlib()
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from error
