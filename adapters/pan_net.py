"""PAN, a network of our own, since no package has one. Key-compatible with the official weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskguided.errors import ArgumentError

_SLOPE = 0.2


class PixelAttention(nn.Module):
    """Every pixel of every channel weighted by a 1x1 conv of its own position (PAN, section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class PAConv(nn.Module):
    """The upper branch of an SC-PA block: a 3x3 conv gated by pixel attention, then another 3x3 conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.k2 = nn.Conv2d(channels, channels, 1)
        self.k3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.k4 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.k4(self.k3(x) * torch.sigmoid(self.k2(x)))
        return gated


class SCPA(nn.Module):
    """Self-calibrated block with pixel attention (PAN, section 3.3): two half-width branches, one gated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1_a = nn.Conv2d(channels, half, 1, bias=False)
        self.conv1_b = nn.Conv2d(channels, half, 1, bias=False)
        self.k1 = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, bias=False))
        self.PAConv = PAConv(half)
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.k1(F.leaky_relu(self.conv1_a(x), _SLOPE))
        gated = self.PAConv(F.leaky_relu(self.conv1_b(x), _SLOPE))
        both = F.leaky_relu(torch.cat([plain, gated], dim=1), _SLOPE)
        merged: Tensor = self.conv3(both)
        return merged + x


class PAN(nn.Module):
    """Pixel Attention Network (Zhao et al., "Efficient Image Super-Resolution Using Pixel Attention", 2020).

    Input (B, 3, H, W) in 0..1, output (B, 3, scale*H, scale*W), unclamped. The defaults are those of
    the official weights (272,419 parameters at x4).

    Args:
        channels: input and output channels.
        features: width of the body (nf).
        up_features: width of the upsampler (unf).
        blocks: number of SC-PA blocks.
        scale: 2, 3 or 4.

    >>> PAN(features=8, up_features=8, blocks=2, scale=3)(torch.rand(1, 3, 5, 7)).shape
    torch.Size([1, 3, 15, 21])
    """

    def __init__(
        self, channels: int = 3, features: int = 40, up_features: int = 24, blocks: int = 16, scale: int = 4
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ArgumentError(f"PAN: scale={scale}; use 2, 3 or 4")
        self.scale = scale
        self.conv_first = nn.Conv2d(channels, features, 3, padding=1)
        self.SCPA_trunk = nn.Sequential(*(SCPA(features) for _ in range(blocks)))
        self.trunk_conv = nn.Conv2d(features, features, 3, padding=1)
        self.upconv1 = nn.Conv2d(features, up_features, 3, padding=1)
        self.att1 = PixelAttention(up_features)
        self.HRconv1 = nn.Conv2d(up_features, up_features, 3, padding=1)
        if scale == 4:
            self.upconv2 = nn.Conv2d(up_features, up_features, 3, padding=1)
            self.att2 = PixelAttention(up_features)
            self.HRconv2 = nn.Conv2d(up_features, up_features, 3, padding=1)
        self.conv_last = nn.Conv2d(up_features, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_first(x)
        deep = shallow + self.trunk_conv(self.SCPA_trunk(shallow))
        residual: Tensor = self.conv_last(self.upsample(deep))
        return residual + F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)

    def upsample(self, features: Tensor) -> Tensor:
        """(B, features, H, W) -> (B, up_features, scale*H, scale*W), in one step or two of 2."""
        first = 2 if self.scale == 4 else self.scale
        x = self.upconv1(F.interpolate(features, scale_factor=float(first), mode="nearest"))
        x = F.leaky_relu(self.HRconv1(F.leaky_relu(self.att1(x), _SLOPE)), _SLOPE)
        if self.scale == 4:
            x = self.upconv2(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = F.leaky_relu(self.HRconv2(F.leaky_relu(self.att2(x), _SLOPE)), _SLOPE)
        return x
