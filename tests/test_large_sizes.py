"""Networks that do something else with large images than with those that they are split on."""

from __future__ import annotations

import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Chain

import maskguided
from maskguided import ArgumentError, CannotSplit, MaskGuidedWarning


@pytest.mark.parametrize("name", ["patch_size", "halo"])
def test_windows_larger_than_any_image_are_refused_wherever_they_are_asked_for(name):
    net = scaled(Chain())
    fast = maskguided.wrap(net, 2)
    with pytest.raises(
        ArgumentError, match=f"{name}=65537, larger than any image: use smaller ones, 65536 LR pixels or less"
    ):
        setattr(fast, name, 65537)
    with pytest.raises(ArgumentError, match=f"{name}=65537"):
        maskguided.wrap(net, 2, **{name: 65537})
    setattr(fast, name, 65536)
    assert getattr(fast, name) == 65536


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
    assert difference(by_windows(maskguided.wrap(model), x), model(x)) < 1e-5


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


class OfLocalMean(nn.Module):
    """A mean of the map, or of what is around each pixel, where that is larger than the images of the training were."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = F.relu(self.conv(x))
        if max(x.shape[2:]) <= 96:
            return x + y * self.gate(F.adaptive_avg_pool2d(y, 1))
        around = F.avg_pool2d(F.pad(y, (48, 48, 48, 48), mode="replicate"), 97, stride=1)
        return x + y * self.gate(around)


class OfCells(OfLocalMean):
    """A mean of each cell of 80 pixels."""

    def forward(self, x):
        cells = F.adaptive_avg_pool2d(x, tuple(-(-side // 80) for side in x.shape[2:]))
        return x + self.conv(x) * self.gate(F.interpolate(cells, size=x.shape[2:]))


class GrowingPool(OfLocalMean):
    """Looks around as far as the map is large."""

    def forward(self, x):
        reach = x.shape[3] // 96
        return x + self.conv(x - F.avg_pool2d(x, 2 * reach + 1, 1, reach, count_include_pad=False))


class GrowingDilation(OfLocalMean):
    def forward(self, x):
        step = max(1, x.shape[3] // 100)
        return x + F.relu(F.conv2d(x, self.conv.weight, padding=step, dilation=step))


class GrowingCells(OfLocalMean):
    """Means of cells of 4 pixels, or 8: other numbers of a view."""

    def forward(self, x):
        (b, c, h, w), side = x.shape, 8 if min(x.shape[2:]) > 128 else 4
        wide = F.pad(x, (0, -w % side, 0, -h % side), mode="replicate")
        cells = wide.reshape(b, c, wide.shape[2] // side, side, wide.shape[3] // side, side)
        means = cells.mean((3, 5), keepdim=True).expand_as(cells).reshape_as(wide)
        return x + self.conv(means[:, :, :h, :w])


LARGE_BLOCKS = [
    (OfLocalMean, "avg_pool2d, pad"),
    (OfCells, "to more than a pixel"),
    (GrowingPool, "avg_pool2d with another kernel_size than 1"),
    (GrowingDilation, "conv2d with another dilation than 1"),
    (GrowingCells, "reshape with another side than 4"),
]


@pytest.mark.parametrize(("block", "called"), LARGE_BLOCKS)
def test_windows_keep_to_themselves_where_blocks_do_something_else_on_large_images(block, called):
    network = Chain()
    network.blocks = nn.ModuleList(block() for _ in range(4))
    scaled(network)
    with pytest.warns(MaskGuidedWarning, match=rf"do something else on large images .*\(.*{called}.*\)"):
        fast = maskguided.wrap(network, keep=1)
    assert not fast.exchange
    x = image(1, 3, 100, 112)
    assert torch.equal(fast(x), network(x))


def test_numbers_that_follow_the_map_are_no_other_numbers():
    """A pool over the whole map, cells of a fixed side: the numbers that they are called with are others at each size,
    or the same at all."""

    class Following(OfLocalMean):
        def forward(self, x):
            y = x * self.gate(F.avg_pool2d(self.conv(x), tuple(x.shape[2:]))).sigmoid()
            cells = F.pixel_unshuffle(F.pad(y, (0, -x.shape[3] % 64, 0, -x.shape[2] % 64)), 4)
            b, c, h, w = cells.shape
            cells = cells.view(b, c, h // 16, 16, w // 16, 16).relu().reshape(b, c, h, w)
            return x + F.pixel_shuffle(cells, 4)[:, :, : x.shape[2], : x.shape[3]]

    network = Chain()
    network.blocks = nn.ModuleList(Following() for _ in range(4))
    assert not maskguided.split(scaled(network)).only_on_large
