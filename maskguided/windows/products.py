"""Products over all pixels of the map.

Transposed attention, as Restormer and DAT have it, in which channels attend to channels:

    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)  # (B, heads, C, h*w)
    attention = q @ k.mT                                   # (B, heads, C, C)

(or einsum("bhcn,bhdn->bhcd", q, k), or a bmm of (B*heads, C, h*w)).

And a mean that weighs each pixel, as in GCNet and MIRNetv2:

    weights = mask.flatten(2).softmax(-1)                  # (B, 1, h*w)
    context = x.flatten(2) @ weights.mT                    # (B, C, 1)

Norms, softmax and products are sums over the pixels: on windows, over those of a window alone, here over those of all
windows of an image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reductions import precise


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

    def product(self, func: Any, args: tuple[Any, ...]) -> Tensor | None:
        """`func(*args)` where that is a product of normalised (B*k, ..., C, h*w) and (B*k, ..., h*w, C), summed over
        all windows of an image; None of anything else. The batch may hold heads, too."""
        a, b = _factors(getattr(func, "__name__", ""), args)
        if a is None or b is None or min(a.dim(), b.dim()) < 3 or a.shape[0] % self.windows:
            return None
        for channels, pixels, counts in self.waiting:
            if channels in (None, a.shape[-2]) and pixels == a.shape[-1] == b.shape[-2]:
                self.waiting = []
                apart = a.reshape(self.windows, -1, *a.shape[1:])  # heads from windows
                each = torch.matmul(_counted(apart, counts).flatten(0, 1), b)
                return self._of_image(each.reshape(self.windows, -1, *each.shape[1:])).flatten(0, 1)
        return None

    def _of_image(self, each: Tensor) -> Tensor:
        """The sum over the windows of an image, (B*k, ...), for each of them."""
        return each.reshape(-1, self.k, *each.shape[1:]).sum(1).repeat_interleave(self.k, dim=0)


def _factors(name: str, args: tuple[Any, ...]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The matrices that a function of this name multiplies; None if it does something else.

    >>> a, b = torch.rand(2, 3, 4, 9), torch.rand(2, 3, 5, 9)
    >>> left, right = _factors("einsum", ("b h c n, b h d n -> b h c d", a, b))
    >>> bool(torch.allclose(left @ right, torch.einsum("bhcn,bhdn->bhcd", a, b)))
    True
    """
    if name in ("matmul", "bmm") and len(args) == 2:
        return args[0], args[1]
    if name == "einsum" and len(args) == 3:
        left, _, others = args[0].replace(" ", "").partition(",")
        right, _, out = others.partition("->")
        if left[:-2] == right[:-2] == out[:-2] and left[-1:] == right[-1:] and out[-2:] == left[-2:-1] + right[-2:-1]:
            return args[1], args[2].mT
    return None, None


def _counted(x: Tensor, counts: Tensor | None) -> Tensor:
    """(B*k, ..., h*w) with zeros where a pixel does not count; `counts` is (B*k, 1, h*w)."""
    return x if counts is None else x * counts.view(len(x), *[1] * (x.dim() - 2), -1)
