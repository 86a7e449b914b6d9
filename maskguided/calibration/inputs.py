"""Images as users give them to `calibrate`: checked, and brought to where the network is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..errors import ArgumentError
from ..guided import MaskGuided
from ..metrics import SMALLEST
from ..probing.modules import first_weight

_LEAST, _MOST = -0.5, 1.5
"""Values beyond which an image is in no way one in 0..1."""


def check_images(fast: MaskGuided, images: Iterable[Any]) -> Iterable[Any]:
    """`images`, if they are several; one pair (LR, HR) looks like two LR images."""
    if not isinstance(images, Iterable):
        raise ArgumentError(f"calibrate: images of type {type(images).__name__}; give a list of LR images, or of pairs")
    if isinstance(images, tuple) and len(images) == 2 and all(isinstance(image, Tensor) for image in images):
        lr, hr = (tuple(image.shape[-2:]) for image in images)
        if fast.scale > 1 and hr == tuple(side * fast.scale for side in lr):
            raise ArgumentError(f"calibrate: images of {lr} and {hr} are one pair; give a list of pairs, [(lr, hr)]")
    return images


def as_pair(fast: MaskGuided, image: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """LR and HR image as (1, C, H, W), where the network is."""
    given = image if isinstance(image, tuple | list) else (image,)  # a DataLoader makes lists of pairs
    if not 1 <= len(given) <= 2:
        raise ArgumentError(
            f"calibrate: a {type(image).__name__} of {len(given)} for an image; give LR alone, or a pair (LR, HR)"
        )
    for x in given:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentError(
                f"calibrate: an image of type {kind}; it takes LR tensors (C, H, W), floats in 0..1, or "
                "pairs (LR, HR), in a list; `maskguided calibrate` reads files"
            )
    like = first_weight(fast)
    lr, *rest = ((x[None] if x.dim() == 3 else x).to(like.device, like.dtype) for x in given)
    hr = rest[0] if rest else None
    channels = fast.split.probe.in_channels
    expected = (1, fast.split.probe.out_channels, lr.shape[-2] * fast.scale, lr.shape[-1] * fast.scale)
    if lr.dim() != 4 or tuple(lr.shape[:2]) != (1, channels) or (hr is not None and hr.shape != expected):
        shapes = f"{tuple(lr.shape)}" + ("" if hr is None else f" and {tuple(hr.shape)}")
        raise ArgumentError(
            f"calibrate: an image of shape {shapes}; it takes ({channels}, H, W) or (1, {channels}, H, W), "
            f"HR images x{fast.scale}"
        )
    if not all(bool(x.isfinite().all()) for x in (lr, *rest)):
        raise ArgumentError("calibrate: an image with values that are no numbers (NaN or infinite)")
    if min(lr.shape[2:]) < SMALLEST:
        raise ArgumentError(
            f"calibrate: an image of {lr.shape[2]}x{lr.shape[3]} LR pixels; PSNR leaves its border out, so use "
            f"images of {SMALLEST}x{SMALLEST} LR pixels or more"
        )
    for x in (lr, *rest):
        low, high = float(x.min()), float(x.max())
        if low < _LEAST or high > _MOST:
            raise ArgumentError(f"calibrate: an image of {low:g} to {high:g}; images are floats in 0..1")
    return lr.contiguous(memory_format=fast.split.memory_format), hr
