"""What each stage of training trains, and by which loss.

    coarse   the coarse tail, or with merge="features" the skip: what the image looks like where nothing is refined at
             the present keep
    refine   blocks n+1..N and the tail of refined patches, on the windows that they will see (the paper's A-Net), and
             what these see beyond their borders
    head     the mask head, everything else frozen (the paper's M-Net)
    all      the network and the tails that were added, without the head (the paper's D-Net)
    end      the same with the head, all patches refined (the paper's "end to end" ablation)
    joint    the network, these tails and the context, on the image as it will be: refined here, coarse there

Source: Hu et al., "Restore Globally, Refine Locally", ECCV 2022, section 3.3: the paper runs all, refine, head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import BaseOutput
from ..error_map import dense_image, luma, patch_error
from ..errors import ArgumentError
from ..guided import MaskGuided
from ..parts import State
from ..patches import Chosen, Grid, continued, others, per_pixel, select
from ..probing.untouched import untouched
from ..split_checks import check_gradients
from .choices import Options, check_stage, check_supervised

_LEAST_ERROR = 3e-4
"""Of the dense image, added to its own mean squared error (35 dB): a flat crop is not worth more than others."""
_SETTLED = 0.1
"""Difference of scores at which an order counts as settled."""
_STATE = "state."


def train_only(fast: MaskGuided, stage: str) -> list[nn.Parameter]:
    """Make the parameters of `stage` trainable and all others not, and return them.

    Stages that change the network itself make `fast` hold a copy of it first, so `fast.unwrap()` stays as it was.
    It ends `min_gain_db`: what a patch brings must be estimated anew after training.
    """
    check_stage(fast, stage)
    check_supervised(fast, stage)
    trains_network = stage not in ("coarse", "head")
    if trains_network:
        check_gradients(fast.split.with_own_tail)
    fast.forget_estimate()
    if trains_network:
        fast.own_network()
    fast.requires_grad_(False)
    parameters = _STAGES[stage].parameters(fast)
    if not parameters:
        raise ArgumentError(
            f"stage={stage!r}: this {type(fast.model).__name__} has nothing to train there: its blocks share their "
            "weights with those of the base; use 'coarse', 'head' or 'all'"
        )
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


@dataclass(frozen=True)
class StageInput:
    """What the loss of a stage starts from and the stage's training does not change: made by `prepare`."""

    crops: dict[str, Tensor]
    """By name, (B, ...) each: LR and HR crops, live values, images."""
    shared: State = field(default_factory=dict)
    """Live values that are the same for all crops."""

    def state(self) -> State:
        """The live values among them."""
        crops = {name.removeprefix(_STATE): v for name, v in self.crops.items() if name.startswith(_STATE)}
        return {**crops, **self.shared}


def prepare(fast: MaskGuided, stage: str, lr: Tensor, hr: Tensor, options: Options) -> StageInput:
    """Run what a stage keeps frozen, which need be done only once per crop.

    Args:
        fast: prepared by `train_only`.
        stage: one of STAGES.
        lr: (B, C, H, W), in the network's range.
        hr: (B, C', s*H, s*W).
        options: how the loss is put together.
    """
    check_stage(fast, stage)
    keep_frozen = _STAGES[stage].prepare
    if keep_frozen is None:
        return StageInput({"lr": lr, "hr": hr})
    with torch.no_grad():
        return keep_frozen(fast, lr, hr, options)


def loss(fast: MaskGuided, stage: str, given: StageInput, options: Options) -> Tensor:
    """The loss of a stage, a scalar; all arguments as for `prepare`, which made `given`."""
    return _STAGES[stage].loss(fast, given, options)


def rank_loss(score: Tensor, gain: Tensor) -> Tensor:
    """How much of the gain is lost by ordering patches by `score`: each pair in the wrong order costs their difference.

    The logistic of RankNet (Burges et al., 2005), weighted by the difference in gain relative to the image's mean.

    Args:
        score: (B, n).
        gain: (B, n).

    >>> gain = torch.tensor([[1.0, 0.0]])
    >>> bool(rank_loss(torch.tensor([[0.9, 0.1]]), gain) < rank_loss(torch.tensor([[0.1, 0.9]]), gain))
    True
    """
    gain = gain / gain.abs().mean(1, keepdim=True).clamp_min(1e-12)
    better = gain[:, :, None] - gain[:, None, :]
    ahead = score[:, :, None] - score[:, None, :]
    return (better.clamp_min(0) * F.softplus(-ahead / _SETTLED)).mean()


def _prepare_coarse(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> StageInput:
    base, tail = fast.run_base(lr), fast.coarse_tail
    state, names = (base.state, tuple(fast.split.kinds)) if tail is None else (base.skipped, tail.reads)
    return _live(fast, state, names, {"x": base.x, **_targets(fast, lr, hr, options)})


def _coarse_loss(fast: MaskGuided, given: StageInput, options: Options) -> Tensor:
    """The pixel loss on the patches that stay coarse at this keep: without the k whose coarse image is farthest from
    the target."""
    target = given.crops.get("dense", given.crops["hr"])
    state = given.state()
    base = _based(fast, given, state, state)  # no refine part runs here
    k = base.grid.k(fast.keep)
    if not 0 < k < base.grid.count:
        return _to_targets(fast.coarse_image(base), given, options)
    on_windows = fast.coarse_tail is not None and fast.coarse_on == "unrefined"
    with torch.set_grad_enabled(not on_windows):
        image = fast.coarse_image(base)
    index = select(patch_error(fast, base, image.detach(), target), k)
    if on_windows:  # as it will run: on windows, which find nothing where patches are refined
        rest = Chosen(others(index, base.grid), base.grid)
        canvas = continued(image, base.grid.height * fast.scale, base.grid.width * fast.scale)
        image = rest.scatter(fast.coarse_patches(base, rest), onto=canvas)
    return _to_targets(image, given, options, 1 - _pixels(fast, base.grid, index).to(image))


def _prepare_refine(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> StageInput:
    base = fast.run_base(lr)
    # With merge="image" only refined pixels count, whatever is around them.
    coarse = {} if fast.coarse_tail is None else {"coarse": fast.coarse_image(base)}
    return _live(fast, base.state, tuple(fast.split.kinds), {"x": base.x, **coarse, **_targets(fast, lr, hr, options)})


def _refine_loss(fast: MaskGuided, given: StageInput, options: Options) -> Tensor:
    """The pixel loss on the refined patches with merge="image", else on the whole image.

    Refined are the patches chosen at this keep where windows exchange borders, else all of them.
    """
    state = given.state()
    base = _based(fast, given, state, fast.split.skip(state) if fast.split.can_skip else state)
    index = fast.choose(base) if fast.exchange and base.grid.k(fast.keep) else base.every
    image, mask = fast.refine(base, index), None
    if fast.merge == "image":
        mask = _pixels(fast, base.grid, index).to(image)
    return _to_targets(image, given, options, mask)


def _based(fast: MaskGuided, given: StageInput, state: State, skipped: State) -> BaseOutput:
    """The first part of a forward, as `prepare` kept it."""
    height, width = (side // fast.scale for side in given.crops["hr"].shape[2:])
    return BaseOutput(
        x=given.crops["x"],
        state=state,
        skipped=skipped,
        grid=fast.grid(height, width),
        size=(height, width),
        coarse=given.crops.get("coarse"),
    )


def _prepare_head(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> StageInput:
    base = fast.run_base(lr)
    coarse, refined = fast.coarse_image(base), fast.refine(base, base.every)
    supervision = {"coarse": coarse, "refined": refined, "hr": hr}
    if options.head_loss != "none":
        supervision = {"error": patch_error(fast, base, coarse, refined, options.power)}
    return _live(fast, base.state, (fast.split.features,), {"x": base.x, **supervision})


def _head_loss(fast: MaskGuided, given: StageInput, options: Options) -> Tensor:
    score = fast.head_score(given.state()[fast.split.features], fast.grid(*given.crops["x"].shape[2:]))
    if options.head_loss == "none":
        return _masked(fast, score, *(given.crops[name] for name in ("coarse", "refined", "hr")))
    return _score_loss(score, given.crops["error"], options)


def _all_loss(fast: MaskGuided, given: StageInput, options: Options) -> Tensor:
    hr = given.crops["hr"]
    base = fast.run_base(given.crops["lr"])
    dense = fast.split.rest(base.state)[:, :, : hr.shape[2], : hr.shape[3]]
    return F.l1_loss(dense, hr) + F.l1_loss(fast.coarse_image(base), hr)


def _end_loss(fast: MaskGuided, given: StageInput, options: Options) -> Tensor:
    hr = given.crops["hr"]
    base = fast.run_base(given.crops["lr"])
    coarse, refined = fast.coarse_image(base), fast.refine(base, base.every)
    score = fast.head_score(base.state[fast.split.features], base.grid)
    images = F.l1_loss(coarse, hr) + F.l1_loss(refined, hr)
    if options.head_loss == "none":
        return images + _masked(fast, score, coarse, refined, hr)
    error = patch_error(fast, base, coarse.detach(), refined.detach(), options.power)
    return images + _score_loss(score, error, options)


def _prepare_joint(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> StageInput:
    return StageInput({"lr": lr, **_targets(fast, lr, hr, options)})


def _joint_loss(fast: MaskGuided, given: StageInput, options: Options) -> Tensor:
    """The pixel loss on the whole image, where the patches are refined, at this keep, whose coarse image is farthest
    from the target."""
    base = fast.run_base(given.crops["lr"])
    target = given.crops.get("dense", given.crops["hr"])
    index = select(patch_error(fast, base, fast.coarse_image(base), target), base.grid.k(fast.keep))
    return _to_targets(fast.refine(base, index), given, options)


def _pixels(fast: MaskGuided, grid: Grid, index: Tensor) -> Tensor:
    """(B, 1, s*H, s*W), bool, whole patches: the HR pixels of the patches of `index`."""
    side = grid.patch_size * fast.scale
    return per_pixel(grid.mask(index), side)[:, None]


def _score_loss(score: Tensor, error: Tensor, options: Options) -> Tensor:
    """Supervision of the score (B, rows, cols) by the error that refining takes from each patch."""
    if options.head_loss == "l1":
        return F.l1_loss(score, error / error.amax((1, 2), keepdim=True).clamp_min(1e-12))
    return rank_loss(score.flatten(1), error.flatten(1))


def _masked(fast: MaskGuided, score: Tensor, coarse: Tensor, refined: Tensor, hr: Tensor) -> Tensor:
    """L1 of the image in which each patch is as much refined as its score says."""
    side = fast.patch_size * fast.scale
    mask = per_pixel(score.clamp(0, 1), side, (hr.shape[2], hr.shape[3]))
    return F.l1_loss(coarse + mask[:, None] * (refined - coarse), hr)


def _live(fast: MaskGuided, state: State, names: Sequence[str], others: dict[str, Tensor]) -> StageInput:
    kinds = fast.split.kinds
    shared = {name: state[name] for name in names if kinds.get(name) == "constant"}
    return StageInput({**{_STATE + name: state[name] for name in names if name not in shared}, **others}, shared)


def _targets(fast: MaskGuided, lr: Tensor, hr: Tensor, options: Options) -> dict[str, Tensor]:
    needed = options.distill or options.pixel_loss == "psnr"
    return {"hr": hr, **({"dense": dense_image(fast, lr)} if needed else {})}


def _to_targets(image: Tensor, given: StageInput, options: Options, mask: Tensor | None = None) -> Tensor:
    """The pixel loss to the HR image and to what the dense network, as it was given, makes of LR; where `mask` is 1."""
    height, width = given.crops["hr"].shape[2:]
    image = image[:, :, :height, :width]
    weight = torch.ones_like(image[:, :1]) if mask is None else mask[:, :, :height, :width]

    if options.pixel_loss == "psnr":
        dense = given.crops["dense"]
        lost = (luma(image - dense).square() * weight).mean((1, 2, 3))
        own = luma(dense - given.crops["hr"]).square().mean((1, 2, 3))
        return torch.log1p(lost / (own + _LEAST_ERROR)).mean()

    def distance(target: Tensor) -> Tensor:
        return ((image - target).abs().mean(1, keepdim=True) * weight).sum() / weight.sum()

    whole = distance(given.crops["hr"]) * (1 - options.distill)
    return whole + distance(given.crops["dense"]) * options.distill if options.distill else whole


def _parameters(*parts: nn.Module | None) -> list[nn.Parameter]:
    return [parameter for part in parts if part is not None for parameter in part.parameters()]


def _of_images(fast: MaskGuided) -> list[nn.Parameter]:
    """What makes the coarse image and the refined one."""
    return _parameters(fast.model, fast.coarse_tail, fast.refine_tail, fast.skip)


def _of_refine(fast: MaskGuided) -> list[nn.Parameter]:
    """What blocks n+1..N and the tail use and the base does not, found by asking autograd."""
    split, model = fast.split, fast.model
    with untouched(model), torch.enable_grad():
        model.requires_grad_(True)
        state = split.prefix(split.example(*split.probe.round_size))
        in_base = _touched(sum(v.sum() for v in state.values() if v.requires_grad), model)
        detached = {name: value.detach() for name, value in state.items()}
        in_refine = _touched(split.rest(detached).sum(), model)
    model.requires_grad_(False)
    return [p for p in model.parameters() if id(p) in in_refine - in_base]


def _touched(value: Any, model: nn.Module) -> set[int]:
    parameters = list(model.parameters())
    if not isinstance(value, Tensor):
        return set()
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


@dataclass(frozen=True)
class _Stage:
    """What a stage trains, and by which loss."""

    parameters: Callable[[MaskGuided], list[nn.Parameter]]
    loss: Callable[[MaskGuided, StageInput, Options], Tensor]
    prepare: Callable[[MaskGuided, Tensor, Tensor, Options], StageInput] | None = None
    """What the stage keeps frozen, of LR and HR crops; None: too little to be kept."""


_STAGES: dict[str, _Stage] = {
    "coarse": _Stage(lambda fast: _parameters(fast.coarse_tail, fast.skip), _coarse_loss, _prepare_coarse),
    "refine": _Stage(
        lambda fast: _of_refine(fast) + _parameters(fast.refine_tail, fast.context), _refine_loss, _prepare_refine
    ),
    "head": _Stage(lambda fast: _parameters(fast.head), _head_loss, _prepare_head),
    "all": _Stage(_of_images, _all_loss),
    "end": _Stage(lambda fast: _of_images(fast) + _parameters(fast.head), _end_loss),
    "joint": _Stage(lambda fast: _of_images(fast) + _parameters(fast.context), _joint_loss, _prepare_joint),
}
REUSABLE = tuple(name for name, stage in _STAGES.items() if stage.prepare)
"""Stages of which much is frozen: what `prepare` makes of a crop may be kept."""
