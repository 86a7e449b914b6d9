"""The closed forms of `calibrate`: tails, skip, score, context and gain estimate, each by ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import BaseOutput
from ..error_map import patch_error
from ..gain import LEAST, around, log_energies
from ..guided import MaskGuided
from ..head import ROOT, energies
from ..patches import continued, per_pixel, select
from ..skip import LinearSkip
from ..tails.light import LightTail
from ..tails.refine import LightTailed
from ..windows.context import make_context, watch

_RIDGE = 1e-4  # of the mean energy of a feature
_ROOT_RIDGE, _LOG_RIDGE = 1e-3, 1e-2  # of the variance of an input: a cube root, or a logarithm
_LEAST_STD = 1e-12  # of an input that is the same for all patches


Progress = Callable[[str], None]
Fit = Literal["all", "score", "context", "nothing"]
_Seen = tuple[Tensor, Tensor]
"""What a convolution sees, (1, C, H, W), and what it is to make of it, (1, C', H, W)."""


@dataclass(frozen=True)
class Known:
    """An image that is calibrated on, and what is known of it."""

    lr: Tensor
    """(1, C, H, W), in the network's range."""
    hr: Tensor | None
    """(1, C', s*H, s*W), where there is one."""
    dense: Tensor
    """The dense network's image, (1, C', s*H, s*W)."""
    floor: float
    """Mean squared error of the dense image on Y: against HR, or guessed."""

    @property
    def truth(self) -> Tensor:
        """What quality is measured against."""
        return self.dense if self.hr is None else self.hr


def fit_tail(fast: MaskGuided, tail: LightTail, images: Sequence[Known]) -> None:
    """Fit the coarse tail to the dense image, where it will be seen.

    The target is the dense image even where there is HR:
    what a linear tail cannot know is noise to it, and HR has more of that (PAN x4, 65 % of the MACs: 0.02 dB).
    """

    def look(base: BaseOutput, known: Known) -> _Seen:
        features = base.skipped[tail.features]
        return features, _lacking(fast, tail, base, known, features)

    if tail.branch is not None:  # what it had learnt belongs to other weights of the convolution
        for parameter in tail.branch[-1].parameters():
            parameter.zero_()
    _regress_where_coarse(fast, tail.conv, look, images)


def fit_skip(fast: MaskGuided, skip: LinearSkip, images: Sequence[Known]) -> None:
    """Fit what stands in for the blocks left out to what they add, where they will be left out."""

    def look(base: BaseOutput, known: Known) -> _Seen:
        done, skipped = fast.split.body(base.state), fast.split.skip(base.state)
        added = torch.cat([done[name].float() - skipped[name].float() for name in skip.writes], 1)
        return base.state[skip.features], added

    _regress_where_coarse(fast, skip.conv, look, images)


def fit_refine_tail(fast: MaskGuided, parts: LightTailed, images: Sequence[Known]) -> None:
    """Fit the light tail of refined patches to the dense image, on the patches that are refined; else on all."""

    def look(base: BaseOutput, known: Known) -> _Seen:
        features = parts.looks_at(base.state)
        return features, _lacking(fast, parts.light, base, known, features)

    if not _regress(fast, parts.light.conv, look, images, refined=True):
        _regress(fast, parts.light.conv, look, images)


def _lacking(fast: MaskGuided, tail: LightTail, base: BaseOutput, known: Known, features: Tensor) -> Tensor:
    """What the bilinear image lacks of the dense one, as the convolution of a tail on `features` is to make it."""
    height, width = (side * tail.factor for side in features.shape[2:])
    x = continued(base.x, height // fast.scale, width // fast.scale)
    bilinear = F.interpolate(x, scale_factor=float(fast.scale), mode="bilinear", align_corners=False)
    return F.pixel_unshuffle(continued(known.dense, height, width) - bilinear, tail.factor)


def _regress_where_coarse(
    fast: MaskGuided, conv: nn.Conv2d, look: Callable[[BaseOutput, Known], _Seen], images: Sequence[Known]
) -> None:
    """`_regress` on the patches that are not refined: after all, since it takes a first fit to know which those are."""
    _regress(fast, conv, look, images)
    if 0 < fast.keep < 1:
        _regress(fast, conv, look, images, refined=False)


def _regress(
    fast: MaskGuided,
    conv: nn.Conv2d,
    look: Callable[[BaseOutput, Known], _Seen],
    images: Sequence[Known],
    refined: bool | None = None,
) -> bool:
    """Ridge regression, in float64, of what a convolution is to make on what it sees; `look` gives both.

    `refined`: True: on refined patches alone; False: on the others; None: on all. Returns False, and changes nothing,
    where these have fewer pixels than the regression has unknowns.
    """
    kernel = conv.kernel_size[0]
    inputs = conv.in_channels * kernel**2 + 1
    gram = _zeros(inputs, inputs)
    cross = _zeros(inputs, conv.out_channels)
    for known in images:
        base = fast.run_base(known.lr)
        features, wanted = look(base, known)
        target = wanted.flatten(2)[0].cpu().double()
        seen = F.unfold(features.float(), kernel, padding=kernel // 2)[0].cpu().double()
        seen = torch.cat([seen, seen.new_ones(1, seen.shape[1])])
        if refined is not None:
            counts = _refined_pixels(fast, base, known.dense, features).cpu() == refined
            seen, target = seen[:, counts], target[:, counts]
        gram += seen @ seen.T
        cross += seen @ target.T
    if refined is not None and gram[-1, -1] < inputs:  # the last input is a 1: pixels are counted there
        return False
    weights = _ridge(gram, cross).T
    conv.weight.copy_(weights[:, :-1].reshape(conv.weight.shape))
    conv.bias.copy_(weights[:, -1])  # type: ignore[union-attr]
    return True


def _refined_pixels(fast: MaskGuided, base: BaseOutput, dense: Tensor, features: Tensor) -> Tensor:
    """Of the pixels of `features`, those in the patches where the coarse image is farthest from the dense one."""
    index = select(patch_error(fast, base, fast.coarse_image(base), dense), base.grid.k(fast.keep))
    side = fast.patch_size * features.shape[3] // base.grid.width
    return per_pixel(base.grid.mask(index)[0], side, (features.shape[2], features.shape[3])).flatten()


def fit_score(fast: MaskGuided, images: Sequence[Known]) -> None:
    """Ridge regression, on standardised energies, of how far a patch is from the refined one (see LinearScore).

    An image counts for more where its dense image is nearer to the truth: there the same error costs more dB.
    """
    seen, errors, counts = [], [], []
    for known in images:
        base = fast.run_base(known.lr)
        error = patch_error(fast, base, fast.coarse_image(base), fast.refine(base, base.every)).flatten()
        seen.append(energies(base.x_on_grid, fast.patch_size).flatten(2)[0].cpu().double())
        errors.append(error.cpu().double())
        counts.append(torch.full_like(errors[-1], 1 / (known.floor * len(error))))
    fast.linear.root.fill_(ROOT)  # one loaded from an older file had none
    roots, target = fast.linear.compressed(torch.cat(seen, 1)), fast.linear.compressed(torch.cat(errors))
    share = torch.cat(counts) / torch.cat(counts).sum()  # by which each patch counts
    weights, bias = _standardised_ridge(roots, target[None], share, _ROOT_RIDGE)
    largest = weights.abs().max().clamp_min(1e-30)  # scores are ranked: their scale is free, and float32 is small
    fast.linear.weight.copy_(weights[0] / largest)
    fast.linear.bias.copy_(bias[0] / largest)


def fit_gain(fast: MaskGuided, images: Sequence[Known]) -> None:
    """Fit the estimate of what refining a patch brings (see GainEstimate) to images whose HR is known.

    The regression is of logarithms, whose mean is not the logarithm of the mean: what is left of that over an image, in
    the median of the images, is corrected.
    """
    seen, gains, errors, images_of = [], [], [], []
    for number, known in enumerate(images):
        assert known.hr is not None
        base = fast.run_base(known.lr)
        gains.append(patch_error(fast, base, fast.coarse_image(base), fast.refine(base, base.every)).flatten())
        errors.append(patch_error(fast, base, known.dense, known.hr).flatten())
        seen.append(log_energies(base, fast.split.features, fast.patch_size))
        images_of.append(torch.full_like(gains[-1], number, dtype=torch.long))
    target = torch.stack([torch.cat(gains), torch.cat(errors)]).cpu().double()  # (2, patches)
    own, means = (torch.cat([logs.flatten(2)[0] for logs in of], 1).cpu().double() for of in (seen, map(around, seen)))
    weights, bias = _log_regression(torch.cat([own, means]), target, torch.cat(images_of).cpu())
    estimate = fast.begin_estimate()
    estimate.weight.copy_(weights[:, : len(own)])
    estimate.around.copy_(weights[:, len(own) :])
    estimate.bias.copy_(bias)
    estimate.seen.copy_(torch.stack([own.amin(1), own.amax(1)]))


def _log_regression(seen: Tensor, target: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (outputs, inputs) and biases (outputs) from (inputs, n) to the logarithm of (outputs, n).

    Args:
        seen: (inputs, n).
        target: (outputs, n), 0 or more.
        image: (n,), the number of the image that each is of.
    """
    logs = (target + LEAST).log()
    weight, bias = _standardised_ridge(seen, logs, 1 / seen.shape[1], _LOG_RIDGE)
    found = (weight @ seen + bias[:, None]).exp()
    sums = target.new_zeros(2, int(image.max()) + 1, len(target))
    sums[0].index_add_(0, image, target.T)
    sums[1].index_add_(0, image, found.T)
    return weight, bias + ((sums[0] + LEAST) / sums[1]).log().median(0).values


def _standardised_ridge(seen: Tensor, target: Tensor, share: Tensor | float, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights (outputs, inputs) and biases (outputs,) from (inputs, n) to (outputs, n), penalised as if each input had
    a variance of 1. `share`: by how much each of the n counts, 1 together."""
    mean, target_mean = ((x * share).sum(1, keepdim=True) for x in (seen, target))
    std = ((seen - mean).square() * share).sum(1, keepdim=True).sqrt().clamp_min(_LEAST_STD)
    standardised = (seen - mean) / std
    gram = (standardised * share) @ standardised.T
    gram.diagonal().add_(ridge)
    weights = torch.linalg.solve(gram, (standardised * share) @ (target - target_mean).T).T / std.T
    return weights, (target_mean - weights @ mean)[:, 0]


def fit_context(fast: MaskGuided, images: Sequence[Known]) -> None:
    """Fit what refined windows see beyond their borders, on the patches beside those that are refined at this keep."""
    context = fast.context = fast.context or make_context(fast.split, fast.merge)
    if context is None:
        return
    inputs = fast.split.feature_channels + 1
    grams = [_zeros(inputs, inputs) for _ in context.maps]
    crosses = [_zeros(inputs, part.shape[1]) for part in context.maps]
    for known in images:
        base = fast.run_base(known.lr)
        beside = _beside(base.grid.mask(fast.choose(base)).float())

        def show(number: int, x: Tensor, base: BaseOutput = base, beside: Tensor = beside) -> None:
            size = x.shape[2], x.shape[3]
            # Nearest, with the size of a patch as the only ratio: a narrow border cell is cut, not shrunk.
            side = fast.patch_size * size[0] // base.grid.height
            there = per_pixel(beside, side, size).flatten()
            seen = F.interpolate(base.state[fast.split.features].float(), size=size, mode="nearest")[0].flatten(1)
            seen = F.pad(seen[:, there].cpu().double(), (0, 0, 0, 1), value=1.0)
            grams[number] += seen @ seen.T
            crosses[number] += seen @ x[0].flatten(1)[:, there].cpu().double().T

        watch(fast.split, base.state, (base.grid.height, base.grid.width), fast.merge, show)
    every = [_ridge(gram, cross) for gram, cross in zip(grams, crosses, strict=True)]
    share = torch.stack([gram / gram[-1, -1] for gram in grams]).mean(0)
    combine = common_directions(share, every, context.combine.shape[1])
    context.combine.copy_(combine)
    combine = F.pad(combine, (0, 1, 0, 1))
    combine[-1, -1] = 1
    for part, gram, cross in zip(context.maps, grams, crosses, strict=True):
        part.copy_(_ridge(combine.T @ gram @ combine, combine.T @ cross))


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64, device="cpu")


def _ridge(gram: Tensor, cross: Tensor) -> Tensor:
    """Weights (inputs, outputs) of a ridge regression whose last input is a 1, which is not penalised."""
    ridge = (gram.diagonal()[:-1].mean() * _RIDGE + 1e-12).expand(len(gram)).clone()
    ridge[-1] = 1e-12
    weights: Tensor = torch.linalg.solve(gram + ridge.diag(), cross)
    return weights


def common_directions(gram: Tensor, weights: Sequence[Tensor], rank: int) -> Tensor:
    """(F, rank): the combinations of F features that keep most of what all these regressions on them say.

    Reduced-rank regression: what they say, each in units of its own norm, is written on axes along which the features
    vary alike, and the first `rank` principal directions are kept.
    """
    mean = gram[:-1, -1] / gram[-1, -1]
    covariance = gram[:-1, :-1] / gram[-1, -1] - torch.outer(mean, mean)
    variances, axes = torch.linalg.eigh(covariance)
    deviations = variances.clamp_min(1e-9 * float(variances.max()) + 1e-30).sqrt()
    scaled = [deviations[:, None] * (axes.T @ part[:-1]) for part in weights]
    together = torch.cat([part / part.norm().clamp_min(1e-30) for part in scaled], dim=1)
    directions = torch.linalg.eigh(together @ together.T).eigenvectors.flip(1)[:, :rank]
    combined: Tensor = axes @ (directions / deviations[:, None])
    return combined


def _beside(mask: Tensor) -> Tensor:
    """(1, rows, cols) -> (rows, cols), bool: the patches that touch a refined one and are not; all, where none does."""
    touching = (F.max_pool2d(mask[:, None], 3, stride=1, padding=1)[0, 0] - mask[0]).bool()
    return touching if touching.any() else torch.ones_like(touching)


def fit_parts(fast: MaskGuided, images: Sequence[Known], fit: Fit, progress: Progress) -> None:
    """Fit light tails, or the skip, for the present keep; the linear score; and the context."""
    if fit == "all" and isinstance(fast.coarse_tail, LightTail):
        progress("fitting the coarse tail")
        fit_tail(fast, fast.coarse_tail, images)
    if fit == "all" and fast.skip is not None:
        progress("fitting the skip")
        fit_skip(fast, fast.skip, images)
    if fit == "all" and isinstance(fast.split, LightTailed):
        progress("fitting the refine tail")
        fit_refine_tail(fast, fast.split, images)
    if fit in ("all", "score"):
        progress("fitting the score")
        fit_score(fast, images)
    if fit in ("all", "context") and has_context(fast):
        progress("fitting the context")
        fit_context(fast, images)


def has_context(fast: MaskGuided) -> bool:
    """Whether there is a context to fit: where windows see each other and all of them take one way to the end."""
    return fast.exchange and len(fast.split.cuts) == 1
