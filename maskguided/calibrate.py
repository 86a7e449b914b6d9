"""Make a wrapped network useful without training: fit its coarse tail and its score in closed form, choose its keep.

Images in, seconds to minutes later a network that meets a budget out. Nothing here follows a gradient: the light coarse
tail is a ridge regression on the features at the cut, the score a linear prediction of each patch's gain, and keep is
read off a measured curve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .adapter import split
from .coarse import LightTail, continued
from .errors import ArgumentError
from .guided import MaskGuided
from .settings import Merge
from .stages import dense_image, luma, patch_error

KEEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_RIDGE = 1e-4  # of the mean energy of a feature
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """What is calibrated on: an LR image and, where there is one, its HR image."""

    lr: Tensor
    """(1, C, H, W), in the network's range."""
    hr: Tensor | None = None
    """(1, C', s*H, s*W)."""


@dataclass(frozen=True)
class Point:
    """A keep, what it costs and what it loses."""

    keep: float
    macs: float
    """Ratio to the dense network, 0..: over all images."""
    drop: float
    """dB on Y below the dense network, mean over the images; without HR images an estimate, see `calibrate`."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` measured and chose; print it for reading."""

    split_at: int
    merge: Merge
    patch_size: int
    halo: int
    chosen: Point
    curve: tuple[Point, ...]
    estimated: bool
    """Whether the drops are estimates, for want of HR images."""

    def __str__(self) -> str:
        how = "estimated, no HR images" if self.estimated else "to HR"
        lines = [
            f"split_at={self.split_at}, merge={self.merge}, patch_size={self.patch_size}, halo={self.halo}, "
            f"keep={self.chosen.keep:.3f}: {self.chosen.macs:.1%} of the dense MACs, "
            f"{self.chosen.drop:.3f} dB below dense (PSNR-Y, {how})",
            "  keep   MACs  drop/dB",
            *(f"  {point.keep:4.2f}  {point.macs:5.1%}  {point.drop:7.3f}" for point in self.curve),
        ]
        return "\n".join(lines)


@torch.inference_mode(False)
@torch.no_grad()
def calibrate(
    fast: MaskGuided,
    images: Iterable[Tensor | tuple[Tensor, Tensor]],
    *,
    max_drop_db: float | None = None,
    max_cost: float | None = None,
    split_at: Literal["auto"] | None = None,
    progress: Progress = lambda what: None,
) -> Calibration:
    """Fit coarse tail and score of `fast` on a handful of images and set its keep, in place.

    With merge="image" and a "light" or "deep" coarse tail, the tail's convolution becomes the ridge regression that
    comes closest to the dense network's image (to HR, where given). The score becomes the linear predictor of the
    squared error that refining a patch takes away, and `scorer` "linear".

    Args:
        fast: a wrapped network for images in 0..1.
        images: LR images (1, C, H, W) or (C, H, W); or pairs (LR, HR).
        max_drop_db: choose the smallest keep that loses no more than this against the dense network.
        max_cost: choose the largest keep that costs no more than this share of the dense MACs. With neither budget
            keep stays.
        split_at: "auto": also choose the split, and where branches merge, patch size and halo.
        progress: told in words what is being done.

    Without HR images the drop needs a guess of how far the dense network is from the truth: it is measured on the
    images reduced by the scale, whose truth the images are.

    Raises:
        ArgumentError: both budgets or an impossible one, no images, or images too small for the network.

    >>> from maskguided import wrap
    >>> from maskguided.adapters.pan_net import PAN
    >>> fast = wrap(PAN(features=8, up_features=8, blocks=4), 2, merge="image", coarse_tail="light")
    >>> found = calibrate(fast, [torch.rand(3, 48, 48) for _ in range(3)], max_cost=0.9)
    >>> fast.scorer, fast.keep == found.chosen.keep, found.chosen.macs <= 0.9
    ('linear', True, True)
    """
    _check_budget(max_drop_db, max_cost)
    samples = [_sample(fast, image) for image in images]
    if not samples:
        raise ArgumentError("calibrate: no images; give a handful of LR images")
    truths = _truths(fast, samples, progress)
    if split_at == "auto":
        _search(fast, samples, truths, max_drop_db, max_cost, progress)
    elif split_at is not None:
        raise ArgumentError(f"calibrate: split_at={split_at!r}; use 'auto', or wrap at the split that you want")
    fit_parts(fast, samples, truths, progress)
    prices = _Prices(fast, samples)
    curve = tuple(_measure(fast, samples, truths, prices, keep, progress) for keep in KEEPS)
    keep = _keep_for(fast, curve, prices, max_drop_db, max_cost)
    chosen = _measure(fast, samples, truths, prices, keep, progress)
    fast.keep = keep
    estimated = any(sample.hr is None for sample in samples)
    return Calibration(fast.split.split_at, fast.merge, fast.patch_size, fast.halo, chosen, curve, estimated)


def fit_parts(fast: MaskGuided, samples: Sequence[Sample], truths: Sequence[_Truth], progress: Progress) -> None:
    """Fit the coarse tail, where it is a light one, and the linear score."""
    if isinstance(fast.coarse_tail, LightTail):
        progress("fitting the coarse tail")
        _fit_tail(fast, fast.coarse_tail, samples, truths)
    progress("fitting the score")
    _fit_score(fast, samples, truths)
    fast.scorer = "linear"


def _fit_tail(fast: MaskGuided, tail: LightTail, samples: Sequence[Sample], truths: Sequence[_Truth]) -> None:
    """Ridge regression of what the bilinear image lacks on 3x3 neighbourhoods of the features, in float64."""
    inputs = tail.conv.in_channels * 9 + 1
    gram = torch.zeros(inputs, inputs, dtype=torch.float64)
    cross = torch.zeros(inputs, tail.conv.out_channels, dtype=torch.float64)
    for sample, truth in zip(samples, truths, strict=True):
        base = fast.run_base(sample.lr)
        features = base.skipped[tail.features]
        height, width = (side * tail.factor for side in features.shape[2:])
        target = continued(truth.target, height, width)
        x = continued(base.x, height // fast.scale, width // fast.scale)
        lacking = target - F.interpolate(x, scale_factor=float(fast.scale), mode="bilinear", align_corners=False)
        wanted = F.pixel_unshuffle(lacking, tail.factor).flatten(2)[0].double().cpu()
        seen = F.unfold(features.float(), 3, padding=1)[0].double().cpu()
        seen = torch.cat([seen, seen.new_ones(1, seen.shape[1])])
        gram += seen @ seen.T
        cross += seen @ wanted.T
    ridge = torch.eye(inputs, dtype=torch.float64) * gram.diagonal()[:-1].mean() * _RIDGE
    ridge[-1, -1] = 1e-12
    weights = torch.linalg.solve(gram + ridge, cross).T
    tail.conv.weight.copy_(weights[:, :-1].reshape(tail.conv.weight.shape))
    tail.conv.bias.copy_(weights[:, -1])  # type: ignore[union-attr]
    if tail.branch is not None:  # what it had learnt belongs to other weights of the convolution
        for parameter in tail.branch[-1].parameters():
            parameter.zero_()


def _fit_score(fast: MaskGuided, samples: Sequence[Sample], truths: Sequence[_Truth]) -> None:
    """Ridge regression, on standardised energies, of the squared error that refining takes from a patch."""
    energies, gains = [], []
    for sample, truth in zip(samples, truths, strict=True):
        base = fast.run_base(sample.lr)
        coarse, refined = fast.coarse_image(base), fast.refine(base, base.every)
        gain = patch_error(fast, base, coarse, truth.target) - patch_error(fast, base, refined, truth.target)
        energies.append(fast.energies(base).flatten(2)[0].double().cpu())
        gains.append(gain.flatten().double().cpu())
    seen, wanted = torch.cat(energies, 1), torch.cat(gains)
    middle, spread = seen.mean(1, keepdim=True), seen.std(1, keepdim=True, correction=0).clamp_min(1e-12)
    unit = (seen - middle) / spread
    gram = unit @ unit.T / unit.shape[1] + 1e-3 * torch.eye(len(unit), dtype=torch.float64)
    weights = torch.linalg.solve(gram, unit @ (wanted - wanted.mean()) / unit.shape[1]) / spread[:, 0]
    largest = weights.abs().max().clamp_min(1e-30)  # scores are ranked: their scale is free, and float32 is small
    fast.linear.weight.copy_(weights / largest)
    fast.linear.bias.copy_((wanted.mean() - weights @ middle[:, 0]) / largest)


@dataclass(frozen=True)
class _Truth:
    """What parts are fitted to and drops measured against."""

    target: Tensor
    """The HR image, or the dense network's."""
    floor: float
    """Mean squared error of the dense image on Y: against HR, or guessed."""


def _truths(fast: MaskGuided, samples: Sequence[Sample], progress: Progress) -> list[_Truth]:
    progress("running the dense network")
    truths = []
    for sample in samples:
        dense = dense_image(fast, sample.lr)
        if sample.hr is not None:
            truths.append(_Truth(sample.hr, _mse(dense, sample.hr, fast.scale)))
        else:
            truths.append(_Truth(dense, _guessed_floor(fast, sample.lr)))
    return truths


def _guessed_floor(fast: MaskGuided, lr: Tensor) -> float:
    """How far the dense network is from the truth on this image: on its own reduction, whose truth it is."""
    height, width = (side // fast.scale for side in lr.shape[2:])
    truth = lr[:, :, : height * fast.scale, : width * fast.scale]
    if fast.scale == 1 or lr.shape[1] != fast.split.probe.out_channels:
        return 1e-3  # 30 dB
    small = F.interpolate(truth, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)
    return _mse(dense_image(fast, small), truth, fast.scale)


def _mse(a: Tensor, b: Tensor, border: int) -> float:
    inner = slice(border, -border)
    error = luma(a.float().clamp(0, 1) - b.float())[:, :, inner, inner]
    return max(float(error.square().mean()), 1e-10)


def _measure(
    fast: MaskGuided,
    samples: Sequence[Sample],
    truths: Sequence[_Truth],
    prices: _Prices,
    keep: float,
    progress: Progress,
) -> Point:
    """Cost and drop at a keep, by running it."""
    progress(f"measuring keep={keep:.2f}")
    before, fast.keep = fast.keep, keep
    drops = []
    for sample, truth in zip(samples, truths, strict=True):
        error = _mse(fast(sample.lr), truth.target, fast.scale)
        if sample.hr is None:  # the target is the dense image: the errors of both to the truth add up
            error += truth.floor
        drops.append(10 * math.log10(error / truth.floor))
    fast.keep = before
    return Point(keep, prices.at(keep), sum(drops) / len(drops))


class _Prices:
    """MACs of a wrapped network on the images at any keep: each patch refined costs the same, so few are counted."""

    def __init__(self, fast: MaskGuided, samples: Sequence[Sample]) -> None:
        sizes = [(sample.lr.shape[2], sample.lr.shape[3]) for sample in samples]
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
        spent = 0
        for grid, size in self._sizes:
            k, (_, coarse, first, each) = grid.k(keep), self._counted[size]
            spent += coarse if k == 0 else first + (k - 1) * each
        return spent / sum(self._counted[size][0] for _, size in self._sizes)


def _keep_for(
    fast: MaskGuided,
    curve: Sequence[Point],
    prices: _Prices,
    max_drop_db: float | None,
    max_cost: float | None,
) -> float:
    """The keep that meets the budget, by interpolation between measured points."""
    if max_cost is not None:
        if curve[0].macs > max_cost:
            raise ArgumentError(
                f"max_cost={max_cost}: even with nothing refined it costs {curve[0].macs:.2f} of the dense network; "
                "allow more, split earlier, use a lighter coarse tail, or split_at='auto'"
            )
        return max(share for share in (step / 1000 for step in range(1001)) if prices.at(share) <= max_cost)
    if max_drop_db is None:
        return fast.keep
    if curve[-1].drop > max_drop_db:
        raise ArgumentError(
            f"max_drop_db={max_drop_db}: even with all patches refined {curve[-1].drop:.3f} dB are lost at borders "
            f"of windows; use a larger halo than {fast.halo}, or larger patches than {fast.patch_size}"
        )
    for left, right in itertools.pairwise(curve):
        if right.drop <= max_drop_db:
            if left.drop <= max_drop_db:
                return left.keep
            share = (left.drop - max_drop_db) / max(left.drop - right.drop, 1e-12)
            return left.keep + share * (right.keep - left.keep)
    return 1.0


def _search(
    fast: MaskGuided,
    samples: Sequence[Sample],
    truths: Sequence[_Truth],
    max_drop_db: float | None,
    max_cost: float | None,
    progress: Progress,
) -> None:
    """Make `fast` the best of some splits, merges, patch sizes and halos: the cheapest, or the nearest to dense."""
    best: tuple[float, MaskGuided] | None = None
    for candidate in _candidates(fast):
        where = f"split_at={candidate.split.split_at}, {candidate.merge}, patch {candidate.patch_size}"
        fit_parts(candidate, samples, truths, lambda what, where=where: progress(f"{where}: {what}"))  # type: ignore[misc]
        prices = _Prices(candidate, samples)
        keeps = KEEPS if max_drop_db is not None else (0.0,)
        curve = [_measure(candidate, samples, truths, prices, keep, progress) for keep in keeps]
        try:
            keep = _keep_for(candidate, curve, prices, max_drop_db, max_cost)
        except ArgumentError:
            continue
        point = _measure(candidate, samples, truths, prices, keep, progress)
        value = point.macs if max_drop_db is not None else point.drop
        if best is None or value < best[0]:
            best = (value, candidate)
    if best is None:
        raise ArgumentError(
            f"calibrate: no split meets max_cost={max_cost}, max_drop_db={max_drop_db}; allow more of either"
        )
    fast.become(best[1])


def _candidates(fast: MaskGuided) -> Iterable[MaskGuided]:
    """Splits at an eighth to three quarters of the depth, both merges, and patches and halos that fit the network."""
    blocks, name = len(fast.split.blocks), getattr(fast.split, "name", None)
    places = sorted({min(blocks - 1, max(1, round(blocks * share))) for share in (0.125, 0.25, 0.5, 0.75)})
    for place in places:
        body = None if name else fast.split.blocks
        parts = split(fast.unwrap(), place, adapter=name, body=body)
        step = parts.multiple_of
        for merge, patch, halo in (("features", 16, 2), ("image", 16, 1), ("image", 32, 1)):
            if merge == "features" and not parts.can_skip:
                continue
            sizes = [-(-size // step) * step for size in (patch, halo)]
            yield MaskGuided(
                parts, patch_size=sizes[0], halo=sizes[1], merge=merge,  # type: ignore[arg-type]
                coarse_tail="light" if merge == "image" else None, global_ops=fast.global_ops,
            ).eval()  # fmt: skip


def _sample(fast: MaskGuided, image: Tensor | tuple[Tensor, Tensor]) -> Sample:
    given = image if isinstance(image, tuple) else (image,)
    like = next(fast.parameters())
    lr, *rest = ((x[None] if x.dim() == 3 else x).to(like.device, like.dtype) for x in given)
    hr = rest[0] if rest else None
    expected = (1, fast.split.probe.out_channels, lr.shape[-2] * fast.scale, lr.shape[-1] * fast.scale)
    if lr.dim() != 4 or lr.shape[0] != 1 or (hr is not None and hr.shape != expected):
        shapes = f"{tuple(lr.shape)}" + ("" if hr is None else f" and {tuple(hr.shape)}")
        raise ArgumentError(
            f"calibrate: an image of shape {shapes}; it takes (C, H, W) or (1, C, H, W), HR images x{fast.scale}"
        )
    return Sample(lr.contiguous(memory_format=torch.channels_last), hr)


def _check_budget(max_drop_db: float | None, max_cost: float | None) -> None:
    if max_drop_db is not None and max_cost is not None:
        raise ArgumentError(
            f"max_drop_db={max_drop_db}, max_cost={max_cost}: give one budget; the other is what is found"
        )
    if max_drop_db is not None and max_drop_db <= 0:
        raise ArgumentError(f"max_drop_db={max_drop_db}: use dB above 0, as 0.05")
    if max_cost is not None and max_cost <= 0:
        raise ArgumentError(f"max_cost={max_cost}: a share of the dense network's MACs, as 0.5")
