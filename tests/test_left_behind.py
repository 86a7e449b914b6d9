"""What a network's forward leaves behind for its blocks, and what of its weights it hands them."""

from __future__ import annotations

import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F

import maskguided
from maskguided import CannotSplit


class Block(nn.Module):
    gate = None

    def __init__(self, shared):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shared = (shared,)

    def forward(self, x):
        gate = self.shared[0].get("gate", self.gate)
        return x + self.second(F.relu(self.first(x))) * (1 + torch.tanh(gate)[:, :, None, None])


class Conditioned(nn.Module):
    """Tells its blocks of the image: by an attribute, or by a dict that they share."""

    def __init__(self, by):
        super().__init__()
        self.by, self.shared = by, {}
        self.stem, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.body, self.look = nn.ModuleList(Block(self.shared) for _ in range(4)), nn.Conv2d(3, 8, 1)

    def forward(self, x):
        gate = 3 * self.look(x).mean((2, 3))
        if self.by == "dict":
            self.shared["gate"] = gate
        x = self.stem(x)
        for block in self.body:
            if self.by == "attribute":
                block.gate = gate
            x = block(x)
        return self.tail(x)


@pytest.mark.parametrize("before", [False, True], ids=["new", "run before"])
@pytest.mark.parametrize("by", ["attribute", "dict"])
def test_blocks_do_not_remember_the_image_before(by, before):
    net = scaled(Conditioned(by))
    if before:
        net(-2 * image(1, 3, 24, 24))
    fast = maskguided.wrap(net, keep=1)
    for x in (image(1, 3, 24, 24), 2 * image(2, 3, 16, 32, seed=1) - 1):
        found = fast(x)  # before the network is run on it
        assert difference(found, net(x)) < 1e-5


def test_blocks_that_would_are_not_taken_where_they_are_named():
    net = scaled(Conditioned("attribute"))
    net(-2 * image(1, 3, 24, 24))
    with pytest.raises(CannotSplit, match="read what the network's forward has left for them"):
        maskguided.wrap(net, body="body.*")


class Dropping(nn.Module):
    """F.dropout without `training=self.training`, as is often forgotten: another image in every run."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + F.dropout(self.conv(F.relu(x)), 0.1)


def test_a_network_that_gives_another_image_in_every_run_is_told():
    blocks = nn.Sequential(*(Dropping() for _ in range(4)))
    net = scaled(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), blocks, nn.Conv2d(8, 3, 3, padding=1)))
    with pytest.raises(CannotSplit, match="two runs on one image give two images"):
        maskguided.wrap(net)


class Coded(nn.Module):
    """Its blocks take a part of a parameter, seen as another shape."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x, code):
            return x + self.conv(F.relu(x + code[:, :, None, None]))

    def __init__(self):
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.blocks, self.codes = nn.ModuleList(self.Block() for _ in range(4)), nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        x = self.stem(x)
        for block, code in zip(self.blocks, self.codes.split(1), strict=True):
            x = block(x, code.expand(len(x), -1))
        return self.tail(x)


@pytest.mark.parametrize("trains", [True, False])
def test_a_view_of_a_parameter_is_handed_to_blocks(trains):
    net, x = scaled(Coded()).requires_grad_(trains), image(2, 3, 19, 24)
    fast = maskguided.wrap(net, 2, keep=1)
    assert difference(by_windows(fast, x), net(x)) < 1e-5
    net.requires_grad_(True)
    cost = fast.cost(24, 24)
    assert cost.guided >= cost.dense > 0
    assert all(p.requires_grad for p in net.parameters())


class Leaving(nn.Module):
    """Only images that are bright enough go through it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        bright = x.abs().mean((1, 2, 3)) > 0.3
        y = x.clone()
        y[bright] = x[bright] + self.conv(F.relu(x[bright]))
        return y


def test_images_of_a_batch_that_go_different_ways_are_what_they_are_alone():
    blocks = nn.Sequential(*(Leaving() for _ in range(4)))
    net = scaled(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), blocks, nn.Conv2d(8, 3, 3, padding=1)))
    x = torch.cat([0 * image(1, 3, 24, 24), 4 * image(1, 3, 24, 24, seed=1)])
    fast = maskguided.wrap(net, 2, keep=0.5)
    assert not fast.exchange
    for keep in (0.5, 1):
        fast.keep = keep
        assert difference(fast(x), torch.cat([fast(x[:1]), fast(x[1:])])) < 1e-5
    assert difference(fast(x), net(x)) < 1e-5
