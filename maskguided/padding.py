"""Continue an image to the sizes that a network works on, the way the network does it itself."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .probing import Probe, image_of, untouched

Padding = Literal["reflect", "symmetric", "replicate", "constant"]
"""How pixels beyond the border look: mirrored (with the border pixel twice: symmetric), repeated, or zero."""

_MODES: tuple[Padding, ...] = ("reflect", "symmetric", "replicate", "constant")


def pad_to(x: Tensor, multiple: int, mode: Padding) -> Tensor:
    """`x` (B, C, H, W) continued to the right and below to multiples of `multiple`; itself where it is one.

    >>> pad_to(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 2, "reflect").tolist()
    [[[[1.0, 2.0, 3.0, 2.0], [1.0, 2.0, 3.0, 2.0]]]]
    """
    below, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    if not (below or right):
        return x
    room = x.shape[2] - (mode == "reflect"), x.shape[3] - (mode == "reflect")
    if mode in ("reflect", "symmetric") and (below > room[0] or right > room[1]):
        mode = "replicate"  # the image is too small to be mirrored
    if mode != "symmetric":
        return F.pad(x, (0, right, 0, below), mode=mode)
    x = torch.cat([x, x.flip(2)[:, :, :below]], dim=2)
    return torch.cat([x, x.flip(3)[:, :, :, :right]], dim=3)


def find_padding(model: nn.Module, probe: Probe, multiple: int) -> Padding | None:
    """How `model` itself pads other sizes than multiples of `multiple`; None where it does something else.

    The network's image at such a size is compared with that of the image padded outside of it.
    """
    side = -(-probe.least // multiple) * multiple
    sizes = [(side + 1, side + multiple - 1), (side + multiple // 2, side + multiple)]
    step = probe.multiple_of
    sizes = [(h + -h % step, w + -w % step) for h, w in sizes]
    with untouched(model):
        for mode in _MODES:
            if all(_same(model, probe, size, multiple, mode) for size in sizes):
                return mode
    return None


def _same(model: nn.Module, probe: Probe, size: tuple[int, int], multiple: int, mode: Padding) -> bool:
    x = probe.input(*size)
    try:
        own = image_of(model(x.clone()))
        padded = image_of(model(pad_to(x, multiple, mode)))
    except Exception:  # a size that the network does not take after all
        return False
    cropped = padded[:, :, : own.shape[2], : own.shape[3]]
    return bool(torch.allclose(own, cropped, rtol=1e-4, atol=1e-5))
