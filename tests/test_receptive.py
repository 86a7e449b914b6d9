"""The receptive-field radius of a part of a network, and where it has none."""

from __future__ import annotations

import pytest
import torch
from support import image, scaled
from torch import nn
from torch.nn import functional as F

import maskguided
from maskguided.probing.receptive import radius


@pytest.mark.parametrize(("dilation", "kernel"), [(2, 3), (24, 3), (33, 3), (40, 3), (65, 3), (30, 7)])
def test_the_radius_of_dilated_convolutions_that_leap_over_the_end_of_a_strip(dilation, kernel):
    reach = kernel // 2 * dilation

    def twice(state):
        x = state["x"]
        for _ in range(2):
            x = F.conv2d(x, torch.ones(1, 1, kernel, kernel), padding=reach, dilation=dilation)
        return {"x": x}

    for step in (1, 4):
        assert radius(lambda size: {"x": torch.ones(1, 1, *size)}, twice, ["x"], step) == 2 * reach


@pytest.mark.parametrize("dilation", [1, 40])
@pytest.mark.parametrize("kernel", [(7, 1), (1, 7)])
def test_the_radius_is_that_of_the_side_along_which_a_part_sees_farther(kernel, dilation):
    dilations = tuple(dilation if side > 1 else 1 for side in kernel)

    def along(state):
        return {"x": F.conv2d(state["x"], torch.ones(1, 1, *kernel), padding="same", dilation=dilations)}

    assert radius(lambda size: {"x": torch.ones(1, 1, *size)}, along, ["x"], 1) == 3 * dilation


def test_the_radius_is_not_looked_for_at_other_places_where_one_reaches_an_end():
    runs = []

    def mean(state):
        runs.append(state["x"].shape)
        return {"x": state["x"] + state["x"].mean((2, 3), keepdim=True)}

    assert radius(lambda size: {"x": torch.ones(1, 1, *size)}, mean, ["x"], 8) is None
    assert len(runs) == len(set(runs))
    assert radius(lambda size: {"x": torch.ones(1, 1, *size)}, lambda s: {"x": F.avg_pool2d(s["x"], 8)}, ["x"], 8) == 7


class Cyclic(nn.Module):
    """Attention in windows of 8 pixels, of a map that is rolled and not masked; one window where there are no more."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.shift = nn.LayerNorm(8), nn.Linear(8, 24), shift

    def forward(self, x):
        (b, c, h, w), side = x.shape, min(8, *x.shape[2:])
        shift = 0 if side >= min(h, w) else self.shift
        y = torch.roll(self.norm(x.permute(0, 2, 3, 1)), (-shift, -shift), (1, 2))
        y = y.reshape(b, h // side, side, w // side, side, c).transpose(2, 3).reshape(-1, side * side, c)
        q, k, v = self.qkv(y).chunk(3, -1)
        y = (q @ k.mT).softmax(-1) @ v
        y = y.view(b, h // side, w // side, side, side, c).transpose(2, 3).reshape(b, h, w, c)
        return x + torch.roll(y, (shift, shift), (1, 2)).permute(0, 3, 1, 2)


def test_maps_that_are_rolled_without_a_mask_see_their_other_end():
    """All windows together do so, too, a strip is too narrow to be rolled, and of one mean a norm leaves nothing."""
    body = nn.Sequential(*(Cyclic(shift) for shift in (0, 4, 0, 4)))
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), body, nn.Conv2d(8, 3, 3, padding=1))
    split = maskguided.split(scaled(net), body=[f"1.{number}" for number in range(4)])
    assert split.exchanges("features")
    assert split.facts.body_radius is None


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_the_radius_of_small_values_is_found_relative_to_them(size):
    def stretched(state):
        x = state["x"]
        return {"x": size * x * F.interpolate(F.max_pool2d(x, 7, 3), x.shape[2:], mode="bilinear")}

    assert radius(lambda shape: {"x": image(1, 1, *shape)}, stretched, ["x"], 1) is None


def test_blocks_that_depend_on_the_size_of_the_map_have_no_radius():
    """Strips of one breadth, however long, do not tell that it counts."""
    for along in (2, 3):

        def brighter(state, along=along):
            return {"x": state["x"] * (40 / state["x"].shape[along])}

        assert radius(lambda shape: {"x": image(1, 1, *shape)}, brighter, ["x"], 1) is None


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("by", [1, -1])
def test_blocks_that_see_the_other_end_of_the_map_beyond_this_one_have_no_radius(by, dim):
    rolled = radius(
        lambda shape: {"x": image(1, 1, *shape)}, lambda state: {"x": torch.roll(state["x"], by, dim)}, ["x"], 1
    )
    assert rolled is None


def test_blocks_that_cut_wide_maps_into_tiles_of_their_own_have_no_radius():
    kernel = torch.full((1, 1, 3, 3), 1 / 9)

    def tiled(state):
        tiles = state["x"].split(48, 3)
        return {"x": torch.cat([F.conv2d(tile, kernel, padding=1) for tile in tiles], 3)}

    assert radius(lambda shape: {"x": image(1, 1, *shape)}, tiled, ["x"], 1) is None


def test_the_radius_is_that_of_maps_which_are_not_thin():
    """As a Swin transformer's that leaves its shift out where a map is no larger than a window."""
    kernel = torch.ones(1, 1, 9, 9)

    def look(state):
        x = state["x"]
        seen = F.conv2d(x, kernel, padding=4) if min(x.shape[2:]) > 8 else x
        return {"x": x + seen}

    assert radius(lambda shape: {"x": image(1, 1, *shape)}, look, ["x"], 1) == 4


class Sparse(nn.Module):
    """ART's attention: over the whole map where that is larger than a window, else within it. A norm comes before."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.keeps, self.sparse = keeps, True

    def forward(self, x):
        y = self.mix(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        sparse = min(x.shape[2:]) > 12
        if self.keeps:  # and never again, as after a small image
            self.sparse = sparse = self.sparse and sparse
        return x + (y.mean((2, 3), keepdim=True) - y if sparse else y)


@pytest.mark.parametrize("keeps", [False, True])
def test_what_looks_further_on_larger_maps_has_no_radius(keeps):
    blocks = (Sparse(keeps) for _ in range(4))
    net = scaled(nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *blocks, nn.Conv2d(8, 12, 3, 1, 1), nn.PixelShuffle(2)))
    x = image(1, 3, 32, 40)
    before, parts = net(x), maskguided.split(net, 2)
    assert not parts.exchanges("features")
    assert parts.facts.body_radius is None
    assert torch.equal(net(x), before)
