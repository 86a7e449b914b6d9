"""Which stages of training there are, how their losses are put together, and what is refused before one begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import ArgumentError
from ..guided import MaskGuided
from ..values import as_number

Stage = Literal["coarse", "refine", "head", "all", "end", "joint"]
STAGES: tuple[Stage, ...] = get_args(Stage)
PAPER: tuple[Stage, ...] = ("all", "refine", "head")
"""The paper's three steps."""
RANKING = ("head", "end")
"""Stages in which the mask head learns which patches come first."""
HeadLoss = Literal["rank", "l1", "none"]
PixelLoss = Literal["l1", "psnr"]


@dataclass(frozen=True)
class Options:
    """How the losses are put together."""

    distill: float = 0.5
    """Share, 0..1, of the dense network's image (as it was before any training) in the target of coarse, refine and
    joint; the rest is the HR image. 0: the paper."""
    head_loss: HeadLoss = "rank"
    """Supervision of the head. "rank": pairs of patches in the wrong order cost what confusing them loses; "l1": the
    paper, L1 to the normalised error map; "none": the image's own loss through a soft mask (ablation)."""
    pixel_loss: PixelLoss = "l1"
    """Of coarse, refine and joint. "l1": distance to the target. "psnr": the logarithm of how much more error on Y
    there is than in the dense image, which is what PSNR below dense measures (`distill` has no say then)."""

    def __post_init__(self) -> None:
        if not 0 <= as_number(self.distill) <= 1:
            raise ArgumentError(f"distill={self.distill!r}: the dense image's share in the target; use 0 to 1")
        if self.pixel_loss not in ("l1", "psnr"):
            raise ArgumentError(f"pixel_loss={self.pixel_loss!r}; use 'l1' or 'psnr'")
        if self.head_loss not in ("rank", "l1", "none"):
            raise ArgumentError(f"head_loss={self.head_loss!r}; use 'rank', 'l1' (the paper) or 'none'")

    @property
    def power(self) -> int:
        """Of the error that supervises the head: the paper's is absolute."""
        return 1 if self.head_loss == "l1" else 2


def check_stage(fast: MaskGuided, stage: str) -> None:
    """Refuse a stage that is none, or that this network has nothing for."""
    if stage not in STAGES:
        raise ArgumentError(
            f"stage={stage!r}; use one of {', '.join(STAGES)} (the command takes paper and coarse,head, too; call fit "
            "once for each)"
        )
    if stage == "coarse" and fast.coarse_tail is None and fast.skip is None:
        raise ArgumentError(
            "stage='coarse': with merge='features' there is no coarse tail to train, and with skip='identity' nothing "
            "else; wrap with skip='3x3', or with merge='image', and coarse_tail='light', 'deep' or 'residual' where "
            "the network's tail is heavy"
        )


def check_supervised(fast: MaskGuided, *stages: str) -> None:
    """Refuse to train the head first while refining gains nothing: with a light tail that was not fitted yet."""
    first = next((stage for stage in stages if stage != "coarse"), None)
    if first == "head" and fast.refine_tail is not None and fast.refine_tail.is_bilinear:
        raise ArgumentError(
            "stage='head' with refine_tail='light': that tail is bilinear as yet, so refining makes patches worse; "
            "calibrate, or train stage refine, first"
        )


def too_small(fast: MaskGuided, stage: str, crop: int, options: Options) -> str | None:
    """A warning where crops hold one patch, so that the head has nothing to rank; else None."""
    if stage not in RANKING or options.head_loss == "none" or crop > fast.patch_size:
        return None
    return (
        f"stage={stage!r}: a crop of {crop} LR pixels is one patch of patch_size={fast.patch_size}, and the head "
        f"learns to rank several, so it learns nothing; use a larger crop, as {3 * fast.patch_size}"
    )
