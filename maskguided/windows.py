"""Run a part of a network on the windows of some patches, seeing what is around them as far as may be.

gather -> the part, its convolutions seeing the neighbouring windows -> what it makes of each window
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import Tensor

from .exchange import Exchange, Guess
from .global_ops import PerImage
from .patches import Grid, gather, owned
from .split import Kind, State
from .trial import Trial

Made = TypeVar("Made")


def on_windows(
    part: Callable[[State], Made],
    state: State,
    kinds: Mapping[str, Kind],
    index: Tensor,
    grid: Grid,
    *,
    trial: Trial,
    exchange: bool,
    one_mean: bool = False,
    guess: Guess | None = None,
    features: Tensor | None = None,
) -> Made:
    """What `part` makes of the windows of `index` (B, k) in `state`.

    Args:
        part: maps live values to live values or to an image.
        state: the live values it starts from, of the whole map.
        kinds: how each of these relates to the image: maps are cut, vectors repeated, constants handed on.
        index: the patches.
        grid: all patches.
        trial: what is known of windows of this network.
        exchange: whether convolutions see the windows around (exchange.py).
        one_mean: whether a mean over the map is that of all windows of an image.
        guess: see Exchange.
        features: see Exchange.
    """
    windows = {name: _window(state[name], kind, index, grid) for name, kind in kinds.items()}
    neighbours: AbstractContextManager[object] = nullcontext()
    if exchange:
        cut = [(windows[name], state[name]) for name, kind in kinds.items() if kind == "map"]
        neighbours = Exchange(grid, index, cut, guess, features, strangers=trial.strangers)
    statistics: AbstractContextManager[object] = nullcontext()
    if one_mean:
        counts = functools.partial(owned, index, grid) if grid.overlaps else None
        statistics = PerImage(
            index.shape[1], index.numel(), counts, grid.window,
            unit=trial.unit, reading=trial.reading, strangers=trial.strangers,
        )  # fmt: skip
    with statistics, neighbours:
        return part(windows)


def _window(value: Tensor, kind: Kind, index: Tensor, grid: Grid) -> Tensor:
    if kind == "map":
        return gather(value, index, grid)
    return value.repeat_interleave(index.shape[1], dim=0) if kind == "vector" else value
