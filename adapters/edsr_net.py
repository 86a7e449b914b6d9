"""EDSR in the original layout, a network of our own, since no package has one. Key-compatible with its weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from maskguided.errors import ArgumentError


class ResBlock(nn.Module):
    """conv - ReLU - conv, times `res_scale`, plus the input."""

    def __init__(self, features: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(features, features), nn.ReLU(inplace=True), _conv(features, features))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.body(x).mul(self.res_scale)
        return change + x


class SubMean(nn.Conv2d):
    """The 1x1 convolution that takes the mean off, after 0..1 is brought to the range of its weights."""

    def __init__(self, channels: int, value_range: float) -> None:
        super().__init__(channels, channels, 1)
        self.value_range = value_range

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.value_range)


class AddMean(SubMean):
    """The 1x1 convolution that adds the mean again, back in 0..1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias) / self.value_range


class EDSR(nn.Module):
    """EDSR as in EDSR-PyTorch (Lim et al., CVPRW 2017): sub_mean, head, body with a conv at its end, tail, add_mean.

    Input (B, C, H, W) in 0..1, output (B, C, scale*H, scale*W), unclamped.

    Args:
        channels: input and output channels.
        features: width of the body.
        blocks: number of residual blocks.
        scale: 1, 2, 3, 4 or 8.
        res_scale: factor of each block's change.
        value_range: 255 for weights that were trained on 0..255, as the published ones; else 1.
        light_tail: upsample by one convolution and PixelShuffle straight to the image.

    >>> import torch
    >>> EDSR(features=8, blocks=2, scale=3)(torch.rand(1, 3, 5, 7)).shape
    torch.Size([1, 3, 15, 21])
    """

    def __init__(
        self,
        channels: int = 3,
        features: int = 64,
        blocks: int = 16,
        scale: int = 4,
        *,
        res_scale: float = 1.0,
        value_range: float = 255.0,
        light_tail: bool = False,
    ) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = SubMean(channels, value_range), AddMean(channels, value_range)
        self.head = nn.Sequential(_conv(channels, features))
        self.body = nn.Sequential(*(ResBlock(features, res_scale) for _ in range(blocks)), _conv(features, features))
        if light_tail:
            self.tail = nn.Sequential(_conv(features, channels * scale**2), nn.PixelShuffle(scale))
        else:
            self.tail = nn.Sequential(_upsampler(features, scale), _conv(features, channels))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(self.sub_mean(x))
        image: Tensor = self.add_mean(self.tail(self.body(shallow) + shallow))
        return image


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _upsampler(features: int, scale: int) -> nn.Sequential:
    if scale not in (1, 2, 3, 4, 8):
        raise ArgumentError(f"EDSR: scale={scale}; use 1, 2, 3, 4 or 8")
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    return nn.Sequential(*(part for f in factors for part in (_conv(features, features * f**2), nn.PixelShuffle(f))))
