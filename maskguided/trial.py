"""Try windows on a small image: whether they give what the whole map gives, and what is to be known for it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .detours import When
from .exchange import Exchange
from .global_ops import PerImage, Seen
from .patches import Grid, gather, owned, scatter
from .readings import READ_PLAINLY, Reading

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]
_SAME, _ROUNDED = 1e-4, 1e-5
"""Largest differences, of the range: of what is taken for the same, and of what is so to rounding."""
_GRIDS = ((2, 3), (2, 5), (2, 7), (3, 5), (3, 7), (5, 5))


@dataclass(frozen=True)
class Trial:
    """What windows do that exchange borders and share their statistics."""

    body: bool = False
    """Whether they give what the whole map gives at the end of the body."""
    image: bool = False
    """Whether they do so in the image."""
    reading: Reading = READ_PLAINLY
    """Of global operations that could mean two things."""
    strangers: frozenset[Shape] = frozenset()
    """Shapes of what padding, convolutions and reductions get that is no map of windows: of weights, mostly."""
    unit: int = 1
    """What windows are multiples of, in LR pixels."""
    detours: When | None = None
    """See Exchange."""
    least: int = 1
    """The smallest patch, in LR pixels, for which that is known: smaller windows might be taken for vectors, or for
    windows that blocks cut their map into themselves."""
    closely: bool = False
    """Whether what holds holds to rounding: else something small may have been left out."""


def grid_of_trial(model: nn.Module, patch: int, less: int) -> Grid:
    """Patches in a number that no weight has as its size, so that what is no map of windows can be told from them.

    The last row and column are `less` LR pixels narrower, so windows overlap there: what counts a pixel twice shows.
    """
    sizes = {size for weight in model.parameters() if weight.dim() == 4 for size in weight.shape[:2]}
    free = (grid for grid in _GRIDS if not any(size % (grid[0] * grid[1]) == 0 for size in sizes))
    rows, cols = next(free, _GRIDS[0])
    return Grid(rows * patch - less, cols * patch - less, patch)


def try_windows(
    body: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    tail: Callable[[dict[str, Tensor]], Tensor],
    state: dict[str, Tensor],
    kinds: Mapping[str, str],
    writes: Iterable[str],
    grid: Grid,
    readings: Sequence[Reading],
    *,
    unit: int,
    detours: bool,
) -> list[Trial]:
    """Run all windows of an image's `state`, whose maps are cut and whose vectors repeated, beside the whole.

    What a network means by a sum is what makes them agree: what is returned are the readings under which they do, or
    else one that says that they do not. `unit`: what windows are multiples of. `detours`: whether branches take any.
    """
    maps = [name for name, kind in kinds.items() if kind == "map"]
    batch, device = len(state[maps[0]]), state[maps[0]].device
    every = torch.arange(grid.count, device=device).expand(batch, -1)
    vectors = {name: state[name].repeat_interleave(grid.count, 0) for name, kind in kinds.items() if kind == "vector"}
    windows = {**state, **vectors, **{name: gather(state[name], every, grid) for name in maps}}
    with Seen() as seen:
        whole = body(dict(state))
        image = tail(whole)
    if seen.picks:  # then windows of one image are not all of what a block sees at once
        return [Trial(reading=Reading(flat=seen.flat, transposed=seen.transposed))]
    when = When(unit, seen.parts) if detours else None
    written = [name for name in writes if whole[name].dim() == 4]
    counts = functools.partial(owned, every, grid) if grid.overlaps else None
    noted: set[Shape] = set()
    tried: list[Trial] = []
    doubts: frozenset[str] = frozenset()
    for number, reading in enumerate(readings):
        if any(
            all(getattr(reading, field) == getattr(other, field) for field in doubts) for other in readings[:number]
        ):
            continue  # the same as one before
        statistics = PerImage(grid.count, every.numel(), counts, grid.window, unit=unit, reading=reading, noted=noted)
        cut = [(windows[name], state[name]) for name in maps]
        neighbours = Exchange(grid, every, cut, noted=noted, detours=when, unit=unit)
        try:
            with statistics, neighbours:
                parts = body(dict(windows))
                patches = tail(parts)
            pairs = [*((whole[name], parts[name]) for name in written), (image, patches)]
            apart = [_difference(a, scatter(b, every, grid, torch.zeros_like(a))) for a, b in pairs]
            in_body, in_image = max(apart[:-1], default=0.0), apart[-1]
            closely = (max(in_body, in_image) if in_image <= _SAME else in_body) <= _ROUNDED
            same = in_body <= _SAME, in_image <= _SAME
            tried.append(Trial(*same, reading, frozenset(noted), unit, when, closely=closely))
        except Exception:  # whatever a foreign network raises: it does not work so
            _log.debug("windows that are read as %s do not run", reading, exc_info=True)
            tried.append(Trial(strangers=frozenset(noted)))
        doubts |= statistics.doubts
    holding = [trial for trial in tried if trial.body]
    if not holding:
        rows: Literal["unknown", "groups"] = "unknown" if "rows" in doubts else "groups"
        return [replace(tried[0], reading=Reading(flat=seen.flat, transposed=seen.transposed, rows=rows))]
    return [trial for trial in holding if trial.image] or holding


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest one, of the range of `a`; infinite where one is no number."""
    found = float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
    return found if found == found else float("inf")
