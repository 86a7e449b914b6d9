"""What refining costs, at any keep: in multiply-adds, or in time on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .guided import MaskGuided
from .timing import alternate, at_keep, ratio

_TIMED = (0.0, 0.1, 0.3, 0.6, 1.0)
_ROUNDS = 3
_IMAGES = 6  # that are timed: the first of them


class Prices(Protocol):
    """The price of a wrapped network on some images, as a share of the dense network's."""

    def at(self, keep: float) -> float:
        """The price at a keep."""

    def keep(self, budget: float) -> float:
        """The largest keep that costs no more than this; 0 where none does."""


class Macs:
    """Prices in multiply-adds. Each patch refined costs the same, so few are counted.

    Args:
        fast: the wrapped network; its keep is as it was afterwards.
        images: LR images (1, C, H, W).
    """

    def __init__(self, fast: MaskGuided, images: Sequence[Tensor]) -> None:
        sizes = [(image.shape[2], image.shape[3]) for image in images]
        keep, self._sizes = fast.keep, [(fast.grid(*size), size) for size in sizes]
        self._counted = {}
        for grid, size in set(self._sizes):
            found = []
            for k in (1, min(2, grid.count)):
                fast.keep = k / grid.count
                found.append(fast.cost(*size))
            first, second = found
            self._counted[size] = (first.dense, first.coarse, first.guided, second.guided - first.guided)
        fast.keep = keep

    def at(self, keep: float) -> float:
        """Share of the dense MACs, over all images."""
        return self.of([grid.k(keep) for grid, _ in self._sizes])

    def of(self, numbers: Sequence[int], whole: bool = False) -> float:
        """Share of the dense MACs for so many patches of each image; `whole`: where that is all, the network's own."""
        spent = 0
        for (grid, size), k in zip(self._sizes, numbers, strict=True):
            dense, coarse, first, each = self._counted[size]
            spent += dense if whole and k == grid.count else coarse if k == 0 else first + (k - 1) * each
        return spent / sum(self._counted[size][0] for _, size in self._sizes)

    def keep(self, budget: float) -> float:
        """The largest keep that costs no more than this share of the dense MACs; 0 where none does."""
        return _largest(self.at, budget)


class Spread:
    """So many patches of each image that an equal slope is reached on all: what a keep on average means to each.

    Args:
        slopes: of each image, what its patches bring, (patches,), best first (see `gain.worth`).
        whole: share of the patches above which an image runs the whole network.
        macs: prices of these images.
    """

    def __init__(self, slopes: Sequence[Tensor], whole: float, macs: Macs) -> None:
        self._slopes, self._whole, self._macs = slopes, whole, macs
        self._every = torch.cat(list(slopes)).sort(descending=True).values

    def least(self, keep: float) -> float:
        """The dB that another patch must bring, where so many are to be refined on average."""
        k = int(keep * len(self._every) + 0.5)
        return 0.0 if k == len(self._every) else float(self._every[k])

    def at(self, keep: float) -> float:
        """Share of the dense MACs, over all images."""
        least, numbers = self.least(keep), []
        for slopes in self._slopes:
            k = int((slopes > least).sum())
            numbers.append(k if k <= self._whole * len(slopes) else len(slopes))
        return self._macs.of(numbers, whole=True)

    def keep(self, budget: float) -> float:
        """The largest keep that costs no more than this share of the dense MACs; 0 where none does."""
        return _largest(self.at, budget)


class Clock:
    """Prices in seconds: timed at a few keeps beside the dense network, A B A B, and interpolated.

    Args:
        fast: the wrapped network; its keep is as it was afterwards.
        images: LR images (1, C, H, W), where the network is.
    """

    def __init__(self, fast: MaskGuided, images: Sequence[Tensor]) -> None:
        before = fast.keep
        runs: dict[float | None, Callable[[Tensor], object]] = {None: lambda x: fast.model(fast.accepted(x))}
        runs.update({keep: at_keep(fast, keep) for keep in _TIMED})
        seconds = alternate(runs, images[:_IMAGES], _ROUNDS)
        fast.keep = before
        self._points = [(keep, ratio(seconds[keep], seconds[None]).middle) for keep in _TIMED]

    def at(self, keep: float) -> float:
        """Share of the dense network's time, over the images."""
        (low, cheap), (high, dear) = next(pair for pair in pairwise(self._points) if keep <= pair[1][0])
        return cheap + (keep - low) / (high - low) * (dear - cheap)

    def keep(self, budget: float) -> float:
        """The largest keep that takes no more than this share of the dense network's time; 0 where none does."""
        return _largest(self.at, budget)


def _largest(price: Callable[[float], float], budget: float) -> float:
    return max((share for share in (step / 1000 for step in range(1001)) if price(share) <= budget), default=0.0)
