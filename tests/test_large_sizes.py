"""Networks that do something else with large images than with those that they are split on."""

from __future__ import annotations

import pytest
import torch
from support import difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Chain

import maskguided
from maskguided import CannotSplit


class Damped(Chain):
    def forward(self, x):
        return super().forward(x) * (0.5 if x.shape[2] >= 68 else 1.0)


class InTiles(Chain):
    def forward(self, x):
        return torch.cat([super(InTiles, self).forward(part) for part in x.split(96, 3)], 3)


class OfLocalMeans(Chain):
    def forward(self, x):
        means = F.avg_pool2d(x, (min(80, x.shape[2]), min(80, x.shape[3])), 1)
        return super().forward(x - F.interpolate(means, size=x.shape[2:]))


class WithATable(Chain):
    """Of positions, which is enlarged where the image is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(1, 3, 72, 72))

    def forward(self, x):
        (height, width), table = x.shape[2:], self.table
        if max(height, width) > 72:
            table = F.interpolate(table, size=(height, width), mode="bilinear")
        return super().forward(x + table[:, :, :height, :width])


@pytest.mark.parametrize("kind", [Damped, InTiles, OfLocalMeans, WithATable])
def test_a_network_that_takes_large_images_another_way_is_refused(kind):
    with pytest.raises(CannotSplit, match=r"\(1, 1103, 907\)"):
        maskguided.wrap(scaled(kind()))


class Read(Chain):
    """Its blocks ask for pixels' values, which there are none of on shapes alone."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            assert self.conv(x).detach().numpy().ndim == 4
            return x + self.conv(x)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(4))


class AnotherOnShapes(Chain):
    def forward(self, x):
        return super().forward(x if type(x) is torch.Tensor else x * 1)


@pytest.mark.parametrize("kind", [Read, AnotherOnShapes])
def test_a_network_that_does_not_run_on_shapes_alone_is_split_as_far_as_is_seen(kind):
    model, x = scaled(kind()), image(1, 3, 75, 41)
    assert difference(maskguided.wrap(model, keep=1)(x), model(x)) < 1e-5


def test_a_look_at_shapes_alone_leaves_no_trace():
    class Counts(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))
            self.seen = []

        def forward(self, x):
            self.mean.copy_(x.mean()[None])
            self.seen.append(x)
            return super().forward(x)

    model = scaled(Counts())
    maskguided.wrap(model)
    assert model.seen == []
    assert model.mean.tolist() == [0]
    assert {type(value) for value in model.state_dict().values()} == {torch.Tensor}
