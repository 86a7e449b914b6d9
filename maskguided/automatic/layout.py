"""Where height and width of a live value stand: in (B, C, H, W), (B, H, W, C) or tokens (B, H*W, C) alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from ..patches import continued, memory_format_of
from .sizes import BATCH, At, Size


@dataclass(frozen=True)
class Layout:
    """How a value of any layout becomes a map (B, C, r*H, r*W), and a map that value again.

    In a state, H and W are those of the image rounded up to multiples that windows can be cut from. A value
    that is smaller, because the network does not pad it or not as far, is continued, and cropped again.
    """

    shape: tuple[int | Size, ...]
    batch: int | None
    """The axis of the batch; None for a value that is the same for every image of a batch."""
    height: int
    width: int
    """The axes of height and width; the same one where they are flattened into tokens."""
    ratio: Fraction
    full: bool
    """Whether it is as large as the image rounded up to the network's unit, or as the image itself."""

    @property
    def channels(self) -> int:
        """C of the map."""
        return math.prod(self._channel_sizes())

    def to_map(self, value: Tensor, at: At, full: tuple[int, int]) -> Tensor:
        """(B, C, r*H, r*W) with (H, W) = `full`; a view wherever strides allow."""
        height, width = self._extent(at)
        if not self._plain:
            if self.batch is None:
                value = value.unsqueeze(0).expand(at.batch, *value.shape)
            if self.height == self.width:
                value = value.unflatten(self._own(self.height), (height, width))  # type: ignore[no-untyped-call]
            batch, channels, rows, cols = self._axes()
            value = value.permute(batch, *channels, rows, cols)
            value = value.flatten(1, -3) if channels else value.unsqueeze(1)
        up, down = self.ratio.numerator, self.ratio.denominator
        return continued(value, full[0] * up // down, full[1] * up // down)

    def from_map(self, value: Tensor, at: At) -> Tensor:
        """The value of this layout; one without a batch gets that of `value`."""
        height, width = self._extent(at)
        if value.shape[2:] != (height, width):
            value = value[:, :, :height, :width].contiguous(memory_format=memory_format_of(value))
        if self._plain:
            return value
        batch, channels, rows, cols = self._axes()
        value = value.reshape(-1, *self._channel_sizes(), height, width)
        order = (batch, *channels, rows, cols)
        value = value.permute(*(order.index(axis) for axis in range(len(order))))
        if self.height == self.width:
            value = value.flatten(self._own(self.height), self._own(self.height) + 1)
        if self.batch is None and len(self.shape) == 2:  # (H, W), which stands beside maps as (1, 1, H, W) does
            return value.unsqueeze(1)
        return value.squeeze(1) if self._unit_batch else value

    @property
    def _plain(self) -> bool:
        return len(self.shape) == 4 and (self.batch, self.height, self.width) == (0, 2, 3)

    @property
    def _unit_batch(self) -> bool:
        """(1, H, W, C): the batch takes the place of the leading 1; that of (1, H, W) is one of channels."""
        return self.batch is None and len(self.shape) > 3 and self.shape[0] == 1

    def _own(self, axis: int) -> int:
        return axis + (self.batch is None)

    def _axes(self) -> tuple[int, list[int], int, int]:
        """Axes of batch, channels, height and width, with batch and both sizes apart."""
        apart = self.height == self.width
        count = len(self.shape) + (self.batch is None) + apart
        batch = 0 if self.batch is None else self.batch + (apart and self.batch > self.height)
        height = self._own(self.height)
        width = height + 1 if apart else self._own(self.width)
        return batch, [a for a in range(count) if a not in (batch, height, width)], height, width

    def _channel_sizes(self) -> list[int]:
        taken = {self.batch, self.height, self.width}
        return [int(s) for a, s in enumerate(self.shape) if a not in taken and not isinstance(s, Size)]

    def _extent(self, at: At) -> tuple[int, int]:
        up, down = self.ratio.numerator, self.ratio.denominator
        # By name: the compiler of torch 2.6 to 2.8 knows no slices of a NamedTuple.
        height, width = (at.full_height, at.full_width) if self.full else (at.height, at.width)
        return height * up // down, width * up // down


def find_layout(shape: Sequence[int | Size]) -> Layout | None:
    """The layout of a value with these sizes; None for one that lies on no map."""
    batch = [a for a, s in enumerate(shape) if isinstance(s, Size) and s.batched]
    if len(batch) > 1 or any(shape[a] != BATCH for a in batch):
        return None
    of_image = {a: s for a, s in enumerate(shape) if isinstance(s, Size) and not s.batched}
    first = batch[0] if batch else None
    for full, (tall, wide, flat) in ((False, "HWA"), (True, "PQR")):
        heights = {a: r for a, s in of_image.items() if (r := s.only(tall)) is not None}
        widths = {a: r for a, s in of_image.items() if (r := s.only(wide)) is not None}
        areas = [r for s in of_image.values() if (r := s.only(flat)) is not None]
        if len(of_image) == 2 and len(heights) == len(widths) == 1:
            (row, ratio), (col, other) = *heights.items(), *widths.items()
            return Layout(tuple(shape), first, row, col, ratio, full) if ratio == other else None
        # Without a batch, height times width counts windows, as in an attention mask.
        if len(of_image) == len(areas) == 1 and batch:
            axis, side = next(iter(of_image)), _root(areas[0])
            return None if side is None else Layout(tuple(shape), first, axis, axis, side, full)
    return None


def _root(square: Fraction) -> Fraction | None:
    root = Fraction(math.isqrt(square.numerator), math.isqrt(square.denominator))
    return root if root * root == square else None
