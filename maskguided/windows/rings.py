"""The pixels around windows: in which order they stand, where they come from, and windows put into them."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import Sides


def framed(pixels: Tensor, ring: Tensor, sides: Sides) -> Tensor:
    """Windows (n, h, w, C) in a frame of the pixels of their rings, (n * pixels, C) in the order of `around`."""
    left, right, top, bottom = sides
    count, height, width, channels = pixels.shape
    shapes = ((top, left + width + right), (bottom, left + width + right), (height, left), (height, right))
    lengths = [high * wide for high, wide in shapes]
    pieces = torch.split(ring.view(count, -1, channels), lengths, dim=1)
    above, below, before, behind = (p.reshape(count, *s, channels) for p, s in zip(pieces, shapes, strict=True))
    if torch.compiler.is_compiling() or torch.is_grad_enabled():  # writing to slices is slow in a graph
        return torch.cat([above, torch.cat([before, pixels, behind], dim=2), below], dim=1)
    wide = pixels.new_empty(count, top + height + bottom, left + width + right, channels)
    inner = wide[:, top : top + height]
    for place, what in (
        (inner[:, :, left : left + width], pixels),
        (wide[:, :top], above),
        (wide[:, top + height :], below),
        (inner[:, :, :left], before),
        (inner[:, :, left + width :], behind),
    ):
        place.copy_(what)
    return wide


def around(height: int, width: int, sides: Sides, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel added to a window, seen from its corner: above, below, left, right."""
    left, right, top, bottom = sides
    rows = torch.arange(-top, height + bottom, device=device)[:, None].expand(-1, width + left + right)
    cols = torch.arange(-left, width + right, device=device).expand_as(rows)
    inner = slice(top, top + height)

    def in_order(number: Tensor) -> Tensor:
        within = number[inner]
        parts = (number[:top], number[top + height :], within[:, :left], within[:, left + width :])
        return torch.cat([part.flatten() for part in parts])

    return in_order(rows), in_order(cols)


def inside(position: Tensor, length: int, mode: str) -> Tensor:
    """The row (or column) that padding puts at `position`, which may lie beyond the map's `length`; the nearest, for
    zeros."""
    if mode == "reflect":
        position = (length - 1) - ((length - 1) - position.abs()).abs()
    return position.clamp(0, length - 1)
