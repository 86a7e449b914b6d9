"""Attention in shifted windows, on the windows of some patches.

Every second block of a Swin transformer rolls its map by half an attention window, attends within windows, under a mask
that parts what only the roll has brought together, and rolls back. A roll of cut-out windows, each for itself, keeps
neighbours from seeing each other. Here a run of refined patches, side by side, rolls as one: first along its rows, then
along its columns, and back the other way round. Where all patches are refined that is the roll of the map.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..patches import Grid, known

Size = tuple[int, int]
_FAR = 1 << 20
"""More rows, or columns, than a map has."""


class _Moved(NamedTuple):
    """Where a roll has brought the pixels of windows (n, h, w)."""

    shifts: Size
    source: Tensor
    """(n*h*w,) long: the place of each among the pixels of all windows before."""
    way: Tensor
    """(n, h, w) long, a number for each way in which pixels were moved: those that differ in it are strangers."""


class Shifts:
    """Rolls windows, and masks attention to fit.

    Args:
        grid: the patches.
        index: (B, k), the patches whose windows are at work.
        owner: (B, count) long: the number of the window of each patch, counted through the batch; -1 for none.
    """

    def __init__(self, grid: Grid, index: Tensor, owner: Tensor) -> None:
        self.grid, self.index = grid, index
        self.owner = owner.view(-1, grid.rows, grid.cols)
        self.moved: list[tuple[tuple[Size, Size], _Moved]] = []
        self.parted: list[tuple[tuple[Size, int, int, int, int], Tensor]] = []
        self.pending: list[_Moved] = []

    def rolled(self, x: Tensor, shifts: Size, dims: Size) -> Tensor:
        """torch.roll(x, shifts, dims) of windows (n, h, w, C), dims (1, 2), or (n, C, h, w), dims (2, 3).

        A shift below zero is the way to attention, one above zero the way back.
        """
        last = x if dims == (1, 2) else x.permute(0, 2, 3, 1)
        key = (last.shape[1], last.shape[2]), shifts
        moved = known(self.moved, key, lambda: self._moved(*key))
        self.pending = [*self.pending, moved] if min(shifts) < 0 else []
        rolled = last.reshape(-1, last.shape[3]).index_select(0, moved.source).view(last.shape)
        return rolled if dims == (1, 2) else rolled.permute(0, 3, 1, 2)

    def masked(self, attention: Any, mask: Any) -> Tensor | None:
        """What to add instead of `mask` to `attention` of rolled windows; None where the two are no such things.

        (n, a, heads, N, M) and (a, 1, N, M), or (n*a, heads, N, M) and (n*a, 1, N, M): a attention windows of N pixels
        in each window. M is N, or less where squares of pixels are looked at as one (SRFormer: N / 4). Several rolls
        that wait for their masks get them in turn.
        """
        if not isinstance(attention, Tensor) or not isinstance(mask, Tensor) or mask.dim() < 4:
            return None
        moved, (tokens, seen) = self.pending[0], attention.shape[-2:]
        number, height, width = moved.way.shape
        each = height * width // tokens
        one = (number, each) if attention.dim() == 5 else (number * each,)
        if attention.shape[:-3] != one:
            return None
        if mask.shape[-4:] != (one[-1], 1, tokens, seen) or mask.numel() != one[-1] * tokens * seen:
            return None
        high, wide = (2 * abs(shift) for shift in moved.shifts)
        if high * wide != tokens:  # no shift by half of a window, so this is taken for a square
            high = wide = int(tokens**0.5 + 0.5)
        side = int((tokens / seen) ** 0.5 + 0.5)  # of the squares
        if high * wide != tokens or height % high or width % wide or side**2 * seen != tokens or high % side:
            return None
        self.pending = self.pending[1:] or self.pending

        def find() -> Tensor:
            ways = moved.way.view(number, height // high, high, width // wide, wide).transpose(2, 3)
            queries, keys = (w.reshape(-1, w.shape[-2] * w.shape[-1]) for w in (ways, ways[..., ::side, ::side]))
            return queries[:, :, None] != keys[:, None, :]

        apart = known(self.parted, (moved.shifts, tokens, seen, height, width), find).view(*one, 1, tokens, seen)
        return torch.where(apart, mask.min(), mask.new_zeros(()))

    def _moved(self, size: Size, shifts: Size) -> _Moved:
        (height, width), device = size, self.index.device
        (row_of, y, inner_y), (col_of, x, inner_x) = (self._along(axis, size[axis], shifts[axis]) for axis in (0, 1))
        if min(shifts) < 0:  # along the rows first: those of the window that a column brings pixels from
            window, row, col = col_of[row_of], y[..., None], x[row_of]
        else:
            window, row, col = row_of[col_of].mT, y[col_of].mT, x[:, None]
        itself = torch.arange(self.index.numel() * height * width, device=device).view(-1, height, width)
        source = (window * height + row) * width + col
        if self.grid.overlaps:
            source = torch.where(inner_y[..., None] & inner_x[:, None], source, itself)
            source = source.flatten()[self._owners(size)].view_as(itself)
        down, right = (place.flatten()[source] - place for place in self._places(size))
        return _Moved(shifts, source.flatten(), down * _FAR + right)

    def _along(self, axis: int, length: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each row (axis 0) or column (axis 1) of each window, (n, length) each: the window that it comes from, its
        row there, and whether it belongs to the window's own patch. Rows of a halo do not: they stay where they are."""
        owner = self.owner.transpose(1, 2) if axis == 0 else self.owner  # (B, lines, cells of a line)
        begin, end = _runs(owner >= 0)
        image = torch.arange(len(owner), device=owner.device)[:, None, None]
        row, col = (self.index // self.grid.cols)[..., None], (self.index % self.grid.cols)[..., None]
        line, cell = (col, row) if axis == 0 else (row, col)
        side = (self.grid.height, self.grid.width)[axis]
        patch, whole = (self._scaled(axis, length, n) for n in (self.grid.patch_size, side))
        start = begin[image, line, cell] * patch
        run = ((end[image, line, cell] + 1) * patch).clamp_max(whole) - start
        place = self._corner(axis, length, cell) + torch.arange(length, device=owner.device)  # (B, k, length)
        wanted = start + (place - shift - start) % run
        source = wanted // patch
        found = wanted - self._corner(axis, length, source)
        return owner[image, line, source].flatten(0, 1), found.flatten(0, 1), (place // patch == cell).flatten(0, 1)

    def _owners(self, size: Size) -> Tensor:
        """Of each pixel of each window, (n*h*w,): its place in the window of the patch that it is of, if any."""
        down, right = self._places(size)
        patch = self._scaled(0, size[0], self.grid.patch_size)
        image = torch.arange(len(self.index), device=down.device).repeat_interleave(self.index.shape[1])
        cell = down // patch, right // patch
        window = self.owner[image[:, None, None], cell[0], cell[1]]
        row, col = ((at - self._corner(n, size[n], cell[n])) for n, at in enumerate((down, right)))
        itself = torch.arange(down.numel(), device=down.device).view_as(down)
        return torch.where(window < 0, itself, (window * size[0] + row) * size[1] + col).flatten()

    def _places(self, size: Size) -> tuple[Tensor, Tensor]:
        """Row and column in the image of each pixel of each window, (n, h, w)."""
        cells = self.index // self.grid.cols, self.index % self.grid.cols
        tops, lefts = (self._corner(n, size[n], cells[n]).view(-1, 1, 1) for n in (0, 1))
        rows, cols = (torch.arange(length, device=self.index.device) for length in size)
        return (tops + rows[:, None]).expand(-1, *size), (lefts + cols).expand(-1, *size)

    def _corner(self, axis: int, length: int, cell: Tensor) -> Tensor:
        """Where windows of that length begin."""
        return self.grid.corner(axis, cell) * length // self.grid.window[axis]

    def _scaled(self, axis: int, length: int, pixels: Any) -> Any:
        """LR pixels in those of windows of that length."""
        return pixels * length // self.grid.window[axis]


def _runs(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last cell of the run of chosen cells that each cell of a line, (B, lines, cells), is in.

    >>> begin, end = _runs(torch.tensor([[[True, True, False, True]]]))
    >>> begin[chosen := torch.tensor([[[True, True, False, True]]])], end[chosen]
    (tensor([0, 0, 3]), tensor([1, 1, 3]))
    """
    cells = chosen.shape[-1]
    number = torch.arange(cells, device=chosen.device)
    before = number <= number[:, None]  # (cell, other)
    gap = ~chosen[..., None, :]
    return _largest((gap & before) * (number + 1)), cells - 1 - _largest((gap & before.mT) * (cells - number))


def _largest(x: Tensor) -> Tensor:
    """x.amax(-1), which per_image.py would look into."""
    return x.gather(-1, x.argmax(-1, keepdim=True)).squeeze(-1)
