"""Side branches that windows are no multiple of run on the whole map."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import by_windows, chosen, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Base, Block, ResidualOutside, conv

import maskguided
from maskguided.patches import Chosen, Grid, gather, scatter
from maskguided.windows.borders import Borders
from maskguided.windows.context import make_context, watch
from maskguided.windows.detours import When
from maskguided.windows.exchange import Exchange
from maskguided.windows.run import on_windows

WHEN = When(unit=1, parts=True)


def esa(x, *, size=lambda x: x.shape[2:], pool=F.max_pool2d):
    """What ESA looks at: far around, by steps of 6 pixels."""
    small = pool(F.conv2d(x, image(4, 4, 3, 3) - 0.5, stride=2), 7, 3)
    small = F.conv2d(small, image(4, 4, 3, 3) - 0.5, padding=1)
    return F.interpolate(small, size(x), mode="bilinear", align_corners=False)


def two_levels(x):
    """A pyramid: up to the size of its first level, and from there to that of the windows."""
    first = F.avg_pool2d(x, kernel_size=3, stride=2)
    second = F.max_pool2d(first, 3)
    return F.interpolate(first + F.interpolate(second, first.shape[2:], mode="nearest"), list(x.shape[2:]))


def safm(x, step=8):
    """SAFM's level of an eighth."""
    small = F.adaptive_max_pool2d(x, (x.shape[2] // step, x.shape[3] // step))
    return F.interpolate(F.conv2d(small, image(4, 1, 3, 3), padding=1, groups=4), x.shape[2:], mode="nearest")


def enlarged(x):
    """A mean by steps of 4 pixels, and each of these 4 pixels large again: mostly more than there were (NinaSR)."""
    return F.interpolate(F.avg_pool2d(x, 7, 4, 3, count_include_pad=False), scale_factor=4.0, mode="nearest")


def mixed(x):
    """What a branch may do on its way that is no step of a detour: a roll, an unfold, padding back to the size."""
    small = F.avg_pool2d(x, 3, stride=1)
    maps, (height, width) = len(small), (side - 2 for side in small.shape[2:])
    turned = F.unfold(small.roll((1, 1), (2, 3)), 3).view(maps, -1, 9, height * width)
    back = turned.mean(2).view(maps, -1, height, width)
    return F.pad(F.conv2d(back, image(4, 1, 1, 1), groups=4), (2, 2, 2, 2))


BRANCHES = {
    "a roll, an unfold": mixed,
    "SAFM": safm,
    "SAFM, several levels": lambda x: safm(x, 2) + safm(x, 4).roll(1, 1),
    "ESA": esa,
    "to a size of numbers": lambda x: esa(x, size=lambda x: (int(x.shape[2]), int(x.shape[3]))),
    "by means": lambda x: esa(x, pool=F.avg_pool2d),
    "two levels": two_levels,
    "cropped": lambda x: enlarged(x)[:, :, : x.shape[2], : x.shape[3]],
    "cropped, of its channels": lambda x: enlarged(x)[..., :4, : x.shape[2], : x.shape[3]],
    "cropped from what comes before": lambda x: enlarged(x)[..., 0 : x.shape[2], : x.shape[3]],
    "corners aligned": lambda x: F.avg_pool2d(F.interpolate(x, None, 2.0, "bilinear", align_corners=True), 2),
    "two in a row": lambda x, kept=lambda x: x: esa(kept(x + esa(x))),
    "largest of 3x3": lambda x: F.max_pool2d(x, 3, 1, 1),
    "mean of 3x3": lambda x: F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False),
    "a median pixel": lambda x, kept=lambda x: x: (
        -F.max_pool2d(kept(-F.max_pool2d(x, (1, 3), 1, (0, 1))), (3, 1), 1, (1, 0))
    ),
    "pool of all its own": lambda x: F.interpolate(F.max_pool2d(x, 5), x.shape[2:], mode="bilinear"),
}
TWICE = {"two in a row", "a median pixel"}
"""Those that leave twice: between, where nobody refines, nothing of the first detour is kept."""


def gated(branch):
    return lambda x: x * torch.sigmoid(branch(x)) + F.conv2d(x, image(4, 4, 3, 3, seed=1) - 0.5, padding=1)


def of_windows(operation, x, index, grid, *, gathered=False):
    """What it makes of the chosen patches, at their place; NaN elsewhere."""
    windows = gather(x, index, grid)
    with Exchange(Borders(Chosen(index, grid), [(windows, x)] if gathered else []), detours=WHEN):
        made = operation(windows)
    return scatter(made, index, grid, onto=torch.full_like(x, torch.nan))


GRIDS = {
    "height": st.integers(21, 44), "width": st.integers(21, 44), "patch": st.sampled_from([5, 8, 16, 48]),
    "halo": st.sampled_from([0, 3]), "batch": st.integers(1, 2), "seed": st.integers(0, 99),
}  # fmt: skip


def least(name):
    """The patch on which a branch runs: SAFM takes an eighth of it."""
    return 8 if name.startswith("SAFM") else 1


@pytest.mark.parametrize("name", BRANCHES)
@given(**GRIDS)
@settings(max_examples=15, deadline=None)
def test_all_windows_make_the_whole_map(name, height, width, patch, halo, batch, seed):
    patch = max(patch, least(name))
    grid, x = Grid(height, width, patch, halo), image(batch, 4, height, width, seed=seed)
    # A level of the size of a window is taken for it where a branch goes on from there.
    assume(name != "two levels" or grid.window != ((height - 1) // 2, (width - 1) // 2))
    index, operation = chosen(grid, batch, grid.count, seed), gated(BRANCHES[name])
    whole = operation(x)
    assert difference(of_windows(operation, x, index, grid), whole) < 1e-5
    assert difference(of_windows(operation, x, index, grid, gathered=True), whole) < 1e-5


@pytest.mark.parametrize("name", BRANCHES)
@given(**GRIDS, keep=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_what_nobody_refines_is_zero_to_a_detour(name, height, width, patch, halo, batch, seed, keep):
    patch = max(patch, least(name))
    grid, x = Grid(height, width, patch), image(batch, 4, height, width, seed=seed)
    index = chosen(grid, batch, max(1, grid.k(keep)), seed)  # of one patch, too
    mask = grid.mask(index).repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None, :height, :width]
    found = of_windows(gated(BRANCHES[name]), x, index, grid)
    # A window at a narrow border was moved inward: it brings more of the map than its patch.
    assert torch.equal(found.isnan(), ~mask.expand_as(found))
    if height % patch == width % patch == 0:
        whole = functools.partial(BRANCHES[name], kept=lambda y: y * mask) if name in TWICE else BRANCHES[name]
        assert difference(found.nan_to_num(), gated(whole)(x * mask) * mask) < 1e-5


@pytest.mark.parametrize("name", sorted({*BRANCHES} - TWICE))  # by then they are changed
def test_from_windows_just_cut_a_detour_is_over_the_map_itself(name):
    grid, x = Grid(24, 32, patch_size=8), image(2, 4, 24, 32)
    index = chosen(grid, 2, 3, seed=0)
    operation = BRANCHES[name]
    found = of_windows(operation, x, index, grid, gathered=True)
    assert difference(torch.where(found.isnan(), operation(x), found), operation(x)) < 1e-5


def test_a_pool_to_a_size_that_says_nothing_is_refused():
    x, chosen = image(1, 4, 24, 36), Chosen(torch.tensor([[0, 1]]), Grid(24, 36, patch_size=12))
    for to in (0, 4):
        with Exchange(Borders(chosen), detours=WHEN), pytest.raises(ValueError, match=f"12 pixels .* {to},"):
            F.adaptive_avg_pool2d(chosen.gather(x), (to, to))


class Attended(Block):
    """A residual block with ESA, as RFDN, RLFN and BSRN have it."""

    def __init__(self) -> None:
        super().__init__()
        self.less, self.same, self.more = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 1)
        self.step, self.far = nn.Conv2d(4, 4, 3, stride=2), conv(4, 4)

    def forward(self, x):
        y = super().forward(x)
        few = self.less(y)
        far = self.far(F.max_pool2d(self.step(few), kernel_size=7, stride=3))
        far = F.interpolate(far, (y.shape[2], y.shape[3]), mode="bilinear", align_corners=False)
        return y * torch.sigmoid(4 * self.more(far + self.same(few)))


def attending(block: type[nn.Module] = Attended) -> nn.Module:
    net = ResidualOutside()
    net.blocks = nn.ModuleList(block() for _ in range(4))
    return scaled(net)


@pytest.mark.parametrize("merge", ["features", "image"])
def test_a_network_with_esa_exchanges_at_any_size(merge):
    net = attending()
    fast = maskguided.wrap(net, 2, merge=merge, keep=1)
    assert (fast.exchange, fast.halo, fast.patch_size) == (True, 0, 8)
    for size in ((32, 32), (27, 41), (16, 50), (17, 16)):
        x = image(2, 3, *size)
        assert difference(by_windows(fast, x), net(x)) < 1e-5
    x = image(2, 3, 40, 50)
    assert difference(by_windows(maskguided.wrap(net, 2, merge=merge, exchange=False, keep=1), x), net(x)) > 1e-4


def test_a_detour_that_changes_little_is_taken():
    """By less than what windows may differ in where nothing better is known."""

    class Little(Block):
        def forward(self, x):
            return super().forward(x) + 2e-4 * F.max_pool2d(x, 3, 1, 1)

    net = scaled(nn.Sequential(conv(3, 8), *(Little() for _ in range(4)), conv(8, 12), nn.PixelShuffle(2)))
    fast, x = maskguided.wrap(net, 2), image(2, 3, 33, 40)
    assert (fast.exchange, fast.split.trial.closely) == (True, True)
    assert fast.split.trial.detours is not None
    assert difference(by_windows(fast, x), net(x)) < 1e-6


class InRange(nn.Module):
    """A network that what no image holds drives to infinity, as trained ones may (EFDN)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = attending()

    def forward(self, x):
        return self.net(x + torch.expm1(1000 * F.relu(x - 1.5)))


def test_detours_are_tried_on_what_images_hold():
    net, x = InRange(), image(2, 3, 27, 41)
    assert not bool(net(2 * x).isfinite().all())
    fast = maskguided.wrap(net, 2)
    assert (fast.exchange, fast.patch_size) == (True, 8)
    assert difference(by_windows(fast, x), net(x)) < 1e-5


def test_one_patch_of_each_image_is_no_map_of_all():
    net = attending()
    fast = maskguided.wrap(net, 2, patch_size=8).eval()
    x = image(2, 3, 24, 32)
    base = fast.run_base(x)
    index = torch.tensor([[5], [0]])
    both = fast.refine(base, index)
    for n in (0, 1):
        alone = fast.run_base(x[n : n + 1])
        assert difference(both[n : n + 1], fast.refine(alone, index[n : n + 1])) < 1e-5


def test_a_context_counts_detours_as_the_windows_do():
    """One guess for each padded convolution and each detour of the four blocks' last two, but those of what was just
    cut, whose map is there."""
    fast = maskguided.wrap(attending(), 2, patch_size=8)
    context = make_context(fast.split, "features")
    assert context is not None
    assert [part.shape[1] for part in context.maps] == [8, 4, 8, 8, 4]
    x = image(1, 3, 24, 40)
    base, shown = fast.run_base(x), []
    size = (base.grid.height, base.grid.width)
    watch(fast.split, base.state, size, "features", lambda number, seen: shown.append((number, tuple(seen.shape))))
    assert shown == [(number, (1, part.shape[1], *size)) for number, part in enumerate(context.maps)]
    asked = []

    def guess(number, seen):
        asked.append(number)
        return seen.new_zeros(len(seen), context.maps[number].shape[1])

    kinds = {name: fast.split.kinds[name] for name in fast.split.reads}
    on_windows(
        fast.split.body, base.state, kinds, Chosen(torch.tensor([[3, 1]]), base.grid), trial=fast.split.trial,
        exchange=True, guess=guess, features=base.state[fast.split.features],
    )  # fmt: skip
    assert asked == [0, 1, 2, 3, 4]


def test_a_guess_is_put_where_nobody_refines():
    """Where the features at the cut tell all, what a detour sees is the map."""
    grid, x = Grid(24, 36, patch_size=12), image(2, 4, 24, 36)
    index, seen = torch.tensor([[0], [4]]), []

    def guess(number, pixels):
        seen.append(number)
        return 2 * pixels[:, :-1]

    windows = gather(2 * x, index, grid)
    with Exchange(Borders(Chosen(index, grid), guess=guess, features=x), detours=WHEN):
        found = esa(windows)
    assert difference(found, gather(esa(2 * x), index, grid)) < 1e-5
    assert seen == [0]


def test_calibrate_fits_it():
    net = attending()
    photos = [image(1, 3, 48, 56, seed=n) for n in range(3)]
    x = image(1, 3, 48, 56, seed=9)
    drops = []
    for fit in ("score", "all"):
        fast = maskguided.wrap(net, 2, keep=0.5)
        maskguided.calibrate(fast, photos, fit=fit)
        fast.keep = 0.5
        base = fast.run_base(x)
        index = chosen(base.grid, 1, base.grid.k(0.5), seed=0)
        mask = base.grid.mask(index).repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
        drops.append(float(((fast.refine(base, index) - net(x)) * mask).square().mean()))
    assert drops[1] < 0.9 * drops[0]


class WithChannelAttention(Attended):
    """Beside ESA it pools all of a map, and says so in two numbers."""

    def forward(self, x):
        y = super().forward(x)
        return y * torch.sigmoid(3 * self.more(F.adaptive_avg_pool2d(self.less(y), (1, 1))))


class Modulated(Block):
    """SAFM's level of an eighth: on windows of 8 it pools to (1, 1), too."""

    def forward(self, x):
        y = super().forward(x)
        small = F.adaptive_max_pool2d(y, (y.shape[2] // 8, y.shape[3] // 8))
        return y * F.gelu(F.interpolate(self.conv1(small), y.shape[2:], mode="nearest"))


@pytest.mark.parametrize("block", [WithChannelAttention, Modulated])
def test_a_pool_to_one_pixel_is_of_all_or_of_a_part(block):
    net, x = attending(block), image(2, 3, 29, 41)
    fast = maskguided.wrap(net, 2)
    assert (fast.exchange, fast.patch_size) == (True, 8)
    assert difference(by_windows(fast, x), net(x)) < 1e-5


class SelfModulated(Block):
    """SMFA's: the variance of the map joins its level of an eighth, by a sum and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.mix = nn.Parameter(torch.rand(1, 8, 1, 1)), nn.Linear(8, 8)

    def forward(self, x):
        y = super().forward(x)
        level = F.adaptive_max_pool2d(y, (y.shape[2] // 8, y.shape[3] // 8))
        variance = self.weight * y.var((-2, -1), keepdim=True)
        variance = self.mix(variance.view(len(y), 8)).view(len(y), 8, 1, 1)  # of each window, still
        return y * F.gelu(F.interpolate(self.weight.mean() * self.conv1(variance * level + variance), y.shape[2:]))


def test_a_variance_of_the_map_joins_a_detour():
    net = attending(SelfModulated)
    fast = maskguided.wrap(net, 2)
    assert (fast.exchange, fast.patch_size) == (True, 8)
    for batch, *size in ((1, 32, 32), (2, 29, 41), (2, 17, 16), (2, 8, 15)):
        x = image(batch, 3, *size)
        assert difference(by_windows(fast, x), net(x)) < 1e-5
    for index in (torch.tensor([[5], [0]]), torch.tensor([[3, 1], [0, 2]])):  # one window of an image, and two
        base = fast.run_base(image(2, 3, 24, 32))
        both = fast.refine(base, index)
        for n in (0, 1):
            alone = fast.run_base(image(2, 3, 24, 32)[n : n + 1])
            assert difference(both[n : n + 1], fast.refine(alone, index[n : n + 1])) < 1e-5


class UpAndDown(Block):
    """ESRT's: detail is what half the size does not hold, enlarged from corner to corner."""

    def forward(self, x):
        half = F.avg_pool2d(x, 2)
        return super().forward(x - F.interpolate(half, size=x.shape[2:], mode="bilinear", align_corners=True))


def test_an_enlargement_from_corner_to_corner_is_of_the_map():
    net = attending(UpAndDown)
    fast = maskguided.wrap(net, 2)
    assert (fast.exchange, fast.patch_size, fast.split.multiple_of) == (True, 8, 2)
    for size in ((32, 32), (28, 42), (16, 50)):
        assert difference(by_windows(fast, x := image(2, 3, *size)), net(x)) < 1e-5


class ToAVector(Base):
    """Blocks whose side branch ends in one value of a channel, which no windows are cut from."""

    class Block(Attended):
        def forward(self, x):
            y = Block.forward(self, x)
            far = F.max_pool2d(self.step(self.less(y)), 3, 2).mean((2, 3), keepdim=True)
            return y * torch.sigmoid(self.more(far))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.finish(x)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_branch_that_ends_in_a_vector_works_for_a_batch(batch):
    net, x = scaled(ToAVector()), image(batch, 3, 40, 33)
    fast = maskguided.wrap(net, 2, keep=0.5)
    assert fast(x).shape == net(x).shape
    if fast.exchange:
        assert difference(by_windows(fast, x), net(x)) < 1e-5


def test_gradients_are_those_of_the_whole_map():
    grid, x = Grid(24, 27, patch_size=8), image(1, 4, 24, 27).requires_grad_()
    index, operation = chosen(grid, 1, grid.count, seed=0), gated(esa)
    with torch.enable_grad():
        (parts,) = torch.autograd.grad(of_windows(operation, x, index, grid).square().sum(), x)
        (whole,) = torch.autograd.grad(operation(x).square().sum(), x)
    assert difference(parts, whole) < 1e-5
