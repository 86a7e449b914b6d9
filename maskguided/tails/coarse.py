"""Coarse tails: from the features at the cut to the image where nothing is refined."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..parts import State
from ..probing.untouched import untouched
from ..split import Split
from .light import LightTail

CoarseTail = Literal["copy", "light", "deep", "residual"]


class CopiedTail(nn.Module):
    """A coarse tail that begins as the network's own, with weights of its own. It empties the state it gets."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.tail = split.copy_tail()
        self.reads = tuple(dict.fromkeys((*split.kinds, *split.writes)))

    def forward(self, state: State, x: Tensor) -> Tensor:
        """The image (B, C', s*H', s*W') of live values that stand for H' x W' LR pixels; `x`, the LR image, is in them
        where the network's own tail reads it."""
        image: Tensor = self.tail(state)
        return image


def make_coarse_tail(split: Split, kind: CoarseTail) -> LightTail | CopiedTail:
    """A coarse tail of this kind for the network that `split` is of."""
    probe = split.probe
    if kind == "copy":
        return CopiedTail(split)
    if probe.in_channels != probe.out_channels:
        raise ArgumentError(
            f"coarse_tail={kind!r} adds the bilinear input, but this network maps {probe.in_channels} to "
            f"{probe.out_channels} channels; use 'copy'"
        )
    height, width = probe.sizes_of(split.multiple_of)[0]
    with untouched(split.model):
        features = split.window((height, width))[split.features]
    factor, rest = divmod(probe.scale * height, features.shape[2])
    if rest:
        raise ArgumentError(f"coarse_tail={kind!r}: the features are finer than the HR image; use 'copy'")
    branch = None if kind == "light" else kind
    with torch.device("cpu"):  # whatever torch's default is
        tail = LightTail(
            split.features, features.shape[1], probe.out_channels, scale=probe.scale, factor=factor, branch=branch
        )
    return tail.to(features)
