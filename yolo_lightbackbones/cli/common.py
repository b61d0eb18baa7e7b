"""Shared by the commands: errors for users, output, and checks of options."""

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
    """A mistake that the user can correct; its text is the whole message."""


@contextlib.contextmanager
def errors_for_users() -> Iterator[None]:
    """Turn a user's mistake into a message on stderr and exit code 1."""
    try:
        yield
    except BrokenPipeError:  # the reader of our output has closed it
        raise
    except (UserError, ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and str(error).startswith("No module named"):
            raise  # a mistake of ours; for packages that are optional, our sentence says what to install
        messages().print(f"Error: {printable_lines(error)}", markup=False)
        raise typer.Exit(1) from error


def messages() -> Console:
    """A console on stderr, for everything that is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def printable_lines(text: object) -> str:
    """A text of one or more lines with escapes for everything unprintable, such as terminal codes in file names."""
    return "\n".join(map(printable, str(text).split("\n")))


@contextlib.contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on stderr, only on terminals and until the block ends; gives a function that advances it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


def print_json(document: Any) -> None:
    """Print one document on stdout. NaN and infinity are refused; JSON has no literal for them."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def image_size(text: str) -> tuple[int, int]:
    """Read height and width from `640` or `480,640`.

    Raises:
        UserError: for anything else.
    """
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})?", text.strip()):
        raise UserError(f"The image size is {quoted(text)}; write one number of pixels, 640, or height,width: 480,640.")
    height, _, width = text.strip().partition(",")
    return int(height), int(width or height)


def check_image_size(size: tuple[int, int], divisor: int, what: str) -> None:
    """Refuse an image size that a model cannot take.

    Raises:
        UserError: if a side is not a multiple of `divisor`, with the next larger size that fits.
    """
    if any(side % divisor for side in size):
        fit = ",".join(dict.fromkeys(str(-(-side // divisor) * divisor) for side in size))
        height, width = size
        raise UserError(
            f"The image is {height} x {width} (height x width); {what} needs multiples of {divisor}. "
            f"Write for example --imgsz {fit}."
        )


def check_new_file(path: Path, force: bool) -> None:
    """Refuse, before any work is done, a file that could not be written after it.

    Raises:
        UserError: if its folder does not exist, if it is a folder, or if it exists and `force` is False.
    """
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give the name of a file.")
    if path.exists() and not force:
        raise UserError(f"{path} exists already. Add --force to overwrite it, or choose another name.")


def check_suffix(path: Path, what: str, suffixes: Sequence[str]) -> None:
    """Refuse a file with another suffix than those in `suffixes`; messages call it `what`.

    Raises:
        UserError: with the allowed suffixes.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(f"The {what} is {path}; its suffix must be one of {', '.join(suffixes)}.")


def check_picture(path: Path, what: str, force: bool) -> None:
    """Refuse, before any work is done, a picture that could not be drawn after it; messages call it `what`.

    Raises:
        UserError: for what `check_suffix` and `check_new_file` refuse, or if matplotlib is not installed.
    """
    check_suffix(path, what, drawing.FORMATS)
    check_new_file(path, force)
    try:
        drawing.check_matplotlib()
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from error
