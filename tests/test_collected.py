"""Forwards that collect what their blocks make, as they go."""

from __future__ import annotations

import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from toys import Base, Block

import maskguided


class Collecting(Base):
    """HAN: a stack that grows by each block, of which the tail weighs the layers."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.weights, self.fuse, self.stacked = nn.Parameter(torch.randn(6)), nn.Conv2d(48, 8, 1), stacked

    def forward(self, x):
        x = self.first(x)
        layers = x.unsqueeze(1) if self.stacked else x
        for block in self.blocks:
            x = block(x)
            layers = torch.cat([layers, x.unsqueeze(1) if self.stacked else x], 1)
        if self.stacked:
            layers = layers * self.weights.view(1, -1, 1, 1, 1)
        return self.finish(x + self.fuse(layers.flatten(1, 2) if self.stacked else layers))


@pytest.mark.parametrize("stacked", [False, True])
def test_what_a_tail_collects_of_the_blocks_is_put_together_there(stacked):
    net, x = scaled(Collecting(stacked)), image(2, 3, 27, 41)
    parts = maskguided.split(net, 2)
    assert parts.writes == ("model_blocks_2", "model_blocks_3", "model_blocks_4")
    assert parts.can_skip
    assert difference(parts.tail(parts.body(parts.prefix(x))), net(x)) == 0
    for merge in ("features", "image"):
        fast = maskguided.wrap(net, 2, merge=merge)
        assert (fast.exchange, fast.halo, fast.patch_size) == (True, 0, 8)
        assert difference(by_windows(fast, x), net(x)) < 1e-5
    coarse = maskguided.wrap(net, 2, keep=0)(x)
    for number in (2, 3, 4):
        net.blocks[number] = nn.Identity()
    assert difference(coarse, net(x)) < 1e-5


def test_several_cuts_find_it_collected_between_them():
    net, x = scaled(Collecting(stacked=False)), image(1, 3, 27, 41)
    with pytest.raises(maskguided.CannotSplit, match="no value stands in"):
        maskguided.wrap(net, (2, 3))
    assert maskguided.wrap(net, 3, keep=0.5)(x).shape == net(x).shape
