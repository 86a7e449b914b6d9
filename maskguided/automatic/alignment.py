"""To which grid windows must keep: attention in fixed windows and strided layers see another phase elsewhere.

Networks that pad their input tell it by the sizes in their graph. What blocks do within themselves is found
here: by the padding that they do at sizes that don't suit them, by where a NaN spreads to, and by how far a map may be
moved before they make something else of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import lcm
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..parts import State
from ..patches import round_up
from ..probing.probe import MULTIPLES
from ..probing.receptive import between, hits, poisoned, spreading_nan
from ..probing.thin import thinly
from ..probing.untouched import untouched
from ..split import Split
from ..windows.global_ops import GlobalOps, LocalOnly

_STEPS = 64  # on which a period is looked for
_LARGEST = 4  # LR pixels: a network that rounds its input up to more does so for the sake of its windows
_BREADTH = 16  # LR pixels, at least
_FARTHEST = 32  # steps by which a map is moved
_SAME = 3e-5  # of the largest value: more than rounding, less than another result


def alignment(split: Split, multiple: int) -> int:
    """The smallest multiple of `multiple` LR pixels by which a window may be moved without seeing another phase.

    Args:
        split: one whose body holds each kind of block; the fewer of them, the faster.
        multiple: what is known already.
    """
    if multiple > _LARGEST:
        return multiple
    with untouched(split.model):
        try:
            return thinly(lambda: lcm(_period(split, multiple), _unpadded(split, multiple)))
        except (RuntimeError, ValueError, IndexError):  # a block that takes no such narrow maps
            return multiple


def keep_to_pattern(split: Split, late: Split) -> None:
    """Make windows of `split` keep to what its blocks lay over their map by its size alone, where that is all that sets
    them apart from the map: a checkerboard, a Bayer mask, tiles.

    Args:
        late: the same network with fewer blocks to look at.
    """
    step = split.multiple_of
    if step > _LARGEST or split.exchanges("features"):
        return
    try:
        with untouched(split.model), _OfNothing():
            period = lcm(*(_moves_by(late, step, dim) for dim in (2, 3)))
    except (RuntimeError, ValueError, IndexError):  # a block that takes no such narrow maps
        return
    if period == step:
        return
    kept = copy.copy(split)
    kept.multiple_of = period
    del kept.trial
    if kept.exchanges("features"):
        split.multiple_of, split.rounds_within, split.trial = period, True, kept.trial


def _unpadded(split: Split, multiple: int) -> int:
    """The smallest multiple at which the body pads no more than at a size that divides by all of them."""

    def pads(height: int, width: int) -> list[Any]:
        with _Pads() as seen:
            split.body(split.window((height, width)))
        return list(seen.amounts)

    if not pads(*split.probe.sizes_of(multiple)[0]):
        return multiple
    side = lcm(96, multiple)
    least = pads(side, side)
    for unit in dict.fromkeys(lcm(multiple, unit) for unit in MULTIPLES):
        if pads(*split.probe.sizes_of(unit)[0]) == least:
            return unit
    return multiple


class _Pads(TorchFunctionMode):
    """Collects by how much is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.amounts: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "pad":
            self.amounts.append(tuple(args[1] if len(args) > 1 else kwargs["pad"]))
        return func(*args, **kwargs)


def _period(split: Split, step: int) -> int:
    """The period of where a NaN spreads to; global operations are left out."""
    maps = [name for name, kind in split.kinds.items() if kind == "map"]
    length, breadth = _STEPS * step, round_up(_BREADTH, step)
    spread = _spread_on(split, split.window((breadth, length)), maps, length)
    with spreading_nan(), LocalOnly():
        middle, count = length // 2, _STEPS // 4
        if len({spread(middle + offset * step) for offset in (0, 1, 2, 5)}) == 1:
            return step
        spreads = [spread(middle + (offset - count) * step) for offset in range(2 * count)]
    periods = (p for p in range(1, count + 1) if all(a == b for a, b in zip(spreads, spreads[p:], strict=False)))
    return next(periods, 1) * step


def _spread_on(split: Split, state: State, maps: list[str], length: int) -> Callable[[int], tuple[int, int]]:
    """How far to the left and right the NaN at a position reaches."""

    def spread(at: int) -> tuple[int, int]:
        after = split.body(poisoned(state, maps, at, length, -1))
        found = [hit for hit in hits({name: after[name] for name in split.writes}, -1) if bool(hit.any())]
        left = min(int(hit.nonzero()[0]) * length // len(hit) for hit in found)
        right = max(int(hit.nonzero()[-1]) * length // len(hit) for hit in found)
        return at - left, right - at

    return spread


def _moves_by(split: Split, step: int, dim: int) -> int:
    """The least number of LR pixels by which a map can be moved so that blocks make the same of it, far enough from its
    ends; `step` where there is none, as where they read the place itself. Global operations are left out."""
    length, breadth = 2 * _STEPS * step, round_up(_BREADTH, step)
    first, last = 3 * length // 8, 5 * length // 8
    state = split.window((length, breadth) if dim == 2 else (breadth, length))

    def middle(by: int) -> list[Tensor]:
        """What the body makes of the middle, the map being moved by so many LR pixels."""
        moved = {
            name: between(value, dim, by, length, length) if split.kinds[name] == "map" else value
            for name, value in state.items()
        }
        made = split.body(moved)
        maps = (made[name] for name in split.writes if made[name].dim() == 4)
        return [between(value, dim, first - by, last - by, length - by) for value in maps]

    still = middle(0)
    moves = sorted(step * unit for unit in MULTIPLES if unit <= _FARTHEST)
    return next((by for by in moves if all(map(_alike, still, middle(by)))), step)


def _alike(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= _SAME * float(a.abs().max())


class _OfNothing(GlobalOps):
    """Within it, global operations see zeros, wherever the map has been moved to; norms leave it as it is."""

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        result = func(torch.zeros_like(x), *args, **kwargs)
        return x if isinstance(result, Tensor) and result.shape == x.shape else result
