"""What the commands share: how a mistake of the user's is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer
from rich.console import Console


class UserError(Exception):
    """Something the user can put right; its text is all there is to say."""


@contextlib.contextmanager
def errors_for_users() -> Iterator[None]:
    """A mistake of the user's becomes a message on stderr and exit code 1."""
    try:
        yield
    except (UserError, ValueError, OSError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from error
