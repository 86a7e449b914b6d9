"""Numbers and paths that users give, of whatever library they are."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any

from .errors import ArgumentError


def as_whole(value: object) -> int | None:
    """`value` as an int; None where it is no whole number."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def as_path(value: Any, name: str) -> Path:
    """`value` as a Path; an ArgumentError for the argument `name` where it is none.

    >>> as_path(None, "checkpoint")
    Traceback (most recent call last):
    maskguided.errors.ArgumentError: checkpoint=None: use the path of a file or folder, a str or a pathlib.Path
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise ArgumentError(f"{name}={value!r}: use the path of a file or folder, a str or a pathlib.Path")
    return Path(path)


def as_number(value: Any) -> float:
    """`value` as a float; NaN where it is no number."""
    try:
        return float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return float("nan")
