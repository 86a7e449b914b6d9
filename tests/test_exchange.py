"""Windows that exchange borders: each operation against the same one on the whole map."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from toys import blurred

import maskguided
from maskguided import ArgumentError
from maskguided.patches import Chosen, Grid, gather, scatter
from maskguided.windows import trial
from maskguided.windows.borders import Borders
from maskguided.windows.exchange import Exchange


def kernels_of_images(x):
    """A convolution of all images as one, with a kernel for each."""
    kernels = (image(5, 4, 3, 3) - 0.5).repeat(len(x), 1, 1, 1)
    return F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, None, 1, 1, 1, len(x)).view(len(x), 5, *x.shape[2:])


OPERATIONS = {
    "kernels of images": kernels_of_images,
    "conv3": lambda x: F.conv2d(x, image(5, 4, 3, 3) - 0.5, image(5), padding=1),
    "conv5x3": lambda x: F.conv2d(x, image(5, 4, 5, 3) - 0.5, None, 1, (2, 1)),
    "conv of even size": lambda x: F.conv2d(x, image(5, 4, 4, 4) - 0.5, padding="same"),
    "conv without padding": lambda x: F.conv2d(x, image(5, 4, 1, 1) - 0.5, padding="valid"),
    "depthwise, dilated": lambda x: F.conv2d(x, image(4, 1, 3, 3) - 0.5, padding=2, dilation=2, groups=4),
    "wider than a patch": lambda x: F.conv2d(x, image(4, 1, 13, 13) - 0.5, padding=6, groups=4),
    "stride 2": lambda x: F.conv2d(x, image(5, 4, 3, 3) - 0.5, stride=2, padding=1),
    "transposed": lambda x: F.conv_transpose2d(x, image(4, 5, 4, 4) - 0.5, None, 2, 1),
    "transposed 9x3": lambda x: F.conv_transpose2d(x, image(4, 5, 9, 3) - 0.5, image(5), 3, (4, 0), (2, 0)),
    "transposed, along one side": lambda x: F.conv2d(
        F.conv_transpose2d(x, image(4, 5, 4, 3) - 0.5, None, (2, 1), 1), image(5, 5, 2, 1) - 0.5, stride=(2, 1)
    ),
    "transposed, dilated": lambda x: F.conv_transpose2d(x, image(4, 1, 3, 3) - 0.5, None, 1, 2, 0, 4, 2),
    "transposed, nothing around": lambda x: F.conv_transpose2d(x, image(4, 5, 2, 2) - 0.5, stride=2),
    "reflect": lambda x: F.conv2d(F.pad(x, (2, 1, 1, 2), mode="reflect"), image(5, 4, 4, 4) - 0.5),
    "replicate": lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), image(5, 4, 3, 3) - 0.5),
    "zeros by hand": lambda x: F.conv2d(F.pad(x, (1, 1)), image(5, 4, 1, 3) - 0.5),
    "bilinear": lambda x: F.interpolate(x, scale_factor=3, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=(2.0, 2.0), mode="bicubic", align_corners=False),
    "bilinear to a size": lambda x: F.interpolate(x, size=[2 * side for side in x.shape[2:]], mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "two in a row": lambda x: F.conv2d(
        F.conv2d(x, image(4, 4, 3, 3) - 0.5, padding=1).relu(), image(3, 4, 3, 3), padding=1
    ),
}


def on_windows(operation, x, index, grid, *, gathered=False):
    """What `operation` makes of the chosen patches, at their place; NaN elsewhere."""
    windows = gather(x, index, grid)
    with Exchange(Borders(Chosen(index, grid), [(windows, x)] if gathered else [])):
        parts = operation(windows)
    side = parts.shape[2] * grid.height // grid.window[0], parts.shape[3] * grid.width // grid.window[1]
    canvas = torch.full((x.shape[0], parts.shape[1], *side), torch.nan)
    return scatter(parts, index, grid, onto=canvas)


@pytest.mark.parametrize("name", OPERATIONS)
@given(
    rows=st.integers(2, 4), cols=st.integers(2, 4), patch=st.sampled_from([4, 6, 8]), halo=st.sampled_from([0, 2]),
    batch=st.integers(1, 2), ragged=st.booleans(), last=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_all_windows_make_the_whole_map(name, rows, cols, patch, halo, batch, ragged, last, seed):
    height, width = (n * patch - 2 * ragged for n in (rows, cols))
    grid = Grid(height, width, patch, halo)
    x = image(batch, 4, height, width, seed=seed)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    index = torch.stack([torch.randperm(grid.count, generator=torch.Generator().manual_seed(i)) for i in range(batch)])
    whole = OPERATIONS[name](x)
    assert difference(on_windows(OPERATIONS[name], x, index, grid), whole) < 1e-5
    assert difference(on_windows(OPERATIONS[name], x, index, grid, gathered=True), whole) < 1e-5


@given(k=st.integers(1, 11), batch=st.integers(1, 2), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", ["conv3", "conv5x3", "zeros by hand", "wider than a patch"])
def test_what_nobody_refines_is_zero_to_its_neighbours(name, k, batch, seed):
    grid = Grid(12, 16, patch_size=4)
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(grid.count, generator=generator)[:k] for _ in range(batch)])
    x = image(batch, 4, 12, 16, seed=seed)
    mask = grid.mask(index).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    found = on_windows(OPERATIONS[name], x, index, grid)
    expected = OPERATIONS[name](x * mask)
    assert torch.equal(found.isnan(), ~mask.expand_as(found))
    assert difference(found.nan_to_num(), expected * mask) < 1e-5


def test_around_a_window_just_cut_the_map_itself_is_seen():
    grid, x = Grid(12, 16, patch_size=4), image(1, 4, 12, 16)
    index = torch.tensor([[5]])
    found = on_windows(OPERATIONS["conv3"], x, index, grid, gathered=True)
    assert difference(found[:, :, 4:8, 4:8], OPERATIONS["conv3"](x)[:, :, 4:8, 4:8]) < 1e-5


def test_gradients_are_those_of_the_whole_map():
    grid, index = Grid(12, 14, patch_size=4), torch.randperm(12, generator=torch.Generator().manual_seed(0))[None]
    weight, x = (image(4, 4, 3, 3) - 0.5).requires_grad_(), image(1, 4, 12, 14).requires_grad_()
    operation = lambda x: F.conv2d(F.conv2d(x, weight, padding=1), weight, padding=1)  # noqa: E731
    with torch.enable_grad():
        by_windows = torch.autograd.grad(on_windows(operation, x, index, grid).square().sum(), (x, weight))
        whole = torch.autograd.grad(operation(x).square().sum(), (x, weight))
    assert all(difference(a, b) < 1e-5 for a, b in zip(by_windows, whole, strict=True))


class Blurring(nn.Module):
    """A network whose blocks look around in a way that windows cannot exchange."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return x + self.conv(blurred(x))

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(4)))

    def forward(self, x):
        return self.last(self.blocks(self.first(x)))


class Shrinking(nn.Module):
    """Blocks that work on half the size, and enlarge by a transposed convolution, as the tail does."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(8, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 4, 2, 1)

        def forward(self, x):
            return x + self.up(F.relu(self.down(x)))

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 3, 9, 3, 4, output_padding=2)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(4)))

    def forward(self, x):
        return self.last(self.blocks(self.first(x)))


@pytest.mark.parametrize("merge", ["features", "image"])
def test_transposed_convolutions_see_neighbours_too(merge):
    model, x = scaled(Shrinking()), image(2, 3, 26, 42)
    fast = maskguided.wrap(model, keep=1, merge=merge)
    assert (fast.exchange, fast.halo) == (True, 0)
    assert difference(by_windows(fast, x), model(x)) < 1e-5


def test_a_network_that_cannot_exchange_gets_a_halo():
    fast = maskguided.wrap(Blurring().eval())
    assert not fast.exchange
    assert fast.halo == 2
    assert fast.split.exchanges("features") is False


@pytest.mark.parametrize("merge", ["features", "image"])
def test_all_patches_are_the_network_where_it_exchanges_only_because_it_is_told_to(merge):
    net, x = scaled(Blurring().eval()), image(2, 3, 21, 27)
    with pytest.warns(maskguided.MaskGuidedWarning, match="exchange=True: windows of this Blurring"):
        fast = maskguided.wrap(net, merge=merge, exchange=True, patch_size=8, halo=0, keep=1)
    assert difference(fast(x), net(x)) < 1e-5
    assert difference(by_windows(fast, x), net(x)) > 1e-3


def test_files_say_whether_windows_exchange_and_may_be_overruled(tmp_path):
    from maskguided.adapters.pan_net import PAN

    net, x = PAN(features=8, up_features=8, blocks=4).eval(), image(1, 3, 20, 26)
    fast = maskguided.wrap(net, exchange=False, halo=2, patch_size=8)
    maskguided.save(fast, tmp_path / "a.safetensors")
    again = maskguided.load(tmp_path / "a.safetensors", net)
    assert (again.exchange, again.halo) == (False, 2)
    other = maskguided.load(tmp_path / "a.safetensors", net, exchange=True, halo=0, patch_size=4, keep=1)
    assert (other.exchange, other.halo, other.patch_size) == (True, 0, 4)
    assert difference(other.eval()(x), net(x)) < 1e-5
    with pytest.raises(maskguided.MaskGuidedError, match=r"split_at=3: .* decides that"):
        maskguided.load(tmp_path / "a.safetensors", net, split_at=3)
    with pytest.raises(maskguided.MaskGuidedError, match="'kep' is not known; did you mean 'keep'"):
        maskguided.load(tmp_path / "a.safetensors", net, kep=0.3)


@pytest.mark.parametrize("reentrant", [True, False])
def test_blocks_that_compute_twice_are_refused_where_the_second_time_would_be_another(reentrant):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.twice = nn.Conv2d(8, 8, 3, padding=1), True

        def forward(self, x):
            return x + (checkpoint(self.conv, x, use_reentrant=reentrant) if self.twice else self.conv(x))

    def gradients():
        fast.zero_grad()
        with torch.enable_grad():
            fast(x).square().sum().backward()
        return [block.conv.weight.grad.clone() for block in net[1]]

    net = scaled(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*(Block() for _ in range(4)))))
    net.append(scaled(nn.Conv2d(8, 3, 3, padding=1)))
    fast, x = maskguided.wrap(net, 2, patch_size=4, halo=2), image(1, 3, 18, 14)
    assert fast.exchange
    assert fast(x).isfinite().all(), "nothing is trained"
    with pytest.raises(maskguided.ArgumentError, match=r"torch\.utils\.checkpoint.* turn it off"):
        gradients()
    fast.exchange, fast.global_ops = False, "window"
    twice = gradients()
    for block in net[1]:
        block.twice = False
    assert all(difference(a, b) < 1e-5 for a, b in zip(twice, gradients(), strict=True))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(F.relu(x))


@pytest.mark.usefixtures("fresh_compiler")
def test_blocks_that_their_user_compiled_are_compiled_once():
    """The first of them sees windows that were just cut, which are other tensors in every forward."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *(Residual() for _ in range(4)), nn.Conv2d(8, 3, 3, padding=1))
    fast, x = maskguided.wrap(scaled(net), 2, patch_size=4), image(1, 3, 16, 16)
    expected, graphs, counts = fast(x), [], []

    def backend(graph, example):
        graphs.append(graph)
        return graph

    for block in net[1:5]:
        block.compile(backend=backend, fullgraph=True)
    for _ in range(4):
        assert difference(fast(x), expected) < 1e-5
        counts.append(len(graphs))
    assert counts == counts[:1] * 4


class OfSquares(nn.Module):
    """DITN's: convolutions within squares of 8x8 pixels, which pad each with zeros."""

    def __init__(self):
        super().__init__()
        self.conv, self.point = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        b, c, h, w = x.shape
        squares = x.view(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 8, 8)
        y = self.conv(squares).view(b, h // 8, w // 8, c, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
        return x + self.point(F.relu(y))


def test_windows_that_could_be_taken_for_those_of_the_network_are_refused():
    net = scaled(nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *(OfSquares() for _ in range(4)), nn.Conv2d(8, 3, 3, 1, 1)))
    fast, x = maskguided.wrap(net, 2, patch_size=16), image(2, 3, 32, 48)
    assert (fast.exchange, fast.split.multiple_of, fast.split.trial.least) == (True, 8, 16)
    assert difference(by_windows(fast, x), net(x)) < 1e-5
    with pytest.raises(ArgumentError, match=r"patch_size=8: .* use 16 or more, or exchange=False"):
        fast.patch_size = 8
    assert fast.patch_size == 16
    alone = maskguided.wrap(net, 2, patch_size=8)
    assert (alone.exchange, alone.halo) == (False, 8)
    fast.exchange = False
    fast.patch_size = 8
    with pytest.raises(ArgumentError, match="patch_size=8: "):
        fast.exchange = True
    assert not fast.exchange


def test_a_search_for_the_best_windows_leaves_those_out():
    net = scaled(nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *(OfSquares() for _ in range(4)), nn.Conv2d(8, 3, 3, 1, 1)))
    fast = maskguided.wrap(net, 2)
    found = maskguided.calibrate(fast, [image(1, 3, 48, 48)], max_cost=0.9, split_at="auto")
    assert fast.exchange == found.exchange
    assert found.patch_size >= (16 if found.exchange else 8)
    assert found.chosen.macs <= 0.9


class LooksAround(nn.Module):
    """An attention as of ESA, which its author leaves out on maps that are too small for its pool."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.conv(F.relu(x))
        if min(x.shape[2:]) >= 15:
            y = y * torch.sigmoid(F.interpolate(self.wide(F.max_pool2d(x, 7, 3)), x.shape[2:], mode="bilinear"))
        return x + y


class Pooled(nn.Module):
    """What it multiplies by comes from a map of a quarter of the size, where there is one."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        small = F.max_pool2d(x, 4, 4, ceil_mode=True) if min(x.shape[2:]) >= 4 else x
        return x * torch.sigmoid(F.interpolate(self.wide(small), x.shape[2:], mode="bilinear")) + self.conv(x)


def of_blocks(block):
    return scaled(nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *(block() for _ in range(4)), nn.Conv2d(8, 3, 3, 1, 1)))


def test_blocks_that_look_around_on_large_maps_alone_are_noticed(monkeypatch):
    net, x = of_blocks(LooksAround), image(1, 3, 64, 80)
    fast = maskguided.wrap(net, keep=1)
    assert not fast.exchange
    assert difference(fast(x), net(x)) < 1e-5
    monkeypatch.setattr(trial, "_on_a_large_map", lambda parts, found: found)
    assert difference(by_windows(maskguided.wrap(net), x), net(x)) > 1e-2


def test_patches_of_which_blocks_look_at_less_than_of_the_map_are_noticed():
    net, x = of_blocks(Pooled), image(1, 3, 24, 32)
    fast = maskguided.wrap(net, keep=1)
    assert (fast.exchange, fast.patch_size) == (True, 8)
    assert difference(by_windows(fast, x), net(x)) < 1e-5
    for patch in (1, 2, 3):
        assert not maskguided.wrap(net, patch_size=patch).exchange
        with pytest.raises(ArgumentError, match=rf"patch_size={patch}: .* use 4 or more, or exchange=False"):
            fast.patch_size = patch
    fast.patch_size = 4
    assert difference(by_windows(fast, x), net(x)) < 1e-5


class Cells(nn.Module):
    """A mean over cells of 32x32 of its own, weighed by one over the whole map."""

    def __init__(self):
        super().__init__()
        self.near, self.far = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        cells = x.view(b, c, h // 32, 32, w // 32, 32)
        cells = cells.mean((3, 5), keepdim=True).expand(cells.shape).reshape(x.shape)
        return x + F.relu(self.near(x)) + cells * torch.sigmoid(self.far(x).mean((2, 3), keepdim=True))


@pytest.fixture(scope="module")
def of_cells():
    return scaled(nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *(Cells() for _ in range(4)), nn.Conv2d(8, 3, 3, 1, 1)))


@pytest.mark.parametrize("patch", [32, 64, 96])
def test_patches_of_several_large_steps_are_tried_when_they_are_asked_for(of_cells, patch):
    """Windows of 64 and 96 overlap on this image, those of 32, which alone are tried at once, never do."""
    fast, x = maskguided.wrap(of_cells, 2, patch_size=patch), image(2, 3, 160, 96)
    assert (fast.split.multiple_of, fast.exchange, fast.split.trial.overlapped) == (32, True, False)
    assert difference(by_windows(fast, x), of_cells(x)) < 1e-5


def test_patches_of_several_large_steps_that_cannot_exchange_are_refused(of_cells, monkeypatch):
    monkeypatch.setattr(sys.modules["maskguided.split"], "holds_for", lambda parts, found, patch: patch != 64)
    fast = maskguided.wrap(of_cells, 2)
    with pytest.raises(ArgumentError, match=r"patch_size=64: windows that may overlap .* use 32, or exchange=False"):
        fast.patch_size = 64
    assert fast.patch_size == 32
    assert not maskguided.wrap(of_cells, 2, patch_size=64).exchange
    fast.patch_size = 96
    assert fast.exchange
