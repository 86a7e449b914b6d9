"""Windows that see their neighbours: at each convolution they exchange borders instead of padding with zeros.

A convolution on windows that were cut apart finds nothing beyond their borders. A halo helps, but is computed by both
neighbours, block after block, and thrown away. Here every convolution on windows first copies the pixels that it is
about to look at from the windows that own them, so nothing is computed twice: refining all patches is then the whole
network exactly, at halo 0. Beyond the border of the image it sees what it would see alone: zeros, mostly. So it does
where the neighbour is not refined, or it sees a guess of what would stand there (context.py).

    with Exchange(chosen, gathered):
        windows = split.body(windows)

Attention in shifted windows, as Swin transformers have it, works on runs of refined patches (shifts.py); pools that
overlap, and branches that go on from them, on a map of the windows (detours.py). What looks beyond a pixel in another
way than these (attention to the whole map, padding by torch.cat) still ends at the window's border; `Split.exchanges`
tells whether a network has such a thing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..patches import Chosen
from .arguments import ORDER, Sides, factor_of, named, pair, reach_of, sides_of
from .detours import COMBINES, Detours, When
from .rings import around, framed, inside
from .shifts import Shifts

_ENDS = ("interpolate", "conv2d", "pad")
"""What may bring a detour back to the size that it left at."""
_ADDS = ("add", "add_", "__add__", "__iadd__")
"""What may add a mask to shifted windows."""
Guess = Callable[[int, Tensor], Tensor]
_REACH = {"bilinear": 1, "bicubic": 2}
"""How many pixels of its input an interpolation looks beyond the one that it is in."""


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


def cut_windows(state: Mapping[str, Tensor], kinds: Mapping[str, str], chosen: Chosen) -> dict[str, Tensor]:
    """The live values of the windows of the chosen patches: maps are cut, vectors repeated, constants handed on."""

    def of_windows(value: Tensor, kind: str) -> Tensor:
        if kind == "map":
            return chosen.gather(value)
        return value.repeat_interleave(chosen.index.shape[1], dim=0) if kind == "vector" else value

    return {name: of_windows(state[name], kind) for name, kind in kinds.items()}


class Exchange(TorchFunctionMode):
    """Within it, convolutions, pad, interpolate, unfold and roll on the windows of some patches see those around.

    Args:
        chosen: the patches whose windows are at work.
        gathered: windows (B*k, C, h, w) that were just cut, each with the map it was cut from: around these the map
            itself is seen, refined or not.
        guess: guess(n, features) is what the n-th padded convolution sees where no patch is refined, (pixels, C).
            `features` are those at the cut there, and a 1 after them: (pixels, F+1). None: it sees zeros.
        features: (B, F, r*H, r*W), what it guesses from.
        strangers: shapes of tensors that are no windows though there may be as many of them.
        noted: where the shapes of such tensors are kept.
        detours: when side branches that do not fall into windows run on the whole map (detours.py); None: never.
        unit: what windows are multiples of, in LR pixels: what has fewer pixels than so many of them stand for is a
            vector, and no map. 0: that is not known.
    """

    def __init__(
        self,
        chosen: Chosen,
        gathered: Sequence[tuple[Tensor, Tensor]] = (),
        guess: Guess | None = None,
        features: Tensor | None = None,
        *,
        strangers: frozenset[tuple[int, ...]] = frozenset(),
        noted: set[tuple[int, ...]] | None = None,
        detours: When | None = None,
        unit: int = 0,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.detours = None if detours is None else Detours(chosen, detours)
        self.strangers, self.noted = strangers, noted
        self.guess, self.features, self.calls = guess, features, 0
        self.grid, index = chosen.grid, chosen.index
        self.count = index.numel()
        self.gathered = gathered
        self.top, self.left = chosen.corners
        # Which window holds a patch, -1 for none: the windows are numbered through all images of the batch.
        number = torch.arange(self.count, device=index.device).view_as(index)
        nobody = torch.full((index.shape[0], self.grid.count), -1, device=index.device)
        self.owner = nobody.scatter(1, index, number)
        self.rings: dict[tuple[Any, ...], _Ring] = {}
        self.everywhere: dict[tuple[int, int], Tensor] = {}
        """What a guess sees of a map of that size."""
        self.zeros: dict[tuple[int, torch.dtype], Tensor] = {}
        """A pixel of nothing, of so many channels."""
        self.shifts = Shifts(self.grid, index, self.owner)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _ADDS and self.shifts.pending and len(args) == 2:
            mask = self.shifts.masked(*args)
            return func(*args, **kwargs) if mask is None else func(args[0], mask, **kwargs)
        if name in COMBINES and self.detours is not None and len(args) == 2:
            return func(*self.detours.combined(*args), **kwargs)
        if name == "__getitem__" and self.detours is not None and self.detours.has(args[0]):
            return self.detours.cropped(*args)
        name = "im2col" if func is F.unfold else name  # there is a Tensor.unfold, too
        if name not in ORDER:
            return func(*args, **kwargs)
        given = named(ORDER[name], args, kwargs)
        x = given.get("input")
        if not isinstance(x, Tensor):
            return func(*args, **kwargs)
        if self._are_windows(_channels_first(x, given)):
            leaves = self.detours is not None and self.detours.leave_at(name, given)
            return (_detour if leaves else _SEEN.get(name, _alone))(self, func, given)
        if name == "conv2d" and (apart := self._beside_each_other(x, given)) is not None:
            wide = self.padded(apart, sides_of(given))
            return func(**{**given, "input": wide.reshape(1, -1, *wide.shape[2:]), "padding": 0})
        if name in _ENDS and self.detours is not None and self.detours.has(x):
            return self.detours.go_on(func, given)
        return func(*args, **kwargs)

    def _beside_each_other(self, x: Tensor, given: dict[str, Any]) -> Tensor | None:
        """The windows in `x` (1, B*k*C, h, w), if it is that: so convolutions are called whose kernels are made for
        each image (DASR, CondConv)."""
        if x.dim() != 4 or x.shape[0] != 1 or self.count == 1 or given.get("groups", 1) % self.count:
            return None
        apart = x.reshape(self.count, -1, *x.shape[2:])
        return apart if self._are_windows(apart) else None

    def canvas(self, x: Tensor) -> Tensor:
        """A map (B, C, r*H, r*W) to put the windows `x` into for a detour: the one that they were just cut from, or
        what they see where nobody refines."""
        whole = self._cut_from(x)
        if whole is not None:
            return whole
        height, width = (self._at(x.shape[2], side) for side in (self.grid.height, self.grid.width))
        batch = self.owner.shape[0]
        if self.guess is None:
            return x.new_zeros(batch, x.shape[1], height, width)
        if (height, width) not in self.everywhere:
            rows, cols = (torch.arange(side, device=x.device) for side in (height, width))
            rows, cols = (side.expand(batch, 1, -1) for side in (rows.repeat_interleave(width), cols.repeat(height)))
            self.everywhere[height, width] = self._seen(rows, cols, (height, width)).to(x.dtype)
        self.calls += 1
        guessed = self.guess(self.calls - 1, self.everywhere[height, width])
        return guessed.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def padded(self, x: Tensor, sides: Sides, mode: str = "constant") -> Tensor:
        """`x` (B*k, C, h, w) with that many pixels added at its sides, from the neighbours where they are refined."""
        whole = self._cut_from(x)
        if whole is not None:
            return self._cut_wider(whole, x, sides, mode)
        count, channels, height, width = x.shape
        key = (height, width, sides, mode)
        if key not in self.rings:
            self.rings[key] = self._find(*key)
        ring, pixels = self.rings[key], x.permute(0, 2, 3, 1).reshape(-1, channels)
        beyond = self._beyond(ring, pixels, self.is_numbered(x, mode))
        if ring.every is not None:
            wide = torch.cat([pixels, beyond]).index_select(0, ring.every)
            left, right, top, bottom = sides
            return wide.view(count, top + height + bottom, left + width + right, channels).permute(0, 3, 1, 2)
        found = pixels.index_select(0, ring.source)
        if ring.exists is not None:
            found = torch.where(ring.exists, found, beyond)
        return framed(pixels.view(count, height, width, channels), found, sides).permute(0, 3, 1, 2)

    def is_numbered(self, x: Tensor, mode: str) -> bool:
        """Whether padding `x` gets a number, by which a guess knows the convolution: where zeros are added to what was
        not just cut out of a map."""
        return mode == "constant" and self._cut_from(x) is None

    def _cut_from(self, x: Tensor) -> Tensor | None:
        """The map that windows were just cut from."""
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

    def _are_windows(self, x: Tensor) -> bool:
        """Whether `x` is a map of these windows, at whatever ratio to the LR image."""
        if x.dim() != 4 or x.shape[0] != self.count:
            if x.dim() == 4 and self.noted is not None and x.shape[0] % self.count:
                self.noted.add(tuple(x.shape))
            return False
        if self.strangers and tuple(x.shape) in self.strangers:
            return False
        (height, width), patch = self.grid.window, self.grid.patch_size
        even = x.shape[2] * width == x.shape[3] * height and not 0 < x.shape[2] * self.unit < height
        return even and not any(length * x.shape[2] % height for length in (self.grid.height, patch))

    def _at(self, x_height: int, length: Any) -> Any:
        """LR pixels in pixels of windows of that height."""
        return length if x_height == self.grid.window[0] else length * x_height // self.grid.window[0]

    def _find(self, height: int, width: int, sides: Sides, mode: str) -> _Ring:
        row, col = around(height, width, sides, self.top.device)
        tops, lefts = self._at(height, self.top)[..., None], self._at(height, self.left)[..., None]
        map_height, map_width = self._at(height, self.grid.height), self._at(height, self.grid.width)
        rows, cols = inside(tops + row, map_height, mode), inside(lefts + col, map_width, mode)
        patch = self._at(height, self.grid.patch_size)
        cell = rows // patch * self.grid.cols + cols // patch
        owner = self.owner.gather(1, cell.flatten(1)).view_as(cell)
        itself = torch.arange(self.count, device=cell.device).view_as(self.top)[..., None]
        there = owner >= 0
        # What nobody refines is seen as by a window alone: its own pixel that the padding would repeat, or zero.
        own_pixel = (inside(row, height, mode) * width + inside(col, width, mode)) + itself * (height * width)
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
        return framed(own.view(self.count, height, width, 1), ring[:, None], sides).flatten()

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


def _conv2d(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    sides = sides_of(given)
    if not any(sides):
        return _pointwise(func, given)
    result: Tensor = func(**{**given, "input": exchange.padded(given["input"], sides), "padding": 0})
    return result


def _conv_transpose2d(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    reach = reach_of(given)
    if reach is None or not any(reach):
        return func(**given)  # type: ignore[no-any-return]
    (rows, cols), stride, padding = reach, pair(given.get("stride", 1)), pair(given.get("padding", 0))
    wide = exchange.padded(given["input"], (cols, cols, rows, rows))
    cropped = (padding[0] + rows * stride[0], padding[1] + cols * stride[1])
    return func(**{**given, "input": wide, "padding": cropped})  # type: ignore[no-any-return]


def _pointwise(func: Any, given: dict[str, Any]) -> Tensor:
    """A convolution without padding. One of 1x1 runs on all windows as one map, which is faster on a CPU."""
    x, weight = given["input"], given["weight"]
    alone = weight.shape[2:] == (1, 1) and pair(given.get("stride", 1)) == (1, 1)
    if not alone or x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
        return func(**given)  # type: ignore[no-any-return]
    count, channels, height, width = x.shape
    one = x.permute(0, 2, 3, 1).reshape(1, count * height, width, channels).permute(0, 3, 1, 2)
    result: Tensor = func(**{**given, "input": one})
    return result.permute(0, 2, 3, 1).reshape(count, height, width, -1).permute(0, 3, 1, 2)


@functools.cache
def _asked_for_when_compiled() -> None:
    """Make torch.compile ask function modes for F.pad, which it otherwise looks into without doing so."""
    torch.compiler.allow_in_graph(F.pad)  # type: ignore[no-untyped-call]


def _pad(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    if not torch.compiler.is_compiling():
        _asked_for_when_compiled()  # here: what it imports takes seconds, and most networks do not pad by hand
    sides, mode = (*given["pad"], 0, 0)[:4], given.get("mode", "constant")
    if len(given["pad"]) > 4 or min(sides) < 0 or mode == "circular" or given.get("value"):
        return func(**given)  # type: ignore[no-any-return]
    return exchange.padded(given["input"], sides, mode)


def _interpolate(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    x, reach = given["input"], _REACH.get(given.get("mode", "nearest"))
    factor = factor_of(x, given)
    if reach is None or factor is None or given.get("align_corners") or given.get("antialias"):
        return func(**given)  # type: ignore[no-any-return]
    wide = exchange.padded(x, (reach, reach, reach, reach), "replicate")
    result: Tensor = func(wide, scale_factor=float(factor), mode=given["mode"], align_corners=False)
    inner = slice(reach * factor, -reach * factor)
    return result[:, :, inner, inner]


def _unfold(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    rows, cols = pair(given.get("padding", 0))
    if rows or cols:
        given = {**given, "input": exchange.padded(given["input"], (cols, cols, rows, rows)), "padding": 0}
    return F.unfold(**given)


def _roll(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    shifts, dims = (given.get(name) for name in ("shifts", "dims"))
    shifts, dims = (tuple(value) if isinstance(value, (tuple, list)) else () for value in (shifts, dims))
    if dims not in ((1, 2), (2, 3)) or not any(shifts) or shifts[0] * shifts[1] < 0:
        return torch.roll(**given)
    x = given["input"]
    if x.dim() == 5:  # DAT rolls queries, keys and values together, (3, n, h, w, C)
        rolled = exchange.shifts.rolled(x.permute(1, 2, 3, 0, 4).flatten(3), shifts, (1, 2))
        return rolled.reshape(*x.shape[1:4], x.shape[0], -1).permute(3, 0, 1, 2, 4).contiguous()
    return exchange.shifts.rolled(x, shifts, dims)


def _detour(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    assert exchange.detours is not None
    return exchange.detours.take(func, given, exchange.canvas(given["input"]))


def _alone(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    return func(**given)  # type: ignore[no-any-return]


def _channels_first(x: Tensor, given: dict[str, Any]) -> Tensor:
    """`x` as (n, C, h, w), where a roll gets it with channels last; of several maps rolled at once, the first."""
    if x.dim() == 5 and given.get("dims") in ((2, 3), [2, 3]):
        return x[0].permute(0, 3, 1, 2)
    return x.permute(0, 3, 1, 2) if x.dim() == 4 and given.get("dims") in ((1, 2), [1, 2]) else x


_SEEN: dict[str, Callable[[Exchange, Any, dict[str, Any]], Tensor]] = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "pad": _pad,
    "interpolate": _interpolate,
    "im2col": _unfold,
    "roll": _roll,
}
