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

from ..errors import CannotSplit
from ..probing import Probe
from ..split import Split, check_whole, choose
from .body import Candidate, find_bodies
from .cut import AutomaticSplit
from .trace import UNITS, recordings, trace

_TRIED = 4
"""Runs of blocks."""


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
        for unit in sorted({lcm(unit, probe.multiple_of) for unit in UNITS}, key=_in_order):
            try:
                traced = trace(model, body.names, runs, unit)
                split = AutomaticSplit(traced, choose(split_at, len(body.names)), body.names, probe)
                if check:
                    check_whole(split)
                return split
            except CannotSplit as error:
                failures.append(error)
    raise failures[0]


def _in_order(unit: int) -> tuple[bool, int]:
    return (unit not in UNITS, UNITS.index(unit) if unit in UNITS else unit)


__all__ = ["AutomaticSplit", "Candidate", "automatic_split", "find_bodies", "recordings", "trace"]
