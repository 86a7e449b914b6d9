"""Several cuts: patches leave where they are good enough."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import NETWORKS, OriginalEDSR, by_windows, difference, image, scaled
from torch import nn
from toys import Base, conv

import maskguided
from maskguided import ArgumentError, MaskGuided, checkpoint
from maskguided.adapters.pan_net import PAN
from maskguided.calibration.prices import Macs
from maskguided.gain import fresh_estimate
from maskguided.patches import select

WAYS = [
    *((name, "adapter") for name in ("pan-small-x3", "edsr-original", "rcan")),
    *((name, "automatic") for name in ("edsr-original", "srvgg", "rrdbnet-x2")),
]


def wrapped(name: str, way: str, cuts: object = None, **changes: object) -> MaskGuided:
    net, way = NETWORKS[name](), None if way == "adapter" else way
    last = len(maskguided.split(net, adapter=way).blocks) - 1
    cuts = sorted({1, max(2, last // 2), last}) if cuts is None else cuts
    step = 4 if name == "rrdbnet-x2" else 6
    return maskguided.wrap(net, cuts, adapter=way, **{"patch_size": step, **changes}).eval()


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_laws_of_a_network_with_several_cuts(name, way):
    fast, x = wrapped(name, way, keep=1), image(2, 3, 22, 28)
    cuts, net = fast.split.cuts, fast.unwrap()
    with torch.inference_mode():
        assert difference(by_windows(fast, x), net(x)) < 1e-5, "law 2: all patches, all the way"
        for gone, cut in enumerate(cuts[1:]):
            # Those that leave at a cut are as if the blocks beyond it were left out.
            fast.onward = (1,) * gone + (0,) * (len(cuts) - 1 - gone)
            assert difference(fast(x), _left_out(fast, cut, x)) < 1e-5
        fast.keep = 0
        assert difference(fast(x), _left_out(fast, cuts[0], x)) < 1e-6, "law 3"
    state, whole = fast.split.prefix(x), fast.split.prefix(x)
    for stretch in fast.split.stretches:
        state = stretch.run(state)
    assert torch.equal(fast.split.tail(state), fast.split.rest(whole)), "one after the other they are the body"


def _left_out(fast: MaskGuided, cut: int, x: torch.Tensor) -> torch.Tensor:
    """The image with all blocks beyond `cut` left out, by a split of its own with one cut."""
    adapter = None if isinstance(fast.split, maskguided.Adapter) else "automatic"
    parts = maskguided.split(fast.unwrap(), cut, adapter=adapter, check=False)
    return parts.tail(parts.skip(parts.prefix(x)))


@given(keep=st.floats(0, 1), first=st.floats(0, 1), second=st.floats(0, 1), height=st.integers(6, 30))
@settings(max_examples=8, deadline=None)
def test_what_goes_on_is_paid_for_and_nothing_else(keep, first, second, height):
    fast = PAN_3
    fast.keep, fast.onward = keep, sorted((first, second), reverse=True)
    cost = fast.cost(height, 24)
    block = sum(p.numel() for p in fast.model.SCPA_trunk[0].parameters() if p.dim() == 4)
    k = cost.k
    windows = [k, *(int(share * k + 0.5) for share in fast.onward)]
    window = min(6, height) * 6
    blocks = [b - a for a, b in itertools.pairwise((*fast.split.cuts, 6))]
    expected = sum(n * window * block * count for n, count in zip(windows, blocks, strict=True))
    assert cost.guided - cost.coarse == expected


PAN_3 = maskguided.wrap(scaled(PAN(features=8, up_features=8, blocks=6)), (2, 3, 5), patch_size=6)


def test_the_best_patches_go_deepest():
    """With a score that decides: a patch is what its depth makes of it, seen where no other patch is near."""
    fast, x = (
        maskguided.wrap(scaled(OriginalEDSR()), (1, 2, 3), patch_size=8, adapter="automatic").eval(),
        image(1, 3, 40, 40),
    )
    fast.keep, fast.onward = 3 / 25, (2 / 3, 1 / 3)
    score = torch.zeros(1, 5, 5)
    places = {3: (0, 0), 2: (4, 0), 1: (0, 4)}  # past how many cuts
    for depth, (row, col) in places.items():
        score[0, row, col] = depth
    found = fast(x, score)
    for depth, (row, col) in places.items():
        alone = copy.copy(fast)
        alone.keep, alone.onward = 1 / 25, [1.0] * (depth - 1) + [0.0] * (3 - depth)
        only = torch.zeros(1, 5, 5)
        only[0, row, col] = 1
        at = (slice(None), slice(None), *(slice(16 * n, 16 * n + 16) for n in (row, col)))
        assert difference(found[at], alone(x, only)[at]) < 1e-6
        other = copy.copy(fast)
        other.keep, other.onward = 1 / 25, [1.0, 1.0] if depth < 3 else [1.0, 0.0]
        assert difference(found[at], other(x, only)[at]) > 1e-3, "every block matters"
    fast.keep, fast.onward, score = 1, (0.5, 0.5), image(1, 5, 5)
    assert torch.equal(fast.restore(x, score)[1], select(score, 25)), "where all are refined, too"


def test_saved_and_loaded_it_is_the_same(tmp_path):
    fast, x = wrapped("pan-small-x3", "automatic", keep=0.5, onward=(0.6, 0.2)), image(1, 3, 20, 26)
    maskguided.save(fast, tmp_path / "a.safetensors")
    again = maskguided.load(tmp_path / "a.safetensors", fast.unwrap()).eval()
    assert (again.split.cuts, again.onward) == (fast.split.cuts, (0.6, 0.2))
    assert torch.equal(again(x), fast(x))
    assert "split_at=1, 2, 4 of 5" in repr(again)
    other = maskguided.wrap(fast.unwrap(), fast.split.cuts, keep=0.5, onward=(0.6, 0.2), patch_size=6).eval()
    checkpoint.load_onto(tmp_path / "a.safetensors", other)
    assert torch.equal(other(x), fast(x))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("way", ["adapter", "automatic"])
def test_it_compiles_to_one_graph_and_can_be_copied(way):
    fast, x = wrapped("pan-small-x3", way, keep=0.5, onward=(0.6, 0.2)), image(1, 3, 20, 26)
    assert difference(torch.compile(fast, fullgraph=True, backend="eager")(x), fast(x)) < 1e-6
    own = copy.deepcopy(fast)
    for parameter in own.parameters():
        parameter.data.mul_(0.9)
    assert difference(own(x), fast(x)) > 1e-3, "the copy runs its own weights"


def test_calibrate_finds_a_keep():
    fast = maskguided.wrap(scaled(PAN(features=8, up_features=8, blocks=6)), (2, 4), onward=(0.5,)).eval()
    found = maskguided.calibrate(fast, [image(3, 48, 48, seed=n) for n in range(2)], max_cost=0.96)
    assert 0 < fast.keep < 1
    assert found.chosen.macs <= 0.96
    assert str(found).startswith("split_at=2, 4, merge=features")


@pytest.mark.parametrize(
    ("cuts", "changes", "text"),
    [
        ((4, 2), {}, "numbers of blocks that rise, as"),
        ((), {}, "numbers of blocks that rise, as"),
        ((2, 9), {}, r"split_at=\(2, 9\): this PAN has 6 blocks; use numbers from 1 to 5"),
        ((0, 2), {}, "use 1 to 5"),
        ((2, 4), {"merge": "image"}, "use merge='features', or one cut"),
        ((2, 4), {"context": "linear"}, "use 'zeros'"),
        ((2, 4), {"onward": (0.5, 0.2)}, "one share for each cut after the first; this network has 1"),
        ((2, 3, 4), {"onward": (0.2, 0.5)}, "that do not rise"),
        ((2, 4), {"onward": (1.5,)}, "shares from 0 to 1"),
    ],
)
def test_wrong_cuts_are_refused(cuts, changes, text):
    with pytest.raises(ArgumentError, match=text):
        maskguided.wrap(PAN(features=8, up_features=8, blocks=6), cuts, **changes)


class Carried(Base):
    """Each block adds to a vector of the whole image, which the tail weighs channels by."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv(8, 8) for _ in range(4))

    def forward(self, x):
        y = self.first(x)
        carried = y.mean((2, 3))
        for block in self.blocks:
            y = y + block(y)
            carried = carried + y.mean((2, 3))
        return self.finish(y * torch.sigmoid(carried)[:, :, None, None])


@pytest.mark.parametrize("merge", [None, "features", "image"])
def test_a_vector_that_blocks_write_is_cut_once_whatever_is_merged(merge):
    """Each merge was told to be the other one."""
    network = scaled(Carried())
    with pytest.raises(ArgumentError, match=r"split_at=\(1, 2, 3\): .*vector of the whole image.*; cut once"):
        maskguided.wrap(network, (1, 2, 3), merge=merge)
    assert maskguided.wrap(network, 2).split.cuts == (2,)


@pytest.mark.parametrize("onward", [(0.3, 0.1), (0.5, 0.5), (1, 0.2), (1, 1)])
def test_each_number_of_patches_is_priced(onward):
    """How many go on is rounded at each cut, so the price is a staircase; and it is that of the setting as it is."""
    fast, x = wrapped("pan-small-x3", "adapter", (1, 2, 3), onward=onward, scorer="linear"), image(1, 3, 14, 20)
    fast.estimate = estimate = fresh_estimate(fast.split.feature_channels, x)
    dense, count = fast.dense_macs(14, 20), fast.grid(14, 20).count
    found = Macs(fast, [x], {})
    for k in range(count + 1):
        assert found.at(k / count) == pytest.approx(fast.macs_at(14, 20, keep=k / count) / dense, rel=1e-6), k
    assert (fast.onward, fast.estimate is estimate) == (onward, True), "counting has changed it"
