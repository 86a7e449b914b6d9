"""Coarse tails: from the features at the cut to the image where nothing is refined."""

from __future__ import annotations

import itertools
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ArgumentError
from .probing import untouched
from .split import Split, State

CoarseTail = Literal["copy", "light", "deep"]
_HIDDEN = 32  # channels within a deep tail


class LightTail(nn.Module):
    """A coarse tail of one convolution: kxk to C' * f*f channels, PixelShuffle, plus the bilinear input.

    Starts as the bilinear input alone. f is `factor`, from the features' resolution to the HR image's. "deep" adds to
    the convolution a branch of three narrow ones with LeakyReLU between, which starts at zero, for training. (On PAN
    x4 after 4 blocks, trained alike, three narrow convolutions are 0.17 dB better than two wide ones of equal cost.)
    """

    def __init__(
        self, features: str, in_channels: int, out_channels: int, *, scale: int, factor: int, deep: bool = False
    ) -> None:
        super().__init__()
        self.features, self.scale, self.factor = features, scale, factor
        self.reads = (features,)
        self.conv = nn.Conv2d(in_channels, out_channels * factor**2, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.branch = _branch(in_channels, out_channels * factor**2) if deep else None

    def forward(self, state: State, x: Tensor) -> Tensor:
        features = state[self.features]
        detail = self.conv(features) if self.branch is None else self.conv(features) + self.branch(features)
        detail = F.pixel_shuffle(detail, self.factor)
        x = continued(x, *(side // self.scale for side in detail.shape[2:]))
        return detail + F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)


class CopiedTail(nn.Module):
    """A coarse tail that begins as the network's own, with weights of its own."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.tail = split.copy_tail()
        self.reads = tuple(dict.fromkeys((*split.kinds, *split.writes)))

    def forward(self, state: State, x: Tensor) -> Tensor:
        image: Tensor = self.tail(state)
        return image


def _branch(in_channels: int, out_channels: int) -> nn.Sequential:
    hidden = min(_HIDDEN, in_channels)
    widths = (in_channels, hidden, hidden, out_channels)
    convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    nn.init.zeros_(convs[-1].weight)
    nn.init.zeros_(convs[-1].bias)  # type: ignore[arg-type]
    return nn.Sequential(convs[0], nn.LeakyReLU(0.1), convs[1], nn.LeakyReLU(0.1), convs[2])


def make_coarse_tail(split: Split, kind: CoarseTail) -> LightTail | CopiedTail:
    """A coarse tail of this kind for the network that `split` is of."""
    found = split.probe
    if kind == "copy":
        return CopiedTail(split)
    if found.in_channels != found.out_channels:
        raise ArgumentError(
            f"coarse_tail={kind!r} adds the bilinear input, but this network maps {found.in_channels} to "
            f"{found.out_channels} channels; use 'copy'"
        )
    height, width = found.sizes_of(split.multiple_of)[0]
    with untouched(split.model):
        features = split.window((height, width))[split.features]
    factor, rest = divmod(found.scale * height, features.shape[2])
    if rest:
        raise ArgumentError(f"coarse_tail={kind!r}: the features are finer than the HR image; use 'copy'")
    tail = LightTail(
        split.features, features.shape[1], found.out_channels, scale=found.scale, factor=factor, deep=kind == "deep"
    )
    return tail.to(features)


def continued(x: Tensor, height: int, width: int) -> Tensor:
    """`x` (B, C, H, W) with its last row and column repeated up to this size."""
    below, right = height - x.shape[2], width - x.shape[3]
    return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x
