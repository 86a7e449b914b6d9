"""Checks of what users pass in: numbers (NumPy's too), paths, names of arguments."""

from __future__ import annotations

import difflib
import inspect
import operator
import os
import reprlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from .errors import ArgumentError

_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def as_whole(value: object) -> int | None:
    """`value` as an int; None where it is no whole number."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def is_whole(value: object, least: int) -> bool:
    """Whether `value` is a whole number, `least` or more."""
    number = as_whole(value)
    return number is not None and number >= least


def as_path(value: Any, name: str) -> Path:
    """`value` as a Path; an ArgumentError for the argument `name` where it is none.

    >>> as_path(None, "checkpoint")
    Traceback (most recent call last):
    maskguided.errors.ArgumentError: checkpoint=None: use the path of a file or folder, a str or a pathlib.Path
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or "\0" in path:
        raise ArgumentError(f"{name}={reprlib.repr(value)}: use the path of a file or folder, a str or a pathlib.Path")
    return Path(path).expanduser() if Path(path).parts[:1] == ("~",) else Path(path)


def as_number(value: Any) -> float:
    """`value` as a float; NaN where it is no number."""
    try:
        return float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def check_keys(where: str, given: Iterable[Any], known: Collection[str]) -> None:
    """An ArgumentError for the first of `given` that is not known; it gives the nearest name.

    >>> check_keys("network_g", ["split_at", "kep"], ["split_at", "keep", "halo"])
    Traceback (most recent call last):
    maskguided.errors.ArgumentError: network_g: 'kep' is not known; did you mean 'keep'? Known: split_at, keep, halo
    """
    for name in given:
        if name not in known:
            meant = nearest(str(name), known)
            hint = f"did you mean {meant!r}? " if meant else ""
            raise ArgumentError(f"{where}: {name!r} is not known; {hint}Known: {', '.join(known)}")


def nearest(name: str, known: Collection[str]) -> str | None:
    """Which of `known` a misspelt name is likely to mean."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def arguments_of(call: Callable[..., Any]) -> list[str]:
    """Names of the arguments that `call` takes, without those behind * and **."""
    return [name for name, argument in inspect.signature(call).parameters.items() if argument.kind not in _REST]


def check_arguments(where: str, given: Iterable[str], call: Callable[..., Any], skip: int = 0) -> None:
    """`check_keys` with the arguments of `call` but the first `skip`; one with ** checks them itself."""
    if inspect.Parameter.VAR_KEYWORD not in {p.kind for p in inspect.signature(call).parameters.values()}:
        check_keys(where, given, arguments_of(call)[skip:])


def check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among those allowed."""
    if value not in allowed:
        raise ArgumentError(f"{name}={value!r}; use one of {', '.join(map(repr, allowed))}")
