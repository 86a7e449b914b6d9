"""Reductions over the whole map: all windows of an image are one map to them."""

from __future__ import annotations

import pytest
import torch
from reduction_words import MAPS, VECTORS
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Chain, blurred

import maskguided
from maskguided.patches import Chosen, Grid
from maskguided.windows.per_image import PerImage
from maskguided.windows.readings import Reading


class Block(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.conv, self.gate, self.name = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1), name

    def forward(self, x):
        y = F.relu(self.conv(x))
        return x + (
            MAPS[self.name](y) if self.name in MAPS else y * torch.sigmoid(3 * self.gate(VECTORS[self.name](y)))
        )


class Padded(nn.Module):
    """RepVGG's block before it is merged: two kernels are one, the smaller padded in the forward."""

    def __init__(self):
        super().__init__()
        self.wide, self.point = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x):
        kernel = self.wide.weight + F.pad(self.point.weight, [1] * 4)
        return x + 0.5 * F.relu(F.conv2d(x, kernel, self.wide.bias, padding=1))


def network(block, blocks=4):
    body = nn.Sequential(*[block() for _ in range(blocks)])
    return scaled(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), body, nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))
    )


@pytest.mark.parametrize("name", [*VECTORS, *MAPS])
def test_all_windows_are_the_network(name):
    net = network(lambda: Block(name))
    fast = maskguided.wrap(net, 2)
    assert fast.exchange
    for size in ((32, 32), (27, 41)):
        x = image(2, 3, *size)
        assert difference(by_windows(fast, x), net(x)) < 1e-5
    fast.global_ops = "window"
    assert difference(by_windows(fast, x), net(x)) > 1e-4, "alone each window must have another statistic"


class Dilated(nn.Module):
    """DRLN's attention: the vector of an image goes through convolutions that pad it."""

    def __init__(self, stride=1):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=3, dilation=3)
        self.down = nn.Conv2d(16, 16, 3, stride, padding=1)

    def forward(self, x):
        y = F.relu(self.conv(F.interpolate(self.down(x), x.shape[2:])))
        return x + y * torch.sigmoid(3 * self.gate(F.adaptive_avg_pool2d(y, 1)))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_vector_is_no_window_of_one_pixel(stride):
    """Though the image is so many patches large that a pixel could stand for each."""
    net, x = network(lambda: Dilated(stride)), image(2, 3, 48, 64)
    fast = maskguided.wrap(net, 2)
    assert (fast.exchange, fast.patch_size, fast.split.multiple_of) == (True, 8, stride)
    assert difference(by_windows(fast, x), net(x)) < 1e-5


class Blurred(Block):
    """It blurs, and its windows see nothing of their neighbours in that."""

    def forward(self, x):
        return x + super().forward(blurred(x))


# Nothing shows here what a sum is for, nor what several rows for a window are.
UNKNOWN = {
    "masked mean",
    "plain total",
    "weighed pixels, summed",
    "parameter-free attention",
    "groups",
    "largest of groups",
    "stacked",
}


@pytest.mark.parametrize("name", sorted({*VECTORS, *MAPS} - UNKNOWN))
def test_without_borders_exchanged_a_wide_halo_does(name):
    net, x = network(lambda: Blurred(name)), image(2, 3, 27, 41)
    fast = maskguided.wrap(net, 2, patch_size=8, halo=5)
    assert not fast.exchange
    assert difference(by_windows(fast, x), net(x)) < 1e-5


# Of the first a pixel's sum is summed again; the other has no variance of one pixel.
@pytest.mark.parametrize("name", sorted({*VECTORS, *MAPS} - {"contrast", "parameter-free attention"}))
def test_a_window_of_one_pixel_is_no_vector(name):
    net, x = network(lambda: Block(name)), image(2, 3, 9, 11)
    fast = maskguided.wrap(net, 2, patch_size=1)
    assert fast.exchange
    assert difference(by_windows(fast, x), net(x)) < 1e-5


def test_a_window_that_becomes_one_pixel_deep_in_the_network_is_no_vector():
    net = network(lambda: Block("mean of means"))
    net = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1), *net, nn.PixelShuffle(2))
    net[3] = scaled(nn.Conv2d(16, 48, 3, padding=1))
    for patch_size in (2, 4, 8):
        fast, x = maskguided.wrap(net, 2, patch_size=patch_size), image(1, 3, 20, 28)
        assert (fast.exchange, fast.split.multiple_of) == (True, 2)
        assert difference(by_windows(fast, x), net(x)) < 1e-5


class CosineAttention(nn.Module):
    """Of the pixels of a square to one another, by vectors of as many numbers as a square of half its side has pixels;
    and channel attention."""

    def __init__(self, side=4):
        super().__init__()
        self.conv, self.side = nn.Conv2d(16, 16, 3, padding=1), side

    def forward(self, x):
        y, side = F.relu(self.conv(x)), self.side
        squares = y.unflatten(2, (-1, side)).unflatten(4, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        v = squares.reshape(-1, 4, 4, side**2).mT  # (squares, heads, pixels, channels)
        q, k = F.normalize(v, dim=-1), F.normalize(v.square(), dim=-1)
        seen = (9 * q @ k.mT).softmax(-1) @ v
        y = seen.mT.reshape(squares.shape).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
        return x + y * torch.sigmoid(y.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("patch_size", [4, 8])
def test_attention_within_a_window_is_no_transposed_attention(patch_size):
    net, x = network(CosineAttention), image(2, 3, 24, 40)
    fast = maskguided.wrap(net, 2, patch_size=patch_size)
    assert (fast.exchange, fast.split.trial.reading.transposed) == (True, False)
    assert difference(by_windows(fast, x), net(x)) < 1e-5


@pytest.mark.usefixtures("fresh_compiler")
def test_channel_attention_compiles_for_all_sizes():
    """At the second size the number of windows becomes a symbol; the backend "eager" would not mind."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, padding=1)
            self.mean, self.largest = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)

        def forward(self, x):
            y = self.conv(x)
            return x + y * torch.sigmoid(3 * self.mean(y)) + torch.tanh(self.largest(y))

    fast = maskguided.wrap(network(Attention, 2), keep=0.4).eval()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    for size in ((1, 3, 37, 29), (1, 3, 24, 32), (3, 3, 16, 24)):
        x = image(*size)
        assert difference(compiled(x), fast(x)) < 1e-6


def test_a_group_norm_of_what_lies_far_from_zero_is_as_precise():
    net, x = network(lambda: Block("group norm")), image(1, 3, 24, 40)
    for block in net[1]:
        block.conv.bias += 10
    fast = maskguided.wrap(net, 2)
    assert fast.exchange
    assert difference(by_windows(fast, x), net(x)) < 1e-5


@pytest.mark.parametrize("name", ["mean of means", "deviation", "group norm"])
def test_pixels_are_counted_as_precisely_as_the_network_computes(name):
    net, x = network(lambda: Block(name)).double(), image(2, 3, 27, 41).double()
    assert difference(by_windows(maskguided.wrap(net, 2), x), net(x)) < 1e-12


@pytest.mark.parametrize("name", ["groups", "stacked"])
@pytest.mark.parametrize("local", [False, True])
def test_no_image_depends_on_another_of_its_batch(name, local):
    """Nor where windows cannot exchange, so that nothing tells what the rows of the batch are."""

    class Rolled(Block):
        def forward(self, x):
            return super().forward(x.roll(1, 3) if local else x)

    fast = maskguided.wrap(network(lambda: Rolled(name)), 2, keep=0.4)
    assert fast.exchange != local
    x = torch.cat([image(1, 3, 32, 48), 5 * image(1, 3, 32, 48, seed=1)])
    assert difference(fast(x), torch.cat([fast(x[:1]), fast(x[1:])])) < 1e-5


@pytest.mark.parametrize("size", [(32, 32), (64, 64)])
def test_a_weight_of_as_many_rows_as_there_are_windows_is_none_of_them(size):
    net = network(Padded)
    fast, x = maskguided.wrap(net, 2, keep=16 * 64 / (size[0] * size[1])), image(1, 3, *size)
    index = fast.choose(fast.run_base(x))
    assert index.shape[1] == 16, "as many windows as the kernel has rows"
    same = network(Padded)
    with torch.no_grad():
        for block in same[1]:
            block.wide.weight += F.pad(block.point.weight, [1] * 4)
            block.forward = lambda x, conv=block.wide: x + 0.5 * F.relu(conv(x))
    plain = maskguided.wrap(same, 2, keep=fast.keep)
    assert plain.split.blocks == fast.split.blocks
    assert difference(fast(x), plain(x, fast.score(fast.run_base(x)))) < 1e-5


class Conditioned(nn.Module):
    """SRMD's way: a code of the image beside the features of every block."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(16, 12, 3, padding=1)

        def forward(self, x, code):
            wide = code[:, :, None, None].repeat(1, 1, *x.shape[2:])
            return x + F.relu(self.conv(torch.cat([x, wide], 1)))

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.blocks, self.code = nn.ModuleList(self.Block() for _ in range(4)), nn.Linear(3, 4)

    def forward(self, x):
        code, x = self.code(x.mean((2, 3))), self.first(x)
        for block in self.blocks:
            x = block(x, code)
        return F.pixel_shuffle(self.last(x), 2)


def test_windows_of_a_network_with_a_code_for_each_image_exchange_borders():
    net, x = scaled(Conditioned()), image(2, 3, 27, 41)
    fast = maskguided.wrap(net, 2)
    assert "vector" in fast.split.kinds.values()
    assert fast.exchange
    assert difference(by_windows(fast, x), net(x)) < 1e-5


def test_radius_of_groups_in_the_batch_is_that_of_their_convolutions():
    """Of 16 maps and more torch may take another algorithm on a CPU, which mixes neighbouring pixels."""

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.group = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return x + self.group(y.reshape(-1, 2, *y.shape[2:])).reshape(y.shape)

    body = nn.Sequential(*[Many() for _ in range(4)])
    net = scaled(
        nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), body, nn.Conv2d(32, 12, 3, padding=1), nn.PixelShuffle(2))
    )
    facts = maskguided.split(net, 2).facts
    assert (facts.multiple_of, facts.body_radius) == (1, 4)


class Squeezed(nn.Module):
    """A mean of what a pool has made of the map: the same over windows only where its step divides them."""

    def __init__(self, step):
        super().__init__()
        self.conv, self.gate, self.step = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1), step

    def forward(self, x):
        y = F.relu(self.conv(x))
        return x + y * torch.sigmoid(3 * self.gate(F.max_pool2d(y, self.step).mean((2, 3), keepdim=True)))


@pytest.mark.parametrize("step", [2, 3, 5])
def test_all_patches_are_the_network_where_a_mean_is_of_pooled_pixels(step):
    net = network(lambda: Squeezed(step))
    fast = maskguided.wrap(net, 2, keep=1)
    for size in ((24, 32), (37, 29)):
        x = image(2, 3, *size)
        assert difference(fast(x), net(x)) < 1e-5


class Pooled(nn.Module):
    """SMFANet's modulation: maxima of cells, of which any size of map has a whole number."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        height, width = x.shape[2:]
        maxima = F.adaptive_max_pool2d(x, (height // 8, width // 8))
        return x + F.relu(self.conv(x)) * torch.sigmoid(F.interpolate(maxima, size=(height, width), mode="nearest"))


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_all_patches_are_the_network_where_the_map_had_to_be_continued_for_its_windows(size):
    net, x = network(Pooled), image(2, 3, *size)
    fast = maskguided.wrap(net, 2, keep=1)
    assert fast.split.multiple_of == 8
    assert difference(fast(x), net(x)) < 1e-5


def test_a_norm_of_windows_in_float16_is_as_large_as_that_of_the_map():
    """The square of one window's leaves the range of float16 before that of the norm does."""
    x = 40 * image(1, 4, 64, 64)
    grid = Grid(64, 64, 16)
    every = Chosen(torch.arange(grid.count)[None], grid)
    windows = every.gather(x)
    whole = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
    assert whole.min() > 1000
    with PerImage(every, reading=Reading("total")):
        found = torch.linalg.vector_norm(windows.half(), dim=(2, 3), keepdim=True)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found[:1].float(), whole, rtol=2e-3, atol=0)


def test_what_a_closed_gate_hides_is_known_by_its_size():
    """Nothing shows on the images of a trial what a flat deviation is of; on others the gate is open."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.squeeze, self.excite = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, x):
            y = F.relu(self.conv(x))
            gate = self.excite(F.relu(self.squeeze(y.flatten(2).std(-1))))
            return x + y * torch.sigmoid(gate)[..., None, None]

    net, x = Chain(), image(1, 3, 33, 47)
    net.blocks = nn.ModuleList(Gated() for _ in range(4))
    scaled(net)
    with torch.no_grad():
        for block in net.blocks:
            block.squeeze.bias.fill_(-100)
        fast = maskguided.wrap(net)
        assert fast.exchange
        for block in net.blocks:
            block.squeeze.bias.fill_(0.5)
    assert difference(by_windows(fast, x), net(x)) < 1e-5
