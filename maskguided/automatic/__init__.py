"""Split a network that nobody here has seen, in steps that stand alone.

body.py    which modules are the body's blocks
record.py  what a forward does at one size, each block as one step
sizes.py   numbers that follow from the size: seen at a few, known for all
layout.py  where height and width stand in a live value: maps, tokens
trace.py   the recordings as one graph for all sizes; what each value is
cut.py     the graph in three, with the live values between the parts
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from ..probing import Probe
from ..split import Split, choose
from .body import Candidate, candidates, find_body
from .cut import AutomaticSplit
from .trace import trace


def automatic_split(model: nn.Module, split_at: int | Literal["auto"], probe: Probe) -> Split:
    """Split `model` after block `split_at` ("auto": half of the depth) of the body that is found.

    Raises:
        CannotSplit: the text names the step that failed.
        ArgumentError: `split_at` is out of range.
    """
    names = find_body(model, probe).names
    traced = trace(model, names, probe)
    return AutomaticSplit(traced, choose(split_at, len(names)), names, probe)


__all__ = ["AutomaticSplit", "Candidate", "automatic_split", "candidates", "find_body", "trace"]
