"""What stands where nothing is refined with merge="features": the identity, or that and a convolution."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import by_windows, difference, image, run, scaled
from torch import nn
from torch.nn import functional as F
from toys import AttributesAndConcat, Block, Chain, conv

import maskguided
from maskguided import ArgumentError
from maskguided.calibration.closed_form import Known, fit_skip
from maskguided.error_map import dense_image
from maskguided.imaging.images import write_image
from maskguided.skip import LinearSkip, make_skip


class Linear(nn.Module):
    """A block that one convolution of 3x3 can stand in for."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.conv = conv(c, c)

    def forward(self, x):
        return 2 * x + self.conv(x)


class EndsLinear(nn.Module):
    """Of its four blocks, a skip can stand in for the last one exactly; its tail looks at single pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(3, 8), nn.Conv2d(8, 12, 1)
        self.blocks = nn.ModuleList(Linear() for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return F.pixel_shuffle(self.last(x), 2)


def with_random_skip(model: nn.Module, split_at: int, **settings: object) -> maskguided.MaskGuided:
    fast = maskguided.wrap(model, split_at, merge="features", skip="3x3", **settings).eval()
    assert fast.skip is not None
    scaled(fast.skip)
    return fast


def known(fast: maskguided.MaskGuided, count: int = 4) -> list[Known]:
    images = [image(1, 3, 40, 44, seed=seed) for seed in range(count)]
    return [Known(x, None, dense_image(fast, x), 1e-3) for x in images]


@pytest.mark.parametrize("kind", ["1x1", "3x3"])
@pytest.mark.parametrize("network", [Chain, AttributesAndConcat])
def test_before_it_is_fitted_it_is_the_identity(network, kind):
    model, x = scaled(network()), image(2, 3, 21, 30)
    plain = maskguided.wrap(model, 2, merge="features").eval()
    fast = maskguided.wrap(model, 2, merge="features", skip=kind).eval()
    for keep in (0, 0.3, 1):
        plain.keep = fast.keep = keep
        assert torch.equal(fast(x), plain(x))
    assert fast.cost(32, 32).coarse > plain.cost(32, 32).coarse


def test_fitted_it_stands_in_for_what_is_linear():
    fast = maskguided.wrap(scaled(EndsLinear()), 3, merge="features", skip="3x3", keep=0).eval()
    x = image(1, 3, 27, 22, seed=9)
    before = difference(fast(x), fast.unwrap()(x))
    fit_skip(fast, fast.skip, known(fast))
    after = difference(fast(x), fast.unwrap()(x))
    assert before > 0.1
    assert after < 1e-2 * before


def test_it_changes_what_is_not_refined_and_nothing_else():
    model, x = scaled(EndsLinear()), image(1, 3, 32, 40)
    plain = maskguided.wrap(model, 1, merge="features", keep=0.4, patch_size=8).eval()
    fast = with_random_skip(model, 1, keep=0.4, patch_size=8)
    found, expected = fast.explain(x), plain.explain(x)
    assert torch.equal(found.index, expected.index)
    refined = found.mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand_as(found.refined)
    assert 0 < refined.float().mean() < 1
    assert torch.equal(found.refined[refined], expected.refined[refined])
    apart = (found.refined - expected.refined).abs()[~refined]
    assert (apart > 1e-4).float().mean() > 0.9
    assert torch.equal(found.refined[~refined], found.coarse[~refined])


@pytest.mark.parametrize("network", [Chain, AttributesAndConcat])
def test_the_laws_hold_with_it(network):
    model, x = scaled(network()), image(2, 3, 27, 35)
    fast = with_random_skip(model, 2, keep=1)
    assert difference(fast(x), model(x)) < 1e-5
    assert difference(by_windows(fast, x), model(x)) < 1e-5
    fast.keep = 0
    assert torch.equal(fast(x), fast.explain(x).coarse)
    split, skip = fast.split, fast.skip
    state = split.prefix(x)
    assert difference(fast(x), split.tail(skip(state, split.skip(state)))) < 1e-6
    assert fast.cost(32, 32).guided == fast.cost(32, 32).coarse


def test_every_value_that_blocks_write_is_guessed():
    """Of a network that concatenates what its blocks make, each of these has channels of its own."""
    fast = maskguided.wrap(scaled(AttributesAndConcat()), 2, merge="features", skip="1x1").eval()
    assert len(fast.skip.writes) == 2
    assert fast.skip.conv.out_channels == 16
    x = image(1, 3, 30, 30, seed=7)
    fast.keep = 0
    before = (fast(x) - fast.unwrap()(x)).square().mean()
    fit_skip(fast, fast.skip, known(fast))
    assert (fast(x) - fast.unwrap()(x)).square().mean() < 0.5 * before


def test_weights_find_their_part(tmp_path):
    model, x = scaled(Chain()), image(1, 3, 25, 33)
    fast = with_random_skip(model, 2, keep=0.3)
    maskguided.save(fast, tmp_path / "fast.safetensors")
    again = maskguided.load(tmp_path / "fast.safetensors", scaled(Chain())).eval()
    assert again.skip.kind == "3x3"
    assert torch.equal(again(x), fast(x))
    onto = maskguided.wrap(model, 2, merge="features", keep=0.3).eval()
    onto.load_state_dict(fast.state_dict())
    assert torch.equal(onto(x), fast(x))
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))
    assert fast.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("split_at", "settings", "said"),
    [
        (2, {"merge": "image"}, "skip='3x3' with merge='image': there the coarse tail"),
        (2, {"merge": "image", "coarse_tail": "light"}, "use merge='features'"),
        ((1, 3), {"merge": "features"}, "it guesses from one cut; use 'identity'"),
        (2, {"skip": "5x5"}, "skip='5x5'; use one of 'identity', '1x1', '3x3'"),
    ],
)
def test_what_it_is_no_setting_for(split_at, settings, said):
    with pytest.raises(ArgumentError, match=said):
        maskguided.wrap(scaled(Chain()), split_at, **{"skip": "3x3", **settings})


def test_it_is_decided_when_a_network_is_wrapped():
    fast = maskguided.wrap(scaled(Chain()), 2, skip="1x1")
    for value in ("3x3", None):
        with pytest.raises(ArgumentError, match="decided when a network is wrapped"):
            fast.skip = value


def test_maps_of_another_size_are_refused():
    real = maskguided.split(scaled(Chain()), 2)
    split = SimpleNamespace(model=real.model, blocks=real.blocks, split_at=2, probe=real.probe, multiple_of=1)
    split.features, split.writes = "x", ("x",)
    split.window = lambda size: {"x": torch.ones(1, 8, 6, 6)}
    split.skip = lambda state: {"x": state["x"][:, :, ::2]}
    with pytest.raises(ArgumentError, match="no map of the size of the features at the cut; use 'identity'"):
        make_skip(split, "1x1")


class Wide(Chain):
    """A convolution of 3x3 costs a small part of each block, and so of the network."""

    def __init__(self) -> None:
        super().__init__()
        many = [nn.Sequential(*[Block() for _ in range(4)]) for _ in range(5)]
        self.blocks = nn.ModuleList(many)


@pytest.mark.parametrize(("network", "kind"), [(Chain, "1x1"), (Wide, "3x3")])
def test_calibrate_fits_one_that_is_worth_its_cost(network, kind):
    model = scaled(network(), gain=0.3)
    images = [image(3, 40, 40, seed=seed) for seed in range(4)]
    plain = maskguided.wrap(model, 2, merge="features", keep=0).eval()
    fast = maskguided.wrap(model, 2, merge="features").eval()
    found = maskguided.calibrate(fast, images, max_cost=0.8)
    assert isinstance(fast.skip, LinearSkip)
    assert (fast.skip.kind, found.skip) == (kind, kind)
    assert f"merge=features, skip={kind}, patch_size" in str(found)
    assert found.chosen.macs == pytest.approx(fast.cost(40, 40).ratio, rel=0.02)
    assert found.chosen.macs <= 0.8
    x = image(1, 3, 33, 46, seed=11)
    fast.keep = 0
    dense = model(x)
    assert (fast(x) - dense).square().mean() < 0.7 * (plain(x) - dense).square().mean()


def test_calibrate_leaves_one_alone_where_only_the_score_is_fitted():
    fast = with_random_skip(scaled(Chain()), 2)
    before = copy.deepcopy(fast.skip.state_dict())
    images = [image(3, 40, 40, seed=seed) for seed in range(2)]
    for fit in ("score", "context", "nothing"):
        maskguided.calibrate(fast, images, fit=fit)
        assert all(torch.equal(before[name], value) for name, value in fast.skip.state_dict().items())
    maskguided.calibrate(fast, images)
    assert not torch.equal(before["conv.weight"], fast.skip.conv.weight)
    several = maskguided.wrap(scaled(Chain()), (1, 3))
    maskguided.calibrate(several, images)
    assert several.skip is None


def test_a_calibration_that_fails_adds_none():
    fast = maskguided.wrap(scaled(Chain()), 2, merge="features")
    with pytest.raises(ArgumentError, match="even with nothing refined it costs"):
        maskguided.calibrate(fast, [image(3, 40, 40)], max_cost=0.01)
    assert fast.skip is None


def test_it_is_trained_by_the_coarse_stage(photos):
    pytest.importorskip("timm", reason="training needs timm and accelerate: pip install 'maskguided[train]'")
    pytest.importorskip("accelerate", reason="training needs timm and accelerate: pip install 'maskguided[train]'")
    from training_runs import QUICK

    from maskguided import finetune
    from maskguided.training.choices import Options

    fast = maskguided.wrap(scaled(Chain(), gain=0.3), 2, merge="features", skip="3x3", keep=0.3)
    before = copy.deepcopy(fast.state_dict())
    recipe = replace(QUICK, steps=60, batch=4, crop=24, warmup=1, rate=3e-3, options=Options(distill=1))
    losses = finetune.fit(fast, photos, "coarse", recipe)
    changed = {name for name, value in fast.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"skip.conv.weight", "skip.conv.bias"}
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_on_the_command_line(tmp_path):
    write_image(tmp_path / "a.png", (image(1, 3, 24, 28)[0].permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy())
    made = tmp_path / "out.png"
    run("upscale", "-i", tmp_path / "a.png", "-o", made, "--split-at", "2", "--skip", "1x1", "--keep", "0.5")
    assert made.exists()
    refused = run("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "--skip", "1x1", code=1)
    assert "--skip 1x1: the network that ships with maskguided has parts trained" in str(refused.exception)
