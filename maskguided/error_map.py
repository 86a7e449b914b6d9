"""How far images are from each other, patch by patch, and from what the network that was given makes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import BaseOutput
from .guided import MaskGuided
from .head import pool
from .metrics import BT601
from .patches import continued
from .probing.modules import first_weight
from .probing.probe import image_of
from .probing.untouched import in_eval_mode


def luma(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W): Y of BT.601 for RGB, up to a constant; the mean of other channels."""
    if image.shape[1] != 3:
        return image.mean(1, keepdim=True)
    weights = torch.tensor(BT601, device=image.device, dtype=image.dtype) / 255
    return (image * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


@torch.no_grad()
def dense_image(fast: MaskGuided, lr: Tensor) -> Tensor:
    """What the network that was given, before any training, makes of `lr` in eval mode: (B, C', s*H, s*W)."""
    given = fast.given
    like = first_weight(given)  # it may have stayed behind on another device
    with in_eval_mode(given):
        image = image_of(given(fast.accepted(lr).clone().to(like)))  # a network may change its input
    return image[:, :, : lr.shape[2] * fast.scale, : lr.shape[3] * fast.scale].to(lr)


@torch.no_grad()
def is_rough(fast: MaskGuided, lr: Tensor, dense: Tensor) -> bool:
    """Whether the coarse image of `lr` (B, C, H, W) is farther from `dense`, see `dense_image`, than a bicubic one is.

    Blocks of some networks cannot be left out as they are; their coarse image is none before it is calibrated.
    """
    if dense.shape[1] != lr.shape[1]:
        return False
    with in_eval_mode(fast):
        coarse = fast.coarse_image(fast.run_base(lr))
    bicubic = F.interpolate(lr.float(), size=dense.shape[2:], mode="bicubic").clamp(0, 1)
    ours, theirs = (float((x.float() - dense.float()).square().mean()) for x in (coarse, bicubic))
    return ours > theirs


def patch_error(fast: MaskGuided, base: BaseOutput, a: Tensor, b: Tensor, power: int = 2) -> Tensor:
    """Mean of |a - b|^power on Y over each patch: two images of the output's size -> (B, rows, cols), float32."""
    error = luma(a.float() - b.float()).abs().pow(power)
    grid = base.grid
    whole = continued(error, grid.height * fast.scale, grid.width * fast.scale)
    return pool(whole, grid.patch_size * fast.scale).squeeze(1)
