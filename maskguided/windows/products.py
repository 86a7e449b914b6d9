"""Products over all pixels of the map.

Transposed attention, as Restormer and DAT have it, in which channels attend to channels:

    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)  # (B, heads, C, h*w)
    attention = q @ k.mT                                   # (B, heads, C, C)

And a mean that weighs each pixel, as in GCNet and MIRNetv2:

    weights = mask.flatten(2).softmax(-1)                  # (B, 1, h*w)
    context = x.flatten(2) @ weights.mT                    # (B, C, 1)

Norms, softmax and products are sums over the pixels: on windows, over those of a window alone, here over those of all
windows of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .reductions import precise

PRODUCTS = ("matmul", "bmm")


class _Waiting(NamedTuple):
    """A normalised map that has not been multiplied yet."""

    channels: int | None
    """None: those of its product are of another map."""
    pixels: int
    counts: Tensor | None


class Products:
    """Normalises maps of windows over their pixels, and multiplies what was normalised.

    Args:
        k: windows of an image.
        windows: of all images, B*k.
    """

    def __init__(self, k: int, windows: int) -> None:
        self.k, self.windows = k, windows
        self.waiting: list[_Waiting] = []

    def normalised(self, x: Tensor, eps: float, counts: Tensor | None) -> Tensor:
        """F.normalize(x, dim=-1) of (B*k, ..., C, h*w). `counts` (B*k, 1, h*w), bool: the pixels to sum, if not all."""
        total = self._of_image(_counted(x.to(precise(x)).square(), counts).sum(-1, keepdim=True))
        self.waiting = [*self.waiting, _Waiting(x.shape[-2], x.shape[-1], counts)]
        return x / total.sqrt().clamp_min(eps).to(x.dtype)

    def softmax(self, x: Tensor, counts: Tensor | None) -> Tensor:
        """x.softmax(-1) of (B*k, C, h*w); `counts` as above."""
        largest = x.amax(-1, keepdim=True)  # of each window, then of each image
        largest = largest.reshape(-1, self.k, *largest.shape[1:]).amax(1).repeat_interleave(self.k, dim=0)
        powers = (x - largest).to(precise(x)).exp()
        self.waiting = [*self.waiting, _Waiting(None, x.shape[-1], counts)]
        return (powers / self._of_image(_counted(powers, counts).sum(-1, keepdim=True))).to(x.dtype)

    def product(self, func: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
        """a @ b, summed over all windows where that is of normalised (B*k, ..., C, h*w) and (B*k, ..., h*w, C)."""
        if a.shape[0] == self.windows and min(a.dim(), b.dim()) > 2:
            for channels, pixels, counts in self.waiting:
                if channels in (None, a.shape[-2]) and pixels == a.shape[-1] == b.shape[-2]:
                    self.waiting = []
                    return self._of_image(func(_counted(a, counts), b))
        return func(a, b)

    def _of_image(self, each: Tensor) -> Tensor:
        """The sum over the windows of an image, (B*k, ...), for each of them."""
        return each.reshape(-1, self.k, *each.shape[1:]).sum(1).repeat_interleave(self.k, dim=0)


def _counted(x: Tensor, counts: Tensor | None) -> Tensor:
    """(B*k, ..., h*w) with zeros where a pixel does not count; `counts` is (B*k, 1, h*w)."""
    return x if counts is None else x * counts.view(len(x), *[1] * (x.dim() - 2), -1)
