"""What a wrapped network costs and loses on the images that it is calibrated on, and its keep for a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor

from ..error_map import luma
from ..errors import ArgumentError
from ..guided import MaskGuided
from .closed_form import Known, Progress
from .curve import Budget, Point
from .prices import Priced, check_affordable

KEEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def set_keep(fast: MaskGuided, keep: float, prices: Priced) -> None:
    """The same keep for all images, or on average over those that the prices are of."""
    fast.keep = keep
    if prices.spread is not None:
        fast.min_gain_db = prices.spread.least(keep)


def mse(a: Tensor, b: Tensor, border: int) -> float:
    """Mean squared difference on Y of two images (1, C, H, W) in 0..1, without their border; 1e-10 or more."""
    inner = slice(border, -border)
    error = luma(a.float().clamp(0, 1) - b.float().clamp(0, 1))[:, :, inner, inner]
    return max(float(error.square().mean()), 1e-10)


def measure(fast: MaskGuided, images: Sequence[Known], prices: Priced, keep: float, progress: Progress) -> Point:
    """Cost and drop at a keep, the same for all or on average, by running it."""
    progress(f"measuring keep={keep:.2f}")
    drops = []
    with fast.keep_restored():
        set_keep(fast, keep, prices)
        for known in images:
            error = mse(fast(known.lr), known.truth, fast.scale)
            if known.hr is None:  # the truth is the dense image: the errors of both to the real one add up
                error += known.floor
            drops.append(10 * math.log10(error / known.floor))
    time = None if prices.clock is None else prices.clock.at(keep)
    return Point(keep, (prices.spread or prices.macs).at(keep), time, sum(drops) / len(drops))


def keep_for(fast: MaskGuided, curve: Sequence[Point], prices: Priced, budget: Budget) -> float:
    """The keep that meets the budget, by interpolation between measured points."""
    if budget.share is not None:
        check_affordable(prices, budget)
        return prices.paid.keep(budget.share)
    max_drop_db = budget.drop_db
    if max_drop_db is None:
        return fast.keep
    if curve[-1].drop > max_drop_db:
        raise ArgumentError(
            f"max_drop_db={max_drop_db}: even with all patches refined {curve[-1].drop:.3f} dB are lost; allow more"
        )
    if curve[0].drop <= max_drop_db:
        return curve[0].keep
    keep = next(between(a, b, max_drop_db) for a, b in itertools.pairwise(curve) if b.drop <= max_drop_db)
    return 1.0 if prices.paid.at(keep) > prices.paid.at(1.0) else keep  # all patches run without windows


def between(low: Point, high: Point, drop_db: float) -> float:
    """The keep between two that loses so much, if the drop falls evenly from the one to the other."""
    share = (low.drop - drop_db) / max(low.drop - high.drop, 1e-12)
    return low.keep + share * (high.keep - low.keep)
