"""What each stage of training trains, and by which loss.

    coarse   the coarse tail: what the image looks like where nothing is refined
    refine   blocks n+1..N and the network's tail, on the windows that they will see (the paper's A-Net)
    head     the mask head, everything else frozen (the paper's M-Net)
    all      the network and the coarse tail, without the head (the paper's D-Net)
    end      everything at once (the paper's "end to end" ablation)

Source: Hu et al., "Restore Globally, Refine Locally", ECCV 2022, section 3.3: the paper runs all, refine, head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .coarse import continued
from .errors import ArgumentError
from .guided import Base, MaskGuided
from .head import pool
from .probing import image_of, untouched

Stage = Literal["coarse", "refine", "head", "all", "end"]
STAGES: tuple[Stage, ...] = ("coarse", "refine", "head", "all", "end")
PAPER: tuple[Stage, ...] = ("all", "refine", "head")
"""The paper's three steps."""
HeadLoss = Literal["rank", "l1", "none"]


@dataclass(frozen=True)
class Options:
    """How the losses are put together."""

    distill: float = 0.5
    """Share, 0..1, of the dense network's image (as it was before any training) in the target of coarse and refine; the
    rest is the HR image. 0: the paper."""
    head_loss: HeadLoss = "rank"
    """Supervision of the head. "rank": pairs of patches in the wrong order cost what confusing them loses; "l1": the
    paper, L1 to the normalised error map; "none": the image's own loss through a soft mask (ablation)."""

    def __post_init__(self) -> None:
        if not 0 <= self.distill <= 1:
            raise ArgumentError(f"distill={self.distill}: the dense image's share in the target; use 0 to 1")
        if self.head_loss not in ("rank", "l1", "none"):
            raise ArgumentError(f"head_loss={self.head_loss!r}; use 'rank', 'l1' (the paper) or 'none'")


def train_only(fast: MaskGuided, stage: str) -> list[nn.Parameter]:
    """Make the parameters of `stage` trainable and all others not, and return them.

    Stages that change the network itself make `fast` hold a copy of it first, so `fast.unwrap()` stays as it was.
    """
    _check(fast, stage)
    if stage in ("refine", "all", "end"):
        fast.own_network()
    fast.requires_grad_(False)
    parameters = _PARAMETERS[stage](fast)  # type: ignore[index]
    if not parameters:
        raise ArgumentError(
            f"stage={stage!r}: this {type(fast.model).__name__} has nothing to train there: its blocks share their "
            "weights with those of the base; use 'coarse', 'head' or 'all'"
        )
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def loss(fast: MaskGuided, stage: str, lr: Tensor, hr: Tensor, options: Options | None = None) -> Tensor:
    """The loss of a stage, a scalar.

    Args:
        fast: prepared by `train_only`.
        stage: one of STAGES.
        lr: (B, C, H, W), in the network's range.
        hr: (B, C', s*H, s*W).
        options: how it is put together.
    """
    _check(fast, stage)
    return _LOSSES[stage](fast, lr, hr, options or Options())  # type: ignore[index]


def luma(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W): Y of BT.601 for RGB, up to a constant; the mean of other channels."""
    if image.shape[1] != 3:
        return image.mean(1, keepdim=True)
    weights = torch.tensor((65.481, 128.553, 24.966), device=image.device, dtype=image.dtype) / 255
    return (image * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def dense_image(fast: MaskGuided, lr: Tensor) -> Tensor:
    """What the network that was given, before any training, makes of `lr`: (B, C', s*H, s*W)."""
    image = image_of(fast.unwrap()(fast.accepted(lr).clone()))  # a network may change its input
    return image[:, :, : lr.shape[2] * fast.scale, : lr.shape[3] * fast.scale]


def patch_error(fast: MaskGuided, base: Base, a: Tensor, b: Tensor, power: int = 2) -> Tensor:
    """Mean of |a - b|^power on Y over each patch: two images of the output's size -> (B, rows, cols), float32."""
    error = luma(a.float() - b.float()).abs().pow(power)
    grid = base.grid
    whole = continued(error, grid.height * fast.scale, grid.width * fast.scale)
    return pool(whole, grid.patch_size * fast.scale).squeeze(1)


def rank_loss(score: Tensor, gain: Tensor, temperature: float = 0.1) -> Tensor:
    """How much of the gain is lost by ordering patches by `score`: each pair in the wrong order costs their difference.

    The logistic of RankNet (Burges et al., 2005), weighted by the difference in gain relative to the image's mean.

    Args:
        score, gain: (B, n).
        temperature: difference of scores at which an order counts as settled.

    >>> gain = torch.tensor([[1.0, 0.0]])
    >>> bool(rank_loss(torch.tensor([[0.9, 0.1]]), gain) < rank_loss(torch.tensor([[0.1, 0.9]]), gain))
    True
    """
    gain = gain / gain.abs().mean(1, keepdim=True).clamp_min(1e-12)
    better = gain[:, :, None] - gain[:, None, :]
    ahead = score[:, :, None] - score[:, None, :]
    return (better.clamp_min(0) * F.softplus(-ahead / temperature)).mean()


def _check(fast: MaskGuided, stage: str) -> None:
    if stage not in STAGES:
        raise ArgumentError(f"stage={stage!r}; use one of {', '.join(STAGES)}")
    if stage == "coarse" and fast.coarse_tail is None:
        raise ArgumentError(
            "stage='coarse': with merge='features' there is no coarse tail to train; wrap with merge='image', and "
            "coarse_tail='light' or 'deep' where the network's tail is heavy"
        )


def _coarse_loss(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> Tensor:
    with torch.no_grad():
        base = fast.run_base(lr)
    assert fast.coarse_tail is not None  # see _check
    image = fast.coarse_tail(base.skipped, base.x)[:, :, : hr.shape[2], : hr.shape[3]]
    return _to_targets(fast, image, lr, hr, options)


def _refine_loss(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> Tensor:
    with torch.no_grad():
        base = fast.run_base(lr)
    return _to_targets(fast, fast.refine(base, base.every), lr, hr, options)


def _head_loss(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> Tensor:
    with torch.no_grad():
        base = fast.run_base(lr)
        coarse, refined = fast.coarse_image(base), fast.refine(base, base.every)
    return _mask_loss(fast, base, coarse, refined, hr, options)


def _all_loss(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> Tensor:
    base = fast.run_base(lr)
    dense = fast.split.tail(fast.split.body(base.state))[:, :, : hr.shape[2], : hr.shape[3]]
    return F.l1_loss(dense, hr) + F.l1_loss(fast.coarse_image(base), hr)


def _end_loss(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> Tensor:
    base = fast.run_base(lr)
    coarse, refined = fast.coarse_image(base), fast.refine(base, base.every)
    images = F.l1_loss(coarse, hr) + F.l1_loss(refined, hr)
    return images + _mask_loss(fast, base, coarse, refined, hr, options)


def _mask_loss(fast: MaskGuided, base: Base, coarse: Tensor, refined: Tensor, hr: Tensor, options: Options) -> Tensor:
    score = fast.head_score(base)
    if options.head_loss == "none":
        mask = score.clamp(0, 1).repeat_interleave(fast.patch_size * fast.scale, 1)
        mask = mask.repeat_interleave(fast.patch_size * fast.scale, 2)[:, None, : hr.shape[2], : hr.shape[3]]
        return F.l1_loss(coarse + mask * (refined - coarse), hr)
    if options.head_loss == "l1":
        error = patch_error(fast, base, coarse.detach(), refined.detach(), power=1)
        return F.l1_loss(score, error / error.amax((1, 2), keepdim=True).clamp_min(1e-12))
    gain = patch_error(fast, base, coarse.detach(), refined.detach())
    return rank_loss(score.flatten(1), gain.flatten(1))


def _to_targets(fast: MaskGuided, image: Tensor, lr: Tensor, hr: Tensor, options: Options) -> Tensor:
    """L1 to the HR image and to what the dense network, as it was given, makes of `lr`."""
    whole = F.l1_loss(image, hr) * (1 - options.distill)
    if options.distill:
        with torch.no_grad():
            dense = dense_image(fast, lr)
        whole = whole + F.l1_loss(image, dense) * options.distill
    return whole


_LOSSES: dict[Stage, Callable[[MaskGuided, Tensor, Tensor, Options], Tensor]] = {
    "coarse": _coarse_loss,
    "refine": _refine_loss,
    "head": _head_loss,
    "all": _all_loss,
    "end": _end_loss,
}


def _parameters(part: nn.Module | None) -> list[nn.Parameter]:
    return [] if part is None else list(part.parameters())


def _of_refine(fast: MaskGuided) -> list[nn.Parameter]:
    """What blocks n+1..N and the tail use and the base does not, found by asking autograd."""
    split, model = fast.split, fast.model
    model.requires_grad_(True)
    with untouched(model), torch.enable_grad():
        state = split.prefix(split.example(*split.probe.round_size))
        in_base = _touched(sum(v.sum() for v in state.values() if v.requires_grad), model)
        detached = {name: value.detach() for name, value in state.items()}
        in_refine = _touched(split.tail(split.body(detached)).sum(), model)
    model.requires_grad_(False)
    return [p for p in model.parameters() if id(p) in in_refine - in_base]


def _touched(value: Any, model: nn.Module) -> set[int]:
    parameters = list(model.parameters())
    if not isinstance(value, Tensor):
        return set()
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


_PARAMETERS: dict[Stage, Callable[[MaskGuided], list[nn.Parameter]]] = {
    "coarse": lambda fast: _parameters(fast.coarse_tail),
    "refine": _of_refine,
    "head": lambda fast: _parameters(fast.head),
    "all": lambda fast: _parameters(fast.model) + _parameters(fast.coarse_tail),
    "end": lambda fast: _parameters(fast.model) + _parameters(fast.coarse_tail) + _parameters(fast.head),
}
