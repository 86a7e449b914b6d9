"""The command line: each command is a file of `maskguided/commands`."""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, TextIO

import typer

from . import __version__
from .commands import basicsr_yaml
from .commands.bench import bench_command
from .commands.calibrate import calibrate_command
from .commands.console import err, plain, say, sentence, warning
from .commands.explain import explain_command
from .commands.export import export_command
from .commands.finetune import finetune_command
from .commands.inspect import inspect_command
from .commands.upscale import upscale_command
from .errors import ArgumentError, MaskGuidedError, MaskGuidedWarning

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Super-resolution networks, run only where it matters.",
)
app.command("upscale")(upscale_command)
app.command("inspect")(inspect_command)
app.command("bench")(bench_command)
app.command("calibrate")(calibrate_command)
app.command("finetune")(finetune_command)
app.command("explain")(explain_command)
app.command("export")(export_command)
app.add_typer(basicsr_yaml.app, name="basicsr")


def main() -> None:
    """Entry point: one sentence and exit code 2 for what we know to be wrong, instead of a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that it cannot show is no reason to stop
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")  # its words beside ours; read where it is imported, later
    _clean_up_when_stopped()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            sys.argv[1:] = map(_at_home, sys.argv[1:])
            _refuse_empty(sys.argv[1:])
            app()
    except (MaskGuidedError, OSError, RuntimeError, MemoryError) as error:
        what = sentence(error)
        if what is None:
            raise
        err.print(f"[red]error:[/red] {plain(what)}")
        sys.exit(2)


def _at_home(argument: str) -> str:
    """An argument with the home folder for `~`, which a shell leaves alone in `--output=~/out` and within quotes."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + (f"{Path.home()}{value[1:]}" if value.partition(os.sep)[0] == "~" else value)


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse empty options: an empty path would be the current folder, with all that is in it."""
    parts = [part for given in arguments for part in (given.split("=", 1) if given.startswith("--") else [given])]
    for option, value in itertools.pairwise(parts):
        if option.startswith("-") and option != "--suffix" and not value:
            raise ArgumentError(f"{option} '': is a variable of the shell not set? The current folder is '.'")


def _clean_up_when_stopped() -> None:
    """By SIGTERM, or a terminal that is closed, as by Ctrl-C: what is half written is removed."""
    for name in ("SIGTERM", "SIGHUP"):  # the second is not everywhere, and nohup has it ignored
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours in one line; those of other packages are nothing to the user of a command."""
    if issubclass(category, MaskGuidedWarning):
        warning(message)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        say(__version__)
        raise typer.Exit
