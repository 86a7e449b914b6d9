"""What automatic splitting takes in its stride: sizes, masks, tokens, global operations, blocks by name."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Base, Block, Chain, ConstantsAndDefaults, ResidualOutside, conv

import maskguided
from maskguided import ArgumentError, CannotSplit, MaskGuided
from maskguided.automatic.recordings import _sizes
from maskguided.patches import Chosen, Grid, round_up
from maskguided.probing.probe import LARGE_LEAST, MULTIPLES, Probe
from maskguided.windows.per_image import PerImage


class Windowed(nn.Module):
    """Attention in 4x4 windows, on a mask made of the map's size; pads what does not fit, within itself."""

    def __init__(self, shift: int, size: int = 4) -> None:
        super().__init__()
        self.qkv, self.out, self.shift, self.size = nn.Linear(8, 24), nn.Linear(8, 8), shift, size

    def forward(self, x):
        height, width, size = x.shape[2], x.shape[3], self.size
        y = F.pad(x, (0, -width % size, 0, -height % size))
        y = torch.roll(y, (-self.shift, -self.shift), (2, 3))
        b, c, h, w = y.shape
        y = y.view(b, c, h // size, size, w // size, size).permute(0, 2, 4, 3, 5, 1).reshape(-1, size * size, c)
        q, k, v = self.qkv(y).chunk(3, dim=-1)
        y = self.out(F.softmax(q @ k.transpose(1, 2), dim=-1) @ v)
        y = y.view(b, h // size, w // size, size, size, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return x + torch.roll(y, (self.shift, self.shift), (2, 3))[:, :, :height, :width]


class WindowsInside(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Windowed(0) for _ in range(4))


class Masked(Base):
    """A mask of the size of the map, filled in by slices in the prefix, that every block is given; and positions."""

    class Gated(Block):
        def forward(self, x, mask, position):
            return super().forward(x) * mask + 0.1 * position

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Gated() for _ in range(4))

    def forward(self, x):
        height, width = x.shape[2:]
        windows = torch.zeros(height // 2, width // 2)
        windows[:, :3] = 0.5
        windows[:, 3:] = 0.5
        mask = windows.mean() + torch.ones(1, 1, 1, 1)
        position = torch.linspace(0, 1, width).view(1, 1, 1, width).expand(1, 1, height, width) * 1.0
        y = self.first(x)
        for block in self.blocks:
            y = block(y, mask, position)
        return self.finish(y)


class Cached(Base):
    """Masks kept by size: in a dict of the module, and by functools."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Masked.Gated() for _ in range(4))
        self.masks: dict[tuple[int, int], torch.Tensor] = {}

    @staticmethod
    @functools.lru_cache
    def ramp(height, width):
        return torch.linspace(0, 1, width).expand(1, 1, height, width) + 0

    def forward(self, x):
        size = x.shape[2], x.shape[3]
        if size not in self.masks:
            self.masks[size] = torch.full((1, 1, *size), 0.7)
        y = self.first(x)
        for block in self.blocks:
            y = block(y, self.masks[size], self.ramp(*size))
        return self.finish(y)


class Attentive(Chain):
    """Channel attention in every block."""

    class Squeezed(Block):
        def forward(self, x):
            y = super().forward(x)
            return y * torch.sigmoid(y.mean((2, 3), keepdim=True) + y.std((2, 3), keepdim=True))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Squeezed() for _ in range(4))


class NoStandIn(Base):
    """Beside each block goes a value of a width of its own to the tail: nothing else has its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList(nn.Conv2d(8, 2 + i, 1) for i in range(5))
        self.last = conv(20, 12)

    def forward(self, x):
        y, sides = self.first(x), []
        for block, side in zip(self.blocks, self.sides, strict=True):
            y = block(y)
            sides.append(side(y))
        return self.finish(torch.cat(sides, 1))


class Other(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(8, 8), nn.GELU(), conv(8, 8), nn.GELU(), conv(8, 8))


class TwoClasses(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() if i % 2 else Other() for i in range(6))


class Reflected(Chain):
    """Rounds its input up to 64 by reflection, as SCUNet: 17 is too small for that, and so is 32, the half of it."""

    unit, padding = 64, "reflect"

    def forward(self, x):
        height, width = x.shape[2:]
        wide = F.pad(x, (0, -width % self.unit, 0, -height % self.unit), self.padding)
        return super().forward(wide)[:, :, : 2 * height, : 2 * width]


class InLargeCells(Reflected):
    """The same to a number of its own, and its blocks look at cells of so many pixels, as SRFormerV2's attention."""

    class Block(nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.side, self.conv = side, conv(8, 8)

        def forward(self, x):
            (b, c, h, w), side = x.shape, self.side
            cells = self.conv(x).view(b, c, h // side, side, w // side, side)
            return x + (cells * torch.sigmoid(cells.mean((3, 5), keepdim=True))).view(x.shape)

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit, self.blocks = unit, nn.ModuleList(self.Block(unit) for _ in range(4))


def test_a_network_that_pads_by_reflection_takes_any_size_that_is_large_enough():
    model = scaled(Reflected())
    fast = maskguided.wrap(model, keep=1)
    assert (fast.split.probe.multiple_of, fast.split.probe.least) == (1, 48)
    x = image(1, 3, 49, 70)
    assert difference(by_windows(fast, x), model(x)) < 1e-5


@pytest.mark.parametrize("unit", [22, 36, 40, 48])
def test_a_network_that_rounds_its_input_up_to_large_cells_is_split(unit):
    model, x = scaled(InLargeCells(unit)), image(1, 3, 2 * unit - 5, unit + 3)
    fast = maskguided.wrap(model, keep=1)
    assert (fast.split.multiple_of, fast.patch_size % unit) == (unit, 0)
    assert difference(by_windows(fast, x), model(x)) < 1e-5


@pytest.mark.parametrize("unit", [14, 15, 20, 24, 28, 30])
@pytest.mark.parametrize("padding", ["constant", "replicate"])
def test_numbers_that_small_images_are_rounded_up_to_alike_are_told_apart(unit, padding):
    model = scaled(InLargeCells(unit))
    model.padding = padding
    fast = maskguided.wrap(model, keep=1)
    assert fast.split.multiple_of == unit
    for x in (image(1, 3, 29, 112), image(1, 3, 75, 57)):
        assert difference(by_windows(fast, x), model(x)) < 1e-5


def test_sizes_tell_apart_all_that_a_network_may_round_its_input_up_to():
    """Where small ones are not taken: no multiple becomes another by a factor and something added."""
    probe = Probe(3, 3, 2, 1, LARGE_LEAST, torch.device("cpu"), torch.float32)
    recorded = {side for _, *size in _sizes(probe) for side in size}
    seen = sorted(recorded.union(*probe.telling_sizes))
    for unit, other in itertools.permutations(MULTIPLES, 2):
        rounded, wanted = ([round_up(side, to) for side in seen] for to in (unit, other))
        line = np.polynomial.Polynomial.fit(rounded, wanted, 1)
        assert abs(line(np.array(rounded)) - wanted).max() > 0.1, f"{other} may be taken for {unit}"
        assert len({round_up(side, other) for side in recorded}) > 1


def test_windows_keep_to_the_grid_of_attention_that_pads_within_its_blocks():
    model = scaled(WindowsInside())
    parts, x = maskguided.split(model), image(2, 3, 24, 44)
    assert parts.facts.multiple_of == 4
    fast = MaskGuided(parts, keep=1, patch_size=8, halo=4).eval()
    assert difference(by_windows(fast, x), model(x)) < 1e-5
    parts.multiple_of = 1
    astray = MaskGuided(parts, keep=1, patch_size=7, halo=4).eval()
    assert difference(by_windows(astray, x), model(x)) > 1e-4, "off the grid it must differ, or the grid means nothing"


@pytest.mark.parametrize(("kind", "maps"), [(Masked, 2), (Cached, 3)])
def test_what_follows_from_sizes_is_made_anew_and_what_lies_on_the_map_is_gathered(kind, maps):
    model = scaled(kind())
    parts, x = maskguided.split(model), image(2, 3, 21, 34)
    assert torch.equal(parts.tail(parts.body(parts.prefix(x))), model(x))
    assert sum(kind == "map" for kind in parts.kinds.values()) == maps, (
        "features, positions and masks of the size of the map"
    )
    fast = MaskGuided(parts, keep=1, patch_size=6, halo=parts.facts.body_radius).eval()
    assert difference(by_windows(fast, x), model(x)) < 1e-5


def test_global_operations_see_one_image_or_one_window():
    model, x = scaled(Attentive()), image(2, 3, 16, 24)
    parts = maskguided.split(model)
    assert parts.facts.body_radius is None
    assert set(parts.global_ops) == {"mean", "std"}
    per_image = MaskGuided(parts, keep=1, patch_size=8, halo=0).eval()
    per_window = MaskGuided(parts, keep=1, patch_size=8, halo=0, global_ops="window").eval()
    dense = model(x)
    assert difference(by_windows(per_image, x), by_windows(per_window, x)) > 1e-4
    assert difference(by_windows(per_image, x), dense) < difference(by_windows(per_window, x), dense)
    with pytest.raises(ArgumentError, match="look at the whole map"):
        MaskGuided(parts, global_ops="refuse")


@pytest.mark.parametrize(
    "reduce",
    [
        lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
        lambda x: F.adaptive_avg_pool2d(x, 1).expand_as(x),
        lambda x: torch.amax(x, dim=(-2, -1), keepdim=True).expand_as(x),
        lambda x: torch.var_mean(x, dim=(2, 3), keepdim=True)[0].expand_as(x),
        lambda x: F.instance_norm(x),
    ],
)
def test_windows_that_make_up_an_image_have_its_statistics(reduce):
    x = image(2, 3, 4, 12)
    windows = torch.cat(x[:, None].chunk(3, dim=-1), dim=1).flatten(0, 1)  # (2 * 3, 3, 4, 4)
    every = Chosen(torch.arange(3).expand(2, -1), Grid(4, 12, patch_size=4))
    with PerImage(every):
        each = reduce(windows)
    whole = torch.cat(list(each.view(2, 3, 3, 4, 4).unbind(1)), dim=-1)
    assert difference(whole, reduce(x)) < 1e-6
    assert difference(reduce(windows), each) > 1e-3, "on its own each window must have other statistics"


def test_inspect_tells_why_wrap_would_refuse_what_can_be_split():
    net = NoStandIn()
    net.last = conv(20, 4)
    found = maskguided.inspect(scaled(net))
    assert (found.can_split, found.prices) == (True, {})
    assert "by default: cannot be wrapped: coarse_tail='light' adds the bilinear input" in str(found)


def test_without_a_stand_in_the_coarse_image_is_a_light_tail_alone():
    model, x = scaled(NoStandIn()), image(2, 3, 18, 25)
    parts = maskguided.split(model)
    assert torch.equal(parts.tail(parts.body(parts.prefix(x))), model(x))
    with pytest.raises(CannotSplit, match="nothing computed before them has the shape"):
        parts.skip(parts.prefix(x))
    with pytest.warns(UserWarning, match="light tail alone"):
        fast = MaskGuided(parts, keep=0, patch_size=6, halo=parts.facts.radius).eval()
    assert difference(fast(x), F.interpolate(x, scale_factor=2, mode="bilinear")) < 1e-6
    fast.keep = 1
    assert difference(by_windows(fast, x), model(x)) < 1e-5
    with pytest.raises(ArgumentError, match="cannot be left out"):
        MaskGuided(parts, merge="features")


def test_blocks_of_two_classes_are_one_body():
    parts = maskguided.split(scaled(TwoClasses()), 4)
    assert parts.blocks == tuple(f"blocks.{i}" for i in range(6))


class MadeByTheLast(nn.Module):
    """SRVGGNetCompact of 48 features at x4: the convolution that makes the image has the shape of the body's."""

    def __init__(self):
        super().__init__()
        layers = [layer for _ in range(5) for layer in (nn.Conv2d(48, 48, 3, padding=1), nn.PReLU(48))]
        last = nn.Conv2d(48, 48, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PReLU(48), *layers, last)

    def forward(self, x):
        image = nn.functional.pixel_shuffle(self.body(x), 4)
        return image + nn.functional.interpolate(x, scale_factor=4)


@pytest.mark.parametrize("refine_tail", ["own", "light"])
def test_what_makes_the_image_is_no_block_unless_it_is_named(refine_tail):
    model, x = scaled(MadeByTheLast()), image(1, 3, 19, 26)
    blocks = [f"body.{number}" for number in range(2, 12, 2)]
    assert maskguided.split(model).blocks == tuple(blocks)
    named = maskguided.wrap(model, body=[*blocks, "body.12"], merge="image", refine_tail=refine_tail, keep=1.0)
    assert named.split.blocks[-1] == "body.12", "its tail has no weights"
    assert named(x).shape == (1, 3, 76, 104)
    if refine_tail == "own":
        torch.testing.assert_close(named(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_user_names_body_and_cut():
    model, x = scaled(ResidualOutside()), image(1, 3, 16, 16)
    parts = maskguided.split(model, body="blocks.*.conv1", cut="blocks.2.conv1")
    assert parts.blocks == tuple(f"blocks.{i}.conv1" for i in range(5))
    assert parts.split_at == 3
    assert torch.equal(parts.tail(parts.body(parts.prefix(x))), model(x))
    assert maskguided.wrap(model, body=["blocks.4", "blocks.1"]).split.blocks == ("blocks.1", "blocks.4")
    assert "conv1" in str(maskguided.inspect(model, body="blocks.*.conv1"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"body": "layers.*"}, r"0 of the modules .* It calls first, blocks\.\*"),
        ({"cut": "blocks.4"}, "no block to cut after"),
        ({"cut": "blocks.1", "split_at": 2}, "give one of them"),
        ({"body": "blocks.*", "adapter": "pan"}, "without one"),
    ],
)
def test_what_a_user_names_must_fit(arguments, text):
    with pytest.raises(ArgumentError, match=text):
        maskguided.split(ResidualOutside(), **arguments)


def test_a_body_named_by_the_user_is_saved_and_wrapped_again(tmp_path):
    model, x = scaled(ConstantsAndDefaults()), image(1, 3, 16, 16)
    fast = maskguided.wrap(model, body="blocks.*.conv2", patch_size=4, scorer="head").eval()
    maskguided.save(fast, tmp_path / "head.safetensors")
    again = maskguided.load(tmp_path / "head.safetensors", model).eval()
    assert again.split.blocks == fast.split.blocks
    assert torch.equal(again(x), fast(x))


def test_default_patches_and_halos_are_multiples_that_the_network_works_on():
    fast = maskguided.wrap(scaled(WindowsInside()))
    assert (fast.exchange, fast.patch_size, fast.halo) == (True, 16, 0)
    alone = maskguided.wrap(scaled(WindowsInside()), exchange=False)
    assert (alone.patch_size, alone.halo) == (32, 4)
    with pytest.raises(ArgumentError, match="multiples of 4 LR pixels; use 16 or 20"):
        maskguided.wrap(scaled(WindowsInside()), patch_size=18)


def test_a_light_tail_takes_an_image_that_the_network_enlarges():
    class Enlarging(NoStandIn):
        def forward(self, x):
            height, width = x.shape[2:]
            return super().forward(F.pad(x, (0, -width % 8, 0, -height % 8)))[:, :, : 2 * height, : 2 * width]

    model, x = scaled(Enlarging()), image(2, 3, 18, 25)
    parts = maskguided.split(model)
    with pytest.warns(UserWarning, match="light tail alone"):
        fast = MaskGuided(parts, keep=0, patch_size=8, halo=-(-parts.facts.radius // 8) * 8).eval()
    assert difference(fast(x), F.interpolate(x, scale_factor=2, mode="bilinear")) < 1e-6
    fast.keep = 1
    assert difference(by_windows(fast, x), model(x)) < 1e-5


@pytest.mark.parametrize("body", [3, [3], {"body.0": 1}.values()])
def test_a_body_that_is_no_name_is_refused(body):
    with pytest.raises(ArgumentError, match="use the blocks' names, or a pattern"):
        maskguided.wrap(ResidualOutside(), body=body)


def test_attention_over_the_whole_map_is_told_on_small_maps():
    """Its time and memory grow with the square of the map."""
    seen = []

    class Attention(Block):
        def forward(self, x):
            flat = x.flatten(2)
            if type(x) is torch.Tensor:  # elsewhere nothing is computed
                seen.append(flat.shape[2])
            return super().forward(x) + (flat @ (flat.mT @ flat).softmax(1)).view_as(x)

    class Attending(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Attention() for _ in range(4))

    facts = maskguided.inspect(scaled(Attending()), 2).facts
    assert (facts.body_radius, facts.radius, facts.multiple_of) == (None, None, 1)
    assert max(seen) <= 64 * 64
