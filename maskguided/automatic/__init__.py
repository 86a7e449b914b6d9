"""Split a network that nobody here has seen, in steps that stand alone.

body.py    which modules are the body's blocks
record.py  what a forward does at one size, each block as one step
sizes.py   numbers that follow from the size: seen at a few, known for all
layout.py  where height and width stand in a live value: maps, tokens
recordings.py  such recordings at sizes that tell
trace.py   the recordings as one graph for all sizes; what each value is
cut.py     the graph in three: which nodes run before and after, which values pass between
graph_split.py  the three as a Split
rows.py    a graph in a form that can be pickled
alignment.py  where windows must start and end, for blocks that keep a grid of their own
last_upsampling.py  where the last upsampling step begins
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from math import lcm
from typing import Literal

from torch import nn

from ..errors import ArgumentError, CannotSplit
from ..parts import first_cut
from ..patches import round_up
from ..probing.probe import MULTIPLES, Probe
from ..split import Split
from ..split_checks import check_places, check_whole
from .alignment import alignment, keep_to_pattern
from .body import NEAR_BEST, Candidate, find_bodies, named_body
from .graph_split import AutomaticSplit
from .recordings import USE_AN_ADAPTER, recordings
from .sizes import Rounding, telling_sides
from .trace import trace

_LITTLE = 0.2
"""Share of the MACs: a run that holds less is not worth a cut where a much larger one fails."""
_TRIED = 4
"""Runs of blocks."""


def automatic_split(
    model: nn.Module,
    split_at: int | Literal["auto"],
    probe: Probe,
    *,
    later: Sequence[int] = (),
    body: str | Sequence[str] | None = None,
    cut: str | None = None,
    check: bool = True,
) -> Split:
    """Split `model` after block `split_at` ("auto": half of the depth) of its body, and after those of `later`.

    The runs of blocks that are found are tried, the best first, with each the sizes that the network may round
    its input up to. A split holds if its parts give the network's image. The first that holds and whose blocks can be
    left out is taken, among runs with about as many MACs; if none of them is like that, the first that holds, which
    takes merge='image' and a light coarse tail. For `body` and `cut` see `maskguided.split`.

    Raises:
        CannotSplit: the text names the step that failed for the best run of blocks.
        ArgumentError: `split_at`, `body` or `cut` do not fit the network.
    """
    runs = find_bodies(model, probe)[:_TRIED] if body is None else [named_body(model, probe, body)]
    failures, held = list[CannotSplit | ArgumentError](), list[tuple[Candidate, Split]]()
    for run in runs:
        if held and run.share < NEAR_BEST * held[0][0].share:
            continue
        try:
            cuts = (_block_number(split_at, cut, run.names), *later)
            split = _split_run(model, run.names, cuts, probe, check)
        except CannotSplit as error:
            failures.append(error)
        except ArgumentError as error:
            # Another run may have been better: then its fault is what the user should see. Where this one cannot be
            # split anywhere, the number was for the next.
            if not held and not failures and (cut is not None or _can_be_split(model, run, probe, check)):
                raise
            failures.append(error)
        else:
            if failures and run.share < min(_LITTLE, runs[0].share / 4):
                break  # it would save next to nothing: what the fault of the real body is, is of more use
            if split.can_skip:
                return split
            held.append((run, split))
    if not held:
        raise failures[0]
    return held[0][1]


def _can_be_split(model: nn.Module, run: Candidate, probe: Probe, check: bool) -> bool:
    """Whether `run` holds at half of its depth, and its blocks can be left out."""
    try:
        return _split_run(model, run.names, (first_cut("auto", len(run.names)),), probe, check).can_skip
    except CannotSplit:
        return False


def _split_run(model: nn.Module, names: tuple[str, ...], cuts: tuple[int, ...], probe: Probe, check: bool) -> Split:
    """Split after blocks `cuts` of `names`; the first rounding wins under which all sizes agree."""
    runs, failures = recordings(model, names, probe), list[tuple[int, CannotSplit]]()
    roundings = _roundings(probe)
    known = sorted({side for run in runs for side in run.size[1:]}.union(*probe.telling_sizes))
    for rounding in roundings:
        done = 0
        try:
            traced = trace(model, names, runs, rounding)
            done = 1
            split = AutomaticSplit(traced, cuts, names, probe)
            done = 2
            if check:
                telling = telling_sides(rounding, roundings, known, probe.multiple_of)
                check_whole(split, [*((side, side) for side in telling), *_whole_units(rounding, probe)])
        except CannotSplit as error:
            failures.append((done, error))
        except ArgumentError:
            raise
        except Exception as error:  # whatever a foreign module raises on what the parts hand it
            text = f"running the parts of {type(model).__name__}: {type(error).__name__}: {error}. {USE_AN_ADAPTER}"
            failures.append((done, CannotSplit(text)))
        else:
            late: Split = split
            with suppress(CannotSplit):  # two blocks are faster to measure than half of them
                late = AutomaticSplit(traced, (max(1, len(names) - 2),), names, probe)
            aligned = alignment(late, split.multiple_of)
            split.rounds_within, split.multiple_of = aligned > split.multiple_of, aligned
            if check:
                check_places(split)
                keep_to_pattern(split, late)
            return split
    raise max(failures, key=operator.itemgetter(0))[1]  # of a wrong rounding trace fails, and that explains nothing


def _block_number(split_at: int | Literal["auto"], cut: str | None, names: tuple[str, ...]) -> int:
    if cut is None:
        return first_cut(split_at, len(names))
    if split_at != "auto":
        raise ArgumentError(f"split_at={split_at!r} and cut={cut!r} both say where to cut: give one of them")
    if cut not in names[:-1]:
        raise ArgumentError(f"cut={cut!r} is no block to cut after; the blocks are {', '.join(names[:-1])}")
    return names.index(cut) + 1


def _whole_units(rounding: Rounding, probe: Probe) -> list[tuple[int, int]]:
    """Sizes of which both sides, or one, need no rounding: a network may then enlarge neither."""
    if rounding.unit == probe.multiple_of:
        return []
    side = round_up(max(rounding.unit, probe.least), rounding.unit)
    other = side + round_up(rounding.unit // 3, probe.multiple_of)
    return [(side, side), (side, other), (other, side)]


def _roundings(probe: Probe) -> list[Rounding]:
    units = dict.fromkeys(lcm(unit, probe.multiple_of) for unit in MULTIPLES)
    return [Rounding(unit, beyond) for beyond in (False, True) for unit in units if unit > 1 or not beyond]


__all__ = ["AutomaticSplit", "automatic_split", "find_bodies"]
