"""Where the pixels around windows come from: of the windows that own them, or of nobody.

What a window sees beyond its edge belongs to another patch. Where that is refined, too, its window has the pixel; where
it is not, there are zeros, or a guess of what would stand there (context.py); beyond the image there is what the map
itself would be padded with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..patches import Chosen, known
from .arguments import Sides
from .compiled import never_alone

Guess = Callable[[int, Tensor], Tensor]
Cut = Sequence[tuple[Tensor, Tensor]]
"""Windows (B*k, C, h, w) that were just cut, each with the map it was cut from."""

_CUT_FROM = "_maskguided_cut_from"
_SMALL = 0.5
"""Added pixels per pixel of a window from which on all are copied at once. (One thread, 20 to 64 channels: windows of 8
take 0.5 to 0.75 of the time of a frame put around them, windows of 16 0.7 to 1.2, windows of 32 up to 2.)"""


class _Ring(NamedTuple):
    """Where the pixels come from that are added around windows of some size: all windows' rings one after the other."""

    source: Tensor
    """(pixels,) long: its place among the pixels of all windows."""
    exists: Tensor | None
    """(pixels, 1), bool: whether it is anywhere; None: each of them is."""
    seen: Tensor | None
    """(pixels, F+1), for a guess: the features at the cut, where the pixel is nowhere; zeros where it is somewhere."""
    every: Tensor | None
    """For small windows, (pixels of the widened windows,) long: where each stands in a list of all windows' pixels and,
    behind these, what `_beyond` gives. None: only the rings are looked up, and put around the windows."""


@never_alone
def cut_windows(state: Mapping[str, Tensor], kinds: Mapping[str, str], chosen: Chosen) -> tuple[dict[str, Tensor], Cut]:
    """The live values of the windows of the chosen patches: maps are cut, vectors repeated, constants handed on;
    while compiling, also the windows of each map with that map, which an attribute of theirs holds elsewhere.

    In a frame of its own (a block that is compiled alone) torch.compile guards attributes of an argument, and not
    whether it is the same object as another; within one graph it is the other way round.
    """

    def of_windows(value: Tensor, kind: str) -> Tensor:
        if kind == "map":
            return chosen.gather(value)
        return value.repeat_interleave(chosen.index.shape[1], dim=0) if kind == "vector" else value

    windows = {name: of_windows(state[name], kind) for name, kind in kinds.items()}
    cut = [(windows[name], state[name]) for name, kind in kinds.items() if kind == "map"]
    if torch.compiler.is_compiling():
        return windows, cut
    for part, whole in cut:
        setattr(part, _CUT_FROM, whole)
    return windows, ()


class Borders:
    """The pixels around the windows of some patches.

    Args:
        chosen: the patches whose windows are at work.
        gathered: around windows that were just cut the map itself is seen, refined or not; see `cut_windows`.
        guess: guess(n, features) is what the n-th padded convolution sees where no patch is refined, (pixels, C).
            `features` are those at the cut there, and a 1 after them: (pixels, F+1). None: it sees zeros.
        features: (B, F, r*H, r*W), what it guesses from.
    """

    def __init__(
        self, chosen: Chosen, gathered: Cut = (), guess: Guess | None = None, features: Tensor | None = None
    ) -> None:
        self.chosen, self.gathered = chosen, gathered
        self.guess, self.features, self.calls = guess, features, 0
        self.grid, index = chosen.grid, chosen.index
        self.count = index.numel()
        self.top, self.left = chosen.corners
        number = torch.arange(self.count, device=index.device).view_as(index)
        nobody = torch.full((index.shape[0], self.grid.count), -1, device=index.device)
        self.owner = nobody.scatter(1, index, number)
        """(B, count) long: the number of the window of each patch, counted through the batch; -1 for none."""
        self.rings: list[tuple[tuple[Any, ...], _Ring]] = []
        """By size, sides and mode."""
        self.everywhere: list[tuple[tuple[int, int], Tensor]] = []
        """What a guess sees of a map of that size."""
        self.zeros: dict[tuple[int, torch.dtype], Tensor] = {}
        """A pixel of nothing, of so many channels."""

    def padded(self, x: Tensor, sides: Sides, mode: str = "constant") -> Tensor:
        """`x` (B*k, C, h, w) with that many pixels added at its sides, from the neighbours where they are refined."""
        whole = self.map_of(x)
        if whole is not None:
            return self._cut_wider(whole, x, sides, mode)
        count, channels, height, width = x.shape
        key = (height, width, sides, mode)
        ring, pixels = known(self.rings, key, lambda: self._find(*key)), x.permute(0, 2, 3, 1).reshape(-1, channels)
        beyond = self._beyond(ring, pixels, self.is_numbered(x, mode))
        if ring.every is not None:
            wide = torch.cat([pixels, beyond]).index_select(0, ring.every)
            left, right, top, bottom = sides
            return wide.view(count, top + height + bottom, left + width + right, channels).permute(0, 3, 1, 2)
        found = pixels.index_select(0, ring.source)
        if ring.exists is not None:
            found = torch.where(ring.exists, found, beyond)
        return _framed(pixels.view(count, height, width, channels), found, sides).permute(0, 3, 1, 2)

    def is_numbered(self, x: Tensor, mode: str) -> bool:
        """Whether this padding counts among the convolutions that are guessed for: zeros, around anything but windows
        that were just cut."""
        return mode == "constant" and self.map_of(x) is None

    def map_of(self, x: Tensor) -> Tensor | None:
        """The map that windows were just cut from."""
        if not self.gathered:
            return getattr(x, _CUT_FROM) if hasattr(x, _CUT_FROM) else None
        return next((whole for windows, whole in self.gathered if windows is x), None)

    def _beyond(self, ring: _Ring, pixels: Tensor, numbered: bool) -> Tensor:
        """What is seen where nobody refines: (pixels of the ring, C), or (1, C) for all of them."""
        if ring.exists is None:
            return pixels[:0]
        if not numbered or ring.seen is None or self.guess is None:
            kind = pixels.shape[1], pixels.dtype
            if kind not in self.zeros:
                self.zeros[kind] = pixels.new_zeros(1, pixels.shape[1])
            return self.zeros[kind]
        self.calls += 1
        return self.guess(self.calls - 1, ring.seen.to(pixels.dtype))

    def canvas(self, x: Tensor) -> Tensor:
        """A map (B, C, r*H, r*W) to put the windows `x` into for a detour: the one that they were just cut from, or
        what they see where nobody refines."""
        whole = self.map_of(x)
        if whole is not None:
            return whole
        height, width = (self._at(x.shape[2], side) for side in (self.grid.height, self.grid.width))
        batch = self.owner.shape[0]
        if self.guess is None:
            return x.new_zeros(batch, x.shape[1], height, width)

        def see() -> Tensor:
            rows, cols = (torch.arange(side, device=x.device) for side in (height, width))
            rows, cols = (side.expand(batch, 1, -1) for side in (rows.repeat_interleave(width), cols.repeat(height)))
            return self._seen(rows, cols, (height, width)).to(x.dtype)

        self.calls += 1
        guessed = self.guess(self.calls - 1, known(self.everywhere, (height, width), see))
        return guessed.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def _at(self, x_height: int, length: Any) -> Any:
        """LR pixels in pixels of windows of that height."""
        return length if x_height == self.grid.window[0] else length * x_height // self.grid.window[0]

    def _find(self, height: int, width: int, sides: Sides, mode: str) -> _Ring:
        row, col = _around(height, width, sides, self.top.device)
        tops, lefts = self._at(height, self.top)[..., None], self._at(height, self.left)[..., None]
        map_height, map_width = self._at(height, self.grid.height), self._at(height, self.grid.width)
        rows, cols = _inside(tops + row, map_height, mode), _inside(lefts + col, map_width, mode)
        patch = self._at(height, self.grid.patch_size)
        cell = rows // patch * self.grid.cols + cols // patch
        owner = self.owner.gather(1, cell.flatten(1)).view_as(cell)
        itself = torch.arange(self.count, device=cell.device).view_as(self.top)[..., None]
        there = owner >= 0
        # What nobody refines is seen as by a window alone: its own pixel that the padding would repeat, or zero.
        own_pixel = (_inside(row, height, mode) * width + _inside(col, width, mode)) + itself * (height * width)
        owner = owner.clamp_min(0)
        found = (owner * height + rows - tops.flatten()[owner]) * width + cols - lefts.flatten()[owner]
        source = torch.where(there, found, own_pixel).flatten()
        small = len(source) >= _SMALL * self.count * height * width
        if mode != "constant":
            return _Ring(source, None, None, self._every(source, height, width, sides) if small else None)
        in_image = (rows == tops + row) & (cols == lefts + col)
        exists, seen, beyond = (there & in_image).view(-1, 1), None, torch.zeros_like(source)
        if self.guess is not None:
            seen = self._seen(rows, cols, (map_height, map_width)) * (in_image & ~there).view(-1, 1)
            beyond = torch.arange(len(source), device=source.device)
        places = torch.where(exists[:, 0], source, self.count * height * width + beyond)
        return _Ring(source, exists, seen, self._every(places, height, width, sides) if small else None)

    def _every(self, ring: Tensor, height: int, width: int, sides: Sides) -> Tensor:
        """The places of a ring's pixels, with those of the windows' own in the middle of it."""
        own = torch.arange(self.count * height * width, device=ring.device)
        return _framed(own.view(self.count, height, width, 1), ring[:, None], sides).flatten()

    def _seen(self, rows: Tensor, cols: Tensor, size: tuple[int, int]) -> Tensor:
        """(pixels, F+1): the features, and a 1, at rows and columns (B, k, pixels) of maps of that size."""
        assert self.features is not None
        batch, channels, height, width = self.features.shape
        image = torch.arange(batch, device=rows.device)[:, None, None] * height
        pixel = (image + rows * height // size[0]) * width + cols * width // size[1]
        features = self.features.permute(0, 2, 3, 1).reshape(-1, channels)
        return F.pad(features.index_select(0, pixel.flatten()), (0, 1), value=1.0)

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


def _framed(pixels: Tensor, ring: Tensor, sides: Sides) -> Tensor:
    """Windows (n, h, w, C) in a frame of the pixels of their rings, (n * pixels, C) in the order of `_around`."""
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


def _around(height: int, width: int, sides: Sides, device: torch.device) -> tuple[Tensor, Tensor]:
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


def _inside(position: Tensor, length: int, mode: str) -> Tensor:
    """The row (or column) that padding puts at `position`, which may lie beyond the map's `length`; the nearest, for
    zeros."""
    if mode == "reflect":
        position = (length - 1) - ((length - 1) - position.abs()).abs()
    return position.clamp(0, length - 1)
