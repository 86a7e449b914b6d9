"""Numbers that follow from the size of the image: seen at a few sizes, known for all.

A recorded forward holds plain numbers (a reshape to 1 x 289 x 8, a crop at 68). Those that differ between
recordings are written as a polynomial of batch, height and width, and read anew wherever a part runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any, NamedTuple

import numpy as np
import torch

_BASES = ("1", "H", "W", "1H", "1W", "A", "HW", "1HW", "1A", "1HWA")  # A: height times width
_LARGEST_DIVISOR = 1 << 14


class At(NamedTuple):
    """Where and on what a part runs: sizes of the LR image or window, device and dtype."""

    batch: int
    height: int
    width: int
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Size:
    """(one + h * height + w * width + area * height * width) / over, of each image if `batched`."""

    one: int
    h: int
    w: int
    area: int
    over: int
    batched: bool
    inverse: bool = False
    """Whether the number is one over that (only for real numbers)."""

    def __str__(self) -> str:
        parts = ((self.one, ""), (self.h, "H"), (self.w, "W"), (self.area, "H*W"))
        terms = " + ".join(f"{n}*{x}" if x and n != 1 else x or str(n) for n, x in parts if n)
        whole = terms if self.over == 1 else f"({terms})/{self.over}"
        return f"B*{whole}" if self.batched and terms != "1" else "B" if self.batched else whole

    @property
    def terms(self) -> tuple[int | bool, ...]:
        """The arguments of `size` after `at`."""
        return (self.one, self.h, self.w, self.area, self.over, self.batched, self.inverse)


def size(at: At, one: int, h: int, w: int, area: int, over: int, batched: bool, inverse: bool) -> Any:
    """The number that a Size of these terms stands for.

    >>> at = At(2, 16, 24, torch.device("cpu"), torch.float32)
    >>> size(at, *Size(0, 0, 0, 1, over=64, batched=True).terms)     # 8x8 windows of two images
    12
    """
    total = one + h * at.height + w * at.width + area * at.height * at.width
    if batched:
        total = total * at.batch
    return over / total if inverse else total // over


def fit(values: Sequence[Any], sizes: Sequence[tuple[int, int, int]]) -> Any:
    """One number for all sizes: itself where it is always the same, else a Size; None where no polynomial fits.

    Args:
        values: whole or real numbers, one for each size.
        sizes: (batch, height, width); one of them with another batch than 1, at a size that stands there with 1.

    >>> fit([34, 38, 46, 34], [(1, 17, 19), (1, 19, 17), (1, 23, 20), (2, 17, 19)])
    Size(one=0, h=2, w=0, area=0, over=1, batched=False, inverse=False)
    """
    if all(value == values[0] for value in values):
        return values[0]
    batched = _batched(values, sizes)
    if batched is None:
        return None
    single = [(value, at) for value, at in zip(values, sizes, strict=True) if at[0] == 1]
    whole = all(isinstance(value, int) for value in values)
    for basis in _BASES:
        found = _solve(single, basis, batched, inverse=False)
        if found is None and not whole and all(values):
            found = _solve([(1 / value, at) for value, at in single], basis, batched, inverse=True)
        if found is not None:
            return found
    return None


def _batched(values: Sequence[Any], sizes: Sequence[tuple[int, int, int]]) -> bool | None:
    """Whether a value grows with the batch; None if it does in another way than by proportion."""
    single = {at[1:]: value for value, at in zip(values, sizes, strict=True) if at[0] == 1}
    more = [(value, single[at[1:]], at[0]) for value, at in zip(values, sizes, strict=True) if at[0] != 1]
    if all(value == one for value, one, _ in more):
        return False
    return True if all(value == one * batch for value, one, batch in more) else None


def _solve(samples: list[tuple[Any, tuple[int, int, int]]], basis: str, batched: bool, inverse: bool) -> Size | None:
    terms = {"1": lambda h, w: 1, "H": lambda h, w: h, "W": lambda h, w: w, "A": lambda h, w: h * w}
    rows = np.array([[terms[t](h, w) for t in basis] for _, (_, h, w) in samples], dtype=np.float64)
    wanted = np.array([value for value, _ in samples], dtype=np.float64)
    solution, _, rank, _ = np.linalg.lstsq(rows, wanted, rcond=None)
    if rank < len(basis) or not np.allclose(rows @ solution, wanted, rtol=1e-9, atol=1e-9):
        return None
    parts = {t: Fraction(float(c)).limit_denominator(_LARGEST_DIVISOR) for t, c in zip(basis, solution, strict=True)}
    over = lcm(*(part.denominator for part in parts.values()))
    one, h, w, area = (int(parts.get(t, Fraction(0)) * over) for t in "1HWA")
    found = Size(one, h, w, area, over, batched, inverse)
    exact = all(
        abs(Fraction(one + h * height + w * width + area * height * width, over) - Fraction(value)) < Fraction(1, 10**6)
        for value, (_, height, width) in samples
    )
    return found if exact else None
