"""How to read global operations that are ambiguous on windows."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple


class Reading(NamedTuple):
    """How a network's ambiguous operations are read; `Split.trial` finds out which way is right for it."""

    sums: Literal["total", "mean", "variance"] = "mean"
    """What a sum, or a norm, is for: it stands for itself; it will be divided by the size of the map, so a mean is
    meant; or by one less than that size, as in a variance (SimAM)."""
    flat: bool = False
    """Whether reducing (B, C, h*w) over its last dimension, or a pool as large as a window, means the whole map."""
    transposed: bool = False
    """Whether normalising (B, ..., C, h*w) over its last dimension does."""
    rows: Literal["groups", "stacked", "unknown"] = "groups"
    """What a map is that has several times as many rows as there are windows: groups of the channels of each, as after
    x.reshape(b * groups, -1, h, w), or maps of all windows one after the other, as after torch.cat. Unknown: each row
    is taken alone, for statistics must not pass from image to image."""
    lines: bool = False
    """Whether a mean along rows, or columns, alone means those of the whole map; if not, it may be the first of two
    steps, or of something that is no map."""


READ_PLAINLY = Reading()
_SUMS: tuple[Literal["total", "mean", "variance"], ...] = ("total", "mean", "variance")
_ROWS: tuple[Literal["groups", "stacked"], ...] = ("groups", "stacked")
READINGS = tuple(
    itertools.starmap(Reading, itertools.product(_SUMS, (False, True), (False, True), _ROWS, (False, True)))
)
"""Sums as they stand first: in a ratio of sums both readings agree, but for an epsilon that is added to the divisor."""
