"""Detours over the whole map: what looks far at little cost, by steps that windows are no multiple of.

Efficient networks look around in a side branch of few channels: a convolution with a stride and no padding, a pool that
overlaps, or one to an eighth of the map's size, and by an interpolation, or a crop of one, back to the size that it
left at (ESA: Liu et al., "Residual Feature Aggregation Network for Image Super-Resolution", CVPR 2020; SAFM: Sun et
al., "Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution", ICCV 2023). On a window that would be
another branch. So where it leaves, the windows are put into a map; it runs on that; and what comes back is cut into
windows. A variance of the whole map may join it on its way (SMFA: Zheng et al., "SMFANet: A Lightweight Self-Modulation
Feature Aggregation Network for Efficient Image Super-Resolution", ECCV 2024). An enlargement from corner to corner
(align_corners) is a detour of its own: its steps go by the size of the map.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..patches import Chosen
from .arguments import pair, steps_of
from .reductions import ADAPTIVE_POOLS, FIXED_POOLS

_STEPS = (2, 4, 8, 16, 32, 64)
"""By one of these a network divides a map's size to have that of a pooled one: a window's two sizes do not tell which
other number it is."""
_Size = tuple[int, int]
_ARITHMETIC = ("add", "sub", "mul", "div", "truediv")
COMBINES = frozenset(way.format(it) for it in _ARITHMETIC for way in ("{}", "{}_", "__{}__", "__r{}__", "__i{}__"))
"""What may combine a map on a detour with a statistic of the windows."""


class When(NamedTuple):
    """What decides whether a detour is taken."""

    unit: int
    """What windows are multiples of, in LR pixels."""
    parts: bool
    """Whether a pool of windows to (1, 1) may stand for one of the map to more pixels (windows of 8 pixels, and a map
    pooled to an eighth of its size). If not, it is a pool over the whole map."""


class Detours:
    """Puts windows into a map, and cuts what comes back.

    Args:
        chosen: the patches whose windows are at work.
        when: they are to be put there.
    """

    def __init__(self, chosen: Chosen, when: When) -> None:
        self.chosen, self.when = chosen, when
        self.index = chosen.index
        self.one_window = self.index.shape[1] == 1
        self.left: dict[_Size, _Size] = {}
        """The size of windows that a detour left from, and of the map that they were put into."""

    def leave_at(self, name: str, given: dict[str, Any]) -> bool:
        """Whether a call would give something else on windows than on the whole map, so that a detour begins.

        So do pools that overlap, strides that do not divide the side of a window, and enlargements from corner to
        corner (align_corners), whose step depends on the size of the map.
        """
        if name == "interpolate":
            return bool(given.get("align_corners"))
        if name in ADAPTIVE_POOLS:
            return self.when.parts and isinstance(given["output_size"], (tuple, list))
        if name not in (*FIXED_POOLS, "conv2d"):
            return False
        steps = steps_of(given)
        overlaps = name in FIXED_POOLS and steps.stride != steps.kernel
        return overlaps or (steps.stride != (1, 1) and not self.comes_back_at(given))

    def comes_back_at(self, given: dict[str, Any]) -> bool:
        """Whether the result of a conv2d or a pool on a map can be cut into windows of any size."""
        steps, x = steps_of(given), given["input"]
        unit, window = self.when.unit * x.shape[2], self.chosen.grid.window[0]
        return steps.fit(x) and all(unit % (window * side) == 0 for side in steps.stride)

    def take(self, func: Any, given: dict[str, Any], canvas: Tensor) -> Tensor:
        """What `func` makes of windows that have been put into `canvas`: a map, or windows where it comes back at once.

        Raises:
            ValueError: it pools windows to a size that does not say to which a map is pooled.
        """
        windows = given["input"]
        there: dict[str, Any] = {"input": self.out(windows, canvas)}
        if "output_size" in given:
            sides = zip(windows.shape[2:], given["output_size"], canvas.shape[2:], strict=True)
            there["output_size"] = [_pooled(*side) for side in sides]
            return func(**{**given, **there})  # type: ignore[no-any-return]
        if given.get("size") is not None:
            sides = zip(windows.shape[2:], pair(given["size"]), canvas.shape[2:], strict=True)
            there["size"] = [to * side // window for window, to, side in sides]
        whole: Tensor = func(**{**given, **there})
        return self.back(whole) if given.get("align_corners") or self.comes_back_at(given) else whole

    def out(self, windows: Tensor, canvas: Tensor) -> Tensor:
        """(B*k, C, r*h, r*w), put into a canvas (B, C, r*H, r*W).

        Where each image has one window, maps and windows would have the same batch size and be mistaken for each
        other. Then a map that nobody reads is appended.
        """
        self.left[_size_of(windows)] = _size_of(canvas)
        whole = self.chosen.scatter(windows, onto=canvas)
        return torch.cat([whole, whole[:1]]) if self.one_window else whole

    def back(self, whole: Tensor) -> Tensor:
        """The windows of a map."""
        return self.chosen.gather(whole[: len(self.index)])

    def has(self, x: Tensor) -> bool:
        """Whether `x` may be a map on a detour."""
        return bool(self.left) and x.dim() == 4 and x.shape[0] == len(self.index) + self.one_window

    def go_on(self, func: Any, given: dict[str, Any]) -> Tensor:
        """What `func` makes of a map on a detour; where that ends there, its windows.

        An interpolation to the size of the windows ends it: where a map on its way had that very size (23 pixels pooled
        to 11, windows of 11), one to that map's size is taken for it.
        """
        if given.get("size") is not None:  # an interpolation, to that of the windows
            size = pair(given["size"])
            given = {**given, "size": self.left.get(size, size)}
        result: Tensor = func(**given)
        return self.back(result) if _size_of(result) in self.left.values() else result

    def combined(self, a: Any, b: Any) -> tuple[Any, Any]:
        """What is added or multiplied: beside a map on a detour, a statistic of the windows is one of their image."""
        if self._goes_on(a):
            return a, self._of_images(b)
        if self._goes_on(b):
            return self._of_images(a), b
        return a, b

    def _goes_on(self, x: Any) -> bool:
        """Whether `x` is a map on a detour, and no weight (1, C, 1, 1)."""
        return isinstance(x, Tensor) and self.has(x) and (len(x) > 1 or x.shape[2:] != (1, 1))

    def _of_images(self, x: Any) -> Any:
        """A statistic (B*k, C, 1, 1), the same for all windows of an image, once for each image."""
        if not isinstance(x, Tensor) or x.dim() != 4 or len(x) != self.index.numel() or x.shape[2:] != (1, 1):
            return x
        each = x.view(*self.index.shape, *x.shape[1:]).mean(1)
        return torch.cat([each, each[:1]]) if self.one_window else each

    def cropped(self, whole: Tensor, index: Any) -> Tensor:
        """`whole[index]` of a map on a detour; where that is a crop to the size of the windows, its windows.

        What is enlarged by the step that it was pooled by may be larger than the map that was left, as 17 pixels in
        steps of 16 become 32.
        """
        every = isinstance(index, tuple) and (len(index) == 4 or (len(index) == 3 and index[0] is Ellipsis))
        sides = index[-2:] if every else ()
        ends = tuple(side.stop for side in sides if isinstance(side, slice) and not side.start and side.step is None)
        there = self.left.get(ends)
        if there is None or any(end > side for end, side in zip(there, _size_of(whole), strict=True)):
            return whole[index]
        crop = (*index[:-2], *map(slice, there))
        return self.back(whole[crop])


def _pooled(window: int, to: int, whole: int) -> int:
    """To how many pixels a map of `whole` is pooled, if a window is pooled `to` so many.

    >>> _pooled(16, 2, 47)
    5
    """
    step = next((step for step in _STEPS if to and window // step == to), None)
    if step is None:
        raise ValueError(f"{window} pixels pooled to {to}, which is no half, quarter, eighth ... of them")
    return whole // step


def _size_of(x: Tensor) -> _Size:
    return x.shape[2], x.shape[3]
