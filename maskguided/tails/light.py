"""The bilinear input, and what a convolution makes of features beside it: the tail that is fitted in closed form."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..optional import not_cast
from ..parts import State
from ..patches import continued, memory_format_of

_HIDDEN = 32  # channels within a deep tail
_NARROW, _PAIRS = 16, 8  # channels within a residual tail, and its pairs of convolutions


class LightTail(nn.Module):
    """A tail of one convolution: kxk to C' * f*f channels, PixelShuffle, plus the bilinear input.

    It makes the coarse image, or that of refined patches (refine.py). Starts as the bilinear input alone. f is
    `factor`, from the features' resolution to the HR image's. `branch`, for training, is added to what the convolution
    makes; it starts at zero, too:

        deep      three convolutions of 32 channels, LeakyReLU between
        residual  eighteen of 16 channels, the inner ones in residual pairs, and a convolution of 1x1 beside them: as
                  many multiply-adds and as much time as "deep" has, and better where it is trained (docs/results.md)
    """

    def __init__(
        self,
        features: str,
        in_channels: int,
        out_channels: int,
        *,
        scale: int,
        factor: int,
        branch: Literal["deep", "residual"] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.scale, self.factor = features, scale, factor
        self.reads = (features,)
        kernel, made = (1 if branch == "residual" else 3), out_channels * factor**2
        self.conv = nn.Conv2d(in_channels, made, kernel, padding=kernel // 2)
        self.branch = None if branch is None else _BRANCHES[branch](in_channels, made)
        self.register_buffer("bilinear", _bilinear(scale).repeat(out_channels, 1, 1, 1), persistent=False)
        self.bilinear: Tensor
        for parameter in self._last_parameters():
            nn.init.zeros_(parameter)

    @property
    def is_bilinear(self) -> bool:
        """Whether it has learnt nothing yet."""
        return not any(bool(parameter.any()) for parameter in self._last_parameters())

    def _last_parameters(self) -> list[nn.Parameter]:
        """Those of the convolutions that make what is added to the bilinear input."""
        last = [self.conv, *([] if self.branch is None else [self.branch[-1]])]
        return [parameter for layer in last for parameter in layer.parameters()]

    def forward(self, state: State, x: Tensor) -> Tensor:
        """The image (B, C', s*H', s*W') of live values that stand for H' x W' LR pixels, beside the LR image `x`
        (B, C', H, W), which is continued to that."""
        features = state[self.features]
        detail = self.conv(features)
        if self.branch is not None:
            detail = detail.add_(self.branch(features))
        x = continued(x, *(side * self.factor // self.scale for side in features.shape[2:]))
        wide = F.pad(x, (1, 1, 1, 1), mode="replicate").contiguous(memory_format=memory_format_of(features))
        with not_cast(x):  # autocast would round the input to half precision
            larger = F.conv2d(wide, self.bilinear.to(wide.dtype), groups=x.shape[1])
        if self.factor == self.scale:
            return F.pixel_shuffle(larger.add_(detail), self.scale)
        return F.pixel_shuffle(larger, self.scale).add_(F.pixel_shuffle(detail, self.factor))


def _bilinear(scale: int) -> Tensor:
    """(scale**2, 1, 3, 3): each of the pixels that bilinear interpolation makes of one, from those around it.

    A convolution and one PixelShuffle take half of the time of an interpolation beside it on a CPU.

    >>> _bilinear(2)[0, 0] * 16      # a quarter of a pixel above and left of its middle
    tensor([[1., 3., 0.],
            [3., 9., 0.],
            [0., 0., 0.]])
    """
    offset = (torch.arange(scale) + 0.5) / scale - 0.5
    along = torch.stack([(-offset).clamp_min(0), 1 - offset.abs(), offset.clamp_min(0)], 1)
    return torch.einsum("ay,bx->abyx", along, along).reshape(scale**2, 1, 3, 3)


class _ResidualPair(nn.Module):
    """x + two convolutions of it, then LeakyReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.relu = nn.LeakyReLU(0.1, inplace=True)
        with torch.no_grad():  # so that eight of them in a row begin near the identity
            self.second.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))).add_(x))  # type: ignore[no-any-return]


def _deep(in_channels: int, out_channels: int) -> nn.Sequential:
    hidden = min(_HIDDEN, in_channels)
    widths = (in_channels, hidden, hidden, out_channels)
    convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(convs[0], nn.LeakyReLU(0.1), convs[1], nn.LeakyReLU(0.1), convs[2])


def _residual(in_channels: int, out_channels: int) -> nn.Sequential:
    narrow = min(_NARROW, in_channels)
    first, last = nn.Conv2d(in_channels, narrow, 3, padding=1), nn.Conv2d(narrow, out_channels, 3, padding=1)
    pairs = (_ResidualPair(narrow) for _ in range(_PAIRS))
    return nn.Sequential(first, nn.LeakyReLU(0.1, inplace=True), *pairs, last)


_BRANCHES = {"deep": _deep, "residual": _residual}
