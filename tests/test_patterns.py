"""Blocks that lay a pattern over their map by its size alone: windows must keep to its period."""

from __future__ import annotations

import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Base, conv

import maskguided


class Patterned(nn.Module):
    """A convolution of what a pattern, made anew for each map, leaves of it."""

    def __init__(self, c: int, rows: int, cols: int, attends: bool) -> None:
        super().__init__()
        self.conv, self.rows, self.cols = conv(c, c), rows, cols
        self.gate = nn.Conv2d(c, c, 1) if attends else None

    def forward(self, x):
        height, width = (torch.arange(side, device=x.device) for side in x.shape[2:])
        pattern = 0.3 + (height[:, None] % self.rows + 2 * (width % self.cols)).to(x.dtype)
        made = self.conv(F.relu(x * pattern))
        return x + (made if self.gate is None else made * torch.sigmoid(self.gate(made.mean((2, 3), keepdim=True))))


class Net(Base):
    def __init__(self, *pattern: int, attends: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Patterned(8, *pattern, attends) for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.finish(x)


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize(("rows", "cols", "period"), [(2, 2, 2), (1, 2, 2), (4, 1, 4), (3, 2, 6), (8, 8, 8), (1, 1, 1)])
def test_windows_keep_to_the_period_of_a_pattern(rows, cols, period, attends):
    """They began anywhere, and refining an image took it farther from the network's than leaving it coarse."""
    net = scaled(Net(rows, cols, attends=attends), gain=0.3)
    fast = maskguided.wrap(net, 2)
    assert (fast.split.multiple_of, fast.exchange) == (period, True)
    x = image(2, 3, 48, 96)
    assert difference(by_windows(fast, x), net(x)) < 1e-5
    alone = maskguided.wrap(net, 2, exchange=False, patch_size=24, halo=24)
    if not attends:
        assert difference(by_windows(alone, x), net(x)) < 1e-5


def test_a_pattern_is_told_from_what_reads_the_place():
    class Placed(Patterned):
        def forward(self, x):
            place = torch.linspace(0, 3, x.shape[3], device=x.device, dtype=x.dtype)
            return x + self.conv(F.relu(x * place))

    net = Net(1, 1)
    net.blocks = nn.ModuleList(Placed(8, 1, 1, False) for _ in range(4))
    fast = maskguided.wrap(scaled(net, gain=0.3), 2)
    assert (fast.split.multiple_of, fast.exchange) == (1, False)
    assert "blocks that read the place in it" in str(maskguided.inspect(net))
