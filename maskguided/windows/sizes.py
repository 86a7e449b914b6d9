"""How large windows are: what is given, if it can be, or what is chosen for a network."""

from __future__ import annotations

import functools
import itertools
import math

import torch

from ..cost import macs_without_data
from ..errors import ArgumentError, first_line, is_out_of_memory
from ..parts import Merge
from ..patches import Chosen, Grid, round_up
from ..probing.modules import first_weight
from ..probing.thin import thinly
from ..probing.untouched import untouched
from ..split import Split
from ..values import as_whole
from .run import on_windows

_LARGEST_PATCH = 64  # LR pixels: what is chosen unless the user says otherwise
_LARGEST_EXCHANGING = 32  # the same where windows exchange borders: larger ones are no faster there
_MOST_STEPS = 10_000
"""Of blocks whose price on larger windows is worth finding out: some seconds."""
_ALONE = (32, 48, 64, 96, 128)
"""LR pixels: windows alone that are tried where the usual ones cost too much."""
_LARGEST_TRIED = 256
"""LR pixels: blocks that run on windows of this side are taken to run on larger ones, which would take minutes."""
_LARGEST_WINDOW = 2**16
"""LR pixels a side of a window."""
_DEAR = 1.6
"""Times what the pixels of a patch cost in a large image: the usual windows alone have 1.56 times as many pixels."""
_SMALL, _LARGE = 64, 192
"""LR pixels: sides of an image on which a first look is short, and of one in which hardly anything is padded."""


def default_sizes(multiple: int, exchange: bool, least: int = 1) -> tuple[int, int]:
    """Patch size and halo: small patches without one where windows exchange borders; else larger ones, whose
    halo adds 0.56 times as many pixels.

    >>> [default_sizes(multiple, exchange=True) for multiple in (1, 8, 12, 64)]
    [(8, 0), (32, 0), (36, 0), (64, 0)]
    >>> [default_sizes(multiple, exchange=False) for multiple in (1, 8)]
    [(16, 2), (64, 8)]
    """
    halo = round_up(2, multiple)
    if exchange:
        return max(min(4 * halo, round_up(_LARGEST_EXCHANGING, multiple)), least), 0
    if 8 * halo > _LARGEST_PATCH:
        return round_up(_LARGEST_PATCH, multiple), 0
    return 8 * halo, halo


def windows_of(split: Split, merge: Merge, patch_size: int | None, halo: int | None, exchange: bool) -> tuple[int, int]:
    """Patch size and halo: as given, if such windows run; else the default, or a larger patch where that one fails or
    costs too much."""
    default = default_sizes(split.multiple_of, exchange, split.trial.least)
    free = patch_size is None and halo is None and not exchange
    halo = default[1] if halo is None else halo
    if patch_size is None:
        usual = _thrifty_patch(split, *default) if free else default[0]
        return _patch_that_runs(split, merge, usual, halo, exchange), halo
    check_windows(split, merge, patch_size, halo, exchange)
    return patch_size, halo


def _thrifty_patch(split: Split, patch_size: int, halo: int) -> int:
    """`patch_size`, or a larger one where such windows cost far more than as many pixels of a large image.

    So they do where blocks pad each window to a multiple of their own, which may be many times as large (HiT-SR: 64).
    """
    count = functools.cache(functools.partial(_macs_of_body, split))

    def dearness(size: int, image: int) -> float | None:
        image = round_up(image, split.multiple_of)
        window, whole = count(size + 2 * halo), count(image)
        return None if window is None or not whole else (window / size**2) / (whole / image**2)

    if patch_size + 2 * halo < split.probe.least or (dearness(patch_size, _SMALL) or 0) <= _DEAR:
        return patch_size
    found = dict[int, float]()
    sizes = (side - 2 * halo for side in _ALONE if side % split.multiple_of == 0)
    for size in (patch_size, *(size for size in sizes if size > patch_size)):
        found[size] = dearness(size, _LARGE) or math.inf
        if found[size] <= _DEAR:
            return size
    return min(found, key=found.__getitem__)


def _macs_of_body(split: Split, side: int) -> int | None:
    """MACs of blocks n+1..N on an image of `side` x `side` LR pixels; None where they cannot be counted without
    computing."""
    like, shape = first_weight(split.model), (1, split.probe.in_channels, side, side)
    before = macs_without_data(split.prefix, shape, like, split.model, _MOST_STEPS)
    if before is None:
        return None
    after = macs_without_data(
        lambda x: split.body(split.window((side, side), x)), shape, like, split.model, _MOST_STEPS
    )
    return None if after is None else after - before


def check_exchanging(split: Split, patch_size: int, exchange: bool) -> None:
    """Refuse patches of which it is known that their windows cannot exchange borders, though others can."""
    if not exchange or split.exchanges_at(patch_size):
        return
    name, step = type(split.model).__name__, split.multiple_of
    if patch_size > step > 1 and split.exchanges_at(step):
        raise ArgumentError(
            f"patch_size={patch_size}: windows that may overlap cannot exchange borders in this {name}; use {step}, or "
            "exchange=False"
        )
    least = next(size for size in itertools.count(patch_size + 1) if split.exchanges_at(size))
    raise ArgumentError(
        f"patch_size={patch_size}: windows so small could be taken for something else in this {name} (vectors, or "
        f"windows that it cuts itself); use {least} or more, or exchange=False"
    )


def check_windows(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> None:
    """Refuse windows that do not fit the network's grid, or that blocks n+1..N cannot run on: one is tried."""
    check_aligned("patch_size", patch_size, 1, split.multiple_of)
    check_aligned("halo", halo, 0, split.multiple_of)
    if patch_size + 2 * halo > _LARGEST_WINDOW:
        raise ArgumentError(
            f"patch_size={patch_size}, halo={halo}: windows of more than {_LARGEST_WINDOW} LR pixels a side, larger "
            "than any image; use smaller ones"
        )
    error = _failure_of(split, merge, patch_size, halo, exchange)
    if error is not None:
        raise _cannot_run(split, patch_size, halo, error, _larger(split, merge, patch_size, halo, exchange)) from error


def refuse_too_small(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> None:
    """As `check_windows`, where larger windows would do: else these are not the cause of what went wrong."""
    error = _failure_of(split, merge, patch_size, halo, exchange)
    if error is not None and (larger := _larger(split, merge, patch_size, halo, exchange)) is not None:
        raise _cannot_run(split, patch_size, halo, error, larger) from error


def _patch_that_runs(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> int:
    """`patch_size`, or the next larger one on whose windows blocks n+1..N run; refused where there is none."""
    check_aligned("halo", halo, 0, split.multiple_of)
    error = _failure_of(split, merge, patch_size, halo, exchange)
    if error is None:
        return patch_size
    larger = _larger(split, merge, patch_size, halo, exchange)
    if larger is None:
        raise _cannot_run(split, patch_size, halo, error, None) from error
    return larger


def _cannot_run(split: Split, patch_size: int, halo: int, error: Exception, larger: int | None) -> ArgumentError:
    """That the blocks fail on such windows, and which patch would do."""
    window, advice = patch_size + 2 * halo, "nor on larger ones"
    if larger is not None or is_out_of_memory(error):
        advice = f"use larger ones, as patch_size={larger}" if larger is not None else "use smaller ones"
    return ArgumentError(
        f"patch_size={patch_size}, halo={halo}: blocks {split.split_at + 1} to {len(split.blocks)} of this "
        f"{type(split.model).__name__} cannot run on windows of {window}x{window} LR pixels ({first_line(error)}); "
        + advice
    )


def _larger(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> int | None:
    """The next larger patch of some on whose windows the blocks run."""
    sides = (split.multiple_of * times for times in (2, 4, 8, 16, 32))
    works = (side for side in sides if side > patch_size and not _failure_of(split, merge, side, halo, exchange))
    return next(works, None)


def _failure_of(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> Exception | None:
    """What the network raises on a window of that kind; None where it runs."""
    if patch_size + 2 * halo > _LARGEST_TRIED:
        patch_size = min(patch_size, round_up(_LARGEST_TRIED // 2, split.multiple_of))
        halo = min(halo, round_up(_LARGEST_TRIED // 4, split.multiple_of))
    side = round_up(max(patch_size + 2 * halo, split.probe.least), split.multiple_of)
    grid = Grid(side, side, patch_size, halo)
    part = split.rest if merge == "image" else split.body

    def look() -> None:
        state = split.window((side, side))
        first = torch.zeros(1, 1, dtype=torch.long, device=state[split.features].device)
        on_windows(part, state, split.kinds, Chosen(first, grid), trial=split.trial, exchange=exchange)

    try:
        with untouched(split.model):
            thinly(look)
    except Exception as error:  # whatever a foreign network raises
        return error
    return None


def check_aligned(name: str, value: object, least: int, multiple: int) -> int:
    """`value`, a size in LR pixels; refused where it is too small, or no multiple of what the network works on."""
    size = as_whole(value)
    if size is None or size < least:
        raise ArgumentError(f"{name}={value!r}: use a whole number of LR pixels, {least} or more")
    if size % multiple:
        near = dict.fromkeys((size // multiple * multiple or multiple, round_up(size, multiple)))
        raise ArgumentError(
            f"{name}={size}: this network works on multiples of {multiple} LR pixels; use {' or '.join(map(str, near))}"
        )
    return size
