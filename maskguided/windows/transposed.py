"""Transposed attention, as Restormer and DAT have it: channels attend to channels, over all pixels of the map.

    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)  # (B, heads, C, h*w)
    attention = q @ k.mT                                   # (B, heads, C, C)

Norms and product are sums over the pixels: on windows, over those of a window alone, here over those of all windows of
an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .reductions import precise

PRODUCTS = ("matmul", "bmm")


class _Waiting(NamedTuple):
    """A normalised map that has not been multiplied yet."""

    channels: int
    pixels: int
    counts: Tensor | None


class TransposedAttention:
    """Normalises maps of windows, and multiplies what was normalised.

    Args:
        k: windows of an image.
        windows: of all images, B*k.
    """

    def __init__(self, k: int, windows: int) -> None:
        self.k, self.windows = k, windows
        self.waiting: list[_Waiting] = []

    def normalised(self, x: Tensor, eps: float, counts: Tensor | None) -> Tensor:
        """F.normalize(x, dim=-1) of (B*k, ..., C, h*w). `counts` (B*k, 1, h*w), bool: the pixels to sum, if not all."""
        if counts is not None:
            counts = counts.view(len(x), *[1] * (x.dim() - 2), -1)
        squares = x.to(precise(x)).square()
        total = self._of_image((squares if counts is None else squares * counts).sum(-1, keepdim=True))
        self.waiting = [*self.waiting, _Waiting(x.shape[-2], x.shape[-1], counts)]
        return x / total.sqrt().clamp_min(eps).to(x.dtype)

    def product(self, func: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
        """a @ b, summed over all windows where that is of normalised (B*k, ..., C, h*w) and (B*k, ..., h*w, C)."""
        if a.shape[0] == self.windows and min(a.dim(), b.dim()) > 2:
            for channels, pixels, counts in self.waiting:
                if a.shape[-2:] == (channels, pixels) and b.shape[-2] == pixels:
                    self.waiting = []
                    return self._of_image(func(a if counts is None else a * counts, b))
        return func(a, b)

    def _of_image(self, each: Tensor) -> Tensor:
        """The sum over the windows of an image, (B*k, ...), for each of them."""
        return each.reshape(-1, self.k, *each.shape[1:]).sum(1).repeat_interleave(self.k, dim=0)
