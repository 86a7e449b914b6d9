"""What is rare in networks and folders, and gave wrong results, or none, before it was looked at."""

from __future__ import annotations

import pytest
import torch
from skimage import data
from support import by_windows, difference, image, scaled
from torch import nn
from torch.autograd import Variable
from torch.nn import functional as F
from toys import Base, Block, Chain, conv

import maskguided
from maskguided import CannotSplit, CheckpointError, MaskGuidedWarning, checkpoint
from maskguided.imaging.images import write_image
from maskguided.imaging.pairs import read_pairs
from maskguided.networks import Loaded
from maskguided.weights import read
from maskguided.windows import sizes


class Masked(Block):
    def forward(self, x, mask):
        return x + self.conv2(F.relu(self.conv1(x))) * mask


class OfItsSize(Base):
    """A checkerboard that the forward makes of the image's size alone goes to every block."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.blocks, self.axes = nn.ModuleList(Masked() for _ in range(4)), axes

    def forward(self, x):
        rows, cols = (torch.arange(side, device=x.device) // 3 for side in x.shape[2:])
        mask = ((rows[:, None] + cols) % 2).to(x.dtype)
        for _ in range(self.axes - 2):
            mask = mask[None]
        x = self.first(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.finish(x)


@pytest.mark.parametrize("settings", [{}, {"exchange": False, "halo": 6}])
@pytest.mark.parametrize("axes", [2, 3, 4])
def test_a_map_of_the_size_alone_needs_no_axis_of_a_batch(axes, settings):
    """Of 8 windows and 8 channels one was taken for the other, without a word."""
    net = scaled(OfItsSize(axes))
    for size in ((2, 3, 27, 35), (1, 3, 16, 32)):
        x = image(*size)
        fast = maskguided.wrap(net, 2, keep=1, patch_size=8, **settings).eval()
        assert difference(fast(x), net(x)) < 1e-5
        assert difference(by_windows(fast, x), net(x)) < 1e-5


class TwoPools(nn.Module):
    """One pool pads by itself, the other sees what was padded before."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.a, self.b = conv(c, c), nn.Conv2d(c, c, 1)

    def forward(self, x):
        apart = F.avg_pool2d(x, 3, 1, 1) - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return x + self.b(F.relu(self.a(x))) * torch.sigmoid(apart)


class Pooling(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TwoPools() for _ in range(4))


@pytest.mark.parametrize("size", [(32, 48), (27, 35)])
def test_windows_run_where_the_image_is_a_multiple_of_the_patch_and_where_not(size):
    net, x = scaled(Pooling()), image(1, 3, *size)
    fast = maskguided.wrap(net, 2, keep=0.4, patch_size=8, halo=8).eval()
    assert fast(x).shape == (1, 3, 2 * size[0], 2 * size[1])
    assert difference(by_windows(fast, x), net(x)) < 1e-5


class PaddedAbove(Chain):
    """Pads to multiples of 4, and crops again; a bilinear image beside it stays where it was."""

    def __init__(self, above: bool) -> None:
        super().__init__()
        self.first, self.last, self.above = conv(48, 8), conv(8, 192), above

    def forward(self, x):
        down, right = (-side % 4 for side in x.shape[2:])
        padded = F.pad(x, (right, 0, down, 0) if self.above else (0, right, 0, down), mode="replicate")
        y = self.first(F.pixel_unshuffle(padded, 4))
        for block in self.blocks:
            y = block(y)
        height, width = (2 * side for side in x.shape[2:])
        y = F.pixel_shuffle(self.last(y), 8)
        y = y[:, :, -height:, -width:] if self.above else y[:, :, :height, :width]
        return y + F.interpolate(x, scale_factor=2)


def test_what_is_padded_above_is_refused():
    fast, x = maskguided.wrap(scaled(PaddedAbove(False)), 2, merge="image", keep=1).eval(), image(1, 3, 33, 41)
    assert difference(by_windows(fast, x), fast.unwrap()(x)) < 1e-5
    with pytest.raises(CannotSplit, match=r"pads images to multiples of 4 above or at the left.*crop what it makes"):
        maskguided.split(scaled(PaddedAbove(True)), 2)


class Exploding(Chain):
    """Its image is none where there is much contrast, as PAN's of text in black and white."""

    def forward(self, x):
        return super().forward(x) * torch.where(x.std() > 0.4, 1e9, 1.0)


def test_an_image_of_which_the_network_makes_none_decides_nothing():
    net = scaled(Exploding(), gain=0.4)
    photos = [image(3, 32, 40, seed=seed) for seed in range(3)]
    text = (image(3, 32, 40, seed=9) > 0.5).float()
    alone, beside = (maskguided.wrap(net, 2, merge="features").eval() for _ in range(2))
    maskguided.calibrate(alone, photos, max_cost=0.9)
    with pytest.warns(
        MaskGuidedWarning, match=r"of image 2 of 4 \(32x40 LR pixels\) the network itself .*; it is left"
    ):
        maskguided.calibrate(beside, [photos[0], text, *photos[1:]], max_cost=0.9)
    x = image(1, 3, 32, 40, seed=20)
    assert torch.equal(beside(x), alone(x))


def test_huge_windows_are_not_tried_at_their_size(monkeypatch):
    sides, usual = [], sizes.on_windows
    fast = maskguided.wrap(scaled(Chain()), 2)

    def noted(part, state, *args, **settings):
        sides.append(max(state[fast.split.features].shape[2:]))
        return usual(part, state, *args, **settings)

    monkeypatch.setattr(sizes, "on_windows", noted)
    wide = maskguided.wrap(scaled(Chain()), 2, patch_size=1000, halo=3000, keep=1, exchange=False).eval()
    assert 128 <= max(sides) <= 256
    x = image(1, 3, 20, 30)
    assert difference(by_windows(wide, x), wide.unwrap()(x)) < 1e-5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "but an empty file"),
        (b"<!DOCTYPE html><html>", "but a page of HTML"),
        (b"\x89PNG\r\n\x1a\n", "but something that begins with"),
        (b"PK\x03\x04 cut short", r"damaged \(is the download whole\?\)"),
    ],
)
def test_what_is_no_weight_file_is_told_as_what_it_is(content, said, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"not a readable weight file.*{said}"):
        read(path)


def test_what_a_file_knows_is_among_facts_that_were_asked_for_before():
    split = maskguided.split(scaled(Chain()), 2)
    assert (split.facts.supports_half, split.facts.tiling) == (None, None)
    Loaded(split.model, "chain", "spandrel", supports_half=True, tiling="discouraged").inform(split)
    assert (split.facts.supports_half, split.facts.tiling) == (True, "discouraged")


def test_a_picture_of_an_unknown_kind_is_refused_by_its_name(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'maskguided[train]'")
    from maskguided import pictures

    fast = maskguided.wrap(scaled(Chain()), 2)
    with pytest.raises(maskguided.ArgumentError, match=r"a\.xyz: a picture ends in \.png, \.pdf, \.svg"):
        pictures.explain_picture(fast, image(1, 3, 16, 16), tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


def test_a_path_may_begin_at_home_and_is_text(tmp_path, monkeypatch):
    """torch.save finds no folder ~; one was made in the current folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    fast = maskguided.wrap(scaled(Chain()), 2)
    maskguided.save(fast, "~/new/head.safetensors")
    assert (tmp_path / "new" / "head.safetensors").is_file()
    assert maskguided.load("~/new/head.safetensors", fast.unwrap()).split.split_at == 2
    with pytest.raises(maskguided.ArgumentError, match=r"path='a\\x00\.safetensors': use the path of a file"):
        maskguided.save(fast, "a\0.safetensors")
    with pytest.raises(maskguided.ArgumentError, match="its folder cannot be made"):
        maskguided.save(fast, tmp_path / "new" / "head.safetensors" / "head.safetensors")


def test_a_file_of_a_newer_version_says_so(tmp_path, monkeypatch):
    fast = maskguided.wrap(scaled(Chain()), 2)
    settings = {**checkpoint.settings_of(fast), "frobnicate": 3}
    monkeypatch.setattr(checkpoint, "settings_of", lambda fast: settings)
    maskguided.save(fast, tmp_path / "head.safetensors")
    with pytest.raises(
        CheckpointError, match=r"by another version of maskguided, .* the setting 'frobnicate' is not known"
    ):
        maskguided.load(tmp_path / "head.safetensors", fast.unwrap())


def test_what_vmap_cannot_do_is_told_as_it_is():
    """It knows no memory formats: that was told as blocks that cannot run on windows of 8x8."""
    fast = maskguided.wrap(scaled(Chain()), 2)
    with torch.no_grad(), pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(fast)(image(1, 2, 3, 24, 24))


def test_two_images_of_one_name_are_no_truth(tmp_path):
    for place, names in (("lr", ["a.png"]), ("hr", ["a.png", "a.jpg"])):
        for name in names:
            write_image(tmp_path / place / name, data.astronaut()[:64, :64])
    with pytest.raises(maskguided.ArgumentError, match=r"hr.a\.\w{3} and a\.\w{3} have one name; which of them is"):
        read_pairs(tmp_path / "lr", tmp_path / "hr", torch.device("cpu"), torch.float32, False)


class AllBody(nn.Module):
    """Nothing before the blocks, nothing behind them: the last one gives the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(nn.Sequential(conv(3, 3), nn.LeakyReLU()) for _ in range(5)))

    def forward(self, x):
        return self.stages(x)


@pytest.mark.parametrize(
    "settings", [{}, {"merge": "image", "coarse_tail": "copy"}, {"merge": "image", "coarse_tail": "light"}]
)
def test_the_last_block_may_give_the_image(settings, tmp_path):
    """The tail was empty, then, and was said to use what nothing had made."""
    net, x = scaled(AllBody()), image(2, 3, 27, 35)
    fast = maskguided.wrap(net, 2, keep=1, patch_size=8, **settings).eval()
    assert fast.split.blocks == tuple(f"stages.{i}" for i in range(5))
    assert torch.equal(fast(x), net(x))
    assert difference(by_windows(fast, x), net(x)) < 1e-5
    fast.keep = 0
    if settings.get("coarse_tail") != "light":
        assert torch.equal(fast(x), net.stages[:2](x))
    maskguided.save(fast, tmp_path / "head.safetensors")
    assert torch.equal(maskguided.load(tmp_path / "head.safetensors", net)(x), fast(x))


def test_the_last_block_may_give_the_image_behind_several_cuts():
    net, x = scaled(AllBody()), image(1, 3, 24, 32)
    fast = maskguided.wrap(net, (1, 3), keep=0.5, onward=0.5, patch_size=8).eval()
    index = torch.arange(12)[None]
    got = fast.refine(fast.run_base(x), index[:, :6])
    kept = got[:, :, 16:]  # the last row of patches, of which none is refined
    assert torch.equal(kept, net.stages[:1](x)[:, :, 16:])
    fast.onward = 1
    assert difference(fast.refine(fast.run_base(x), index), net(x)) < 1e-5


class OfItsTime(Base):
    """Wraps tensors as code of before torch 0.4 has to."""

    def forward(self, x):
        features = self.first(Variable(x))
        state = Variable(torch.zeros(x.shape[0], 8, *x.shape[2:])) + Variable(self.first.bias).view(1, -1, 1, 1)
        for block in self.blocks:
            state = state + block(features + state)
        return self.finish(state)


class InItsPlace(Base):
    """Coordinates of the middles of pixels in -1..1, which the tail takes (LIIF): the first is -1 + 1 / height."""

    def __init__(self) -> None:
        super().__init__()
        self.last = conv(9, 12)

    def forward(self, x):
        y, rows = self.first(x), x.shape[2]
        for block in self.blocks:
            y = block(y)
        middles = -1 + 1 / rows + 2 / rows * torch.arange(rows, device=x.device).to(x.dtype)
        return self.finish(torch.cat([y, middles.view(1, 1, -1, 1).expand(len(x), 1, *x.shape[2:])], 1))


class InGroups(Base):
    """Of eleven bands each block sees two; what takes all of them is registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, last = conv(2, 8), self.last
        self.every, self.last = nn.Conv2d(11, 8, 1), last

    def forward(self, x):
        y = self.every(x) + self.first(x[:, :2])
        for block in self.blocks:
            y = block(y)
        return self.finish(y)


@pytest.mark.parametrize(("kind", "bands"), [(OfItsTime, 3), (InItsPlace, 3), (InGroups, 11)])
def test_habits_of_authors_are_no_reason_to_refuse(kind, bands):
    net = scaled(kind())
    fast = maskguided.wrap(net, 2, keep=1, patch_size=8).eval()
    for size in ((27, 35), (16, 24), (41, 18)):
        x = image(2, bands, *size)
        assert difference(fast(x), net(x)) < 1e-6
        assert difference(by_windows(fast, x), net(x)) < 1e-5
    assert not list(fast.constants.buffers()), "weights under another name are no tensors from elsewhere"


def test_a_module_called_by_a_word_of_python_is_named():
    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.ends = nn.ModuleDict({"in": conv(3, 8)})

        def forward(self, x):
            y = self.ends["in"](x)
            for block in self.blocks:
                y = block(y)
            return self.finish(y)

    with pytest.raises(CannotSplit, match=r"the module 'ends.in' is called by a word of Python, 'in'.* as in_"):
        maskguided.wrap(Net())
