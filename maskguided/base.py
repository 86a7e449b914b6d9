"""What a forward passes from step to step, and what `explain` returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .parts import State
from .patches import Grid, continued


@dataclass(frozen=True)
class Explanation:
    """What a forward saw and chose."""

    refined: Tensor
    """(B, C, s*H, s*W), the output."""
    coarse: Tensor
    """(B, C, s*H, s*W), the output at keep=0."""
    score: Tensor
    """(B, rows, cols): one value a patch, larger where refining should gain more; the scorer's in float32."""
    mask: Tensor
    """(B, rows, cols), bool: the patches that were refined."""
    index: Tensor
    """(B, k), long: the same, best first; in order of position, where `keep` says all and none leaves early."""


@dataclass
class BaseOutput:
    """What the first part of a forward made of an LR image; the rest starts from here."""

    x: Tensor
    """(B, C, H', W'): the image, continued to a size that the network accepts."""
    state: State
    """The live values at the cut."""
    skipped: State
    """The same with the refined blocks left out: what the coarse image is made of."""
    grid: Grid
    size: tuple[int, int]
    """Height and width of the LR image as it was given."""
    coarse: Tensor | None = None
    """(B, C', s*H', s*W'): what the coarse tail makes of the whole, once it is needed."""

    @property
    def x_on_grid(self) -> Tensor:
        """`x`, continued to the size of the grid: (B, C, grid.height, grid.width)."""
        return continued(self.x, self.grid.height, self.grid.width)

    @property
    def every(self) -> Tensor:
        """(B, count): the index of all patches."""
        return torch.arange(self.grid.count, device=self.x.device).expand(self.x.shape[0], -1)
