"""What a wrapped network costs and loses on the images that it is calibrated on, and its keep for a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..error_map import luma
from ..errors import ArgumentError
from ..guided import MaskGuided
from ..tails.light import LightTail
from ..tails.refine import LightTailed
from ..windows.context import make_context
from .closed_form import Known, fit_context, fit_refine_tail, fit_score, fit_tail
from .curve import Budget, Point
from .prices import Clock, Macs, Prices, Spread

KEEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
Progress = Callable[[str], None]
Fit = Literal["all", "score", "context", "nothing"]


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
        """Whether nothing refined costs no more than the budget, if that is a share of the dense network's cost."""
        return budget.share is None or self.paid.at(0) <= budget.share


def price(fast: MaskGuided, images: Sequence[Known], fit: Fit, budget: Budget, progress: Progress) -> Priced:
    """What it will cost with the parts that are to be fitted; its keep, where the budget tells it already."""
    if fit in ("all", "context") and _guesses(fast):
        fast.context = make_context(fast.split, fast.merge)  # guessing has its price
    if fit in ("all", "score"):
        fast.scorer = "linear"
    progress("counting MACs" if budget.time is None else "counting MACs, timing")
    inputs = [known.lr for known in images]
    prices = Priced(Macs(fast, inputs), None if budget.time is None else Clock(fast, inputs))
    if budget.share is not None:
        fast.keep = prices.paid.keep(budget.share)
    return prices


def check_affordable(prices: Priced, budget: Budget) -> None:
    """Refuse a share of the dense network's cost that is exceeded with nothing refined."""
    if not prices.affords(budget):
        raise ArgumentError(
            f"{budget}: even with nothing refined it costs {prices.paid.at(0):.2f} of the dense network; "
            "allow more, split earlier, use a lighter coarse tail, or split_at='auto'"
        )


def fit_parts(fast: MaskGuided, images: Sequence[Known], fit: Fit, progress: Progress) -> None:
    """Fit the tails, where they are light ones, for the present keep; the linear score; and the context."""
    if fit == "all" and isinstance(fast.coarse_tail, LightTail):
        progress("fitting the coarse tail")
        fit_tail(fast, fast.coarse_tail, images)
    if fit == "all" and isinstance(fast.split, LightTailed):
        progress("fitting the refine tail")
        fit_refine_tail(fast, fast.split, images)
    if fit in ("all", "score"):
        progress("fitting the score")
        fit_score(fast, images)
    if fit in ("all", "context") and _guesses(fast):
        progress("fitting the context")
        fit_context(fast, images)


def _guesses(fast: MaskGuided) -> bool:
    """Whether there is a context to fit: where windows see each other and all of them take one way to the end."""
    return fast.exchange and len(fast.split.cuts) == 1


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
    return next(between(a, b, max_drop_db) for a, b in itertools.pairwise(curve) if b.drop <= max_drop_db)


def between(low: Point, high: Point, drop_db: float) -> float:
    """The keep between two that loses so much, if the drop falls evenly from the one to the other."""
    share = (low.drop - drop_db) / max(low.drop - high.drop, 1e-12)
    return low.keep + share * (high.keep - low.keep)
