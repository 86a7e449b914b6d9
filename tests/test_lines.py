"""Means along rows and columns: those of all windows of an image, as of one map."""

from __future__ import annotations

import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F

import maskguided
from maskguided.patches import Chosen, Grid
from maskguided.windows.lines import Lines
from maskguided.windows.per_image import PerImage


def by_pools(y):
    """Coordinate attention's."""
    rows, cols = F.adaptive_avg_pool2d(y, (None, 1)), F.adaptive_avg_pool2d(y, (1, None)).permute(0, 1, 3, 2)
    return torch.cat([rows, cols], 2).split([y.shape[2], y.shape[3]], 2)


def by_sizes(y):
    return F.adaptive_avg_pool2d(y, (y.shape[2], 1)), F.adaptive_avg_pool2d(y, output_size=(1, y.shape[3])).mT


def by_means(y):
    return y.mean(dim=3, keepdim=True), torch.mean(y, 2, keepdim=True).permute(0, 1, 3, 2)


def by_flat_means(y):
    return y.mean(-1)[..., None], torch.mean(input=y, dim=2).unsqueeze(3)


WORDS = [by_pools, by_sizes, by_means, by_flat_means]


class Block(nn.Module):
    def __init__(self, lines, groups=1):
        super().__init__()
        self.lines, self.groups = lines, groups
        self.conv, self.first = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16 // groups, 16 // groups, 1)

    def forward(self, x):
        y = F.relu(self.conv(x))
        y = y.reshape(y.shape[0] * self.groups, -1, *y.shape[2:])
        rows, cols = (torch.sigmoid(3 * self.first(means)) for means in self.lines(y))
        y = y * rows * cols.permute(0, 1, 3, 2) * torch.sigmoid(F.adaptive_avg_pool2d(y, 1))
        return x + y.reshape(x.shape)


def network(lines, groups=1, blocks=4):
    body = nn.Sequential(*[Block(lines, groups) for _ in range(blocks)])
    return scaled(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), body, nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))
    )


@pytest.mark.parametrize("merge", ["features", "image"])
@pytest.mark.parametrize("lines", WORDS)
def test_all_windows_are_the_network(lines, merge):
    net = network(lines)
    fast = maskguided.wrap(net, 2, merge=merge)
    assert (fast.exchange, fast.patch_size, fast.halo) == (True, 8, 0)
    for size in ((32, 32), (27, 41)):
        x = image(2, 3, *size)
        assert difference(by_windows(fast, x), net(x)) < 1e-5
    fast.global_ops = "window"
    assert difference(by_windows(fast, x), net(x)) > 1e-3, "alone each window must have other means"


def test_groups_of_channels_in_the_batch_have_means_of_their_own():
    """EMA attention's."""
    net, x = network(by_pools, groups=4), image(2, 3, 27, 41)
    fast = maskguided.wrap(net, 2)
    assert fast.exchange
    assert difference(by_windows(fast, x), net(x)) < 1e-5


def test_a_windows_mean_is_of_the_pixels_of_its_row_that_are_refined():
    """Of two images of 2x3 patches, the last row and column narrower, so that windows were moved inward."""
    grid, maps = Grid(7, 10, patch_size=4), image(2, 5, 7, 10)
    chosen = Chosen(torch.tensor([[5, 0, 2], [1, 3, 4]]), grid)
    rows, cols = (Lines(chosen).means(chosen.gather(maps), dim) for dim in (3, 2))
    assert (rows.shape, cols.shape) == ((6, 5, 4), (6, 5, 4))
    # Image 0: rows 0 to 3 have columns 0 to 3 and 8 to 9, rows 4 to 6 columns 8 and 9.
    upper = maps[0][:, :4, [0, 1, 2, 3, 8, 9]].mean(2)
    lower = maps[0][:, 4:, 8:].mean(2)
    torch.testing.assert_close(rows[1], upper)
    torch.testing.assert_close(rows[2], upper)
    torch.testing.assert_close(rows[0], torch.cat([upper[:, 3:], lower], 1))  # of rows 3 to 6, from the last patch
    # Its columns 6 and 7 are of a patch that nobody refines: they are seen as by each window alone.
    torch.testing.assert_close(cols[0][:, 2:], maps[0][:, :, 8:].mean(1))
    torch.testing.assert_close(cols[0][:, :2], maps[0][:, 3:, 6:8].mean(1))
    torch.testing.assert_close(cols[2][:, :2], maps[0][:, :4, 6:8].mean(1))
    # Image 1: rows 4 to 6 have columns 0 to 7.
    torch.testing.assert_close(rows[4][:, 1:], maps[1][:, 4:, :8].mean(2))
    torch.testing.assert_close(rows[3], maps[1][:, :4, 4:8].mean(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_means_are_taken_as_precisely_as_the_network_takes_them(dtype):
    grid, maps = Grid(16, 64, patch_size=8), 300 + 300 * image(1, 3, 16, 64)
    chosen = Chosen(torch.arange(16)[None], grid)
    means = Lines(chosen).means(chosen.gather(maps.to(dtype)), 3)
    assert means.dtype == dtype
    assert difference(means[:1].double(), maps[:, :, :8].double().mean(3)) < 2 * torch.finfo(dtype).eps


def test_no_image_depends_on_another_of_its_batch():
    fast = maskguided.wrap(network(by_pools), 2, keep=0.4)
    x = image(2, 3, 33, 47)
    torch.testing.assert_close(fast(x)[1:], fast(x[1:]), rtol=0, atol=1e-6)


def test_a_mean_over_channels_that_lie_last_is_none_along_a_row():
    grid, maps = Grid(16, 16, patch_size=8), image(1, 16, 16, 16)
    chosen = Chosen(torch.tensor([[0, 3]]), grid)
    last = chosen.gather(maps).permute(0, 2, 3, 1)
    with PerImage(chosen):
        assert torch.equal(last.mean(3), chosen.gather(maps).mean(1))


@pytest.mark.usefixtures("fresh_compiler")
def test_they_compile_for_all_sizes():
    fast = maskguided.wrap(network(by_pools, blocks=2), 1).eval()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    for size in ((1, 3, 37, 29), (1, 3, 24, 32), (3, 3, 16, 24)):  # at the second their number becomes a symbol
        x = image(*size)
        assert difference(compiled(x), fast(x)) < 1e-6
