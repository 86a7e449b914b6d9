"""Networks as people write them that once came out wrong, or were refused without a word that helps."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Base, Block, ResidualOutside

import maskguided
from maskguided import ArgumentError, CannotSplit
from maskguided.probing.untouched import no_leftovers


class Pooled(Base):
    """A vector goes along with the map: blocks write both, and the tail uses both."""

    class Block(Block):
        def forward(self, x, vector):
            return super().forward(x) * torch.sigmoid(vector)[..., None, None], vector + 0.5 * vector.roll(1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        vector = x.mean((2, 3))
        for block in self.blocks:
            x, vector = block(x, vector)
        return self.finish(x * torch.sigmoid(vector)[..., None, None])


def test_a_body_that_writes_a_vector_is_refined_in_the_image():
    model = scaled(Pooled())
    fast = maskguided.wrap(model, 2, keep=1).eval()
    assert fast.merge == "image"
    x = image(2, 3, 33, 47)
    assert difference(by_windows(fast, x), model(x)) < 1e-5
    assert fast.cost(33, 47).ratio > 0
    fast.keep = 0.5
    assert fast(x).shape == model(x).shape
    with pytest.raises(ArgumentError, match="merge='image'"):
        maskguided.wrap(model, 2, merge="features")


class IntoViews(Base):
    """What each block makes is copied into its part of a buffer, of which the tail takes the mean."""

    def __init__(self, make, at_once: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.make, self.at_once = make, at_once

    def forward(self, x):
        x = self.first(x)
        channels = x.shape[1]
        buffer = self.make(len(x), 4 * channels, *x.shape[2:])
        parts = buffer.split(channels, 1) if self.at_once else None
        for number, block in enumerate(self.blocks):
            x = block(x)
            here = buffer[:, number * channels : (number + 1) * channels] if parts is None else parts[number]
            here.copy_(x)
        return self.finish(buffer.unflatten(1, (4, channels)).mean(1))


@pytest.mark.parametrize("make", [torch.zeros, torch.empty, lambda *size: torch.rand(size).new_empty(size)])
def test_writing_through_views(make):
    model = scaled(IntoViews(make))
    fast = maskguided.wrap(model, 2, body="blocks.*", keep=1).eval()
    for size in (33, 47), (48, 64):
        x = image(2, 3, *size)
        leftovers = [torch.full((2, 32, *size), 7.0) for _ in range(3)]
        expected = model(x)
        del leftovers  # memory that torch.empty may get next
        assert difference(by_windows(fast, x), expected) < 1e-5
    fast.keep = 0.5
    with no_leftovers():
        assert difference(fast(x), expected) > 1e-4


@pytest.mark.parametrize("make", [torch.zeros, torch.empty])
def test_views_across_the_cut_are_refused(make):
    """Windows are cut from each live value alone: what is written into one view is not seen in the whole."""
    with pytest.raises(CannotSplit):
        maskguided.wrap(scaled(IntoViews(make, at_once=True)), 2, body="blocks.*")


class TwoBodies(Base):
    """Four blocks that run by what pixels say, which nobody can follow, and two that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.others = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)])

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x) if x.mean() > -1e9 else x
        for other in self.others:
            x = other(x)
        return self.finish(x)


def test_the_fault_of_the_best_run_of_blocks_is_told():
    with pytest.raises(CannotSplit, match="pixel values"):
        maskguided.wrap(scaled(TwoBodies()), 2)


def test_half_precision_gets_the_same_windows():
    model = scaled(ResidualOutside())
    whole = maskguided.wrap(model, 2)
    half = maskguided.wrap(scaled(ResidualOutside()).half(), 2)
    assert whole.exchange
    assert half.exchange
    assert (half.patch_size, half.halo) == (whole.patch_size, whole.halo) == (8, 0)


class PositionsInFloat32(ResidualOutside):
    def forward(self, x):
        places = torch.arange(x.shape[3], dtype=torch.float32, device=x.device)
        first = features = self.first(x) + torch.sin(300 * places).to(x.dtype)
        for block in self.blocks:
            features = block(features)
        return self.finish(features + first).to(torch.float32)


class FeaturesInFloat32(ResidualOutside):
    def forward(self, x):
        features = self.first(x).to(torch.float32)
        for block in self.blocks:
            features = features + block(features.to(x.dtype)).to(torch.float32)
        return self.finish(features.to(x.dtype))


class SkipInFloat32(ResidualOutside):
    def forward(self, x):
        enlarged = F.interpolate(x.float(), scale_factor=2.0, mode="bicubic")
        features = self.first(x)
        for block in self.blocks:
            features = block(features)
        return (self.finish(features) + enlarged).to(x.dtype)


@pytest.mark.parametrize("merge", ["features", "image"])
@pytest.mark.parametrize("make", [PositionsInFloat32, FeaturesInFloat32, SkipInFloat32])
def test_what_the_network_computes_in_float32_stays_so_in_half_precision(make, merge):
    model, x = scaled(make(), 0.5), image(1, 3, 20, 26).bfloat16()
    fast = maskguided.wrap(model, 2, merge=merge, keep=1).bfloat16()  # and the network with it
    dense, split = model(x), fast.split
    assert fast(x).dtype == dense.dtype
    assert difference(by_windows(fast, x).float(), dense.float()) < 0.02
    assert torch.equal(split.tail(split.body(split.prefix(x))), dense)


@pytest.mark.parametrize("script", [torch.jit.script, lambda m: torch.jit.trace(m, torch.rand(1, 3, 32, 32))])
def test_torchscript_is_refused_and_left_as_it_is(script):
    model = ResidualOutside()
    model.first = nn.Sequential(model.first)
    scripted = script(model.eval()).train()
    with pytest.raises(CannotSplit, match=r"TorchScript \(itself\)"):
        maskguided.wrap(scripted, 2)
    model.train()
    model.first = torch.jit.script(model.first)
    with pytest.raises(CannotSplit, match=r"TorchScript \(first\)"):
        maskguided.wrap(model, 2)
    assert all(module.training for module in [*scripted.modules(), *model.modules()])


def test_an_exported_network_is_refused():
    exported = torch.export.export(ResidualOutside().eval(), (torch.rand(1, 3, 24, 24),)).module()
    with pytest.raises(CannotSplit, match=r"holds what torch\.export made \(itself\)"):
        maskguided.wrap(exported)


class Shrinking(Block):
    """Spatial attention on a map that is pooled with overlap, as RFDN's: nothing is left of a small window."""

    def forward(self, x):
        y = super().forward(x)
        small = F.max_pool2d(F.conv2d(y.mean(1, keepdim=True), torch.ones(1, 1, 3, 3) / 9, stride=2), 7, 3)
        return y * torch.sigmoid(F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False))


def test_windows_that_are_too_small_are_refused_at_once():
    model = ResidualOutside()
    model.blocks = nn.ModuleList(Shrinking() for _ in range(4))
    fast, x = maskguided.wrap(scaled(model), 2, patch_size=4), image(2, 3, 40, 43)
    assert difference(by_windows(fast, x), model(x)) < 1e-5
    with pytest.raises(ArgumentError, match=r"windows of 8x8 LR pixels .* use larger ones"):
        maskguided.wrap(model, 2, patch_size=4, halo=2, exchange=False)


class Strided(Block):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 2, 2)

    def forward(self, x):
        return x + self.up(F.relu(self.down(x)))[:, :, : x.shape[2], : x.shape[3]]


class Unshuffled(nn.Module):
    """A body at a third of the resolution, whose blocks work at half of that."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(27, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Strided() for _ in range(4))
        self.last = nn.Conv2d(8, 27, 3, padding=1)

    def forward(self, x):
        x = self.first(F.pixel_unshuffle(x, 3))
        for block in self.blocks:
            x = block(x)
        return F.pixel_shuffle(self.last(x), 3)


def test_a_grid_of_multiples_of_three(capfd):
    model = scaled(Unshuffled())
    fast = maskguided.wrap(model, 2, keep=1).eval()
    assert fast.split.multiple_of == 6
    assert fast.exchange
    assert difference(fast(image(1, 3, 96, 96)), model(image(1, 3, 96, 96))) < 1e-5
    assert capfd.readouterr().err == ""


def test_hooks_that_change_the_input_run_once():
    model = scaled(ResidualOutside())
    for module in (model.first, *model.blocks):
        module.register_forward_pre_hook(lambda module, given: (given[0] * 0.8,))
    fast = maskguided.wrap(model, 2, keep=1).eval()
    assert fast.split.blocks == tuple(f"blocks.{number}" for number in range(5))
    assert difference(fast(image(1, 3, 33, 47)), model(image(1, 3, 33, 47))) < 1e-5


class EnlargedFirst(Base):
    """VDSR: all blocks work on the image that was enlarged before."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2, mode="bicubic")
        y = self.first(x)
        for block in self.blocks:
            y = block(y)
        return x + self.last(y)


def test_blocks_on_the_enlarged_image():
    model = scaled(EnlargedFirst())
    fast = maskguided.wrap(model, 2, keep=1).eval()
    assert fast.split.blocks == tuple(f"blocks.{number}" for number in range(4))
    x = image(2, 3, 33, 47)
    assert difference(by_windows(fast, x), model(x)) < 1e-5
    fast.keep = 0.25
    assert difference(fast(x), model(x)) > 1e-3
    assert fast.cost(32, 32).ratio < 0.8


class Pyramid(Base):
    """LapSRN with one set of weights: the same blocks run once more, on the enlarged map."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.enlarge, self.last = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        y = self.first(x)
        for _ in range(2):
            for block in self.blocks:
                y = block(y)
            y = self.enlarge(y)
        return self.last(y)


def test_blocks_that_run_again_on_an_enlarged_map(tmp_path):
    model = scaled(Pyramid())
    fast = maskguided.wrap(model, 2, keep=1).eval()
    assert fast.split.blocks == tuple(f"blocks.{number}" for number in range(4))
    x = image(2, 3, 33, 47)
    assert difference(by_windows(fast, x), model(x)) < 1e-5
    fast.keep = 0.25
    maskguided.save(fast, tmp_path / "pyramid.safetensors")
    again = maskguided.load(tmp_path / "pyramid.safetensors", model).eval()
    assert again.split.blocks == fast.split.blocks
    assert torch.equal(again(x), fast(x))


class StepByStep(Pyramid):
    """LapSRN: as many blocks on the enlarged map as before, four times the work."""

    def __init__(self) -> None:
        super().__init__()
        self.later = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x):
        y = self.first(x)
        for block in self.blocks:
            y = block(y)
        y = self.enlarge(y)
        for block in self.later:
            y = block(y)
        return self.last(y)


def test_the_blocks_that_do_most_of_the_work_are_the_body_though_on_an_enlarged_map():
    model, x = scaled(StepByStep()), image(2, 3, 33, 47)
    fast = maskguided.wrap(model, 2)
    assert fast.split.blocks == tuple(f"later.{number}" for number in range(4))
    assert difference(by_windows(fast, x), model(x)) < 1e-5


class Streams(NamedTuple):
    deep: torch.Tensor
    first: torch.Tensor


class Handing(Base):
    """Blocks take and return a named tuple."""

    class Block(Block):
        def forward(self, streams):
            return Streams(super().forward(streams.deep) - 0.1 * streams.first, streams.first)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(4))

    def forward(self, x):
        streams = Streams(self.first(x), self.first(x))
        for block in self.blocks:
            streams = block(streams)
        return self.finish(streams.deep + streams.first)


def test_blocks_that_hand_on_named_tuples():
    model = scaled(Handing())
    fast = maskguided.wrap(model, 2, keep=1).eval()
    assert fast.split.blocks == tuple(f"blocks.{number}" for number in range(4))
    x = image(2, 3, 33, 47)
    assert difference(by_windows(fast, x), model(x)) < 1e-5


@pytest.mark.parametrize("settings", [{}, {"merge": "image"}, {"merge": "image", "refine_tail": "light"}], ids=str)
def test_a_wrap_is_pickled_whole(settings):
    fast, x = maskguided.wrap(scaled(ResidualOutside()), 2, keep=0.4, **settings), image(2, 3, 33, 47)
    again = pickle.loads(pickle.dumps(fast))
    assert torch.equal(again(x), fast(x))
    assert again.unwrap() is again.model
    assert again.state_dict().keys() == fast.state_dict().keys()
    assert torch.equal(copy.deepcopy(again)(x), fast(x))
    for parameter, twin in zip(fast.parameters(), again.parameters(), strict=True):
        before = fast(x)
        with torch.no_grad():
            parameter.mul_(1.1)
            assert torch.equal(again(x), before), "they share weights"
            twin.mul_(1.1)
        assert torch.equal(again(x), fast(x)), "the weights of the twin are not what it runs"


class InPythonsTypes(Base):
    """Types of Python where torch takes a dtype."""

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            levels = torch.full((1, 1, 1, 1), 3, dtype=int) * (4 * x).to(int)
            x = block(x) + 0.1 * levels.to(float).to(x.dtype) * (x > 0).to(bool)
        return self.finish(x)


def test_types_of_python_stand_for_dtypes():
    model, x = scaled(InPythonsTypes()), image(2, 3, 23, 31)
    parts = maskguided.split(model, 2)
    assert torch.equal(parts.rest(parts.prefix(x)), model(x))
