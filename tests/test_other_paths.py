"""Networks that take another path at some sizes, which has to be seen, and forms that have to be followed."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from support import difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Chain

import maskguided
from maskguided import CannotSplit


class Tiled(Chain):
    """Wide images are cut in two; `step` is something that does not run on shapes alone."""

    def __init__(self, step) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("gain", torch.tensor(1.3))

    def forward(self, x):
        x = self.step(self, x)
        halves = x.chunk(2, 3) if x.shape[3] > 128 else [x]
        return torch.cat([super(Tiled, self).forward(half) for half in halves], 3)


@pytest.mark.parametrize(
    "step",
    [
        lambda net, x: x,
        lambda net, x: x * net.gain.item(),
        lambda net, x: x * 2 if net.gain > 0 else x,
        lambda net, x: x[:, (net.gain > torch.zeros(3)).nonzero().flatten()],
    ],
)
def test_tiles_of_large_images_are_seen_where_shapes_alone_do_not_run(step):
    with pytest.raises(CannotSplit, match="cuts large images into tiles"):
        maskguided.wrap(scaled(Tiled(step)), 2)


class Padded(Chain):
    """To the next multiple of `unit`, and to the one after that where only the other side is none."""

    def __init__(self, unit: int, either: bool) -> None:
        super().__init__()
        self.unit, self.either = unit, either

    def forward(self, x):
        height, width = x.shape[2:]
        more = [-side % self.unit for side in (height, width)]
        if self.either and any(more):
            more = [self.unit - side % self.unit for side in (height, width)]
        x = F.pad(x, (0, more[1], 0, more[0]), "replicate")
        return super().forward(x)[:, :, : 2 * height, : 2 * width]


@pytest.mark.parametrize("unit", [8, 32])
def test_sizes_that_need_no_rounding_are_tried(unit):
    with pytest.raises(CannotSplit, match="give another image than the network"):
        maskguided.wrap(scaled(Padded(unit, either=True)), 2)
    net = scaled(Padded(unit, either=False))
    fast = maskguided.wrap(net, 2, keep=1).eval()
    for size in ((unit, 2 * unit), (2 * unit, 2 * unit + 5), (2 * unit + 3, unit)):
        x = image(1, 3, *size)
        assert difference(fast(x), net(x)) < 1e-5


class TwoNames(Chain):
    """The blocks stand in one container and run in another."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*self.blocks)

    def forward(self, x):
        return self.finish(self.trunk(self.first(x)))


class Swapped(Chain):
    """Colours in another order, by a numpy array."""

    def forward(self, x):
        return super().forward(x[:, np.array([2, 1, 0])])


class Centred(Chain):
    """A coordinate that begins in the middle of the image, and one that ends at its edge."""

    def forward(self, x):
        rows, columns = (torch.arange(side) for side in x.shape[2:])
        return super().forward(x + ((columns - (x.shape[3] - 1) / 2) / 10).sin() * (rows / x.shape[2])[:, None])


@pytest.mark.parametrize("kind", [TwoNames, Swapped, Centred])
def test_it_is_followed(kind):
    net, x = scaled(kind()), image(2, 3, 33, 41)
    fast = maskguided.wrap(net, 2, keep=1).eval()
    assert len(fast.split.blocks) == 5
    assert difference(fast(x), net(x)) < 1e-5
    fast.keep = 0.5
    assert difference(fast(x), net(x)) > 1e-3


class Missing:
    """What a package puts in the place of one that is not there: it raises what it likes."""

    def __getattr__(self, name: str) -> object:
        raise ImportError(f"no {name} here")


absent = Missing()


@functools.cache
def one_for_all() -> object:
    return object()


@functools.lru_cache(maxsize=4)
def ramp(height: int, width: int) -> torch.Tensor:
    return torch.linspace(0, 1, height)[:, None] + torch.linspace(0, 1, width)


class Ramped(Chain):
    """A cached function of the size."""

    def forward(self, x):
        return super().forward(x + ramp(*x.shape[2:]))


def test_what_is_cached_beside_a_network_stays_and_is_not_taken_for_a_constant():
    net, x = scaled(Ramped()), image(1, 3, 17, 23)
    before, kept, expected = one_for_all(), ramp(17, 23), net(x)
    fast = maskguided.wrap(net, 2, keep=1).eval()
    assert one_for_all() is before
    assert ramp(17, 23) is kept
    assert difference(fast(x), expected) < 1e-5
    assert difference(fast(image(1, 3, 31, 18)), net(image(1, 3, 31, 18))) < 1e-5


class Differentiates(Chain):
    """By autograd, within its forward."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(super().forward(x).sum(), x)
        return super().forward(gradient)


def test_what_cannot_be_watched_is_refused_in_a_sentence():
    with pytest.raises(CannotSplit, match="Differentiates"):
        maskguided.wrap(scaled(Differentiates()), 2)
