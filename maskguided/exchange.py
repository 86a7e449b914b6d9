"""Windows that see their neighbours: at each convolution they exchange borders instead of padding with zeros.

A convolution on windows that were cut apart finds nothing beyond their borders. A halo helps, but is computed by both
neighbours, block after block, and thrown away. Here every convolution on windows first copies the pixels that it is
about to look at from the windows that own them, so nothing is computed twice: refining all patches is then the whole
network exactly, at halo 0. Beyond the border of the image, and where the neighbour is not refined, it sees what it
would see alone: zeros, mostly.

    with Exchange(grid, index, gathered):
        windows = split.body(windows)

What looks beyond a pixel in another way than these (attention, unfold, padding by hand) still ends at the window's
border; `Split.exchanges` tells whether a network has such a thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .patches import Grid

Sides = tuple[int, int, int, int]
"""Pixels added at the left, right, top and bottom, as torch.nn.functional.pad takes them."""
_CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_PAD = ("input", "pad", "mode", "value")
_INTERPOLATE = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
_REACH = {"bilinear": 1, "bicubic": 2}
"""How many LR pixels an interpolation looks beyond the one that it is in."""


class Exchange(TorchFunctionMode):
    """Within it, conv2d, pad and interpolate on the windows of `index` see the neighbouring windows.

    Args:
        grid: the patches.
        index: (B, k) long, the patches whose windows are at work, as they were gathered.
        gathered: windows (B*k, C, h, w) that were just cut, each with the map it was cut from: around these the map
            itself is seen, refined or not.
    """

    def __init__(self, grid: Grid, index: Tensor, gathered: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        super().__init__()
        self.grid, self.count = grid, index.numel()
        self.maps = {id(windows): whole for windows, whole in gathered}
        self.gathered = gathered  # held, so that no other tensor takes over an id
        self.top, self.left = grid.corners(index)
        # Which window holds a patch, -1 for none: the windows are numbered through all images of the batch.
        number = torch.arange(self.count, device=index.device).view_as(index)
        nobody = torch.full((index.shape[0], grid.count), -1, device=index.device)
        self.owner = nobody.scatter(1, index, number)
        self.sources: dict[tuple[Any, ...], tuple[Tensor, Tensor | None]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        seen = _SEEN.get(getattr(func, "__name__", ""))
        if seen is None:
            return func(*args, **kwargs)
        names, run = seen
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if not isinstance(given.get("input"), Tensor) or not self._are_windows(given["input"]):
            return func(*args, **kwargs)
        return run(self, func, given)

    def padded(self, x: Tensor, sides: Sides, mode: str = "constant") -> Tensor:
        """`x` (B*k, C, h, w) with that many pixels added at its sides, from the neighbours where they are refined."""
        if id(x) in self.maps:
            return self._cut_wider(self.maps[id(x)], x, sides, mode)
        left, right, top, bottom = sides
        count, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1)
        source, exists = self._sources(height, width, sides, mode)
        ring = pixels.reshape(-1, channels).index_select(0, source)
        if exists is not None:
            ring = ring * exists.to(x.dtype)
        wide = pixels.new_empty(count, height + top + bottom, width + left + right, channels)
        inner_rows, inner_cols = slice(top, top + height), slice(left, left + width)
        wide[:, inner_rows, inner_cols] = pixels
        parts = (
            wide[:, :top],
            wide[:, top + height :],
            wide[:, inner_rows, :left],
            wide[:, inner_rows, left + width :],
        )
        lengths = [part.shape[1] * part.shape[2] for part in parts]
        for part, piece in zip(parts, torch.split(ring.view(count, -1, channels), lengths, dim=1), strict=True):
            part.copy_(piece.reshape(part.shape))
        return wide.permute(0, 3, 1, 2)

    def _are_windows(self, x: Tensor) -> bool:
        """Whether `x` is a map of these windows, at whatever ratio to the LR image."""
        if x.dim() != 4 or x.shape[0] != self.count:
            return False
        (height, width), patch = self.grid.window, self.grid.patch_size
        even = x.shape[2] * width == x.shape[3] * height
        return even and not any(length * x.shape[2] % height for length in (self.grid.height, patch))

    def _at(self, x_height: int, length: Any) -> Any:
        """LR pixels in pixels of windows of that height."""
        return length * x_height // self.grid.window[0]

    def _sources(self, height: int, width: int, sides: Sides, mode: str) -> tuple[Tensor, Tensor | None]:
        """For each added pixel of each window, above, below, left, right: where it is among the pixels of all windows.

        (B*k*pixels,) long, and (B*k*pixels, 1) bool: whether it is anywhere. None: each of them is.
        """
        key = (height, width, sides, mode)
        if key not in self.sources:
            self.sources[key] = self._find(height, width, sides, mode)
        return self.sources[key]

    def _find(self, height: int, width: int, sides: Sides, mode: str) -> tuple[Tensor, Tensor | None]:
        row, col = _ring(height, width, sides, self.top.device)
        tops, lefts = self._at(height, self.top)[..., None], self._at(height, self.left)[..., None]
        map_height, map_width = self._at(height, self.grid.height), self._at(height, self.grid.width)
        rows, cols = _inside(tops + row, map_height, mode), _inside(lefts + col, map_width, mode)
        patch = self._at(height, self.grid.patch_size)
        cell = rows // patch * self.grid.cols + cols // patch
        owner = self.owner.gather(1, cell.flatten(1)).view_as(cell)
        itself = torch.arange(self.count, device=cell.device).view_as(self.top)[..., None]
        there = owner >= 0
        # What nobody refines is seen as by a window alone: its own pixel that the padding would repeat, or zero.
        alone = (_inside(row, height, mode) * width + _inside(col, width, mode)) + itself * (height * width)
        owner = owner.clamp_min(0)
        found = (owner * height + rows - tops.flatten()[owner]) * width + cols - lefts.flatten()[owner]
        source = torch.where(there, found, alone).flatten()
        if mode != "constant":
            return source, None
        in_image = (rows == tops + row) & (cols == lefts + col)
        return source, (there & in_image).view(-1, 1)

    def _cut_wider(self, whole: Tensor, x: Tensor, sides: Sides, mode: str) -> Tensor:
        left, right, top, bottom = sides
        high, wide = x.shape[2] + top + bottom, x.shape[3] + left + right
        whole = F.pad(whole, sides, mode)
        tops, lefts = (self._at(x.shape[2], corner)[..., None, None] for corner in (self.top, self.left))
        image = torch.arange(whole.shape[0], device=x.device)[:, None, None, None] * whole.shape[2]
        rows, cols = (torch.arange(length, device=x.device) for length in (high, wide))
        pixel = (image + tops + rows[:, None]) * whole.shape[3] + lefts + cols
        pixels = whole.permute(0, 2, 3, 1).reshape(-1, whole.shape[1])
        return pixels.index_select(0, pixel.flatten()).view(-1, high, wide, whole.shape[1]).permute(0, 3, 1, 2)


def _ring(height: int, width: int, sides: Sides, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel added to a window, seen from its corner: above, below, left, right."""
    left, right, top, bottom = sides
    rows = torch.arange(-top, height + bottom, device=device)[:, None].expand(-1, width + left + right)
    cols = torch.arange(-left, width + right, device=device).expand_as(rows)
    inner = slice(top, top + height)

    def sides_of(number: Tensor) -> Tensor:
        within = number[inner]
        parts = (number[:top], number[top + height :], within[:, :left], within[:, left + width :])
        return torch.cat([part.flatten() for part in parts])

    return sides_of(rows), sides_of(cols)


def _inside(position: Tensor, length: int, mode: str) -> Tensor:
    """The row (or column) that padding puts at `position`, which may lie beyond the map's `length`; the nearest, for
    zeros."""
    if mode == "reflect":
        position = (length - 1) - ((length - 1) - position.abs()).abs()
    return position.clamp(0, length - 1)


def _conv2d(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    sides = _sides(given)
    if not any(sides):
        return func(**given)  # type: ignore[no-any-return]
    result: Tensor = func(**{**given, "input": exchange.padded(given["input"], sides), "padding": 0})
    return result


def _pad(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    sides, mode = (*given["pad"], 0, 0)[:4], given.get("mode", "constant")
    if len(given["pad"]) > 4 or min(sides) < 0 or mode == "circular" or given.get("value"):
        return func(**given)  # type: ignore[no-any-return]
    return exchange.padded(given["input"], sides, mode)


def _interpolate(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    x, reach = given["input"], _REACH.get(given.get("mode", "nearest"))
    factor = _factor(x, given)
    if reach is None or factor is None or given.get("align_corners") or given.get("antialias"):
        return func(**given)  # type: ignore[no-any-return]
    wide = exchange.padded(x, (reach, reach, reach, reach), "replicate")
    result: Tensor = func(wide, scale_factor=float(factor), mode=given["mode"], align_corners=False)
    inner = slice(reach * factor, -reach * factor)
    return result[:, :, inner, inner]


def _sides(given: dict[str, Any]) -> Sides:
    """What a conv2d pads."""
    padding = given.get("padding", 0)
    kernel = given["weight"].shape[2:]
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        total = [step * (side - 1) for step, side in zip(_pair(given.get("dilation", 1)), kernel, strict=True)]
        return (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    rows, cols = _pair(padding)
    return (cols, cols, rows, rows)


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return first, second


def _factor(x: Tensor, given: dict[str, Any]) -> int | None:
    """By which whole number an interpolation enlarges; None where it does otherwise."""
    if given.get("size") is not None:
        sizes = zip(_pair(given["size"]), x.shape[2:], strict=True)
        factors = {size / old for size, old in sizes}
    elif given.get("scale_factor") is not None:
        scale = given["scale_factor"]
        factors = set(scale) if isinstance(scale, (tuple, list)) else {scale}
    else:
        return None
    factor = factors.pop()
    return int(factor) if not factors and factor == int(factor) and factor >= 1 else None


_Run = Callable[[Exchange, Any, dict[str, Any]], Tensor]
_SEEN: dict[str, tuple[tuple[str, ...], _Run]] = {
    "conv2d": (_CONV2D, _conv2d),
    "pad": (_PAD, _pad),
    "interpolate": (_INTERPOLATE, _interpolate),
}
