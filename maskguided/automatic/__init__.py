"""Split a network that nobody here has seen, in steps that stand alone.

body.py    which modules are the body's blocks
record.py  what a forward does at one size, each block as one step
sizes.py   numbers that follow from the size: seen at a few, known for all
layout.py  where height and width stand in a live value: maps, tokens
trace.py   the recordings as one graph for all sizes; what each value is
cut.py     the graph in three, with the live values between the parts
"""

from __future__ import annotations

from math import lcm
from typing import Literal

from torch import nn

from ..alignment import alignment
from ..errors import CannotSplit
from ..probing import Probe
from ..split import Split, check_whole, choose
from .body import Candidate, find_bodies
from .cut import AutomaticSplit
from .sizes import Rounding
from .trace import recordings, trace

_TRIED = 4
"""Runs of blocks."""
_UNITS = (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48, 5, 10, 20, 7, 14, 28)
"""What networks round the size of their input up to multiples of, in the order of trying."""


def automatic_split(model: nn.Module, split_at: int | Literal["auto"], probe: Probe, check: bool = True) -> Split:
    """Split `model` after block `split_at` ("auto": half of the depth) of the body that is found.

    The runs of blocks are tried, the best first, with each the sizes that the network may round its input up
    to; the first split that holds is taken.

    Raises:
        CannotSplit: the text names the step that failed for the best run of blocks.
        ArgumentError: `split_at` is out of range.
    """
    failures: list[CannotSplit] = []
    for body in find_bodies(model, probe)[:_TRIED]:
        try:
            runs = recordings(model, body.names, probe)
        except CannotSplit as error:
            failures.append(error)
            continue
        for rounding in _roundings(probe):
            try:
                traced = trace(model, body.names, runs, rounding)
                split = AutomaticSplit(traced, choose(split_at, len(body.names)), body.names, probe)
                if check:
                    check_whole(split)
                late = AutomaticSplit(traced, max(1, len(body.names) - 2), body.names, probe)
                split.multiple_of = alignment(late, split.multiple_of)
                return split
            except CannotSplit as error:
                failures.append(error)
    raise failures[0]


def _roundings(probe: Probe) -> list[Rounding]:
    units = dict.fromkeys(lcm(unit, probe.multiple_of) for unit in _UNITS)
    return [Rounding(unit, beyond) for beyond in (False, True) for unit in units if unit > 1 or not beyond]


__all__ = ["AutomaticSplit", "Candidate", "automatic_split", "find_bodies", "recordings", "trace"]
