"""Networks in which a patch would not stay where it is, or would have no say in the image; and pixels counted twice."""

from __future__ import annotations

import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F

import maskguided
from maskguided import ArgumentError, CannotSplit
from maskguided.probing.probe import image_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        return x + self.second(F.relu(self.first(x)))


class Ends(nn.Module):
    """Stem, four blocks and a tail of x2."""

    def __init__(self, blocks=Block) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.ModuleList(blocks() for _ in range(4))
        self.tail = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2))

    def once(self, x):
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(x)

    forward = once


class Mirrored(Ends):
    def __init__(self, dims) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return (self.once(x) + self.once(x.flip(self.dims)).flip(self.dims)) / 2


@pytest.mark.parametrize("dims", [-1, -2, (-1, -2)])
@pytest.mark.parametrize("split_at", [2, 4, 6, "auto"])
@pytest.mark.filterwarnings("ignore:.*cannot be left out")
def test_a_patch_is_refined_where_it_is_or_the_network_is_refused(dims, split_at):
    network, x = scaled(Mirrored(dims)), image(1, 3, 48, 64)
    if split_at == "auto":  # half of the blocks, counted as often as they run, is one pass, and the other mirrored
        with pytest.raises(CannotSplit, match="mirrored passes"):
            maskguided.wrap(network, split_at)
        return
    fast = maskguided.wrap(network, split_at, patch_size=16, halo=16, keep=0.25).eval()
    score = torch.zeros(1, 3, 4)
    score[0, :, 0] = 1
    coarse, refined = fast.coarse_image(fast.run_base(x)), fast(x, score=score)
    dense, left = network(x), (..., slice(0, 32))
    assert difference(refined[left], dense[left]) < 1e-3 < 1e-2 < difference(coarse[left], dense[left])


class Ranking(nn.Module):
    """CAMixerSR's way: half of the 4x4 windows, those of the largest score, go another way than the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.score, self.mix = nn.Conv2d(12, 12, 1), nn.Linear(12, 1), nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        windows = F.pixel_unshuffle(self.value(x), 4)
        scores = self.score(F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)).squeeze(2)
        order = scores.argsort(1).argsort(1).view(len(x), 1, *windows.shape[2:])
        routed = torch.where(order < scores.shape[1] // 2, windows.square(), windows)
        return x + self.mix(F.pixel_shuffle(routed, 4))


@pytest.mark.parametrize("seed", [5, 6])  # with these a change on the left makes windows on the right change places
def test_blocks_that_rank_what_they_see_mirror_nothing(seed):
    assert maskguided.split(scaled(Ends(Ranking), seed=seed), 1).split_at == 1


class TwoImages(Ends):
    def __init__(self, early: str, late: str) -> None:
        super().__init__()
        self.names, self.early = (early, late), nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](self.head(x)))
        late = self.blocks[3](self.blocks[2](x))
        return dict(zip(self.names, (self.early(x), self.tail(late)), strict=True))


def test_what_a_dict_calls_its_output_is_the_image():
    network, x = scaled(TwoImages("auxiliary", "output")), image(1, 3, 20, 24)
    fast = maskguided.wrap(network, 2, keep=1).eval()
    assert difference(by_windows(fast, x), network(x)["output"]) < 1e-5
    fast.keep = 0
    assert difference(fast(x), network(x)["output"]) > 1e-2


def test_of_images_of_one_size_the_last_of_a_list_is_the_image_and_else_the_first():
    a, b, small = image(1, 3, 8, 8), image(1, 3, 8, 8, seed=1), image(1, 3, 4, 4)
    assert image_of([small, a, b, small]) is b
    assert image_of((small, a, b, small)) is a
    assert image_of(([small, b], small)) is b, "features beside a list of images"
    assert image_of((a, [b])) is a
    assert image_of([[small], {"deep": (small, b)}]) is b


def test_an_image_that_the_refined_blocks_have_no_say_in_is_refused():
    network, x = scaled(TwoImages("a", "b")), image(1, 3, 20, 24)
    with pytest.raises(CannotSplit, match="after block 2: the image does not depend on the blocks after that"):
        maskguided.wrap(network, 2)
    assert difference(maskguided.wrap(network, 1, keep=1).eval()(x), network(x)["a"]) < 1e-5


def test_a_tail_that_begins_at_zero_is_no_reason_to_refuse():
    network = scaled(Ends())
    nn.init.zeros_(network.tail[0].weight)
    assert maskguided.wrap(network, 2).split.cuts == (2,)


class Deviation(nn.Module):
    def forward(self, x):
        return x / (x.std((2, 3), keepdim=True) + 0.1) - x.var((2, 3), False, True)


class Sum(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x.sum((2, 3), keepdim=True) / 1000)


GLOBAL = {
    "instance norm": lambda: nn.InstanceNorm2d(12, affine=True),
    "batch norm without statistics": lambda: nn.BatchNorm2d(12, track_running_stats=False),
    "std and var": Deviation,
    "sum": Sum,
}


@pytest.mark.parametrize("norm", GLOBAL)
@pytest.mark.parametrize("merge", ["features", "image"])
@pytest.mark.parametrize(("size", "halo"), [((32, 48), 0), ((35, 47), 0), ((35, 47), 2)])
def test_a_pixel_that_two_windows_hold_counts_once(norm, merge, size, halo):
    def block():
        inner = Block()
        inner.second = nn.Sequential(GLOBAL[norm](), inner.second)
        return inner

    network = scaled(Ends(block))
    x = image(2, 3, *size) * torch.linspace(0.1, 2, size[1])  # unlike at its ends: what is counted twice shows
    fast = maskguided.wrap(network, 2, keep=1, merge=merge, halo=halo).eval()
    assert fast.exchange
    assert fast.split.global_ops
    assert difference(by_windows(fast, x), network(x)) < 1e-5
    if "batch" not in norm:  # which sees all windows in any case
        fast.global_ops = "window"
        assert difference(by_windows(fast, x), network(x)) > 1e-3


class Attention(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


TAILS = {"instance norm": lambda: nn.InstanceNorm2d(12), "channel attention": Attention}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("merge", ["features", "image"])
def test_a_mean_in_the_tail_alone_is_that_of_the_image_too(tail, merge):
    network, x = Ends(), image(1, 3, 35, 47)
    network.tail.insert(0, TAILS[tail]())
    fast = maskguided.wrap(scaled(network), 2, keep=1, merge=merge).eval()
    assert fast.exchange
    assert not fast.split.global_ops
    assert difference(by_windows(fast, x), network(x)) < 1e-5
    if merge == "image":
        with pytest.raises(ArgumentError, match="what follows them, of this Ends look at the whole map"):
            maskguided.wrap(network, 2, merge=merge, global_ops="refuse")


@pytest.mark.parametrize("of", [torch.Tensor.mean, torch.Tensor.std, torch.Tensor.norm])
@pytest.mark.parametrize("halo", [None, 4])
def test_one_number_of_the_whole_tensor_counts_no_pixel_twice(of, halo):
    class Scaled(Block):
        def forward(self, x):
            y = super().forward(x).abs()
            return x + y / (of(y) + 0.1)

    network = scaled(Ends(Scaled))
    fast = maskguided.wrap(network, 2, keep=1, halo=halo).eval()
    for size in ((24, 40), (37, 29)):
        x = image(1, 3, *size)
        assert difference(fast(x), network(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_whether_windows_exchange_borders_is_found_in_float32(dtype):
    """Half precision takes a percent for rounding."""

    class Shifted(Block):
        def forward(self, x):
            return super().forward(x) + 0.005 * x.roll(3, 3)

    network = scaled(Ends(Shifted), gain=0.5)
    assert not maskguided.wrap(network, 2).exchange
    assert not maskguided.wrap(network.to(dtype), 2).exchange
    assert maskguided.wrap(scaled(Ends(), gain=0.5).to(dtype), 2).exchange


def test_a_branch_that_training_will_wake_is_tried_awake():
    """It is zero in a fresh network, and its weights come later."""

    class Asleep(Block):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.zeros(12, 1, 1))

        def forward(self, x):
            return super().forward(x) + self.gamma * x.roll(3, 3)

    network, x = Ends(Asleep), image(1, 3, 24, 40)
    before = [weight.clone() for weight in network.parameters()]
    fast = maskguided.wrap(network, 2, keep=1).eval()
    assert not fast.exchange
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    scaled(network)
    assert difference(fast(x), network(x)) < 1e-5


@pytest.mark.filterwarnings("ignore:.*cannot be left out")
def test_features_stand_in_for_no_mask():
    class Masked(Ends):
        def forward(self, x):
            before = x = self.head(x)
            for block in self.blocks[:3]:
                x = block(x)
            mask = x > 0.3
            return self.tail(torch.where(mask, self.blocks[3](x), before))

    network, x = scaled(Masked()), image(1, 3, 24, 40)
    fast = maskguided.wrap(network, 2, keep=0.5, body="blocks.*").eval()
    assert (fast.split.can_skip, fast.coarse_tail_kind) == (False, "light")
    assert fast(x).isfinite().all()
    fast.keep = 1
    assert difference(fast(x), network(x)) < 1e-5


def test_a_mean_of_four_quarters_is_no_single_value_and_wraps():
    class Pyramid(Block):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(48, 12)

        def forward(self, x):
            return x * self.gate(F.adaptive_avg_pool2d(x, 2).flatten(1)).sigmoid()[..., None, None] + super().forward(x)

    fast = maskguided.wrap(scaled(Ends(Pyramid)), 2)
    assert fast.split.facts.body_radius is None


def test_attention_that_is_pooled_and_enlarged_has_no_radius():
    """As RFDN's and RLFN's: where its pools and its enlarging meet pixels depends on the size of the map."""

    class Attention(Block):
        def __init__(self) -> None:
            super().__init__()
            self.few, self.less, self.many = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 12, 1)

        def forward(self, x):
            y = super().forward(x)
            few = self.few(y)
            pooled = F.max_pool2d(self.less(few), 7, 3)
            return y * self.many(few + F.interpolate(pooled, y.shape[2:], mode="bilinear")).sigmoid()

    assert maskguided.wrap(scaled(Ends(Attention)), 2).split.facts.body_radius is None


def test_deformable_convolutions_are_measured_without_reading_beyond_memory():
    ops = pytest.importorskip("torchvision.ops")

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.conv = nn.Conv2d(12, 18, 3, padding=1), ops.DeformConv2d(12, 12, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x, self.offset(x))

    network, x = scaled(Ends(Deformed)), image(1, 3, 33, 41)
    fast = maskguided.wrap(network, 2, patch_size=48).eval()
    assert (fast.split.facts.body_radius, fast.exchange) == (None, False)
    fast.keep = 1
    assert difference(by_windows(fast, x), network(x)) < 1e-5  # one window


def test_a_number_beyond_a_body_that_can_be_split_is_refused_with_its_range():
    """Though the network has eight blocks of another kind, two in each of these."""
    with pytest.raises(ArgumentError, match="has 4 blocks; use 1 to 3"):
        maskguided.wrap(scaled(Ends(lambda: nn.Sequential(Block(), Block()))), 5)


class Layered(Ends):
    """Its tail uses a map that grows by each block, so blocks cannot be left out, but convolutions within them can."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(48, 12, 1)

    def forward(self, x):
        x, made = self.head(x), None
        for block in self.blocks:
            x = block(x)
            made = x if made is None else torch.cat([made, x], 1)
        return self.tail(x + self.fuse(made))


@pytest.mark.filterwarnings("ignore:.*cannot be left out")
def test_a_number_is_counted_on_the_body_that_auto_takes():
    network = scaled(Layered())
    found = maskguided.split(network)
    assert maskguided.split(network, found.split_at).blocks == found.blocks


def test_a_mask_is_continued_as_features_are():
    """Where blocks pad within themselves, what is a map of the image is enlarged to what they make of it."""

    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(16, 16, 3, 2, 1), nn.ConvTranspose2d(16, 16, 4, 2, 1)

        def forward(self, x):
            height, width = x.shape[2:]
            wide = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
            return x + self.up(F.relu(self.down(wide)))[:, :, :height, :width]

    class Signed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
            self.body = nn.Sequential(*(Strided() for _ in range(4)))

        def forward(self, x):
            features = self.head(x)
            positive, y = features > 0, self.body(features)
            return F.pixel_shuffle(self.up(torch.where(positive, y, -y)), 2)

    network = scaled(Signed())
    fast = maskguided.wrap(network, 2, keep=1)
    assert "bool" in str({value.dtype for value in fast.run_base(image(1, 3, 32, 32)).state.values()})
    for size in ((32, 40), (33, 40), (33, 41)):
        x = image(1, 3, *size)
        made = by_windows(fast, x)
        inner = slice(None), slice(None), slice(0, 48), slice(0, 48)  # beyond which a map that is continued shows
        assert difference(made[inner], network(x)[inner]) < 1e-5


def test_constants_of_a_network_go_where_it_goes():
    @torch.jit.script
    def kernel(x: torch.Tensor) -> torch.Tensor:
        return torch.ones([3, 1, 3, 3], dtype=x.dtype, device=x.device) / 9.0

    class Blurred(Ends):
        def forward(self, x):
            y = super().forward(x)
            return F.conv2d(y, kernel(y), padding=1, groups=3)

    network, x = scaled(Blurred()), image(1, 3, 24, 32)
    fast = maskguided.wrap(network, 2, keep=0.5)
    assert fast.constants is not None
    expected = fast(x)
    assert difference(fast.double()(x.double()).float(), expected) < 1e-5
