"""Make a wrapped network useful without training: fit its coarse tail and its score in closed form, choose its keep.

Images in, some minutes later a network that meets a budget out. Nothing here follows a gradient: the light coarse
tail is a ridge regression on the features at the cut, the score a linear prediction of each patch's error, and keep is
read off a measured curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .calibration.closed_form import Fit, Known, Progress, fit_gain, fit_parts
from .calibration.curve import Budget, Calibration, Point
from .calibration.inputs import as_pair, check_images
from .calibration.measure import KEEPS, keep_for, measure, mse, set_keep
from .calibration.prices import Priced, Spread, check_affordable, price
from .calibration.search import search
from .error_map import dense_image, is_rough
from .errors import ArgumentError, warn
from .guided import MaskGuided
from .patches import select
from .probing.untouched import in_eval_mode, undone_by_failure
from .values import check_one_of
from .wrapping import check_wrapped

_STAMP = 24
"""Pixels; on reductions that are smaller a network is far worse than on photographs."""
_UNKNOWN = 1e-3
"""Mean squared error of a network of which it cannot be estimated: 30 dB."""
_OUT_OF_RANGE = 30
"""Times the largest value of an LR image: what a network's image of it never has."""


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
    """Fit light tails and score of `fast` on a handful of images and set its keep, in place.

    With merge="image" and any coarse tail but a copy, the tail's convolution becomes the ridge regression that
    comes closest to the dense network's image on the patches that are not refined; a light refine tail likewise on
    those that are. With merge="features" a convolution is added to the blocks left out (`skip` of MaskGuided), of 3x3
    where that is cheap, else of 1x1: it comes closest to what they would have added. The score becomes the linear
    predictor of a patch's distance from the refined one, and `scorer` "linear". Where windows exchange borders, what
    they see of patches that are not refined becomes a linear guess from the features at the cut.

    Args:
        fast: a wrapped network for images in 0..1.
        images: LR images (1, C, H, W) or (C, H, W); or pairs (LR, HR).
        max_drop_db: choose the smallest keep that loses no more than this against the dense network; or keep=1, where
            refining so many patches would cost more than the dense network.
        max_cost: choose the largest keep that costs no more than this share of the dense network's MACs.
        max_time: choose the largest keep that takes no more than this share of the dense network's time, measured on
            this machine, at these sizes and with torch's present threads. Without any budget, keep is left as it is.
        split_at: "auto": also choose the split, where branches merge, and then the refine tail, patch size, halo and
            whether windows exchange borders. A coarse tail that you chose, and where it runs, stays with merge="image".
        fit: "all": light tails, or with merge="features" the skip, score and context; "score" or "context": that alone,
            the others stay as they were trained; "nothing": only keep is chosen.
        per_image: let each image decide how many patches it needs (`MaskGuided.min_gain_db`) instead of refining the
            same share of all; the budget, or else the present keep, then holds for the mean over these images. What a
            patch brings is estimated in closed form, whatever `fit` says.
        progress: told in words what is being done.

    Without HR images the drop needs a guess of how far the dense network is from the truth: it is measured on the
    images reduced by the scale, whose truth the images are.

    Returns:
        The curve of loss against cost, and the point of it that was chosen; print it for reading.

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
    _check_fit(fast, fit, split_at)
    with undone_by_failure(fast, fast.given), in_eval_mode(fast):
        progress("running the dense network")
        known = [_known(fast, image) for image in check_images(fast, images)]
        if not known:
            raise ArgumentError("calibrate: no images; give a handful of LR images")
        known = _within_range(known)
        _warn_of_guesses(fast, known)
        fast.min_gain_db = None  # until the end, the same for all
        if fit in ("all", "score") and fast.scorer == "head":
            warn(
                f"calibrate: the linear score takes the place of the mask head (fit={fit!r}); fit='nothing' leaves "
                "trained parts as they are"
            )
        if split_at == "auto":
            prices = search(fast, known, budget, progress)
        else:
            prices = price(fast, known, fit, budget, progress)
            if not per_image:  # whose prices are known after the fit
                check_affordable(prices, budget)
            fit_parts(fast, known, fit, progress)
        if per_image:
            prices = _per_image(fast, known, prices, progress)
        curve = tuple(measure(fast, known, prices, keep, progress) for keep in KEEPS)
        chosen = _chosen(fast, known, prices, budget, curve, progress)
        set_keep(fast, chosen.keep, prices)
    fast.begin_mode()
    _warn_of_little(fast, known[0], chosen, split_at)
    estimated = any(image.hr is None for image in known)
    return Calibration(
        split_at=fast.split.split_at,
        merge=fast.merge,
        patch_size=fast.patch_size,
        halo=fast.halo,
        exchange=fast.exchange,
        chosen=chosen,
        curve=curve,
        estimated=estimated,
        min_gain_db=fast.min_gain_db,
        later=fast.split.cuts[1:],
        refine_tail=fast.split.refine_tail,
        skip="identity" if fast.skip is None else fast.skip.kind,
    )


def _check_fit(fast: MaskGuided, fit: str, split_at: str | None) -> None:
    """Refuse a fit that is none, and a search that cannot begin from `fast`."""
    check_one_of("fit", fit, ("all", "score", "context", "nothing"))
    if split_at is not None and fit != "all":
        raise ArgumentError(
            f"calibrate: fit={fit!r} with split_at={split_at!r}: another split needs its own fit; use 'all'"
        )
    if split_at not in (None, "auto"):
        raise ArgumentError(f"calibrate: split_at={split_at!r}; use 'auto', or wrap at the split that you want")
    if split_at == "auto" and fast.model is not fast.given:
        raise ArgumentError("calibrate: split_at='auto' starts from the given network, and this one is a trained copy")


def _warn_of_guesses(fast: MaskGuided, known: Sequence[Known]) -> None:
    """Say so where most losses are estimated by what the network does with a stamp."""
    unknown = sum(image.floor == _UNKNOWN and image.hr is None for image in known)
    if 2 * unknown > len(known):
        warn(
            "calibrate: how far the network itself is from the truth cannot be estimated on LR images that are not "
            "reduced by it (scale 1), or hold no more than a few pixels, and 30 dB are taken for it: losses may be "
            "several times as large; give HR images"
        )
        return
    sides = [min(image.lr.shape[2:]) // fast.scale for image in known if image.hr is None]
    if 2 * sum(side < _STAMP for side in sides) > len(known):
        warn(
            f"calibrate: without HR images the loss is estimated on LR images reduced by {fast.scale}, which leaves "
            f"{min(sides)} pixels of the smallest: it may be several times as large; give HR images, or LR images of "
            f"{_STAMP * fast.scale} pixels or more a side"
        )


def _warn_of_little(fast: MaskGuided, image: Known, chosen: Point, split_at: str | None) -> None:
    """Say so where what was found is of little use."""
    search_it = "" if split_at == "auto" else ", or let split_at='auto' choose"
    if is_rough(fast, image.lr, image.dense):
        once = "one cut, " if len(fast.split.cuts) > 1 else ""
        cure = f"wrap with {once}merge='image' and coarse_tail='light'{search_it}"
        if fast.coarse_tail is not None and fast.coarse_tail_kind != "copy":
            cure = "allow more work or less loss, cut later, give more images, or train it (stage coarse)"
        warn(f"calibrate: what is not refined is farther from the dense image than a bicubic one; {cure}")
    if round(chosen.macs, 2) > 1:  # what choosing costs is less
        warn(
            f"calibrate: at keep={chosen.keep:.3f} it costs {chosen.macs:.0%} of the dense network's MACs; allow more "
            f"loss{search_it}"
        )


def _chosen(
    fast: MaskGuided,
    images: Sequence[Known],
    prices: Priced,
    budget: Budget,
    curve: Sequence[Point],
    progress: Progress,
) -> Point:
    """What is measured at the keep that meets the budget."""
    chosen = measure(fast, images, prices, keep_for(fast, curve, prices, budget), progress)
    if budget.drop_db is None or chosen.drop <= budget.drop_db:
        return chosen
    # The curve bends between its points.
    safe = next(p for p in curve if p.keep > chosen.keep and p.drop <= budget.drop_db)
    halfway = measure(fast, images, prices, (chosen.keep + safe.keep) / 2, progress)
    return halfway if halfway.drop <= budget.drop_db else safe


def _per_image(fast: MaskGuided, images: Sequence[Known], prices: Priced, progress: Progress) -> Priced:
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


def _within_range(known: list[Known]) -> list[Known]:
    """Those images of which the network makes images; all, where it does so of none.

    Some trained networks (PAN) leave all range on noise and on text in black and white. A single such image would
    decide every regression.
    """
    peaks = [float(image.dense.abs().max() / image.lr.abs().max().clamp_min(0.1)) for image in known]  # some are black
    within = [image for image, peak in zip(known, peaks, strict=True) if peak <= _OUT_OF_RANGE]
    if not within or len(within) == len(known):
        return known
    for number, (image, peak) in enumerate(zip(known, peaks, strict=True), 1):
        if not peak <= _OUT_OF_RANGE:
            height, width = image.lr.shape[2:]
            warn(
                f"calibrate: of image {number} of {len(known)} ({height}x{width} LR pixels) the network itself makes "
                f"values of up to {float(image.dense.abs().max()):.2g}; it is left out"
            )
    return within


def _known(fast: MaskGuided, image: Tensor | tuple[Tensor, Tensor]) -> Known:
    lr, hr = as_pair(fast, image)
    dense = dense_image(fast, lr)
    floor = _guessed_floor(fast, lr) if hr is None else mse(dense, hr, fast.scale)
    return Known(lr, hr, dense, floor)


def _guessed_floor(fast: MaskGuided, lr: Tensor) -> float:
    """How far the dense network is from the truth on this image: on its own reduction, whose truth it is."""
    pair = _reduced(fast, lr)
    try:
        return _UNKNOWN if pair is None else mse(dense_image(fast, pair[0]), pair[1], fast.scale)
    except RuntimeError:  # the reduced image is less than the network takes
        return _UNKNOWN


def _reduced(fast: MaskGuided, lr: Tensor) -> tuple[Tensor, Tensor] | None:
    """The image reduced by the scale, and what of the image that is of; None where nothing can be reduced."""
    height, width = (side // fast.scale for side in lr.shape[2:])
    truth = lr[:, :, : height * fast.scale, : width * fast.scale]
    if fast.scale == 1 or lr.shape[1] != fast.split.probe.out_channels or min(height, width) < 3:
        return None
    small = F.interpolate(truth.float(), size=(height, width), mode="bicubic", antialias=True)
    return small.clamp(0, 1).to(truth), truth
