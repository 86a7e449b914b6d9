"""Packages that only some work needs, imported where it does; and what torch, which does the rest, has or has not."""

from __future__ import annotations

import importlib
import shlex
from typing import Any

import torch
from torch import Tensor

from .errors import MissingDependency


def torch_since(major: int, minor: int) -> bool:
    """Whether this torch is that version or a newer one."""
    return tuple(map(int, torch.__version__.split(".")[:2])) >= (major, minor)


def not_cast(x: Tensor) -> torch.autocast:
    """A context in which nothing is cast where `x` is; not every device (meta) has an autocast."""
    device = x.device.type
    return torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False)


def optional(name: str, work: str, install: str) -> Any:
    """The module `name`.

    Args:
        work: what needs it, for the error's text.
        install: what pip installs it by.

    >>> optional("no_such.module", "flying", "maskguided[wings]")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    maskguided.errors.MissingDependency: flying needs no_such: pip install 'maskguided[wings]' (No module ...)
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingDependency(f"{work} needs {package}: pip install {shlex.quote(install)} ({error})") from None
