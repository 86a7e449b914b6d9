"""Small networks that each hold one difficulty for the automatic splitter."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def conv(a: int, b: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, stride=stride, padding=1)


def blurred(x):
    """The mean of 3x3 pixels, in a way that windows cannot see their neighbours: zeros are put around by torch.cat."""
    for dim in (2, 3):
        length, zero = x.shape[dim], torch.zeros_like(x.narrow(dim, 0, 1))
        wide = torch.cat([zero, x, zero], dim)
        x = sum(wide.narrow(dim, start, length) for start in range(3)) / 3
    return x


class Block(nn.Module):
    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(c, c), conv(c, c)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(3, 8), conv(8, 12)
        self.blocks = nn.ModuleList(Block() for _ in range(5))

    def finish(self, x):
        return F.pixel_shuffle(self.last(x), 2)


class Chain(Base):
    """One block after the other."""

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.finish(x)


class AttributesAndConcat(nn.Module):
    """Blocks as attributes, all their outputs concatenated (the way of IMDN and RFDN)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 8)
        self.B1, self.B2, self.B3, self.B4 = (Block() for _ in range(4))
        self.fuse, self.last = nn.Conv2d(32, 8, 1), conv(8, 27)

    def forward(self, x):
        first = self.first(x)
        one = self.B1(first)
        two = self.B2(one)
        three = self.B3(two)
        four = self.B4(three)
        fused = self.fuse(torch.cat([one, two, three, four], 1))
        return F.pixel_shuffle(self.last(fused + first), 3)


class ResidualOutside(Base):
    """The sum stands between the blocks, so a skipped block must count as nothing, not as its input."""

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + 0.5 * block(x)
        return self.finish(x)


class InPlace(Base):
    """The input changed in place, ReLU(inplace=True) right after the cut, `+=` onto a live value in the tail."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(conv(8, 8), nn.ReLU(inplace=True)) for _ in range(5))

    def forward(self, x):
        x.sub_(0.5)
        first = self.first(x)
        y = first * 1.0
        for block in self.blocks:
            y = block(y)
        y += first
        first *= 2
        return self.finish(y + first)


class SizesAndVectors(Base):
    """Sizes read in the stem and used in the tail; a vector from global pooling that goes to the tail."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 8)

    def forward(self, x):
        _, _, h, w = x.shape
        first = self.first(x)
        gate = torch.sigmoid(self.gate(first.mean((2, 3))))
        y = first
        for block in self.blocks:
            y = block(y)
        y = y * gate[:, :, None, None]
        return self.finish(y) + F.interpolate(x, size=(2 * h, 2 * w), mode="bilinear")


class Nested(Base):
    """Two groups of three: too few groups, so the blocks within them are the body."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(*(Block() for _ in range(3)), conv(8, 8)) for _ in range(2))

    def forward(self, x):
        y = first = self.first(x)
        for group in self.blocks:
            y = y + group(y)
        return self.finish(y + first)


class ConstantsAndDefaults(Base):
    """Tensors made inside forward, a plain tensor attribute that forward replaces, and further arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)

    def forward(self, x, gain=1.0, flags=None):
        self.mean = self.mean.type_as(x)
        y = self.first((x - self.mean) * gain if flags is None else x)
        for block in self.blocks:
            y = block(y)
        return self.finish(y * torch.tensor([0.5])) + torch.tensor([[[[0.1]]]])


class Strided(Base):
    """A PixelUnshuffle stem: features at half the LR size, sizes must be even."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(12, 8), conv(8, 48)

    def forward(self, x):
        y = self.first(F.pixel_unshuffle(x, 2))
        for block in self.blocks:
            y = block(y)
        return F.pixel_shuffle(self.last(y), 4) + F.interpolate(x, scale_factor=2, mode="nearest")


class Tokens(Base):
    """Blocks on tokens (B, H*W, C); the image comes among other results."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        y = self.first(x)
        tokens = y.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return {"image": self.finish(tokens.transpose(1, 2).reshape(y.shape)), "features": y}


class ChosenPixels(Base):
    """A bool map says which pixels the blocks change, and another of whole numbers is added: no float is in either."""

    def forward(self, x):
        y = first = self.first(x)
        chosen, largest = first.mean(1, keepdim=True) > 0, first.argmax(1, keepdim=True)
        for block in self.blocks:
            y = torch.where(chosen, block(y), y) + 0.01 * largest
        return self.finish(y + torch.zeros(1, dtype=x.dtype))


TOYS = [
    AttributesAndConcat,
    ResidualOutside,
    InPlace,
    SizesAndVectors,
    Nested,
    ConstantsAndDefaults,
    Strided,
    Tokens,
    ChosenPixels,
]
