"""The coarse tail on the patches that are not refined, against the coarse tail everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import OriginalEDSR, by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Strided

import maskguided
from maskguided import ArgumentError, MaskGuided
from maskguided.adapters.pan_net import PAN
from maskguided.error_map import luma, patch_error
from maskguided.head import high_frequency, pool
from maskguided.patches import Grid, others
from maskguided.training.choices import Options
from maskguided.training.stages import loss, prepare, train_only

NETWORKS = {"adapter": PAN(features=8, up_features=8, blocks=4, scale=2), "automatic": OriginalEDSR()}


def wrapped(way: str, coarse_on: str, tail: str = "light", **changes: object) -> MaskGuided:
    """A small network with a coarse tail whose every weight matters."""
    fast = maskguided.wrap(
        scaled(NETWORKS[way]), 2, merge="image", coarse_tail=tail, coarse_on=coarse_on,
        adapter=None if way == "adapter" else way, **{"patch_size": 6, "keep": 0.4, **changes},
    )  # fmt: skip
    scaled(fast.coarse_tail, seed=1)
    return fast.eval()


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        (torch.tensor([[0, 5, 5]]), "twice"),
        (torch.arange(8).repeat(2)[None], "twice"),
        (torch.tensor([[0, 99]]), "the patches 0 to 15"),
        (torch.tensor([0, 1]), r"shape \(2,\)"),
        (torch.tensor([[0, 1], [2, 3]]), "for a batch of 1"),
        ([[0, 1]], "type list"),
    ],
)
@pytest.mark.parametrize("coarse_on", ["all", "unrefined"])
def test_an_index_that_is_none_is_refused(index, wrong, coarse_on):
    """A patch that is there twice would leave another unwritten, with whatever stands in memory."""
    fast = wrapped("adapter", coarse_on)
    base = fast.run_base(image(1, 3, 24, 24))
    with pytest.raises(ArgumentError, match=wrong):
        fast.refine(base, index)


@given(rows=st.integers(1, 5), cols=st.integers(1, 5), images=st.integers(1, 3), k=st.integers(0, 25))
def test_others_are_all_that_are_not_chosen(rows, cols, images, k):
    grid = Grid(rows, cols, 1)
    index = torch.stack([torch.randperm(grid.count) for _ in range(images)])[:, :k]
    rest = others(index, grid)
    assert torch.equal(torch.cat([index, rest], 1).sort(1).values, torch.arange(grid.count).expand(images, -1))
    assert torch.equal(rest, rest.sort(1).values)


@pytest.mark.parametrize("way", NETWORKS)
@given(height=st.integers(4, 30), width=st.integers(4, 30), keep=st.floats(0, 1), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_one_convolution_gives_the_same_as_everywhere(way, height, width, keep, seed):
    """What it reads is known everywhere: the features at the cut and the image."""
    everywhere, alone = EVERYWHERE[way], ALONE[way]
    everywhere.keep = alone.keep = keep
    x = image(2, 3, height, width, seed=seed)
    assert difference(alone(x), everywhere(x)) < 1e-5


EVERYWHERE, ALONE = ({way: wrapped(way, coarse_on) for way in NETWORKS} for coarse_on in ("all", "unrefined"))


@pytest.mark.parametrize("way", NETWORKS)
@pytest.mark.parametrize("tail", ["deep", "copy"])
def test_deeper_tails_differ_only_at_the_borders_of_refined_patches(way, tail):
    everywhere, alone = (wrapped(way, on, tail, patch_size=12, keep=1 / 16) for on in ("all", "unrefined"))
    x, score = image(1, 3, 48, 48), torch.zeros(1, 4, 4)
    score[0, 1, 1] = 1  # rows and columns 12..23
    difference_at = (alone(x, score) - everywhere(x, score)).abs().amax((0, 1))
    near = torch.zeros(96, 96, dtype=torch.bool)
    reach = 6  # LR pixels: no tail here looks farther
    near[24 - 2 * reach : 48 + 2 * reach, 24 - 2 * reach : 48 + 2 * reach] = True
    near[24:48, 24:48] = False
    assert float(difference_at[~near].max()) < 1e-5
    assert float(difference_at[near].max()) > 1e-3, "or the tail ran everywhere"


@pytest.mark.parametrize("tail", ["light", "deep", "residual", "copy"])
@pytest.mark.parametrize("way", NETWORKS)
def test_all_patches_refined_is_the_network_and_none_the_coarse_image(way, tail):
    alone, everywhere, x = wrapped(way, "unrefined", tail), wrapped(way, "all", tail), image(1, 3, 20, 27)
    alone.keep = 1
    assert difference(by_windows(alone, x), alone.unwrap()(x)) < 1e-5
    alone.keep = everywhere.keep = 0
    assert torch.equal(alone(x), everywhere(x))


def test_what_is_refined_is_not_paid_for_twice():
    everywhere, alone = EVERYWHERE["adapter"], ALONE["adapter"]
    everywhere.keep = alone.keep = 10 / 16
    tail = everywhere.coarse_tail
    saved = everywhere.cost(24, 24).guided - alone.cost(24, 24).guided
    assert saved == 10 * 6 * 6 * (tail.conv.weight.numel() + tail.bilinear.numel())


def test_all_patches_refined_costs_no_coarse_tail():
    fast = wrapped("adapter", "all", keep=1)
    assert fast.cost(24, 24).guided - fast.cost(24, 24).dense == 0


def test_a_scorer_that_needs_the_coarse_image_has_it_everywhere():
    alone, everywhere = (wrapped("adapter", on, "deep", scorer="coarse") for on in ("unrefined", "all"))
    x = image(1, 3, 24, 30)
    assert torch.equal(alone(x), everywhere(x))
    assert torch.equal(alone.explain(x).refined, alone(x))


def test_patches_beyond_the_image_are_of_its_last_row_and_column():
    fast, x = maskguided.wrap(scaled(Strided()), 2, patch_size=4, scorer="coarse"), image(1, 3, 9, 19)
    base, wider = fast.run_base(x), (0, 2, 0, 2)
    coarse, refined = fast.coarse_image(base), fast.refine(base, base.every)
    assert (coarse.shape[2:], base.grid.height, base.grid.width) == ((18, 38), 10, 20)
    expected = high_frequency(F.pad(coarse, wider, mode="replicate"), 8)
    assert difference(fast.score(base) / expected, torch.ones_like(expected)) < 1e-5
    expected = pool(F.pad(luma(coarse - refined).square(), wider, mode="replicate"), 8)[:, 0]
    assert difference(patch_error(fast, base, coarse, refined) / expected, torch.ones_like(expected)) < 1e-5


def test_it_needs_windows_that_exchange_borders():
    for changes in ({"exchange": False}, {"coarse_on": "some"}):
        with pytest.raises(ArgumentError, match=r"coarse_on='(unrefined|some)'"):
            maskguided.wrap(PAN(features=8, up_features=8, blocks=4), **{"coarse_on": "unrefined", **changes})


def test_saved_and_loaded_it_is_the_same(tmp_path):
    fast, x = wrapped("adapter", "unrefined", "deep"), image(1, 3, 24, 30)
    maskguided.save(fast, tmp_path / "a.safetensors")
    again = maskguided.load(tmp_path / "a.safetensors", fast.unwrap())
    assert again.coarse_on == "unrefined"
    assert torch.equal(again(x), fast(x))
    assert maskguided.load(tmp_path / "a.safetensors", fast.unwrap(), coarse_on="all").coarse_on == "all"


@pytest.mark.usefixtures("fresh_compiler")
def test_it_compiles_to_one_graph():
    fast, x = wrapped("automatic", "unrefined", "deep"), image(1, 3, 20, 26)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    assert difference(compiled(x), fast(x)) < 1e-6


def test_stage_coarse_trains_what_will_be_seen():
    """On windows as they will run: the gradient is that of a tail which ends at refined patches."""

    def gradient(coarse_on: str) -> torch.Tensor:
        fast = wrapped("adapter", coarse_on, "deep")
        train_only(fast, "coarse")
        given = prepare(fast, "coarse", image(1, 3, 24, 24), image(1, 3, 48, 48, seed=1), Options())
        value = loss(fast, "coarse", given, Options())
        value.backward()
        branch = fast.coarse_tail.branch
        assert isinstance(branch, nn.Sequential)
        return torch.cat([p.grad.flatten() for p in branch.parameters()])

    with torch.enable_grad():
        alone, everywhere = gradient("unrefined"), gradient("all")
    assert float(alone.norm()) > 0
    assert 1e-3 < float((alone - everywhere).norm() / everywhere.norm()) < 1
