"""Make a wrapped network useful without training: fit its coarse tail and its score in closed form, choose its keep.

Images in, seconds to minutes later a network that meets a budget out. Nothing here follows a gradient: the light coarse
tail is a ridge regression on the features at the cut, the score a linear prediction of each patch's error, and keep is
read off a measured curve.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .adapter import split
from .calibration.closed_form import Known, fit_context, fit_gain, fit_score, fit_tail
from .calibration.curve import Budget, Calibration, Point
from .calibration.given import checked, several
from .calibration.prices import Clock, Macs, Prices, Spread
from .coarse import LightTail
from .context import make_context
from .error_map import dense_image, luma
from .errors import ArgumentError
from .guided import MaskGuided
from .patches import round_up, select
from .probing import in_eval_mode, undone_by_failure
from .settings import check_one_of
from .split import Merge, Split
from .wrapping import check_wrapped

KEEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
Progress = Callable[[str], None]
Fit = Literal["all", "score", "context", "nothing"]
_Windows = tuple[int, int, bool]  # patch size, halo, exchange


@dataclass(frozen=True)
class _Priced:
    """What a wrapped network costs."""

    macs: Macs
    clock: Clock | None
    spread: Spread | None = None
    """Where each image decides how many patches it needs."""

    @property
    def paid(self) -> Prices:
        """What the budget is in."""
        return self.clock or self.spread or self.macs


@torch.inference_mode(False)
@torch.no_grad()
def calibrate(
    fast: MaskGuided,
    images: Iterable[Tensor | tuple[Tensor, Tensor]],
    *,
    max_drop_db: float | None = None,
    max_cost: float | None = None,
    max_time: float | None = None,
    split_at: Literal["auto"] | None = None,
    fit: Fit = "all",
    per_image: bool = False,
    progress: Progress = lambda what: None,
) -> Calibration:
    """Fit coarse tail and score of `fast` on a handful of images and set its keep, in place.

    With merge="image" and any coarse tail but a copy, the tail's convolution becomes the ridge regression that
    comes closest to the dense network's image on the patches that are not refined. The score becomes the linear
    predictor of a patch's distance from the refined one, and `scorer` "linear". Where windows exchange borders, what
    they see of patches that are not refined becomes a linear guess from the features at the cut.

    Args:
        fast: a wrapped network for images in 0..1.
        images: LR images (1, C, H, W) or (C, H, W); or pairs (LR, HR).
        max_drop_db: choose the smallest keep that loses no more than this against the dense network.
        max_cost: choose the largest keep that costs no more than this share of the dense MACs.
        max_time: the same of the dense network's time, measured here and now: at these sizes, with these threads. With
            no budget keep stays.
        split_at: "auto": also choose the split, where branches merge, and then patch size, halo and whether windows
            exchange borders.
        fit: "all": coarse tail, score and context; "score" or "context": that alone, the others stay as they were
            trained; "nothing": only keep is chosen.
        per_image: let each image decide how many patches it needs (`MaskGuided.min_gain_db`) instead of refining the
            same share of all; the budget, or else the present keep, then holds for the mean over these images. What a
            patch brings is estimated in closed form, whatever `fit` says.
        progress: told in words what is being done.

    Without HR images the drop needs a guess of how far the dense network is from the truth: it is measured on the
    images reduced by the scale, whose truth the images are.

    Raises:
        ArgumentError: several budgets or an impossible one, no images, or images too small for the network or, without
            HR, to be reduced. `fast` is then what it was.

    >>> from maskguided import wrap
    >>> from maskguided.adapters.pan_net import PAN
    >>> fast = wrap(PAN(features=8, up_features=8, blocks=4), 2, merge="image", coarse_tail="light")
    >>> found = calibrate(fast, [torch.rand(3, 48, 48) for _ in range(3)], max_cost=0.9)
    >>> fast.scorer, fast.keep == found.chosen.keep, found.chosen.macs <= 0.9
    ('linear', True, True)
    """
    check_wrapped(fast)
    budget = Budget(max_drop_db, max_cost, max_time)
    check_one_of("fit", fit, ("all", "score", "context", "nothing"))
    if split_at is not None and fit != "all":
        raise ArgumentError(
            f"calibrate: fit={fit!r} with split_at={split_at!r}: another split needs its own fit; use 'all'"
        )
    if split_at not in (None, "auto"):
        raise ArgumentError(f"calibrate: split_at={split_at!r}; use 'auto', or wrap at the split that you want")
    if split_at == "auto" and fast.model is not fast.unwrap():
        raise ArgumentError("calibrate: split_at='auto' starts from the given network, and this one is a trained copy")
    with undone_by_failure(fast, fast.model), in_eval_mode(fast):
        progress("running the dense network")
        known = [_known(fast, image) for image in several(fast, images)]
        if not known:
            raise ArgumentError("calibrate: no images; give a handful of LR images")
        fast.min_gain_db = None  # until the end, the same for all
        if split_at == "auto":
            _search(fast, known, budget, progress)
        prices = _fit_for(fast, known, fit, budget, progress)
        if per_image:
            prices = _per_image(fast, known, prices, progress)
        curve = tuple(_measure(fast, known, prices, keep, progress) for keep in KEEPS)
        chosen = _chosen(fast, known, prices, budget, curve, progress)
        _set(fast, chosen.keep, prices)
    estimated = any(image.hr is None for image in known)
    sizes = fast.patch_size, fast.halo
    return Calibration(
        fast.split.split_at, fast.merge, *sizes, fast.exchange, chosen, curve, estimated, fast.min_gain_db,
        fast.split.cuts[1:],
    )  # fmt: skip


def _chosen(
    fast: MaskGuided,
    images: Sequence[Known],
    prices: _Priced,
    budget: Budget,
    curve: Sequence[Point],
    progress: Progress,
) -> Point:
    """What is measured at the keep that meets the budget."""
    chosen = _measure(fast, images, prices, _keep_for(fast, curve, prices, budget), progress)
    if budget.drop_db is None or chosen.drop <= budget.drop_db:
        return chosen
    # The curve bends between its points.
    safe = next(p for p in curve if p.keep > chosen.keep and p.drop <= budget.drop_db)
    halfway = _measure(fast, images, prices, (chosen.keep + safe.keep) / 2, progress)
    return halfway if halfway.drop <= budget.drop_db else safe


def _fit_for(fast: MaskGuided, images: Sequence[Known], fit: Fit, budget: Budget, progress: Progress) -> _Priced:
    """Fit the parts for the keep that will be, where the budget tells it already; else for the present one."""
    if fit in ("all", "context") and _guesses(fast):
        fast.context = make_context(fast.split, fast.merge)  # guessing has its price
    if fit in ("all", "score"):
        fast.scorer = "linear"
    progress("counting MACs" if budget.time is None else "counting MACs, timing")
    inputs = [known.lr for known in images]
    prices = _Priced(Macs(fast, inputs), None if budget.time is None else Clock(fast, inputs))
    if budget.share is not None:
        fast.keep = prices.paid.keep(budget.share)
    fit_parts(fast, images, fit, progress)
    return prices


def fit_parts(fast: MaskGuided, images: Sequence[Known], fit: Fit, progress: Progress) -> None:
    """Fit the coarse tail, where it is a light one, for the present keep; the linear score; and the context."""
    if fit == "all" and isinstance(fast.coarse_tail, LightTail):
        progress("fitting the coarse tail")
        fit_tail(fast, fast.coarse_tail, images)
    if fit in ("all", "score"):
        progress("fitting the score")
        fit_score(fast, images)
    if fit in ("all", "context") and _guesses(fast):
        progress("fitting the context")
        fit_context(fast, images)


def _guesses(fast: MaskGuided) -> bool:
    """Whether there is a context to fit: where windows see each other and all of them take one way to the end."""
    return fast.exchange and len(fast.split.cuts) == 1


def _per_image(fast: MaskGuided, images: Sequence[Known], prices: _Priced, progress: Progress) -> _Priced:
    """Fit the gain estimate; what the network costs when each of the images decides."""
    progress("fitting the gain estimate")
    fit_gain(fast, [known if known.hr is not None else _within(fast, known.lr) for known in images])
    assert fast.estimate is not None
    ends = prices.macs.ends(fast)
    whole = prices.macs.whole(ends)
    fast.estimate.whole.fill_(whole)
    slopes = []
    for known in images:
        base = fast.run_base(known.lr)
        index = select(fast.score(base), base.grid.count)
        slopes.append(fast.worth(base, index)[0].cpu())
        if not slopes[-1].isfinite().all():
            raise ArgumentError(
                "calibrate: per_image: what patches bring cannot be estimated where the network gives values of up to "
                f"{known.dense.abs().max():.2g}, as on {tuple(known.lr.shape[2:])} LR pixels here; use photographs"
            )
    return replace(prices, spread=Spread(slopes, whole, prices.macs, ends))


def _set(fast: MaskGuided, keep: float, prices: _Priced) -> None:
    """The same keep for all images, or on average over those that the prices are of."""
    fast.keep = keep
    if prices.spread is not None:
        fast.min_gain_db = prices.spread.least(keep)


def _within(fast: MaskGuided, lr: Tensor) -> Known:
    """An LR image as the HR image of its own reduction."""
    pair = _reduced(fast, lr)
    if pair is None:
        raise ArgumentError(
            f"calibrate: per_image without HR images looks at reductions; {lr.shape[2]}x{lr.shape[3]} LR pixels "
            f"reduced by the network's scale of {fast.scale} say nothing; give HR images"
        )
    small, truth = pair
    return Known(small, truth, dense_image(fast, small), 0.0)


def _known(fast: MaskGuided, image: Tensor | tuple[Tensor, Tensor]) -> Known:
    lr, hr = checked(fast, image)
    dense = dense_image(fast, lr)
    floor = _guessed_floor(fast, lr) if hr is None else _mse(dense, hr, fast.scale)
    return Known(lr, hr, dense, floor)


def _guessed_floor(fast: MaskGuided, lr: Tensor) -> float:
    """How far the dense network is from the truth on this image: on its own reduction, whose truth it is."""
    pair, unknown = _reduced(fast, lr), 1e-3  # 30 dB
    try:
        return unknown if pair is None else _mse(dense_image(fast, pair[0]), pair[1], fast.scale)
    except RuntimeError:  # the reduced image is less than the network takes
        return unknown


def _reduced(fast: MaskGuided, lr: Tensor) -> tuple[Tensor, Tensor] | None:
    """The image reduced by the scale, and what of the image that is of; None where nothing can be reduced."""
    height, width = (side // fast.scale for side in lr.shape[2:])
    truth = lr[:, :, : height * fast.scale, : width * fast.scale]
    if fast.scale == 1 or lr.shape[1] != fast.split.probe.out_channels or min(height, width) < 3:
        return None
    small = F.interpolate(truth.float(), size=(height, width), mode="bicubic", antialias=True)
    return small.clamp(0, 1).to(truth), truth


def _mse(a: Tensor, b: Tensor, border: int) -> float:
    inner = slice(border, -border)
    error = luma(a.float().clamp(0, 1) - b.float().clamp(0, 1))[:, :, inner, inner]
    return max(float(error.square().mean()), 1e-10)


def _measure(fast: MaskGuided, images: Sequence[Known], prices: _Priced, keep: float, progress: Progress) -> Point:
    """Cost and drop at a keep, the same for all or on average, by running it."""
    progress(f"measuring keep={keep:.2f}")
    before = fast.keep
    _set(fast, keep, prices)
    drops = []
    for known in images:
        error = _mse(fast(known.lr), known.truth, fast.scale)
        if known.hr is None:  # the truth is the dense image: the errors of both to the real one add up
            error += known.floor
        drops.append(10 * math.log10(error / known.floor))
    fast.keep = before
    time = None if prices.clock is None else prices.clock.at(keep)
    return Point(keep, (prices.spread or prices.macs).at(keep), time, sum(drops) / len(drops))


def _keep_for(fast: MaskGuided, curve: Sequence[Point], prices: _Priced, budget: Budget) -> float:
    """The keep that meets the budget, by interpolation between measured points."""
    if budget.share is not None:
        least = prices.paid.at(0)
        if least > budget.share:
            raise ArgumentError(
                f"{budget}: even with nothing refined it costs {least:.2f} of the dense network; "
                "allow more, split earlier, use a lighter coarse tail, or split_at='auto'"
            )
        return prices.paid.keep(budget.share)
    max_drop_db = budget.drop_db
    if max_drop_db is None:
        return fast.keep
    if curve[-1].drop > max_drop_db:
        raise ArgumentError(
            f"max_drop_db={max_drop_db}: even with all patches refined {curve[-1].drop:.3f} dB are lost; allow more"
        )
    for left, right in itertools.pairwise(curve):
        if right.drop <= max_drop_db:
            if left.drop <= max_drop_db:
                return left.keep
            share = (left.drop - max_drop_db) / max(left.drop - right.drop, 1e-12)
            return left.keep + share * (right.keep - left.keep)
    return 1.0


def _search(fast: MaskGuided, images: Sequence[Known], budget: Budget, progress: Progress) -> None:
    """Make `fast` the best of some splits and merges, then of some windows there: the cheapest or the nearest to dense.

    Places are compared on the usual windows. Where none meets the budget on these, all places get the other windows.
    """
    value = operator.itemgetter(0)

    def best_of(candidates: Iterable[MaskGuided]) -> list[tuple[float, MaskGuided]]:
        """The best candidate and its rating, or nothing, where none meets the budget."""
        rated = ((_rating(one, images, budget, progress), one) for one in candidates)
        return sorted(((rating, one) for rating, one in rated if rating is not None), key=value)[:1]

    places = [(parts, merge, _windows(fast, parts, merge, budget.time is not None)) for parts, merge in _places(fast)]
    found = best_of(_candidate(fast, parts, merge, usual) for parts, merge, (usual, *_) in places)
    if found:
        at = found[0][1]
        places = [place for place in places if place[0] is at.split and place[1] == at.merge]
    found += best_of(_candidate(fast, parts, merge, way) for parts, merge, (_, *ways) in places for way in ways)
    if not found:
        raise ArgumentError(f"calibrate: no split meets {budget}; allow more")
    fast.become(min(found, key=value)[1])


def _rating(candidate: MaskGuided, images: Sequence[Known], budget: Budget, progress: Progress) -> float | None:
    """What the candidate costs or loses within the budget, the less the better; None where it cannot meet it."""
    where = f"split_at={candidate.split.split_at}, {candidate.merge}, patch {candidate.patch_size}+{candidate.halo}"
    prices = _fit_for(candidate, images, "all", budget, lambda what: progress(f"{where}: {what}"))
    keeps = KEEPS if budget.drop_db is not None else (0.0,)
    curve = [_measure(candidate, images, prices, keep, progress) for keep in keeps]
    try:
        keep = _keep_for(candidate, curve, prices, budget)
    except ArgumentError:
        return None
    point = _measure(candidate, images, prices, keep, progress)
    return point.macs if budget.drop_db is not None else point.drop


def _places(fast: MaskGuided) -> Iterable[tuple[Split, Merge]]:
    """Splits at an eighth to three quarters of the depth, with both merges where the network has both."""
    blocks, name = len(fast.split.blocks), getattr(fast.split, "name", None)
    for place in sorted({min(blocks - 1, max(1, round(blocks * share))) for share in (0.125, 0.25, 0.5, 0.75)}):
        parts = split(fast.unwrap(), place, adapter=name, body=None if name else fast.split.blocks)
        if parts.can_skip:
            yield parts, "features"
        yield parts, "image"


def _windows(fast: MaskGuided, parts: Split, merge: Merge, timed: bool) -> list[_Windows]:
    """Patch, halo and whether windows exchange borders, to be tried there; the usual first.

    Exchange computes no pixel twice, but a border to what is not refined is but a guess: where the coarse image is good
    already, a halo is worth its work (docs/benchmarks.md). To a network of few channels copying borders may cost more
    time than a halo.
    """
    if fast.exchange and parts.exchanges(merge):
        ways = [(8, 0, True), (16, 1, True), (16, 2, False)] + [(16, 1, False)] * timed
    else:
        ways = [(16, 2, False), (16, 1, False), (32, 1, False)]
    step = parts.multiple_of
    return list(dict.fromkeys((round_up(patch, step), round_up(halo, step), how) for patch, halo, how in ways))


def _candidate(fast: MaskGuided, parts: Split, merge: Merge, windows: _Windows) -> MaskGuided:
    patch_size, halo, exchange = windows
    return MaskGuided(
        parts, keep=fast.keep, patch_size=patch_size, halo=halo, merge=merge,
        coarse_tail="light" if merge == "image" else None, global_ops=fast.global_ops, exchange=exchange,
        head=fast.head.settings,
    ).eval()  # fmt: skip
