"""Means along the rows, or the columns, of a map, as coordinate attention has them.

On windows such a mean would end at a window's edge. Here it is of all the pixels of that row which refined windows of
the image have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..patches import Chosen, known
from .reductions import precise


class Lines:
    """Takes means along rows and columns of maps, of which the windows of some patches are given.

    Args:
        chosen: the patches whose windows are at work.
    """

    def __init__(self, chosen: Chosen) -> None:
        self.chosen, self.grid = chosen, chosen.grid
        self._places: list[tuple[tuple[int, int], Tensor]] = []
        """By length and dimension, (B*k*n,) long: each row (or column) of the windows among those of all maps."""

    def means(self, x: Tensor, dim: int) -> Tensor:
        """Of windows (B*k, C, h, w) the means over dimension 3, (B*k, C, h), or over 2, (B*k, C, w)."""
        (count, channels, height, width), exact = x.shape, precise(x)
        length = height if dim == 3 else width
        counts = x.new_ones(count, 1, height, width, dtype=exact)
        if self.grid.overlaps:
            counts = self.chosen.owned(height, width).to(exact)
        sums = torch.cat([(x * counts).sum(dim), counts.sum(dim)], 1)
        each = sums.transpose(1, 2).reshape(-1, channels + 1)
        place = known(self._places, (length, dim), lambda: self._find_places(length, dim))
        whole = each.new_zeros(len(self.chosen.index) * self._of_map(length, dim), channels + 1)
        whole = whole.index_add(0, place, each).index_select(0, place).view(count, length, -1).transpose(1, 2)
        total, number = whole[:, :channels], whole[:, channels:]
        # A window that was moved inward may have rows of which nobody refines any pixel.
        return torch.where(number > 0, total / number.clamp_min(1), x.mean(dim)).to(x.dtype)

    def _of_map(self, length: int, dim: int) -> int:
        """How many rows (columns) a map has whose windows have `length`."""
        return (self.grid.height if dim == 3 else self.grid.width) * length // self.grid.window[3 - dim]

    def _find_places(self, length: int, dim: int) -> Tensor:
        corner = self.chosen.corners[3 - dim] * length // self.grid.window[3 - dim]
        rows, images = (torch.arange(n, device=corner.device) for n in (length, len(corner)))
        first = images[:, None] * self._of_map(length, dim) + corner
        return (first[..., None] + rows).flatten()
