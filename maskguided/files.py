"""Files that are written whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from .errors import ArgumentError

Result = TypeVar("Result")
_BESIDE = ".maskguided."
"""What the name of a file that is being written begins with."""
_UMASK = os.umask(0)  # it can only be read by being set: once, before there are threads that write files
os.umask(_UMASK)


def write_whole(path: Path, write: Callable[[Path], Result]) -> Result:
    """Let `write` make a file beside `path`, then rename it: `path` is the old file or the whole new one.

    A link stays one, to the new file; a file that is replaced hands on its permissions. Returns what `write` returns.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder; name a file")
    make_folder_of(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_BESIDE, suffix=path.suffix)
        os.close(handle)
        beside = Path(name)
        try:
            made = write(beside)
            with suppress(PermissionError):  # of a file system that knows no such thing
                beside.chmod(stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_UMASK)
            beside.replace(path)
            return made
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        beside_it = error.filename is None or Path(str(error.filename)).name.startswith(_BESIDE)
        if error.errno and beside_it:  # no rights, a full disk: said of this file, not of the one beside it
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def make_folder_of(path: Path) -> None:
    """Make the folder that a file is to be written to, with those around it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{path}: its folder cannot be made ({error.strerror})") from None


def torch_save_whole(path: Path, content: Any) -> None:
    """torch.save, the whole file or none; by way of memory, for torch tells of a full disk by a RuntimeError."""
    whole = io.BytesIO()
    torch.save(content, whole)
    write_whole(path, lambda beside: beside.write_bytes(whole.getbuffer()))
