"""Attention in shifted windows: runs of refined patches roll as one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_blocks import Swin, WindowAttention
from support import by_windows, chosen, difference, image, need_basicsr, scaled
from torch.nn import functional as F

import maskguided
from maskguided.patches import Chosen, Grid, gather, scatter
from maskguided.windows import shifts
from maskguided.windows.borders import Borders
from maskguided.windows.exchange import Exchange
from maskguided.windows.run import on_windows


def rolled(x, index, grid, steps):
    """Windows of `x` (B, C, H, W) after those rolls; C at its place, and last, and last of several maps at once."""
    first = gather(x, index, grid)
    last = first.permute(0, 2, 3, 1)
    several = torch.stack([last, 2 * last, -last])
    with Exchange(Borders(Chosen(index, grid))):
        for shift in steps:
            first, last = torch.roll(first, shift, (2, 3)), last.roll(shift, dims=[1, 2])
            several = torch.roll(several, shifts=shift, dims=(2, 3))
    assert torch.equal(first, last.permute(0, 3, 1, 2))
    assert torch.equal(several, torch.stack([last, 2 * last, -last]))
    assert several.is_contiguous(), "networks view what torch.roll gives"
    return first


GRIDS = {
    "rows": st.integers(1, 4), "cols": st.integers(1, 4), "patch": st.sampled_from([4, 8]),
    "halo": st.sampled_from([0, 4]),
    "ragged": st.booleans(), "batch": st.integers(1, 2), "seed": st.integers(0, 99),
}  # fmt: skip


def grid_of(rows, cols, patch, halo, ragged):
    return Grid(*(max(n * patch - 4 * (ragged and patch > 4), 4) for n in (rows, cols)), patch, halo)


@given(**GRIDS, down=st.integers(0, 3), right=st.integers(1, 3), sign=st.sampled_from([-1, 1]))
@settings(max_examples=40, deadline=None)
def test_all_windows_roll_as_the_map_does(rows, cols, patch, halo, ragged, batch, seed, down, right, sign):
    grid = grid_of(rows, cols, patch, halo, ragged)
    x, shift = image(batch, 3, grid.height, grid.width, seed=seed), (sign * down, sign * right)
    index = chosen(grid, batch, grid.count, seed)
    found = scatter(rolled(x, index, grid, [shift]), index, grid, onto=torch.full_like(x, torch.nan))
    assert torch.equal(found, torch.roll(x, shift, (2, 3)))


@given(**GRIDS, keep=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_there_and_back_nothing_has_moved_whatever_is_chosen(rows, cols, patch, halo, ragged, batch, seed, keep):
    grid = grid_of(rows, cols, patch, halo, ragged)
    x, index = image(batch, 3, grid.height, grid.width, seed=seed), chosen(grid, batch, max(1, grid.k(keep)), seed)
    assert torch.equal(rolled(x, index, grid, [(-2, -1), (2, 1)]), gather(x, index, grid))


class MaskOfEach(WindowAttention):
    """Repeats the mask for each image of the batch."""

    def attend(self, y, mask):
        n, tokens, c = y.shape
        q, k, v = self.qkv(y).view(n, tokens, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5 + self.bias
        if mask is not None:
            weights += mask.repeat(n // len(mask), 1, 1).unsqueeze(1)
        return self.proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, c))


class Overlapping(WindowAttention):
    """Its keys and values reach half a window beyond it, by unfold, as HAT's; none is shifted."""

    def __init__(self, style):
        super().__init__(style)
        self.shift = 0

    def forward(self, x, x_size):
        (h, w), (b, _, c), side = x_size, x.shape, self.window
        y = self.norm1(x).transpose(1, 2).reshape(b, c, h, w)
        around = F.unfold(y, 2 * side, stride=side, padding=side // 2)  # (b, c * 4 * side**2, windows)
        keys = around.view(b, c, 4 * side**2, -1).permute(0, 3, 2, 1).flatten(0, 1)
        queries = self.windows(y.permute(0, 2, 3, 1))
        y = (queries @ keys.transpose(1, 2)).softmax(-1) @ keys
        y = y.view(b, h // side, w // side, side, side, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h * w, c)
        return x + self.mlp(self.norm2(x + y))


class WithChannelAttention(WindowAttention):
    """A global operation beside it, as HAT's."""

    def forward(self, x, x_size):
        return super().forward(x * torch.sigmoid(x.transpose(1, 2).unflatten(2, x_size).mean((2, 3)))[:, None], x_size)


class OfSquares(WindowAttention):
    """Its keys and values are of squares of 2x2 pixels, with a quarter of the channels of each, as SRFormer's."""

    def attend(self, y, mask):
        n, tokens, c = y.shape
        half, few = self.window // 2, c // 4 // self.heads
        k, v = self.qkv(y)[..., : c // 2].view(n, half, 2, half, 2, 2, c // 4).permute(5, 0, 1, 3, 2, 4, 6).flatten(4)
        q = self.qkv(y)[..., c:].view(n, tokens, self.heads, -1).transpose(1, 2)
        k, v = (part.reshape(n, half**2, self.heads, 4 * few).transpose(1, 2) for part in (k, v))
        weights = q @ torch.cat([k, k], -1).transpose(-2, -1) * c**-0.5
        if mask is not None:
            first = torch.arange(self.window**2).view(self.window, -1)[::2, ::2].flatten()
            weights = weights.view(-1, mask.shape[0], self.heads, tokens, half**2) + mask[:, None, :, first]
            weights = weights.view(n, self.heads, tokens, half**2)
        return self.proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, c))


@pytest.fixture(params=[WindowAttention, MaskOfEach, Overlapping, WithChannelAttention, OfSquares])
def swin(request):
    return scaled(Swin(block=request.param))


@pytest.mark.parametrize("merge", ["features", "image"])
def test_a_swin_network_exchanges(swin, merge):
    fast = maskguided.wrap(swin, 2, merge=merge, keep=1, patch_size=8)
    assert (fast.exchange, fast.halo) == (True, 0)
    for size in ((24, 32), (20, 28), (8, 8), (13, 22)):
        x = image(2, 3, *size)
        if size[0] % 4 == 0:
            assert difference(by_windows(fast, x), swin(x)) < 1e-5
        else:  # this network does not take it
            assert fast(x).shape == (2, 3, 2 * size[0], 2 * size[1])


def test_a_rectangle_of_patches_is_refined_as_if_it_were_the_image(swin):
    """So attention sees nothing beyond what is refined, and all of that."""
    fast = maskguided.wrap(swin, 2, patch_size=8)
    base = fast.run_base(image(2, 3, 40, 36))
    rows, cols = range(1, 4), range(2, 5)  # up to the right border, where windows overlap
    index = torch.tensor([row * base.grid.cols + col for row in rows for col in cols])[torch.randperm(9)].repeat(2, 1)
    split, top, bottom, left = fast.split, 8, 32, 16
    refined = on_windows(
        split.body,
        base.state,
        split.kinds,
        Chosen(index, base.grid),
        trial=split.trial,
        exchange=True,
        share_statistics=True,
    )
    crop = {name: value[:, :, top:bottom, left:] for name, value in base.state.items() if split.kinds[name] == "map"}
    own = split.body({**split.window((24, 20)), **crop})
    for name in split.writes:
        whole = torch.full((2, own[name].shape[1], 40, 36), torch.nan)
        found = scatter(refined[name], index, base.grid, onto=whole)[:, :, top:bottom, left:]
        assert difference(found, own[name]) < 1e-5


def test_one_window_alone_is_the_network_on_it(swin):
    fast = maskguided.wrap(swin, 2, patch_size=8, keep=1 / 12)
    x = image(1, 3, 20, 28)  # where windows overlap
    assert fast.explain(x).index.shape == (1, 1)
    assert fast.cost(20, 28).k == 1
    one = image(1, 3, 8, 8)
    fast.keep = 1
    assert difference(by_windows(fast, one), swin(one)) < 1e-5


def test_windows_that_touch_at_a_corner_do_not_see_each_other():
    """Their halves meet in one attention window, which the mask parts."""
    swin = scaled(Swin())
    fast = maskguided.wrap(swin, 2, patch_size=8)
    base, split = fast.run_base(image(1, 3, 32, 32)), fast.split

    def refined(*index):
        among = torch.tensor([index])
        out = on_windows(
            split.body, base.state, split.kinds, Chosen(among, base.grid), trial=split.trial, exchange=True
        )
        return out[split.writes[0]][0]

    assert difference(refined(5, 10), refined(5)) < 1e-5
    assert difference(refined(5, 6), refined(5)) > 1e-3  # side by side they do


def test_the_law_fails_without_the_mask(monkeypatch):
    swin = scaled(Swin())
    monkeypatch.setattr(shifts.Shifts, "masked", lambda self, attention, mask: None)
    assert not maskguided.wrap(swin, 2).exchange


def test_basicsrs_swinir_exchanges_at_any_patch():
    model = need_basicsr("basicsr.archs.swinir_arch").SwinIR(
        img_size=16, upscale=2, embed_dim=8, depths=[2, 2, 2], num_heads=[2, 2, 2], window_size=4,
        upsampler="pixelshuffledirect",
    )  # fmt: skip
    x = image(1, 3, 24, 20)
    for patch in (4, 8, 12):
        fast = maskguided.wrap(scaled(model), patch_size=patch)
        assert fast.exchange
        assert difference(by_windows(fast, x), model(x)) < 1e-5


def test_gradients_are_those_of_the_whole_map():
    swin = scaled(Swin())
    fast, x = maskguided.wrap(swin, 2, keep=1, patch_size=8), image(1, 3, 20, 24)
    weight = swin.blocks[3].qkv.weight
    with torch.enable_grad():
        windows, whole = (torch.autograd.grad(run(x).square().sum(), weight)[0] for run in (fast, swin))
    assert difference(windows, whole) < 1e-5
