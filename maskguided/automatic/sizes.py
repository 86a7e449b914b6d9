"""Numbers that follow from the size of the image: seen at a few sizes, known for all.

A recorded forward holds plain numbers (a reshape to 1 x 289 x 8, a crop at 68). Those that differ between
recordings are written as a polynomial of batch, height and width, and read anew wherever a part runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ..patches import round_up

_BASES = (
    *("1", "H", "W", "A", "P", "Q", "R", "PH", "QW"),
    *("1H", "1W", "HW", "1HW", "1A", "1HWA", "1P", "1Q", "PQ", "1PQ", "1R", "1PQR"),
)
_TERMS = "1HWAPQR"
Kind = Literal["whole", "real", "inverse", "per H", "per W", "per P", "per Q"]
_PER: tuple[Kind, ...] = ("per H", "per W", "per P", "per Q")
_LARGEST_DIVISOR = 1 << 14
_TELLING = (64, 130)
"""From here on a side has room for padding by reflection, to whatever it may be rounded up to."""
_SAME = 0.1


class At(NamedTuple):
    """Where and on what a part runs: the LR image or window, its size and that size rounded up."""

    batch: int
    height: int
    width: int
    full_height: int
    full_width: int
    device: torch.device
    dtype: torch.dtype

    def terms(self) -> tuple[int, ...]:
        """1, H, W, A = H*W; P and Q, the same rounded up to the unit, R = P*Q."""
        _, h, w, p, q, *_ = self
        return 1, h, w, h * w, p, q, p * q


@dataclass(frozen=True)
class Rounding:
    """How a network enlarges its input before it works on it: to the next multiple of `unit`.

    >>> [Rounding(8).full(side) for side in (15, 16)], [Rounding(8, beyond=True).full(side) for side in (15, 16)]
    ([16, 16], [16, 24])
    """

    unit: int
    beyond: bool = False
    """Whether a side that is a multiple already becomes the next one all the same."""

    def full(self, side: int) -> int:
        """What `side` becomes."""
        return side // self.unit * self.unit + self.unit if self.beyond else round_up(side, self.unit)


def telling_sides(rounding: Rounding, others: Sequence[Rounding], known: Sequence[int], step: int) -> list[int]:
    """Sides, multiples of `step`, that tell `rounding` from those of `others` that look like it at the `known` sides.

    One looks like it where the two differ by a factor and a summand alone, since a Size has these of its own.

    >>> telling_sides(Rounding(24), [Rounding(28), Rounding(8)], [17, 19, 37, 47, 61], 1)
    [73]
    """
    missed = dict[tuple[int, int], list[int]]()
    tried = [side for side in range(_TELLING[0], _TELLING[1]) if side % step == 0]
    ours = np.array([[rounding.full(side), 1] for side in known])
    for other in others:
        theirs = np.array([other.full(side) for side in known])
        fitted = np.linalg.lstsq(ours, theirs, rcond=None)[0]
        if np.abs(ours @ fitted - theirs).max() < _SAME:
            expected = {side: fitted @ (rounding.full(side), 1) for side in tried}
            missed[other.unit, other.beyond] = [s for s in tried if abs(expected[s] - other.full(s)) >= _SAME]
    sides = list[int]()
    while left := [shows for shows in missed.values() if shows and not set(shows) & set(sides)]:
        sides.append(max(tried, key=lambda side: sum(side in shows for shows in left)))
    return sides


@dataclass(frozen=True)
class Size:
    """(a polynomial of the image's height and width, see `At.terms`) / over, of each image if `batched`."""

    factors: tuple[int, ...]
    over: int = 1
    batched: bool = False
    kind: Kind = "whole"
    """Whether it is a whole number, a real one, or one over that, a real one, too; or one per pixel of a side."""

    def __str__(self) -> str:
        parts = [("" if f == 1 else f"{f}*") + t for f, t in zip(self.factors[1:], _TERMS[1:], strict=True) if f]
        terms = " + ".join([*parts, *([str(self.factors[0])] if self.factors[0] else [])])
        whole = terms if self.over == 1 else f"({terms})/{self.over}"
        return "B" if self == BATCH else f"B*{whole}" if self.batched else whole

    def only(self, terms: str) -> Fraction | None:
        """What `terms` (one letter) is multiplied by, if nothing else is in it."""
        at = _TERMS.index(terms)
        alone = self.kind in ("whole", "real") and all(not f for i, f in enumerate(self.factors) if i != at)
        return Fraction(self.factors[at], self.over) if alone and self.factors[at] else None


BATCH = Size((1, 0, 0, 0, 0, 0, 0), batched=True)


def size(at: At, factors: tuple[int, ...], over: int, batched: bool, kind: Kind) -> Any:
    """The number that `Size(factors, over, batched, kind)` stands for.

    >>> at = At(2, 13, 24, 16, 24, torch.device("cpu"), torch.float32)
    >>> size(at, (0, 0, 0, 0, 0, 0, 1), 64, True, "whole")     # 8x8 windows of two images of 13x24
    12
    >>> size(at, (-1, 0, 1, 0, 0, 0, 0), 2, False, "real")     # the middle of its columns
    11.5
    >>> size(at, (1, -1, 0, 0, 0, 0, 0), 1, False, "per H")     # the middle of the first of its rows in -1..1: -1 + 1/H
    -0.9230769230769231
    """
    total = sum(factor * term for factor, term in zip(factors, at.terms(), strict=True))
    if batched:
        total = total * at.batch
    if kind in _PER:
        return total / over / at.terms()[_TERMS.index(kind[-1])]
    return total // over if kind == "whole" else total / over if kind == "real" else over / total


def fit(values: Sequence[Any], at: Sequence[At]) -> Any:
    """One number for all sizes: itself where it is always the same, else a Size; None where no polynomial fits.

    Args:
        values: whole or real numbers, one for each size.
        at: one of them with another batch than 1, at a size that stands there with 1.

    >>> seen = (1, 17, 19), (1, 19, 17), (1, 23, 20), (1, 29, 31), (2, 17, 19)
    >>> sizes = [At(b, h, w, h, w, None, None) for b, h, w in seen]
    >>> str(fit([34, 38, 46, 58, 34], sizes)), str(fit([323, 323, 460, 899, 646], sizes))
    ('2*H', 'B*A')
    """
    if all(value == values[0] for value in values):
        return values[0]
    batched = _batched(values, at)
    if batched is None:
        return None
    single = [(value, where) for value, where in zip(values, at, strict=True) if where.batch == 1]
    whole = all(isinstance(value, int) for value in values)
    for basis in _BASES:
        found = _solve(single, basis, batched, "whole" if whole else "real")
        if found is None and not whole and all(values):
            found = _solve([(1 / value, where) for value, where in single], basis, batched, "inverse")
        if found is not None:
            return found
    for per in () if whole else _PER:  # of what a side is divided into, and begins or ends with a part of it
        term = _TERMS.index(per[-1])
        shares = [(value * where.terms()[term], where) for value, where in single]
        if (found := _solve(shares, "1" + per[-1], batched, per)) is not None:
            return found
    return None


def _batched(values: Sequence[Any], at: Sequence[At]) -> bool | None:
    """Whether a value grows with the batch; None if it does in another way than by proportion."""
    single = {where[1:3]: value for value, where in zip(values, at, strict=True) if where.batch == 1}
    more = [(value, single[w[1:3]], w.batch) for value, w in zip(values, at, strict=True) if w.batch != 1]
    if all(value == one for value, one, _ in more):
        return False
    return True if all(value == one * batch for value, one, batch in more) else None


def _solve(samples: list[tuple[Any, At]], basis: str, batched: bool, kind: Kind) -> Size | None:
    columns = [_TERMS.index(term) for term in basis]
    rows = np.array([[where.terms()[c] for c in columns] for _, where in samples], dtype=np.float64)
    wanted = np.array([value for value, _ in samples], dtype=np.float64)
    solution, _, rank, _ = np.linalg.lstsq(rows, wanted, rcond=None)
    if rank < len(basis) or not np.allclose(rows @ solution, wanted, rtol=1e-9, atol=1e-9):
        return None
    parts = [Fraction(float(c)).limit_denominator(_LARGEST_DIVISOR) for c in solution]
    over = lcm(*(part.denominator for part in parts))
    factors = [0] * len(_TERMS)
    for column, part in zip(columns, parts, strict=True):
        factors[column] = int(part * over)
    for value, where in samples:
        total = sum(f * t for f, t in zip(factors, where.terms(), strict=True))
        if abs(Fraction(total, over) - Fraction(value)) > Fraction(1, 10**6):
            return None
    return Size(tuple(factors), over, batched, kind)
