"""The blocks of the random networks, one class for each way of writing one met in super-resolution; and Swin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layout = Literal["map", "last", "tokens"]
"""(B, C, H, W), (B, H, W, C) or (B, H*W, C)."""


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


def activation(name: str, in_place: bool) -> nn.Module:
    if name == "relu":
        return nn.ReLU(in_place)
    return nn.LeakyReLU(0.1, in_place) if name == "leaky" else nn.GELU()


def to_layout(x: Tensor, layout: Layout) -> Tensor:
    if layout == "tokens":
        return x.flatten(2).transpose(1, 2)
    return x.permute(0, 2, 3, 1) if layout == "last" else x


def to_map(x: Tensor, layout: Layout, size: tuple[int, int]) -> Tensor:
    if layout == "tokens":
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], size[0], size[1])
    return x.permute(0, 3, 1, 2) if layout == "last" else x


@dataclass(frozen=True)
class Style:
    """What a block is made with, beside its width."""

    width: int
    activation: str
    in_place: bool
    window: int
    number: int
    """Which block of its run this is: window attention shifts every second one."""

    def act(self) -> nn.Module:
        return activation(self.activation, self.in_place)

    def convs(self, inputs: int | None = None) -> nn.Sequential:
        return nn.Sequential(conv(inputs or self.width, self.width), self.act(), conv(self.width, self.width))


class Residual(nn.Module):
    def __init__(self, style: Style) -> None:
        super().__init__()
        self.convs, self.in_place = style.convs(), style.in_place

    def forward(self, x):
        res = self.convs(x)
        if self.in_place:
            res += x
            return res
        return x + res


def plain(style: Style) -> nn.Sequential:
    return nn.Sequential(conv(style.width, style.width), style.act())


class Bottleneck(nn.Module):
    def __init__(self, style: Style) -> None:
        super().__init__()
        c, half = style.width, style.width // 2
        self.reduce, self.spatial, self.expand = conv(c, half, 1), conv(half, half), conv(half, c, 1)
        self.act = style.act()

    def forward(self, x):
        return x + self.expand(self.act(self.spatial(self.act(self.reduce(x)))))


class Separable(nn.Module):
    def __init__(self, style: Style) -> None:
        super().__init__()
        self.depthwise = conv(style.width, style.width, groups=style.width)
        self.act, self.pointwise = style.act(), conv(style.width, style.width, 1)

    def forward(self, x):
        return x + self.pointwise(self.act(self.depthwise(x)))


class Reparameterised(nn.Module):
    def __init__(self, style: Style) -> None:
        super().__init__()
        self.three, self.one, self.act = conv(style.width, style.width), conv(style.width, style.width, 1), style.act()

    def forward(self, x):
        return self.act(self.three(x) + self.one(x) + x)


class PixelAttention(nn.Module):
    def __init__(self, style: Style) -> None:
        super().__init__()
        self.conv, self.gate = conv(style.width, style.width), conv(style.width, style.width, 1)

    def forward(self, x):
        return self.conv(x) * torch.sigmoid(self.gate(x)) + x


class ChannelAttention(nn.Module):
    def __init__(self, style: Style) -> None:
        super().__init__()
        c = style.width
        self.convs = style.convs()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(c, c // 2, 1), nn.LeakyReLU(0.1), conv(c // 2, c, 1), nn.Sigmoid()
        )
        for layer in (self.attention[1], self.attention[3]):
            nn.init.normal_(layer.weight)  # pooled values differ little: larger weights let the gate differ

    def forward(self, x):
        res = self.convs(x)
        return x + res * self.attention(res)


class WithStrength(nn.Module):
    """Takes a number beside the map."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.convs = style.convs()

    def forward(self, x, strength=1.0):
        return x + strength * self.convs(x)


class WithFirst(nn.Module):
    """Takes the stem's features beside the map."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.convs = style.convs(2 * style.width)

    def forward(self, x, first):
        return x + self.convs(torch.cat([x, first], 1))


class Pair(nn.Module):
    """Returns two maps, both of which are used."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.convs = style.convs()

    def forward(self, x):
        res = self.convs(x)
        return x + res, res


class ChannelsLast(nn.Module):
    """On (B, H, W, C), as ConvNeXt writes it."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        c = style.width
        self.depthwise, self.norm = conv(c, c, groups=c), nn.LayerNorm(c)
        self.mlp = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))

    def forward(self, x):
        spatial = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(self.norm(spatial))


class WindowAttention(nn.Module):
    """On tokens (B, H*W, C) and their (H, W), as SwinIR writes it; every second block shifts its windows."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        c, w = style.width, style.window
        self.window, self.shift, self.heads = w, style.number % 2 * (w // 2), 2
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.bias = nn.Parameter(torch.randn(self.heads, w * w, w * w) * 0.5)
        self.mlp = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))

    def forward(self, x, x_size):
        h, w = x_size
        b, _, c = x.shape
        y = self.norm1(x).view(b, h, w, c)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self.attend(self.windows(y), self.mask(h, w, x) if self.shift else None)
        y = y.view(b, h // self.window, w // self.window, self.window, self.window, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y.reshape(b, h * w, c)
        return x + self.mlp(self.norm2(x))

    def windows(self, y):
        b, h, w, c = y.shape
        y = y.view(b, h // self.window, self.window, w // self.window, self.window, c)
        return y.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, c)

    def attend(self, y, mask):
        n, tokens, c = y.shape
        q, k, v = self.qkv(y).view(n, tokens, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5 + self.bias
        if mask is not None:
            weights = weights.view(-1, mask.shape[0], self.heads, tokens, tokens) + mask[:, None]
            weights = weights.view(n, self.heads, tokens, tokens)
        return self.proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, c))

    def mask(self, h, w, like):
        """-100 between the tokens of a window that torch.roll brought together from opposite borders."""
        regions, number = torch.zeros((1, h, w, 1), device=like.device), 0
        edges = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for rows in edges:
            for columns in edges:
                regions[:, rows, columns] = number
                number += 1
        of_window = self.windows(regions).squeeze(-1)
        apart = of_window[:, None] - of_window[:, :, None]
        return apart.masked_fill(apart != 0, -100.0)


class Swin(nn.Module):
    """SwinIR in little."""

    def __init__(
        self, blocks: int = 4, width: int = 8, window: int = 4, block: type[WindowAttention] = WindowAttention
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 12, 3, 1, 1)
        self.blocks = nn.ModuleList(block(Style(width, "gelu", False, window, n)) for n in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, (x.shape[2], x.shape[3]))
        return F.pixel_shuffle(self.last(x + tokens.transpose(1, 2).reshape(x.shape)), 2)


@dataclass(frozen=True)
class Kind:
    """How a block is made and called."""

    make: Callable[[Style], nn.Module]
    weight: float
    """MACs, in 3x3 convolutions of the body's width, roughly."""
    layout: Layout = "map"
    takes: Literal["", "strength", "first", "size"] = ""
    pair: bool = False

    @property
    def simple(self) -> bool:
        """One map in, one out: a Sequential can hold it, and another kind can stand in its place."""
        return self.layout == "map" and not self.takes and not self.pair


KINDS: dict[str, Kind] = {
    "residual": Kind(Residual, 2),
    "plain": Kind(plain, 1),
    "bottleneck": Kind(Bottleneck, 0.3),
    "separable": Kind(Separable, 0.2),
    "reparameterised": Kind(Reparameterised, 1),
    "pixel-attention": Kind(PixelAttention, 1),
    "channel-attention": Kind(ChannelAttention, 2),
    "strength": Kind(WithStrength, 2, takes="strength"),
    "first": Kind(WithFirst, 3, takes="first"),
    "pair": Kind(Pair, 2, pair=True),
    "channels-last": Kind(ChannelsLast, 0.5, layout="last"),
    "tokens": Kind(WindowAttention, 0.9, layout="tokens", takes="size"),
}
