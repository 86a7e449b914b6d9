"""The automatic splitter on small networks that each hold one difficulty, and its answers when it cannot."""

from __future__ import annotations

import copy

import pytest
import torch
from support import OriginalEDSR, by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import (
    TOYS,
    AttributesAndConcat,
    Base,
    Chain,
    ConstantsAndDefaults,
    InPlace,
    Nested,
    ResidualOutside,
    Strided,
    conv,
)

import maskguided
from maskguided import ArgumentError, CannotSplit, MaskGuided, MaskGuidedError
from maskguided.automatic import find_bodies
from maskguided.probing.probe import image_of, probe_network


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("merge", ["features", "image"])
def test_difficult_networks_obey_the_laws(toy, merge):
    model = scaled(toy())
    parts = maskguided.split(model)
    multiple = parts.multiple_of
    x = image(2, 3, 26, 38) if multiple > 1 else image(2, 3, 25, 37)
    dense, original = image_of(model(x.clone())), x.clone()
    state = parts.prefix(x)
    kept = {name: value.clone() for name, value in state.items()}
    for _ in range(2):  # twice: a part that changed its input would give another image the second time
        assert torch.equal(parts.tail(parts.body(state)), dense)
    assert all(torch.equal(value, kept[name]) for name, value in state.items())
    radius = parts.facts.body_radius if merge == "features" else parts.facts.radius
    halo = -(-radius // multiple) * multiple
    fast = MaskGuided(parts, keep=1, patch_size=6, halo=halo, merge=merge).eval()
    assert difference(by_windows(fast, x), dense) < 1e-5
    assert torch.equal(x, original)
    fast.keep = 0
    assert torch.equal(fast(x), parts.tail(parts.skip(parts.prefix(x))))
    assert difference(fast(x), dense) > 1e-4


def test_a_light_tail_grows_features_of_any_resolution():
    fast = maskguided.wrap(scaled(Strided()), merge="image", coarse_tail="light", keep=0)
    x = image(1, 3, 26, 38)
    assert difference(fast(x), F.interpolate(x, scale_factor=2, mode="bilinear")) < 1e-6
    fast.coarse_tail.conv.weight += 0.1
    assert fast(x).shape == (1, 3, 52, 76)


def test_skipping_a_block_whose_residual_sum_stands_outside_adds_nothing():
    model = scaled(ResidualOutside())
    parts, x = maskguided.split(model, 2), image(1, 3, 12, 12)
    shallow = model.first(x)
    for block in model.blocks[:2]:
        shallow = shallow + 0.5 * block(shallow)
    assert difference(parts.tail(parts.skip(parts.prefix(x))), model.finish(shallow)) < 1e-6


def test_skipped_outputs_in_a_concat_are_stood_in_for_by_the_last_computed():
    model = scaled(AttributesAndConcat())
    parts, x = maskguided.split(model, 2), image(1, 3, 12, 12)
    first = model.first(x)
    one = model.B1(first)
    two = model.B2(one)
    coarse = F.pixel_shuffle(model.last(model.fuse(torch.cat([one, two, two, two], 1)) + first), 3)
    assert difference(parts.tail(parts.skip(parts.prefix(x))), coarse) < 1e-6


@pytest.mark.parametrize(
    ("toy", "expected"),
    [
        (AttributesAndConcat, ["B1", "B2", "B3", "B4"]),
        (Nested, [f"blocks.{g}.{b}" for g in range(2) for b in range(3)]),
        (InPlace, [f"blocks.{b}" for b in range(5)]),
    ],
)
def test_the_body_is_found(toy, expected):
    model = toy().eval()
    assert list(find_bodies(model, probe_network(model))[0].names) == expected


def test_the_radius_is_that_of_the_convolutions():
    class Dilated(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=d, dilation=d) for d in (2, 2, 2, 2))

    facts = maskguided.split(Dilated(), 1).facts
    assert (facts.body_radius, facts.radius) == (6, 7)


def test_a_split_can_be_copied_with_its_network():
    model, x = scaled(ConstantsAndDefaults()), image(1, 3, 16, 16)
    fast = maskguided.wrap(model, merge="image", keep=0.5, patch_size=4)
    before, clone = fast(x), copy.deepcopy(fast)
    assert clone.split.model is clone.model is not fast.model
    for parameter in clone.parameters():
        parameter.zero_()
    assert torch.equal(fast(x), before)
    assert not torch.equal(clone(x), before)


def test_loading_new_weights_into_the_network_reaches_the_split():
    model, x = scaled(ConstantsAndDefaults()), image(1, 3, 16, 16)
    parts = maskguided.split(model)
    model.load_state_dict(scaled(ConstantsAndDefaults(), seed=1).state_dict())
    assert torch.equal(parts.tail(parts.body(parts.prefix(x))), model(x))


class ByValue(Base):
    def forward(self, x):
        y = self.first(x)
        for block in self.blocks:
            y = block(y) if y.mean() > -100 else y
        return self.finish(y)


class NoImage(Base):
    def forward(self, x):
        return self.first(x).mean((2, 3)), "done"


class BySize(Base):
    """Takes another path at sizes that divide by 8: a split of the one path is wrong for the other."""

    def forward(self, x):
        y = self.first(x)
        for block in self.blocks:
            y = block(y)
        return self.finish(y if x.shape[2] % 8 else 2 * y)


class OneImage(Base):
    def forward(self, x):
        return self.finish(self.blocks[1](self.blocks[0](self.first(x).view(1, 8, *x.shape[2:]))))


class Scripted(Base):
    def forward(self, x):
        return self.finish(scripted(self.blocks[1](self.blocks[0](self.first(x)))))


@torch.jit.script
def scripted(x):
    return x * 2


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (ByValue(), "reads pixel values"),
        (Scripted(), "under @torch.jit.script"),
        (NoImage(), "no image"),
        (OneImage(), "two at once are not; windows come as a batch"),
        (BySize(), "another image"),
        (nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12), nn.PixelShuffle(2)), "finding the body"),
        (nn.Identity(), "no floating-point parameters"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_cannot_split_says_where_and_what_the_adapters_missed(model, text):
    with pytest.raises(CannotSplit, match=text) as raised:
        maskguided.wrap(model)
    found = maskguided.inspect(model)
    assert not found.can_split
    assert text in str(found)
    if not isinstance(model, (NoImage, nn.Identity)):
        assert "SCPA_trunk" in str(raised.value)


@pytest.mark.parametrize("split_at", [0, 5, -1, 2.5, True, "half"])
def test_split_at_out_of_range(split_at):
    with pytest.raises(ArgumentError, match=r"this ResidualOutside has 5 blocks; use 1 to 4"):
        maskguided.wrap(ResidualOutside(), split_at)


def test_what_is_no_network_is_refused():
    with pytest.raises(ArgumentError, match="not str"):
        maskguided.split("pan")


def test_law_1_is_checked_when_wrapping(monkeypatch):
    from maskguided.automatic import AutomaticSplit

    honest = AutomaticSplit.tail
    monkeypatch.setattr(AutomaticSplit, "tail", lambda self, state: honest(self, state) + 0.01)
    with pytest.raises(CannotSplit, match="another image"):
        maskguided.split(scaled(ResidualOutside()))
    assert maskguided.split(scaled(ResidualOutside()), check=False)


def test_what_fails_last_is_told_not_that_a_size_was_rounded_otherwise():
    class WindowsOutside(Base):
        """Pads to a multiple of 4 and hands windows to its blocks."""

        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            height, width = x.shape[2:]
            y = self.first(F.pad(x, (0, -width % 4, 0, -height % 4)))
            for block in self.blocks:
                b, c, h, w = y.shape
                tokens = y.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
                tokens = tokens + torch.relu(block(tokens))
                y = tokens.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
            return self.finish(y)[:, :, : 2 * height, : 2 * width]

    with pytest.raises(CannotSplit, match="takes nothing that lies on a map"):
        maskguided.split(scaled(WindowsOutside()))


def test_blocks_on_a_map_that_is_padded_for_all_of_them_are_told_from_windows():
    class PaddedAround(Chain):
        def forward(self, x):
            return super().forward(F.pad(x, (4,) * 4, mode="reflect"))[:, :, 8:-8, 8:-8]

    text = r"only \(B, 8, H \+ 8, W \+ 8\)\. .* pad it before the network and crop"
    with pytest.raises(CannotSplit, match=text):
        maskguided.split(scaled(PaddedAround()))


class Windowed(nn.Module):
    """Cuts a map into windows of 4x4, runs a block on them, and puts them together."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, y):
        return windowed(y, self.block)


def windowed(y, block):
    b, c, h, w = y.shape
    tokens = y.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    tokens = tokens + torch.relu(block(tokens - tokens.mean(1, keepdim=True)))
    return tokens.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def test_what_takes_windows_is_no_block_but_a_module_around_it_is():
    class Padded(Base):
        def __init__(self, outside):
            super().__init__()
            layers = [nn.Linear(8, 8) for _ in range(4)]
            self.outside = outside
            self.blocks = nn.ModuleList(layers if outside else [Windowed(layer) for layer in layers])

        def forward(self, x):
            height, width = x.shape[2:]
            y = self.first(F.pad(x, (0, -width % 4, 0, -height % 4)))
            for block in self.blocks:
                y = windowed(y, block) if self.outside else block(y)
            return self.finish(y)[:, :, : 2 * height, : 2 * width]

    text = r": blocks.2 takes nothing that lies on a map, only \(B\*.*, 16, 8\)\. .* a module around all three"
    with pytest.raises(CannotSplit, match=text):
        maskguided.split(scaled(Padded(True)))
    model, x = scaled(Padded(False)), image(2, 3, 18, 13)
    fast = maskguided.wrap(model, 2, keep=1)
    with torch.no_grad():
        assert difference(by_windows(fast, x), model(x)) < 1e-5
        assert difference(by_windows(fast, x), scaled(Padded(True))(x)) < 1e-5


def test_blocks_whose_work_is_not_counted_are_told_and_can_be_named():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.along = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x):
            b, c, h, w = x.shape
            made = self.along(x.permute(0, 2, 3, 1).reshape(b * h, w, c))[0]
            return x + made.view(b, h, w, c).permute(0, 3, 1, 2)

    class Recurrent(Chain):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Rows() for _ in range(4))

    model, x = scaled(Recurrent()), image(1, 3, 12, 9)
    with pytest.raises(CannotSplit, match=r"4 x Rows \(blocks.0 .. blocks.3\).* are alike, but .* Name the blocks"):
        maskguided.split(model)
    parts = maskguided.split(model, body="blocks.*")
    assert difference(parts.tail(parts.body(parts.prefix(x))), model(x)) < 1e-5


def test_networks_whose_blocks_read_pixel_values_have_costs():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x) if x.mean() < 100 else x

    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *(Lazy() for _ in range(4)), nn.Conv2d(8, 3, 3, padding=1))
    shares = maskguided.inspect(model).shares
    assert shares["prefix"] == pytest.approx((3 + 2 * 8) / (3 + 4 * 8 + 3))
    assert maskguided.wrap(model, keep=0).cost(20, 24).guided < maskguided.wrap(model).cost(20, 24).dense


def test_a_place_out_of_range_is_said_of_a_network_that_cannot_be_split_either():
    class Mirrored(nn.Sequential):
        def forward(self, x):
            return super().forward(x).flip(-1)

    convs = nn.Sequential(*[nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(4)])
    net = scaled(Mirrored(nn.Conv2d(3, 8, 3, padding=1), convs, nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)))
    with pytest.raises(MaskGuidedError, match="split_at=99"):
        maskguided.split(net, 99)


class LooksLikeEDSR(OriginalEDSR):
    """With the names of EDSR's parts, and no long skip."""

    def forward(self, x):
        return self.add_mean(self.tail(self.body(self.head(self.sub_mean(x)))))


def test_a_network_with_the_names_of_another_is_split_automatically():
    net, x = scaled(LooksLikeEDSR(features=8, blocks=4)), image(1, 3, 20, 24)
    parts = maskguided.split(net, 2)
    assert torch.equal(parts.tail(parts.body(parts.prefix(x))), net(x))
    found = maskguided.inspect(net, 2)
    assert (found.can_split, found.adapter) == (True, "automatic")
    assert "another image" in found.missed["edsr"]
    with pytest.raises(CannotSplit, match="the parts give another image"):
        maskguided.split(net, 2, adapter="edsr")


class Fourier(nn.Module):
    """A block that works on the spectrum of the whole map."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.conv, self.mix = conv(c, c), nn.Conv2d(2 * c, 2 * c, 1)

    def forward(self, x):
        spectrum = torch.fft.rfft2(x, norm="ortho")
        mixed = F.relu(self.mix(torch.cat([spectrum.real, spectrum.imag], 1)))
        real, imaginary = mixed.chunk(2, 1)
        return self.conv(x) + torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[2:], norm="ortho")


def test_blocks_on_the_spectrum_are_refused_by_name_instead_of_a_cut_that_saves_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = conv(3, 8), conv(8, 12)
            self.blocks = nn.Sequential(*[Fourier() for _ in range(4)])

        def forward(self, x):
            return F.pixel_shuffle(self.last(self.blocks(self.first(x)) + self.first(x)), 2)

    with pytest.raises(CannotSplit, match=r"torch\.fft"):
        maskguided.split(scaled(Net()))


def test_tokens_may_come_before_the_batch():
    """As torch's own transformer layers take them."""

    class TokensFirst(Chain):
        def forward(self, x):
            y = self.first(x)
            tokens = y.flatten(2).permute(2, 0, 1)
            for layer in self.blocks:
                tokens = layer(tokens)
            return self.finish(tokens.permute(1, 2, 0).reshape(y.shape))

    network, x = TokensFirst(), image(2, 3, 21, 26)
    network.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(4))
    parts = maskguided.split(scaled(network))
    assert parts.blocks == tuple(f"blocks.{number}" for number in range(4))
    assert torch.equal(parts.tail(parts.body(parts.prefix(x))), network(x))
