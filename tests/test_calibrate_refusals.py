"""What cannot be calibrated is said, and the wrapped network stays as it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from test_calibrate import photographs, wrapped
from torch import nn
from torch.nn import functional as F
from toys import Block, conv

import maskguided
from maskguided import ArgumentError, MaskGuidedWarning
from maskguided.adapters.pan_net import PAN


def test_losses_that_are_estimated_on_stamps_are_warned_of():
    small, large = torch.rand(1, 3, 40, 44), torch.rand(1, 3, 48, 50)
    with pytest.warns(
        MaskGuidedWarning, match="which leaves 20 pixels of the smallest: .* give HR images, or LR images of 48"
    ):
        maskguided.calibrate(wrapped(), [small, large, small], max_cost=1.0)
    for images in ([large, large, small], [(small, torch.rand(1, 3, 80, 88))]):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*without HR images")
            maskguided.calibrate(wrapped(), images, max_cost=1.0)


@pytest.mark.parametrize("scale", [1, 2])
def test_what_the_network_itself_loses_is_unknown_where_nothing_can_be_reduced(scale):
    denoiser = nn.Sequential(conv(3, 8), *(Block(8) for _ in range(4)), conv(8, 3)).eval()
    fast = maskguided.wrap(denoiser, 2) if scale == 1 else wrapped()
    assert fast.scale == scale
    with pytest.warns(MaskGuidedWarning, match=r"30 dB are taken for it: .* give HR images"):
        maskguided.calibrate(fast, list(torch.rand(3, 3, 40 if scale == 1 else 5, 44)), fit="nothing")


@pytest.mark.parametrize(
    ("images", "settings", "text"),
    [
        ([], {}, "no images"),
        ([torch.rand(2, 3, 40, 40)], {}, r"shape \(2, 3, 40, 40\)"),
        ([(torch.rand(3, 40, 40), torch.rand(3, 40, 40))], {}, "HR images x2"),
        ([torch.rand(3, 40, 40)], {"max_cost": 0.01}, "even with nothing refined"),
        ([torch.rand(3, 40, 40)], {"max_cost": -1}, "max_cost=-1"),
        ([torch.rand(3, 40, 40)], {"max_drop_db": 0}, "max_drop_db=0"),
        ([torch.rand(3, 40, 40)], {"max_drop_db": 0.1, "max_cost": 0.5}, "one budget"),
        ([torch.rand(3, 40, 40)], {"max_drop_db": float("nan")}, "use dB above 0"),
        ([torch.rand(3, 40, 40)], {"max_cost": 95}, r"max_cost=95: more than .* at most 1; for 95 percent use 0\.95"),
        ([torch.rand(3, 40, 40)], {"max_time": 1.5}, r"max_time=1\.5: more than .* at most 1"),
        ([torch.rand(3, 40, 40)], {"max_cost": "0.6"}, "a share of the dense"),
        ([torch.zeros(3, 40, 40, dtype=torch.uint8)], {}, "an image of type torch.uint8; it takes LR tensors"),
        ([torch.zeros(1, 40, 40)], {}, r"an image of shape \(1, 1, 40, 40\); it takes \(3, H, W\)"),
        ((torch.rand(3, 20, 30), torch.rand(3, 40, 60)), {}, r"one pair; give a list of pairs, \[\(lr, hr\)\]"),
        ([()], {}, "a tuple of 0 for an image"),
        (None, {}, "images of type NoneType; give a list"),
        ("photos/", {"max_cost": 0.6}, "an image of type str; it takes LR tensors"),
        ([torch.rand(3, 40, 40)], {"split_at": 3}, "split_at=3"),
    ],
)
def test_what_cannot_be_calibrated(images, settings, text):
    with pytest.raises(ArgumentError, match=text):
        maskguided.calibrate(wrapped(), images, **settings)


@pytest.mark.parametrize("settings", [{"max_cost": 0.01}, {"max_drop_db": 1e-9, "per_image": True}])
def test_a_budget_that_cannot_be_met_changes_nothing(settings):
    fast = wrapped(halo=0)
    before = repr(fast), copy.deepcopy(fast.state_dict())
    with pytest.raises(ArgumentError, match="allow more"):
        maskguided.calibrate(fast, photographs(2), **settings)
    assert (repr(fast), fast.min_gain_db, fast.estimate, fast.context) == (before[0], None, None, None)
    assert before[1].keys() == fast.state_dict().keys()
    assert all(torch.equal(value, before[1][name]) for name, value in fast.state_dict().items())


@pytest.mark.parametrize(
    ("budget", "least"),
    [
        ({"max_cost": 0.01}, r"max_cost=0\.01: even with nothing refined the cheapest costs 0\.[1-9]\d; allow more"),
        ({"max_drop_db": 1e-9}, r"max_drop_db=1e-09: even with all .* the best loses 0\.0\d\d dB; allow more"),
    ],
)
def test_a_search_that_finds_nothing_says_what_would_do(budget, least):
    with pytest.raises(ArgumentError, match=f"no split meets {least}"):
        maskguided.calibrate(wrapped(), photographs(2), split_at="auto", **budget)


def test_a_search_where_nothing_can_be_cut_does_not_blame_the_budget(monkeypatch):
    monkeypatch.setattr("maskguided.calibration.search._places", lambda fast: [])
    with pytest.raises(ArgumentError, match="cut at none of the places that are tried; name one"):
        maskguided.calibrate(wrapped(), photographs(2), split_at="auto", max_cost=0.9)


def test_images_on_which_nothing_can_be_estimated_are_named(monkeypatch):
    """White noise drives trained networks out of all range; what was refused then was a min_gain_db of nan."""
    monkeypatch.setattr(maskguided.MaskGuided, "worth", lambda self, base, index: index * torch.nan)
    fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4), 2).eval()
    with pytest.raises(ArgumentError, match=r"values of up to [\d.e+-]+, as on \(48, 48\) LR pixels"):
        maskguided.calibrate(fast, [torch.rand(1, 3, 48, 48)], max_cost=0.9, per_image=True)


@pytest.mark.parametrize("scale", [255, -1])
def test_images_of_another_range_are_refused(scale):
    fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4), 2)
    lr, hr = torch.rand(3, 12, 12), torch.rand(3, 48, 48)
    for given in (lr * scale, (lr, hr * scale)):
        with pytest.raises(ArgumentError, match="images are floats in 0"):
            maskguided.calibrate(fast, [given])


def test_a_list_is_a_pair_too_as_a_data_loader_makes_it():
    pairs = [(torch.rand(3, 24, 24), torch.rand(3, 48, 48)) for _ in range(2)]
    found = maskguided.calibrate(wrapped(), torch.utils.data.DataLoader(pairs, batch_size=1))
    assert not found.estimated


class Turning(nn.Module):
    """Each of its four blocks turns the signs, so that one block less makes another image altogether."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 1, bias=False) for _ in range(4))
        for block in self.blocks:
            block.weight.data = -torch.eye(3)[:, :, None, None]

    def forward(self, x):
        features = x
        for block in self.blocks:
            features = block(features)
        return F.interpolate(2 * features - x, scale_factor=2, mode="bilinear")


def test_what_calibrating_takes_away_or_cannot_mend_is_warned_of():
    fast = wrapped(halo=0)
    fast.scorer = "head"
    with pytest.warns(MaskGuidedWarning, match=r"takes the place of the mask head \(fit='score'\)") as warned:
        maskguided.calibrate(fast, photographs(2), fit="score")
    assert [warning.filename for warning in warned] == [__file__] * len(warned)
    rough = maskguided.wrap(Turning(), 3, keep=0.9)
    with pytest.warns(MaskGuidedWarning, match="farther from the dense image than a bicubic one"):
        maskguided.calibrate(rough, photographs(2), fit="nothing")
    dear = maskguided.wrap(PAN(features=8, up_features=8, blocks=4), 2, merge="image", coarse_tail="copy", keep=0.9)
    with pytest.warns(MaskGuidedWarning, match=r"at keep=0\.900 it costs 1\d\d% of the dense network's MACs"):
        maskguided.calibrate(dear, photographs(2), fit="nothing")
