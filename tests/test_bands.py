"""Hyperspectral networks: maps are (B, C, bands, H, W), and convolutions go over bands, too."""

from __future__ import annotations

import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F

import maskguided


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(8, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding="same", dilation=(1, 2, 1))

    def forward(self, x):
        return x + self.second(F.relu(self.first(x)))


class Apart(nn.Module):
    """Over pixels, then over bands: MCNet's and SFCSR's way."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Conv3d(8, 8, (1, 3, 5), padding=(0, 1, 2))
        self.bands = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x):
        return x + self.bands(F.relu(self.pixels(x)))


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv3d(8, 8, 3, stride=(1, 2, 2), padding=1), nn.Conv3d(8, 8, 1)

    def forward(self, x):
        less = self.up(F.relu(self.down(x)))
        return x + less.repeat_interleave(2, 3).repeat_interleave(2, 4)[..., : x.shape[3], : x.shape[4]]


class Hyperspectral(nn.Module):
    """Five bands to five, x2."""

    def __init__(self, block) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 1, 3, padding=1)
        self.blocks = nn.ModuleList(block() for _ in range(4))
        self.up = nn.Conv2d(5, 20, 3, padding=1)

    def forward(self, x):
        y = self.first(x.unsqueeze(1))
        for block in self.blocks:
            y = block(y)
        return F.pixel_shuffle(self.up(self.last(y).squeeze(1)), 2)


@pytest.mark.parametrize(("block", "unit"), [(Whole, 1), (Apart, 1), (Strided, 2)])
@pytest.mark.parametrize("merge", ["features", "image"])
def test_windows_of_bands_see_their_neighbours(block, unit, merge):
    network = scaled(Hyperspectral(block))
    fast = maskguided.wrap(network, keep=1, merge=merge).eval()
    assert fast.split.blocks == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert (fast.split.probe.in_channels, fast.split.multiple_of) == (5, unit)
    assert (fast.exchange, fast.halo) == (True, 0)
    for size in ((24, 40), (32, 26)):
        x = image(2, 5, *size)
        assert difference(by_windows(fast, x), network(x)) < 1e-5
    fast.keep = 0.5
    assert difference(fast(x), network(x)) > 1e-3


def test_beyond_an_unrefined_neighbour_a_window_of_bands_sees_its_guess():
    """And not what it would have computed: one patch alone differs near its border, and nowhere in its middle."""
    network, x = scaled(Hyperspectral(Whole)), image(1, 5, 48, 48)
    fast = maskguided.wrap(network, keep=1, patch_size=24).eval()
    base = fast.run_base(x)
    apart = (fast.refine(base, torch.tensor([[0]])) - network(x)).abs()[0, :, :48, :48].amax(0)
    assert apart[:24, :24].max() < 1e-5
    assert apart[-4:].max() > 1e-3


def test_frames_one_after_the_other_among_the_channels_are_found():
    class Frames(nn.Module):
        """Three frames of a video to the middle one."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.join, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(24, 8, 1), nn.Conv2d(8, 3, 1)
            self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

        def forward(self, x):
            frames = x.view(len(x), 3, 3, *x.shape[2:])
            y = self.join(torch.cat([self.first(frames[:, n]) for n in range(3)], 1))
            for block in self.blocks:
                y = y + F.relu(block(y))
            return frames[:, 1] + self.last(y)

    network, x = scaled(Frames()), image(2, 9, 24, 35)
    fast = maskguided.wrap(network, 2, keep=1).eval()
    assert (fast.split.probe.in_channels, fast.split.probe.out_channels) == (9, 3)
    assert difference(by_windows(fast, x), network(x)) < 1e-5


def test_a_stem_over_bands_is_no_sign_that_the_next_convolution_takes_the_image():
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv3d(1, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)
            self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))

        def forward(self, x):
            y = self.first(x.unsqueeze(1)).mean(2)
            for block in self.blocks:
                y = y + F.relu(block(y))
            return x + self.last(y)

    assert maskguided.split(scaled(Spectral())).probe.in_channels == 3
