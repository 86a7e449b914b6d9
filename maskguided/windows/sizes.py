"""How large windows are: what is given, if it can be, or what is chosen for a network."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

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
_LARGEST = 2**16
"""LR pixels: of a patch, and of a halo."""
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
    if patch_size is not None:
        check_windows(split, merge, patch_size, halo, exchange)
        return patch_size, halo
    check_aligned("halo", halo, 0, split.multiple_of)
    usual = _Windows(split, merge, _thrifty_patch(split, *default) if free else default[0], halo, exchange)
    failure = usual.failure()
    if failure is None:
        return usual.patch_size, halo
    larger = usual.larger()
    if larger is None:
        raise usual.refusal(failure, None) from failure
    return larger, halo


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


@dataclass(frozen=True)
class _Windows:
    """Windows of one size, on which blocks n+1..N, and for merge="image" the tail, may run or not."""

    split: Split
    merge: Merge
    patch_size: int
    halo: int
    exchange: bool

    def check(self) -> None:
        """Refuse windows that do not fit the network's grid, or on which the blocks fail: one is tried."""
        check_aligned("patch_size", self.patch_size, 1, self.split.multiple_of)
        check_aligned("halo", self.halo, 0, self.split.multiple_of)
        if (failure := self.failure()) is not None:
            raise self.refusal(failure, self.larger()) from failure

    def failure(self) -> Exception | None:
        """What the network raises on such a window; None where it runs."""
        split, patch_size, halo = self.split, self.patch_size, self.halo
        if patch_size + 2 * halo > _LARGEST_TRIED:
            patch_size = min(patch_size, round_up(_LARGEST_TRIED // 2, split.multiple_of))
            halo = min(halo, round_up(_LARGEST_TRIED // 4, split.multiple_of))
        side = round_up(max(patch_size + 2 * halo, split.probe.least), split.multiple_of)
        grid = Grid(side, side, patch_size, halo)
        part = split.rest if self.merge == "image" else split.body

        def look() -> None:
            state = split.window((side, side))
            first = torch.zeros(1, 1, dtype=torch.long, device=state[split.features].device)
            on_windows(part, state, split.kinds, Chosen(first, grid), trial=split.trial, exchange=self.exchange)

        try:
            with untouched(split.model):
                thinly(look)
        except Exception as error:  # whatever a foreign network raises
            return error
        return None

    def larger(self) -> int | None:
        """The next larger patch of some on whose windows the blocks run."""
        sides = (self.split.multiple_of * times for times in (2, 4, 8, 16, 32))
        works = (side for side in sides if side > self.patch_size and not replace(self, patch_size=side).failure())
        return next(works, None)

    def refusal(self, failure: Exception, larger: int | None) -> ArgumentError:
        """That the blocks fail on such windows, and which patch would do."""
        window, advice = self.patch_size + 2 * self.halo, "nor on larger ones"
        if larger is not None or is_out_of_memory(failure):
            advice = f"use larger ones, as patch_size={larger}" if larger is not None else "use smaller ones"
        return ArgumentError(
            f"patch_size={self.patch_size}, halo={self.halo}: blocks {self.split.split_at + 1} to "
            f"{len(self.split.blocks)} of this {type(self.split.model).__name__} cannot run on windows of "
            f"{window}x{window} LR pixels ({first_line(failure)}); {advice}"
        )


def check_windows(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> None:
    """Refuse windows that do not fit the network's grid, or on which blocks n+1..N fail."""
    _Windows(split, merge, patch_size, halo, exchange).check()


def check_aligned(name: str, value: object, least: int, multiple: int) -> int:
    """`value`, a size in LR pixels; refused where it is too small, or no multiple of what the network works on."""
    size = as_whole(value)
    if size is None or size < least:
        raise ArgumentError(f"{name}={value!r}: use a whole number of LR pixels, {least} or more")
    if size > _LARGEST:
        raise ArgumentError(f"{name}={size}, larger than any image: use smaller ones, {_LARGEST} LR pixels or less")
    if size % multiple:
        near = dict.fromkeys((size // multiple * multiple or multiple, round_up(size, multiple)))
        raise ArgumentError(
            f"{name}={size}: this network works on multiples of {multiple} LR pixels; use {' or '.join(map(str, near))}"
        )
    return size
