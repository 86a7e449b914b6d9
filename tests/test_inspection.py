"""What inspect tells of a network."""

from __future__ import annotations

import pytest
from support import run, scaled
from torch import nn
from torch.nn import functional as F
from toys import Block, Chain, SizesAndVectors, Strided, blurred, conv

import maskguided
from maskguided.adapters.edsr_net import EDSR
from maskguided.adapters.pan_net import PAN
from maskguided.automatic import find_bodies
from maskguided.probing.probe import probe_network


class PadsWithin(Block):
    def forward(self, x):
        right, below = -x.shape[3] % 4, -x.shape[2] % 4
        y = nn.functional.avg_pool2d(nn.functional.pad(x, (0, right, 0, below)), 4)
        y = nn.functional.interpolate(y, scale_factor=4.0)[:, :, : x.shape[2], : x.shape[3]]
        return super().forward(x + y)


def in_blocks_of(block):
    net = Chain()
    net.blocks = nn.ModuleList(block() for _ in range(5))
    return scaled(net)


def test_inspect_tells_what_it_sees():
    found = maskguided.inspect(scaled(SizesAndVectors()), 3)
    text = str(found)
    assert found.can_split
    assert found.adapter == "automatic"
    assert found.facts.blocks == tuple(f"blocks.{i}" for i in range(5))
    assert abs(sum(found.shares.values()) - 1) < 1e-9
    assert {what.split()[0] for what in found.live.values()} >= {"8", "vector"}
    for part in ("5 x Block", "cut after block 3", "radius", "not pan: it has no conv_first"):
        assert part in text
    assert "3 channels, any size; patches and halos are multiples of 2" in str(maskguided.inspect(scaled(Strided()), 3))
    assert "sides are no multiples of 2 are continued" in str(maskguided.inspect(scaled(Strided()), 3))
    assert "multiples of 4, blocks pad within themselves" in str(maskguided.inspect(in_blocks_of(PadsWithin)))
    assert "no multiples" not in text
    assert len(find_bodies(SizesAndVectors().eval(), probe_network(SizesAndVectors()))) >= 2


class Blurred(Block):
    def forward(self, x):
        return super().forward(blurred(x))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (Block, "windows of 8x8 LR pixels that exchange borders"),
        (Blurred, "windows of 16x16 LR pixels and a halo of 2, for they cannot exchange borders"),
    ],
)
def test_inspect_tells_what_wrapping_would_cost(block, words):
    net = nn.Sequential(conv(3, 8), *(block() for _ in range(4)), conv(8, 12), nn.PixelShuffle(2))
    found, fast = maskguided.inspect(net), maskguided.wrap(net)
    assert words in str(found)
    for keep, share in found.prices.items():
        fast.keep = keep
        assert share == fast.cost(64, 64).ratio
    assert "% at keep=0.25, " in str(found)


def test_inspect_tells_of_each_cut():
    net = PAN(features=8, up_features=8, blocks=4)
    assert "patches leave after block 2 or 3 too" in str(maskguided.inspect(net, (1, 2, 3)))
    assert "patches leave" not in str(maskguided.inspect(net, 1))


def test_a_wrapped_network_is_described_as_it_is():
    net = PAN(features=8, up_features=8, blocks=4)
    fast = maskguided.wrap(net, 3, keep=0.4, merge="image", coarse_tail="light", patch_size=16, halo=2, exchange=False)
    found = maskguided.inspect(fast)
    assert (found.split_at, found.is_wrapped, found.network) == (3, True, "PAN")
    words = "as it is wrapped: merge image (coarse tail light), windows of 16x16 LR pixels (halo 2) alone, keep=0.4\n"
    assert words in str(found)
    assert found.prices[0.4] == fast.cost(64, 64).ratio


def test_the_command_describes_what_a_head_makes_or_the_starter_as_it_is_used(weights, tmp_path):
    assert "as it is wrapped: merge image (coarse tail residual)" in run("inspect").output
    assert "by default: merge features" in run("inspect", "--split-at", 4).output
    network = maskguided.networks.load_network(weights).model
    maskguided.save(maskguided.wrap(network, 1, keep=0.125), tmp_path / "h.safetensors")
    said = run("inspect", "-w", weights, "--head", tmp_path / "h.safetensors").output
    assert "cut after block 1" in said
    assert "that exchange borders, keep=0.125" in said


def test_inspect_takes_the_names_of_the_blocks():
    class Scattered(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
            self.b1, self.b2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2)

        def forward(self, x):
            x = self.first(x)
            x = x + F.relu(self.b1(x))
            x = x + F.relu(self.b2(x))
            return F.pixel_shuffle(self.last(x), 2)

    found = maskguided.inspect(scaled(Scattered()), body=["b1", "b2"])
    assert found.can_split
    assert found.facts.blocks == ("b1", "b2")
    assert "runs of blocks found" not in str(found)


def test_an_adapter_that_does_not_fit_says_why_where_the_automatic_split_does():
    found = maskguided.inspect(scaled(EDSR(features=8, blocks=1)))
    assert found.adapter == "automatic"
    assert "gives 1 blocks" in found.missed["edsr"]
