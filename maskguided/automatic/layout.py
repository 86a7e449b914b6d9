"""Where height and width of a live value stand: in (B, C, H, W), (B, H, W, C) or tokens (B, H*W, C) alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from .sizes import At, Size


@dataclass(frozen=True)
class Layout:
    """How a value of any layout becomes a map (B, C, r*H, r*W), and a map that value again."""

    shape: tuple[int | Size, ...]
    batch: int | None
    """The axis of the batch; None for a value that is the same for every image of a batch."""
    height: int
    width: int
    """The axes of height and width; the same one where they are flattened into tokens."""
    ratio: Fraction

    @property
    def plain(self) -> bool:
        """Whether the value is a map as it stands."""
        return len(self.shape) == 4 and (self.batch, self.height, self.width) == (0, 2, 3)

    @property
    def channels(self) -> int:
        return math.prod(self._channel_sizes())

    def to_map(self, value: Tensor, at: At) -> Tensor:
        """(B, C, r*H, r*W); a view wherever strides allow."""
        if self.plain:
            return value
        if self.batch is None:
            value = value.unsqueeze(0).expand(at.batch, *value.shape)
        if self.height == self.width:
            value = value.unflatten(self._own(self.height), self._extent(at))
        batch, channels, height, width = self._axes()
        return value.permute(batch, *channels, height, width).flatten(1, -3) if channels else value.unsqueeze(1)

    def from_map(self, value: Tensor, at: At) -> Tensor:
        """The value of this layout, of the size of `value`; a value without a batch gets that of `value`."""
        if self.plain:
            return value
        batch, channels, height, width = self._axes()
        value = value.unflatten(1, self._channel_sizes()) if channels else value.squeeze(1)
        order = (batch, *channels, height, width)
        value = value.permute(*(order.index(axis) for axis in range(len(order))))
        if self.height == self.width:
            value = value.flatten(self._own(self.height), self._own(self.height) + 1)
        return value.squeeze(1) if self._unit_batch else value

    @property
    def _unit_batch(self) -> bool:
        """(1, H, W, C): the batch takes the place of the leading 1."""
        return self.batch is None and len(self.shape) > 2 and self.shape[0] == 1

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
        return at.height * up // down, at.width * up // down


def find_layout(shape: Sequence[int | Size]) -> Layout | None:
    """The layout of a value with these sizes; None for one that lies on no map."""
    batch = [a for a, s in enumerate(shape) if isinstance(s, Size) and s.batched]
    if len(batch) > 1 or any(shape[a] != Size(1, 0, 0, 0, 1, True) for a in batch):
        return None
    of_image = {a: s for a, s in enumerate(shape) if isinstance(s, Size) and not s.batched}
    if any(s.one or s.inverse for s in of_image.values()):
        return None
    tall = [a for a, s in of_image.items() if s.h and not s.w and not s.area]
    wide = [a for a, s in of_image.items() if s.w and not s.h and not s.area]
    flat = [a for a, s in of_image.items() if s.area and not s.h and not s.w]
    first = batch[0] if batch else None
    if len(of_image) == 2 and len(tall) == len(wide) == 1:
        ratios = Fraction(of_image[tall[0]].h, of_image[tall[0]].over), Fraction(
            of_image[wide[0]].w, of_image[wide[0]].over
        )
        return Layout(tuple(shape), first, tall[0], wide[0], ratios[0]) if ratios[0] == ratios[1] else None
    if len(of_image) == len(flat) == 1:
        ratio = _root(Fraction(of_image[flat[0]].area, of_image[flat[0]].over))
        return None if ratio is None else Layout(tuple(shape), first, flat[0], flat[0], ratio)
    return None


def _root(square: Fraction) -> Fraction | None:
    root = Fraction(math.isqrt(square.numerator), math.isqrt(square.denominator))
    return root if root * root == square else None
