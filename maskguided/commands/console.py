"""Where the commands print, and how their progress shows."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..errors import MaskGuidedError, first_line, is_out_of_memory

out = Console(highlight=False, soft_wrap=True, emoji=False)  # a:train: is a name
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def sentence(error: Exception) -> str | None:
    """What to tell of an error; None of one that is a fault of ours."""
    if isinstance(error, MaskGuidedError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        nameless = "the output" if error.errno == errno.ENOSPC else None
        return f"{name}: {error.strerror}" if (name := error.filename or nameless) else None
    return f"out of memory: {first_line(error)}" if is_out_of_memory(error) else None


def plain(text: object) -> str:
    """Text in which rich sees no markup."""
    return escape(str(text))


def say(text: object) -> None:
    """A line of results."""
    out.print(str(text), markup=False)


def warning(text: object) -> None:
    """A line that warns."""
    err.print(f"[yellow]warning:[/yellow] {plain(text)}")


def log(text: str) -> None:
    """A line of progress on what runs for long, where there is no terminal to show a bar."""
    if not err.is_terminal:
        err.print(text, markup=False)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on a terminal beside `what` is being done, where nothing can be counted; nothing elsewhere."""
    with err.status(plain(what)) if err.is_terminal else nullcontext():
        yield


def tell(progress: Progress, text: str) -> None:
    """Print a line of results; above the bar, which would else be drawn over it, where both are on a terminal."""
    console = progress.console if out.is_terminal and err.is_terminal else out
    console.print(text, markup=False)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere (see `log`); each task says of what, as unit="images"."""
    of_what = TextColumn("{task.fields[unit]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), of_what)
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        yield bar
