"""Looking at a network without the sums over channels: what a value depends on, and what a look costs."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import NETWORKS, image, scaled
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import maskguided
from maskguided import CannotSplit
from maskguided.probing import thin as module
from maskguided.probing.thin import Thin


@pytest.fixture(autouse=True)
def _however_little(monkeypatch):
    monkeypatch.setattr(module, "_LITTLE", 1)


def thin(function, *args, **kwargs):
    with Thin():
        return function(*args, **kwargs)


@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    batch=st.integers(0, 2),
    at=st.tuples(st.integers(0, 8), st.integers(0, 10), st.integers(0, 12)),
    bias=st.booleans(),
)
def test_a_convolution_spreads_nan_as_it_does(channels, groups, kernel, stride, padding, dilation, batch, at, bias):
    few, many = (number * groups for number in channels)
    layer = nn.Conv2d(few, many, kernel, stride, padding, dilation, groups, bias=bias)
    x = image(*([batch] if batch else []), few, 11, 13)
    x[..., at[0] % few, at[1], at[2]] = torch.nan
    with torch.backends.mkldnn.flags(enabled=False):  # whose algorithms mix neighbouring pixels
        whole = layer(x)
    found = thin(layer, x)
    assert (found.shape, found.dtype) == (whole.shape, whole.dtype)
    assert torch.equal(found.isnan(), whole.isnan())


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 4, 5)])
def test_a_linear_layer_spreads_nan_as_it_does(shape):
    layer, x = nn.Linear(5, 3), image(*shape)
    x.view(-1)[2] = torch.nan
    assert thin(layer, x).shape == layer(x).shape
    assert torch.equal(thin(layer, x).isnan(), layer(x).isnan())


def test_a_layer_of_no_channels_is_run_as_it_is():
    """CRAFT has some."""
    assert torch.equal(thin(F.linear, image(2, 0), torch.empty(3, 0), torch.ones(3)), torch.ones(2, 3))


def test_what_is_made_lies_in_memory_as_a_view_needs_it():
    assert thin(nn.Linear(4, 6), image(2, 4, 5).mT).view(2, 30).isfinite().all()


@pytest.mark.parametrize("wrong", ["weight", "bias"])
def test_weights_that_come_of_the_image_spread_their_nan(wrong):
    """As in dynamic convolutions: wherever it is in them."""
    given = {"weight": torch.rand(4, 2, 3, 3), "bias": torch.rand(4)}
    given[wrong].view(4, -1)[1, -1] = torch.nan
    found = thin(F.conv2d, image(1, 2, 8, 8), **given)
    assert found.isnan().all((0, 2, 3)).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 8))]
)
def test_other_weights_and_other_pixels_give_other_values(layer):
    """Else a forward that takes other layers by size, or crops elsewhere, would pass for the same."""
    other = scaled(copy.deepcopy(layer), seed=1)
    x = image(1, 8, 9, 9)
    moved = x.roll(1, 3)
    assert float((thin(layer, x) - thin(other, x)).abs().mean()) > 0.05
    inner = (..., slice(1, -1), slice(2, -1))
    assert float((thin(layer, moved) - thin(layer, x))[inner].abs().mean()) > 0.01


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.Linear(4, 6)])
def test_autocast_and_half_precision_decide_the_dtype_as_they_do(layer):
    x = image(2, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert thin(layer, x).dtype == layer(x).dtype == torch.bfloat16
    assert thin(copy.deepcopy(layer).half(), x.half()).dtype == torch.float16
    with pytest.raises(RuntimeError, match=r"should be the same|same dtype"):
        thin(copy.deepcopy(layer).half(), x)


def test_detail_outlasts_many_layers():
    plain = nn.Sequential(*(layer for _ in range(32) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())))
    a = thin(scaled(plain), image(1, 16, 24, 24))
    assert 0.01 < float(a.std(dim=(2, 3)).max()) < 100


class Cubes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        a, b = self.first(x).chunk(2, 1)
        return x + self.last(a * b * x)


def test_what_multiplies_stays_finite():
    deep = nn.Sequential(*(Cubes() for _ in range(40)))
    assert float(thin(deep, 3 * image(1, 8, 6, 6)).abs().max()) < 1e4


@pytest.mark.parametrize("name", ["edsr-original", "srvgg"])
def test_a_wrap_takes_few_forwards(name):
    """Of its time what is not Python: multiply-adds, against those of a forward on 32x48 pixels."""
    model = NETWORKS[name]()
    with FlopCounterMode(display=False) as forward:
        model(image(1, 3, 32, 48))
    with FlopCounterMode(display=False) as whole:
        maskguided.wrap(model, adapter="automatic")
    assert whole.get_total_flops() < 6 * forward.get_total_flops()


class Whitening(nn.Module):
    """Which the covariance of channels that are all alike allows no more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        flat = y.flatten(2).double()
        root = torch.linalg.cholesky(flat @ flat.mT / flat.shape[2])
        return x + torch.linalg.solve_triangular(root, flat, upper=False).to(y).view_as(y)


def test_what_fails_without_the_sums_is_run_in_full():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *(Whitening() for _ in range(4)), nn.Conv2d(8, 3, 3, padding=1)
    )
    with pytest.raises(RuntimeError, match="not positive-definite"):
        thin(scaled(network), image(1, 3, 17, 19))
    fast = maskguided.wrap(network, patch_size=8, keep=1).eval()
    x = image(1, 3, 24, 32)
    assert torch.equal(fast(x), network(x))


class OtherLayersWhereLarge(nn.Module):
    """Of the same shape, so that nothing but their weights tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.small, self.large = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = self.head(x)
        for block in self.blocks:
            y = y + block(y).relu()
        return self.tail(self.small(y) if x.shape[2] < 40 else self.large(y))


def test_other_layers_at_another_size_are_noticed():
    with pytest.raises(CannotSplit, match="OtherLayersWhereLarge"):
        maskguided.wrap(scaled(OtherLayersWhereLarge()))
