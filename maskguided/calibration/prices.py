"""What refining costs, at any keep: in multiply-adds, or in time on this machine."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..guided import MaskGuided
from ..patches import number_of
from ..skip import make_skip
from ..timing import alternate, at, ratio
from ..windows.context import make_context
from .closed_form import Fit, Known, Progress, has_context
from .curve import Budget

_TIMED = (0.0, 0.1, 0.3, 0.6, 0.9)
_ROUNDS = 3
_IMAGES = 6  # that are timed: the first of them
_DEAR = 0.03
"""Share of the dense MACs above which the patches that a skip of 3x3 costs are worth more (docs/benchmarks.md)."""


class Prices(ABC):
    """The price of a wrapped network on some images, as a share of the dense network's."""

    @abstractmethod
    def at(self, keep: float) -> float:
        """The price at a keep."""

    def keep(self, budget: float) -> float:
        """The largest keep that costs no more than this; 0 where none does."""
        return max((share for share in (step / 1000 for step in range(1001)) if self.at(share) <= budget), default=0.0)


class Ends(NamedTuple):
    """MACs of an image that decides for itself, where it chooses nothing and where it runs whole."""

    none: int
    whole: int


class Stretch(NamedTuple):
    """MACs of the patches that go through a stretch of the body."""

    first: int
    """Of one; choosing it included, in the first stretch."""
    each: float
    """Of each further one."""


class Counted(NamedTuple):
    """MACs at one size of image."""

    dense: int
    coarse: int
    stretches: tuple[Stretch, ...]
    """From cut to cut."""
    whole: int | None
    """With all patches, where they run without windows; None: as many as of their windows."""


class Macs(Prices):
    """Prices in multiply-adds. Each patch refined costs the same from cut to cut, so few are counted.

    Args:
        fast: the wrapped network.
        images: LR images (1, C, H, W).
        dense: MACs of the dense network by size, as far as they are known; others are added.
    """

    def __init__(self, fast: MaskGuided, images: Sequence[Tensor], dense: dict[tuple[int, int], int]) -> None:
        sizes = [(image.shape[2], image.shape[3]) for image in images]
        self._sizes = [(fast.grid(*size), size) for size in sizes]
        self._counted = {}
        self._onward = fast.onward
        each_of = dict[tuple[int, int], list[float]]()  # windows of one size cost the same, whatever image they are of
        for grid, size in sorted(set(self._sizes), key=lambda sized: -sized[0].count):
            if size not in dense:
                dense[size] = fast.dense_macs(*size)
            coarse, firsts = fast.macs_at(*size, keep=0), _up_to_each_cut(fast, size, 1 / grid.count)
            if grid.window not in each_of:
                most = grid.count - 1 if grid.count > 2 else grid.count  # all of them need no choice
                lasts = _up_to_each_cut(fast, size, most / grid.count)
                each = [(last - first) / max(most - 1, 1) for first, last in zip(firsts, lasts, strict=True)]
                each_of[grid.window] = each
            whole = None
            if fast.all_go_on:
                whole = dense[size] if fast.refine_tail is None else fast.macs_at(*size, keep=1.0)
            stretches = zip(_differences([coarse, *firsts]), _differences([0, *each_of[grid.window]]), strict=True)
            self._counted[size] = Counted(dense[size], coarse, tuple(Stretch(*pair) for pair in stretches), whole)

    def at(self, keep: float) -> float:
        """Share of the dense MACs, over all images."""
        return self.of([grid.k(keep) for grid, _ in self._sizes])

    def of(self, numbers: Sequence[int], ends: Mapping[tuple[int, int], Ends] | None = None) -> float:
        """Share of the dense MACs for so many patches of each image; `ends`: what none and all cost there, by size."""
        spent = 0.0
        for (grid, size), k in zip(self._sizes, numbers, strict=True):
            counted = self._counted[size]
            none, whole = (counted.coarse, counted.whole) if ends is None else ends[size]
            if k == grid.count and whole is not None:
                spent += whole
            elif k == 0:
                spent += none
            else:
                going = (k, *(number_of(share, k) for share in self._onward))
                each = (first + (n - 1) * more for (first, more), n in zip(counted.stretches, going, strict=True) if n)
                spent += counted.coarse + sum(each)
        return spent / sum(self._counted[size].dense for _, size in self._sizes)

    def ends(self, fast: MaskGuided) -> dict[tuple[int, int], Ends]:
        """What an image costs that chooses no patch, or all, and so runs whole: choosing included, by size."""
        sizes = {size for _, size in self._sizes}
        return {size: Ends(*(fast.macs_at(*size, min_gain_db=least) for least in (math.inf, 0.0))) for size in sizes}

    def whole(self, ends: Mapping[tuple[int, int], Ends]) -> float:
        """Share of the patches above which their windows cost more than the whole network."""
        budget, first, each = 0.0, 0.0, 0.0
        for grid, size in self._sizes:
            counted = self._counted[size]
            budget += ends[size].whole
            first += counted.coarse + sum(one - more for one, more in counted.stretches)
            each += grid.count * sum(s.each * go for s, go in zip(counted.stretches, (1, *self._onward), strict=True))
        return min(max((budget - first) / max(each, 1.0), 0.0), 1.0)


def _up_to_each_cut(fast: MaskGuided, size: tuple[int, int], keep: float) -> list[int]:
    """MACs of an image where all refined patches leave at the second cut, the third ..., or go to the end."""
    further = len(fast.onward)
    shares = [(1.0,) * cut + (0.0,) * (further - cut) for cut in range(further + 1)]
    return [fast.macs_at(*size, keep=keep, onward=share) for share in shares]


def _differences(values: Sequence[Any]) -> list[Any]:
    return [after - before for before, after in pairwise(values)]


class Spread(Prices):
    """Prices where each image decides: a keep on average is one least slope of PSNR, from which each k follows.

    Args:
        slopes: of each image, what its patches bring, (patches,), best first (see `gain.slopes`).
        whole: share of the patches above which an image runs the whole network.
        macs: prices of these images.
        ends: see `Macs.ends`.
    """

    def __init__(
        self, slopes: Sequence[Tensor], whole: float, macs: Macs, ends: Mapping[tuple[int, int], Ends]
    ) -> None:
        self._slopes, self._whole, self._macs, self._ends = slopes, whole, macs, ends
        self._every = torch.cat(list(slopes)).sort(descending=True).values

    def least(self, keep: float) -> float:
        """The dB that another patch must bring, where so many are to be refined on average."""
        k = number_of(keep, len(self._every))
        if k == len(self._every):
            return 0.0
        # Between two patches, so that rounding decides nothing.
        return float(self._every[k - 1] + self._every[k]) / 2 if k else 1.01 * float(self._every[0])

    def at(self, keep: float) -> float:
        """Share of the dense MACs, over all images."""
        least, numbers = self.least(keep), []
        for slopes in self._slopes:
            k = int((slopes > least).sum())
            numbers.append(k if k <= self._whole * len(slopes) else len(slopes))
        return self._macs.of(numbers, self._ends)


class Clock(Prices):
    """Prices in time: measured at a few keeps beside the dense network, A B A B, and interpolated.

    Args:
        fast: the wrapped network; its keep is as it was afterwards.
        images: LR images (1, C, H, W), where the network is.
    """

    def __init__(self, fast: MaskGuided, images: Sequence[Tensor]) -> None:
        runs: dict[float | None, Callable[[Tensor], object]] = {None: lambda x: fast.model(fast.accepted(x))}
        runs.update({keep: at(fast, "keep", keep) for keep in (*_TIMED, 1.0)})
        with fast.keep_restored():
            seconds = alternate(runs, images[:_IMAGES], _ROUNDS)
        self._points = [(keep, ratio(seconds[keep], seconds[None]).middle) for keep in _TIMED]
        self._whole = ratio(seconds[1.0], seconds[None]).middle  # no windows, mostly: the network as it is

    def at(self, keep: float) -> float:
        """Share of the dense network's time, over the images."""
        if keep == 1:
            return self._whole
        pairs = list(pairwise(self._points))
        (low, cheap), (high, dear) = next((pair for pair in pairs if keep <= pair[1][0]), pairs[-1])
        return cheap + (keep - low) / (high - low) * (dear - cheap)


@dataclass(frozen=True)
class Priced:
    """What a wrapped network costs."""

    macs: Macs
    clock: Clock | None
    spread: Spread | None = None
    """Where each image decides how many patches it needs."""

    @property
    def paid(self) -> Prices:
        """What the budget is in."""
        return self.clock or self.spread or self.macs

    def affords(self, budget: Budget) -> bool:
        """Whether the budget, if it is a share of the dense network's cost, is enough to run with nothing refined."""
        return budget.share is None or self.paid.at(0) <= budget.share


def price(
    fast: MaskGuided,
    images: Sequence[Known],
    fit: Fit,
    budget: Budget,
    progress: Progress,
    dense: dict[tuple[int, int], int] | None = None,
) -> Priced:
    """Add the parts that are to be fitted, price the network with them, and set `keep` where the budget tells it.

    `dense`: see Macs.
    """
    dense = {} if dense is None else dense
    if fit == "all":
        _begin_skip(fast, images[0].lr, dense)
    if fit in ("all", "context") and has_context(fast):
        fast.context = make_context(fast.split, fast.merge)  # guessing has its price
    if fit in ("all", "score"):
        fast.scorer = "linear"
    progress("counting MACs" if budget.time is None else "counting MACs, timing")
    inputs = [known.lr for known in images]
    prices = Priced(Macs(fast, inputs, dense), None if budget.time is None else Clock(fast, inputs))
    if budget.share is not None:
        fast.keep = prices.paid.keep(budget.share)
    return prices


def _begin_skip(fast: MaskGuided, lr: Tensor, dense: dict[tuple[int, int], int]) -> None:
    """Give `fast` what will stand in for the blocks left out, where merge="features" has but the identity.

    `dense`: see Macs.
    """
    if fast.merge != "features" or fast.skip is not None or len(fast.split.cuts) > 1:
        return
    height, width = lr.shape[2:]
    identity = fast.macs_at(height, width, keep=0)
    try:
        fast.skip = make_skip(fast.split, "3x3")
    except ArgumentError:  # its maps are of other sizes than the features
        return
    if (height, width) not in dense:
        dense[height, width] = fast.dense_macs(height, width)
    if fast.macs_at(height, width, keep=0) - identity > _DEAR * dense[height, width]:
        fast.skip = make_skip(fast.split, "1x1")


def check_affordable(prices: Priced, budget: Budget) -> None:
    """Refuse a share of the dense network's cost that is exceeded with nothing refined."""
    if not prices.affords(budget):
        raise ArgumentError(
            f"{budget}: even with nothing refined it costs {prices.paid.at(0):.2f} of the dense network; "
            "allow more, split earlier, use a lighter coarse tail, or split_at='auto'"
        )
