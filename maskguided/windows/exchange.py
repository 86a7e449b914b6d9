"""Windows that see their neighbours: at each convolution they exchange borders instead of padding with zeros.

A convolution on windows that were cut apart finds nothing beyond their borders. A halo helps, but is computed by both
neighbours, block after block, and thrown away. Here every convolution on windows first copies the pixels that it is
about to look at from the windows that own them, so nothing is computed twice: refining all patches is then the whole
network exactly, at halo 0. Beyond the border of the image it sees what it would see alone: zeros, mostly. So it does
where the neighbour is not refined, or it sees a guess of what would stand there (context.py).

    with Exchange(Borders(chosen)):
        windows = split.body(windows)

Attention in shifted windows, as Swin transformers have it, works on runs of refined patches (shifts.py); pools that
overlap, and branches that go on from them, on a map of the windows (detours.py). What looks beyond a pixel in another
way than these (attention to the whole map, padding by torch.cat) still ends at the window's border; `Split.exchanges`
tells whether a network has such a thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .arguments import ORDER, factor_of, flat_sides_of, named, pair, reach_of, sides_of
from .borders import Borders
from .detours import COMBINES, Detours, When
from .shifts import Shifts

_ENDS = ("interpolate", "conv2d", "pad")
"""What may bring a detour back to the size that it left at."""
_ADDS = ("add", "add_", "__add__", "__iadd__")
"""What may add a mask to shifted windows."""
_REACH = {"bilinear": 1, "bicubic": 2}
"""How many pixels of its input an interpolation looks beyond the one that it is in."""


class Exchange(TorchFunctionMode):
    """Within it, convolutions, pad, interpolate, unfold and roll on the windows of some patches see those around.

    Args:
        borders: the pixels around the windows that are at work.
        strangers: shapes of tensors that are no windows though there may be as many of them.
        noted: a set that collects their shapes.
        detours: when side branches that do not fall into windows run on the whole map (detours.py); None: never.
        unit: windows are multiples of this many LR pixels; a tensor smaller than that is a vector, not a map. 0: not
            known.
    """

    def __init__(
        self,
        borders: Borders,
        *,
        strangers: frozenset[tuple[int, ...]] = frozenset(),
        noted: set[tuple[int, ...]] | None = None,
        detours: When | None = None,
        unit: int = 0,
    ) -> None:
        super().__init__()
        self.borders, self.grid, self.count = borders, borders.grid, borders.count
        self.strangers, self.noted, self.unit = strangers, noted, unit
        self.detours = None if detours is None else Detours(borders.chosen, detours)
        self.shifts = Shifts(borders.grid, borders.chosen.index, borders.owner)

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
            see = _detour if leaves else _SEEN.get(name)
            return func(**given) if see is None else see(self, func, given)
        if name == "conv2d" and (apart := self._beside_each_other(x, given)) is not None:
            wide = self.borders.padded(apart, sides_of(given))
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


def _conv2d(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    sides = sides_of(given)
    if not any(sides):
        return _pointwise(func, given)
    result: Tensor = func(**{**given, "input": exchange.borders.padded(given["input"], sides), "padding": 0})
    return result


def _conv3d(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    """Bands stand beside the channels, so that windows are (n, C*bands, h, w) where borders are copied."""
    x, padded = given["input"], flat_sides_of(given)
    if padded is None or not any(padded[1]):
        return func(**given)  # type: ignore[no-any-return]
    bands, sides = padded
    wide = exchange.borders.padded(x.flatten(1, 2), sides)
    wide = wide.view(*x.shape[:3], *wide.shape[2:])
    return func(**{**given, "input": wide, "padding": (bands, 0, 0)})  # type: ignore[no-any-return]


def _conv_transpose2d(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    reach = reach_of(given)
    if reach is None or not any(reach):
        return func(**given)  # type: ignore[no-any-return]
    (rows, cols), stride, padding = reach, pair(given.get("stride", 1)), pair(given.get("padding", 0))
    wide = exchange.borders.padded(given["input"], (cols, cols, rows, rows))
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


def _pad(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    sides, mode = (*given["pad"], 0, 0)[:4], given.get("mode", "constant")
    if len(given["pad"]) > 4 or min(sides) < 0 or mode == "circular" or given.get("value"):
        return func(**given)  # type: ignore[no-any-return]
    return exchange.borders.padded(given["input"], sides, mode)


def _interpolate(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    x, reach = given["input"], _REACH.get(given.get("mode", "nearest"))
    factor = factor_of(x, given)
    if reach is None or factor is None or given.get("align_corners") or given.get("antialias"):
        return func(**given)  # type: ignore[no-any-return]
    wide = exchange.borders.padded(x, (reach, reach, reach, reach), "replicate")
    result: Tensor = func(wide, scale_factor=float(factor), mode=given["mode"], align_corners=False)
    inner = slice(reach * factor, -reach * factor)
    return result[:, :, inner, inner]


def _unfold(exchange: Exchange, func: Any, given: dict[str, Any]) -> Tensor:
    rows, cols = pair(given.get("padding", 0))
    if rows or cols:
        wide = exchange.borders.padded(given["input"], (cols, cols, rows, rows))
        given = {**given, "input": wide, "padding": 0}
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
    return exchange.detours.take(func, given, exchange.borders.canvas(given["input"]))


def _channels_first(x: Tensor, given: dict[str, Any]) -> Tensor:
    """`x` as (n, C, h, w), where a roll gets it with channels last; of several maps rolled at once, or of several
    channels of bands, the first."""
    if x.dim() == 5 and "weight" in given:
        return x[:, 0]
    if x.dim() == 5 and given.get("dims") in ((2, 3), [2, 3]):
        return x[0].permute(0, 3, 1, 2)
    return x.permute(0, 3, 1, 2) if x.dim() == 4 and given.get("dims") in ((1, 2), [1, 2]) else x


_SEEN: dict[str, Callable[[Exchange, Any, dict[str, Any]], Tensor]] = {
    "conv2d": _conv2d,
    "conv3d": _conv3d,
    "conv_transpose2d": _conv_transpose2d,
    "pad": _pad,
    "interpolate": _interpolate,
    "im2col": _unfold,
    "roll": _roll,
}
