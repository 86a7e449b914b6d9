"""The search for a split, a merge, a refine tail and windows: what it tries, and that it takes the best of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from support import image, scaled
from test_calibrate import network, photographs, real_photographs, timed_as, wrapped
from torch import nn
from torch.nn import functional as F
from toys import Chain, conv

import maskguided
from maskguided.adapters.pan_net import PAN


@pytest.mark.parametrize("merge", ["image", "features"])
def test_it_chooses_the_split_too(merge):
    fast, x = wrapped(merge=merge), image(1, 3, 40, 40)
    model = fast.unwrap()
    found = maskguided.calibrate(fast, photographs(2), max_cost=0.9, split_at="auto")
    assert fast.unwrap() is model
    assert found.split_at == fast.split.split_at
    assert fast.cost(40, 40).ratio <= 0.9
    assert fast(x).shape == (1, 3, 80, 80)


def test_at_the_best_place_it_tries_other_windows():
    fast, told = wrapped(), []
    found = maskguided.calibrate(fast, photographs(2), max_cost=0.9, split_at="auto", progress=told.append)
    tried = {text.partition(": ")[0] for text in told if text.startswith("split_at=")}
    usual = {where for where in tried if where.endswith("patch 8+0")}
    assert {where.partition(",")[0] for where in usual} == {"split_at=1", "split_at=2", "split_at=3"}
    best = {where.rpartition(", ")[0].removesuffix(", light refine tail") for where in tried - usual}
    # A light refine tail is for merge="image", whichever is the better without.
    assert best == {f"split_at={found.split_at}, {merge}" for merge in (found.merge, "image")}
    assert {where.rpartition(" ")[2] for where in tried - usual} == {"16+1", "16+2"}


class WideTail(Chain):
    """A tail that takes ten times the multiply-adds of one convolution that does the same."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.to_rgb = conv(8, 4 * 32), nn.Conv2d(32, 3, 1)

    def forward(self, x):
        return F.interpolate(x, scale_factor=2.0, mode="bilinear") + self.to_rgb(super().forward(x))


@pytest.mark.parametrize(("make", "tail"), [(WideTail, "light"), (Chain, "own")])
def test_at_the_best_place_it_tries_a_light_refine_tail(make, tail):
    """It pays where one convolution beside the bilinear image does what the network's own tail does."""
    fast, told = maskguided.wrap(scaled(make(), gain=0.5), 2), []
    found = maskguided.calibrate(fast, photographs(2), max_cost=0.7, split_at="auto", progress=told.append)
    assert len({text.partition(", patch")[0] for text in told if "light refine tail" in text}) == 1
    assert found.refine_tail == tail
    assert ("refine_tail=light" in str(found)) == (fast.refine_tail is not None) == (tail == "light")
    assert fast.cost(40, 40).ratio <= 0.705


def test_for_a_drop_it_finds_the_cheapest_of_what_it_tries_without_measuring_all():
    model, images, told, alone = network(), photographs(2), [], []
    for cut, merge in itertools.product((1, 2, 3), ("image", "features")):
        tail = {"coarse_tail": "light"} if merge == "image" else {}
        fast = maskguided.wrap(model, cut, merge=merge, patch_size=8, **tail)
        alone.append(maskguided.calibrate(fast, images, max_drop_db=0.02).chosen)
    fast = maskguided.wrap(model, 2)
    found = maskguided.calibrate(fast, images, max_drop_db=0.02, split_at="auto", progress=told.append)
    assert found.chosen.drop <= 0.02
    assert found.chosen.macs <= min(point.macs for point in alone) + 0.005
    measured = [text for text in told if "measuring" in text and text.startswith("split_at")]
    tried = {text.partition(": ")[0] for text in told if text.startswith("split_at")}
    assert len(tried) == 11  # six places, two more windows at the best of them, and all three with a light refine tail
    assert len(measured) < 3 * 11


@pytest.mark.parametrize(("first", "then"), [("image", "features"), ("features", "image")])
def test_a_network_that_becomes_another_is_that_one(first, then):
    fast, other, x = wrapped(merge=first), wrapped(merge=then, keep=0.3, scorer="linear"), image(1, 3, 30, 30)
    expected, names = other(x), set(other.state_dict())
    seen: list[float] = []
    fast.register_forward_hook(lambda module, inputs, output: seen.append(module.keep))
    fast.name = "mine"
    fast.become(other)
    assert torch.equal(fast(x), expected)
    assert (seen, fast.name) == ([0.3], "mine")
    assert set(fast.state_dict()) == names


def test_where_time_counts_windows_alone_are_tried_too(monkeypatch):
    timed_as(monkeypatch, lambda fast: (0.5 if fast.exchange else 0.2) + fast.keep)
    net, ((lr, _), *_) = scaled(PAN(features=12, up_features=8, blocks=4), gain=0.6), real_photographs()
    for budget, exchange in (({"max_time": 0.45}, False), ({"max_cost": 0.8}, True)):
        fast = maskguided.wrap(net, patch_size=8).eval()
        assert fast.exchange
        found = maskguided.calibrate(fast, [lr[..., :32, :32]], split_at="auto", **budget)
        assert fast.exchange == found.exchange == exchange
        assert ("windows alone" in str(found)) == (not exchange)
    assert found.chosen.macs <= 0.8


def test_without_a_budget_keep_the_head_and_what_means_see_stay_whatever_the_split():
    fast = maskguided.wrap(network(), 2, keep=0.25, head={"channels": 1}, global_ops="window")
    maskguided.calibrate(fast, photographs(), split_at="auto")
    assert (fast.keep, fast.head.settings["channels"], fast.global_ops) == (0.25, 1, "window")


def test_a_coarse_tail_that_was_chosen_stays_and_runs_where_it_did():
    net = network()
    dear = maskguided.wrap(net, 1, keep=0).cost(40, 40).ratio  # whatever merge="features" does costs more
    fast = maskguided.wrap(net, 2, merge="image", coarse_tail="deep", coarse_on="unrefined")
    found = maskguided.calibrate(fast, photographs(2), max_cost=dear, split_at="auto")
    assert found.merge == fast.merge == "image"
    assert (fast.coarse_tail_kind, fast.coarse_on) == ("deep", "unrefined")


def test_it_tries_features_with_a_skip():
    fast, kinds = maskguided.wrap(network(), 2), []
    maskguided.calibrate(fast, photographs(2), max_cost=0.95, split_at="auto", progress=kinds.append)
    assert any("features" in text and text.endswith("fitting the skip") for text in kinds)
