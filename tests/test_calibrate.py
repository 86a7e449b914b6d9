"""Calibration: closed forms that fit what they should, budgets that are met, the network left as it was."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from support import difference, image, scaled
from torch.nn import functional as F

import maskguided
from maskguided import ArgumentError, pictures
from maskguided.adapters.pan_net import PAN
from maskguided.calibration import prices
from maskguided.calibration.closed_form import Known, common_directions, fit_score, fit_tail
from maskguided.calibration.curve import Budget, Point
from maskguided.calibration.measure import keep_for
from maskguided.error_map import patch_error
from maskguided.networks import load_network
from maskguided.patches import select
from maskguided.tails.light import LightTail
from maskguided.training import stages


def network():
    return scaled(PAN(features=8, up_features=8, blocks=4, scale=2))


def photographs(count: int = 4, side: int = 40) -> list[torch.Tensor]:
    """Smooth images with a textured quarter, so that patches differ."""
    made = []
    for seed in range(count):
        smooth = F.interpolate(image(1, 3, 5, 5, seed=seed), size=(side, side), mode="bicubic").clamp(0, 1)
        smooth[:, :, : side // 2, : side // 2] = image(1, 3, side // 2, side // 2, seed=seed + 50)
        made.append(smooth)
    return made


def wrapped(**settings):
    settings = {"merge": "image", "coarse_tail": "light", "patch_size": 8, "halo": 2, **settings}
    return maskguided.wrap(network(), 2, **settings).eval()


@pytest.mark.parametrize(("tail", "keep"), [("light", 0), ("light", 0.3), ("residual", 0.3)])
def test_the_ridge_tail_finds_a_linear_network(tail, keep):
    """A network whose image is the tail's convolution of the features at the cut is met by it, from any patches."""
    torch.manual_seed(0)
    fast = wrapped(keep=keep, coarse_tail=tail)
    truth = copy.deepcopy(fast.coarse_tail)
    with torch.no_grad():
        truth.conv.weight.copy_(torch.randn(truth.conv.weight.shape) * 0.1)
        truth.conv.bias.copy_(torch.randn(truth.conv.bias.shape) * 0.1)
        images = [Known(x, None, truth(fast.run_base(x).skipped, x), floor=1.0) for x in photographs()]
        if tail == "residual":
            fast.coarse_tail.branch[-1].weight.normal_()  # what it had learnt goes
        fit_tail(fast, fast.coarse_tail, images)
    fresh = image(1, 3, 30, 22, seed=99)
    with torch.no_grad():
        base = fast.run_base(fresh)
        assert difference(fast.coarse_tail(base.skipped, fresh), truth(base.skipped, fresh)) < 0.03
        begun = wrapped()
        assert difference(begun.coarse_tail(base.skipped, fresh), truth(base.skipped, fresh)) > 0.2


def test_the_tail_is_fitted_where_it_will_be_seen():
    """Between the easy patches, where the coarse image stays, and all, the fit takes the easy ones' side."""
    everywhere, seen = wrapped(keep=0), wrapped(keep=0.5)
    images = [Known(x, None, everywhere.unwrap()(x), floor=1.0) for x in photographs()]
    errors = []
    for fast in (everywhere, seen):
        fit_tail(fast, fast.coarse_tail, images)
        found = []
        for known in images:
            base = fast.run_base(known.lr)
            found.append(stages.patch_error(fast, base, fast.coarse_image(base), known.dense).flatten().sort().values)
        errors.append(torch.stack(found))
    half = errors[0].shape[1] // 2
    assert errors[1][:, :half].mean() < 0.98 * errors[0][:, :half].mean()
    assert errors[1].mean() > errors[0].mean()


@pytest.mark.parametrize("keep", [0.05, 0.95])
def test_tails_are_fitted_to_all_patches_where_too_few_are_left(keep):
    """Of 4 patches keep 0.05 is none and 0.95 all: nothing to fit the refine tail, or the second coarse tail, to."""
    few, all_coarse, all_refined = (wrapped(keep=k, patch_size=20, refine_tail="light") for k in (keep, 0, 1))
    for fast in (few, all_coarse, all_refined):
        maskguided.calibrate(fast, photographs())
    assert difference(few.coarse_tail.conv.weight, all_coarse.coarse_tail.conv.weight) < 1e-6
    assert difference(few.refine_tail.conv.weight, all_refined.refine_tail.conv.weight) < 1e-6
    assert min(tail.conv.weight.abs().max() for tail in (few.coarse_tail, few.refine_tail)) > 1e-3


def test_what_was_trained_stays_where_only_keep_is_asked_for():
    fast = wrapped(scorer="head")
    before = copy.deepcopy(fast.state_dict())
    found = maskguided.calibrate(fast, photographs(2), max_cost=0.9, fit="nothing")
    assert (fast.scorer, fast.keep) == ("head", found.chosen.keep)
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    maskguided.calibrate(fast, photographs(2), fit="score")
    changed = {name for name, value in fast.state_dict().items() if not torch.equal(value, before[name])}
    assert (fast.scorer, changed) == ("linear", {"linear.weight", "linear.bias"})
    with pytest.raises(ArgumentError, match="use one of 'all', 'score', 'context', 'nothing'"):
        maskguided.calibrate(fast, photographs(2), fit="tail")
    with pytest.raises(ArgumentError, match="another split needs its own fit"):
        maskguided.calibrate(fast, photographs(2), split_at="auto", fit="score")


def test_calibration_brings_the_coarse_image_nearer_to_the_dense_one():
    fast, before, x = wrapped(), wrapped(), photographs(6)[-1]
    maskguided.calibrate(fast, photographs(5))
    with torch.no_grad():
        dense = fast.model(x)
        fast.keep = before.keep = 0
        assert (fast(x) - dense).square().mean() < 0.7 * (before(x) - dense).square().mean()


def real_network():
    return load_network().model


def real_photographs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    skimage = pytest.importorskip("skimage.data")
    pairs = []
    for name in ("astronaut", "coffee", "chelsea"):
        hr = torch.from_numpy(getattr(skimage, name)()[:256, :256].copy()).permute(2, 0, 1)[None] / 255
        pairs.append((F.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1), hr))
    return pairs


@pytest.mark.parametrize("merge", ["image", "features"])
def test_the_linear_score_finds_the_patches_that_gain(merge):
    fast = maskguided.wrap(real_network(), 6, merge=merge, patch_size=8)
    *fitted, (x, _) = real_photographs()
    maskguided.calibrate(fast, [lr for lr, _ in fitted])
    assert fast.scorer == "linear"
    with torch.no_grad():
        base = fast.run_base(x)
        coarse, refined = fast.coarse_image(base), fast.refine(base, base.every)
        gain = F.avg_pool2d((coarse - refined).square().mean(1, keepdim=True), 32).flatten()
        chosen = select(fast.score(base), 16)[0]
    random = gain.mean() * 16
    best = gain.sort(descending=True).values[:16].sum()
    assert gain[chosen].sum() - random > 0.6 * (best - random)


def test_the_linear_score_ranks_small_errors_as_well_as_large_ones():
    def faded(lr):
        """Contrast falls from left to right, to a hundredth."""
        return 0.5 + (lr - 0.5) * torch.logspace(0, -2, lr.shape[3])

    fast = maskguided.wrap(real_network(), 6, merge="image", coarse_tail="light", patch_size=8)
    *fitted, x = (faded(lr) for lr, _ in real_photographs())
    maskguided.calibrate(fast, fitted)
    with torch.no_grad():
        base = fast.run_base(x)
        error = patch_error(fast, base, fast.coarse_image(base), fast.refine(base, base.every))
        places = [each.flatten().argsort().argsort().double() for each in (error, fast.score(base))]
    assert torch.corrcoef(torch.stack(places))[0, 1] > 0.92, "fitted to the errors as they are it is 0.86"


def test_an_image_counts_for_the_score_as_its_dense_image_is_near_to_the_truth():
    a, b = photographs(2, side=80)
    b = b.flip(3) ** 4
    fast, found = wrapped(), []
    for floors in ({a: 1e-6}, {b: 1e2}, {a: 1e-6, b: 1e2}):
        fit_score(fast, [Known(x, None, fast.unwrap()(x), floor) for x, floor in floors.items()])
        found.append(fast.linear.weight.clone())
    only_a, only_b, both = found
    assert difference(both, only_a) < 1e-4
    assert difference(only_b, only_a) > 0.1


def test_a_score_that_was_linear_in_the_energies_stays_so_until_it_is_fitted(tmp_path):
    fast, x = wrapped(scorer="linear"), image(1, 3, 30, 30)
    fast.linear.root.fill_(1)
    fast.linear.weight.copy_(torch.tensor([1.0, -0.5, 0.3]))
    expected = fast.score(fast.run_base(x))
    maskguided.save(fast, tmp_path / "new.safetensors")
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "new.safetensors")
    del tensors["linear.root"]
    tensors["linear.weight"] = torch.cat([tensors["linear.weight"], torch.tensor([0.2, 0.1])])  # of the coarse image
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        save_file(tensors, tmp_path / "old.safetensors", metadata=file.metadata())
    again = maskguided.load(tmp_path / "old.safetensors", fast.unwrap())
    assert torch.equal(again.score(again.run_base(x)), expected)
    maskguided.calibrate(again, photographs(2), fit="score")
    assert again.linear.root < 0.5


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_an_unfitted_light_tail_is_the_bilinear_image(scale):
    tail = LightTail("features", 8, 3, scale=scale, factor=scale)
    for size in ((1, 1), (7, 12)):
        x, features = image(2, 3, *size), image(2, 8, *size)
        expected = F.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False)
        assert difference(tail({"features": features}, x), expected) < 1e-6


def test_a_cost_budget_is_met_and_used():
    fast = wrapped()
    found = maskguided.calibrate(fast, photographs(), max_cost=0.8)
    assert found.chosen.keep == fast.keep
    cost = fast.cost(40, 40)
    assert cost.ratio <= 0.8
    fast.keep = (cost.k + 1) / cost.patches
    assert fast.cost(40, 40).ratio > 0.8, "a patch more would still be within the budget"
    fast.keep = found.chosen.keep
    assert [point.keep for point in found.curve] == sorted(point.keep for point in found.curve)
    assert "of the dense MACs" in str(found)


@pytest.mark.parametrize("with_hr", [True, False])
def test_a_drop_budget_takes_no_more_than_it_needs(with_hr):
    fast = maskguided.wrap(real_network(), 6, patch_size=8)
    images = [pair if with_hr else pair[0] for pair in real_photographs()]
    found = maskguided.calibrate(fast, images, max_drop_db=0.2)
    assert 0.05 < fast.keep < 0.95
    assert 0.1 < found.chosen.drop < 0.35
    drops = [point.drop for point in found.curve]
    assert drops == sorted(drops, reverse=True)
    assert found.estimated == (not with_hr)


def test_the_network_stays_as_it_was(tmp_path):
    model = network()
    before = copy.deepcopy(model.state_dict())
    fast = maskguided.wrap(model, 2, merge="image", coarse_tail="deep")
    maskguided.calibrate(fast, photographs(), max_cost=0.9)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    maskguided.save(fast, tmp_path / "fast.safetensors")
    again = maskguided.load(tmp_path / "fast.safetensors", model)
    x = image(1, 3, 33, 21)
    assert torch.equal(again(x), fast(x))
    assert again.scorer == "linear"


def timed_as(monkeypatch, price):
    """Let the clock say `price(fast)` for a wrapped network and 1 for a dense one."""

    def alternate(runs, inputs, rounds):
        return {keep: [1.0 if keep is None else run()] * rounds for keep, run in runs.items()}

    def at(fast, name, value):
        def asked():
            setattr(fast, name, value)
            return price(fast)

        return asked

    monkeypatch.setattr(prices, "alternate", alternate)
    monkeypatch.setattr(prices, "at", at)


def test_the_picture_shows_the_curve_in_what_the_budget_is_in(monkeypatch, tmp_path):
    timed_as(monkeypatch, lambda fast: 0.2 + fast.keep)
    shown = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: shown.append(figure.axes[0]))
    for budget, names in ({"max_cost": 0.9}, ["MACs"]), ({"max_time": 0.7}, ["MACs", "time"]):
        found = maskguided.calibrate(wrapped(), photographs(2), **budget)
        pictures.curve_picture(found, tmp_path / "curve.png")
        lines = shown.pop().get_lines()
        assert [line.get_label() for line in lines[: len(names)]] == names
        cost = [point.macs if names == ["MACs"] else point.time for point in found.curve]
        assert lines[len(names) - 1].get_xdata() == pytest.approx([100 * share for share in cost])
        assert lines[len(names)].get_xdata() == [100 * (found.chosen.time or found.chosen.macs)]


def test_a_budget_of_time_is_met_by_what_the_clock_says(monkeypatch):
    timed_as(monkeypatch, lambda fast: 0.2 + fast.keep**2)
    fast = wrapped()
    found = maskguided.calibrate(fast, photographs(2), max_time=0.561)
    assert fast.keep == found.chosen.keep == pytest.approx(0.6, abs=0.002)
    assert found.chosen.time <= 0.561
    assert (found.curve[0].time, found.curve[-1].time) == pytest.approx((0.2, 1.2))
    assert "of the time" in str(found)
    with pytest.raises(ArgumentError, match=r"max_time=0.1: even with nothing refined it costs 0.20 of the dense"):
        maskguided.calibrate(fast, photographs(2), max_time=0.1)
    assert maskguided.calibrate(fast, photographs(2), fit="nothing").chosen.time is None


def test_windows_of_nearly_all_patches_may_take_longer_than_the_network(monkeypatch):
    timed_as(monkeypatch, lambda fast: 1.0 if fast.keep == 1 else 0.2 + fast.keep)
    clock = prices.Clock(wrapped(), [torch.rand(1, 3, 8, 8)])
    assert [clock.at(keep) for keep in (0.5, 0.95, 1.0)] == pytest.approx([0.7, 1.15, 1.0])
    assert clock.keep(0.9) == pytest.approx(0.7)
    assert clock.keep(1.01) == 1


@pytest.mark.parametrize(("steep", "keep"), [(1.2, 1.0), (1.1, 0.9)])
def test_all_patches_are_taken_where_nearly_all_cost_more(steep, keep):
    class Steep(prices.Prices):
        def at(self, keep):
            return 1.0 if keep == 1 else steep * keep

    curve = [Point(keep, keep, None, drop=1 - keep) for keep in (0.0, 1.0)]
    found = keep_for(wrapped(), curve, prices.Priced(Steep(), None), Budget(drop_db=0.1))
    assert found == pytest.approx(keep)


def test_what_all_regressions_look_at_is_found_whatever_the_features_scale():
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-3, 3, 12, dtype=torch.float64)
    seen = torch.randn(12, 500, generator=generator, dtype=torch.float64) * scales[:, None] + 5
    seen = torch.cat([seen, torch.ones(1, 500, dtype=torch.float64)])
    looked_at = torch.randn(12, 3, generator=generator, dtype=torch.float64) / scales[:, None]
    weights = []
    for outputs, size in ((5, 1.0), (2, 1e-4), (7, 1e3)):
        mixed = looked_at @ torch.randn(3, outputs, generator=generator, dtype=torch.float64) * size
        weights.append(torch.cat([mixed, torch.ones(1, outputs, dtype=torch.float64)]))
    combine = common_directions(seen @ seen.T, weights, 3)
    for part in weights:
        inputs = torch.cat([combine.T @ seen[:-1], seen[-1:]]).T
        wanted = (part.T @ seen).T
        found = inputs @ torch.linalg.lstsq(inputs, wanted).solution
        assert ((found - wanted).std(0) < 1e-4 * wanted.std(0)).all()


def test_the_context_is_fitted_where_windows_exchange_borders_and_brings_the_image_nearer():
    fast = maskguided.wrap(real_network(), 2, patch_size=4, keep=0.4).eval()
    lr = real_photographs()[0][0]
    lr = lr[None] if lr.dim() == 3 else lr
    dense, zeros = fast.unwrap()(lr), fast(lr)
    maskguided.calibrate(fast, [lr], fit="context")
    assert fast.context is not None
    assert fast.scorer == "input"
    assert (fast(lr) - dense).square().mean() < 0.9 * (zeros - dense).square().mean()
    alone = maskguided.wrap(real_network(), 2, patch_size=8, exchange=False).eval()
    maskguided.calibrate(alone, [lr])
    assert alone.context is None


def test_images_of_two_patches_are_priced_as_they_cost():
    fast = maskguided.wrap(network(), 2, patch_size=16)
    x = torch.rand(1, 3, 16, 32)
    found = prices.Macs(fast, [x], {})
    for keep in (0.0, 0.5, 1.0):
        expected = fast.macs_at(16, 32, keep=keep) / fast.cost(16, 32).dense
        assert found.at(keep) == pytest.approx(expected, rel=1e-3)


def test_images_of_several_sizes_are_priced_as_they_cost():
    """What a patch adds is counted at one of them; a smaller window, of an image that is no larger, for itself."""
    fast = maskguided.wrap(network(), 2, patch_size=8, merge="image", halo=1)
    sizes = [(40, 24), (16, 31), (7, 9), (24, 24)]
    found = prices.Macs(fast, [torch.rand(1, 3, *size) for size in sizes], known := {(7, 9): fast.dense_macs(7, 9)})
    assert known == {size: fast.cost(*size).dense for size in sizes}
    for keep in (0.0, 0.3, 0.7, 0.9, 1.0):
        expected = sum(fast.macs_at(*size, keep=keep) for size in sizes) / sum(known.values())
        assert found.at(keep) == pytest.approx(expected, rel=1e-4)


def test_a_network_whose_convolutions_see_nothing_to_be_guessed_is_calibrated():
    class Depthwise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = torch.nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
            self.point = torch.nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x + self.point(F.relu(self.wide(x)))

    conv = torch.nn.Conv2d
    body = torch.nn.Sequential(*[Depthwise() for _ in range(4)])
    net = torch.nn.Sequential(conv(3, 8, 3, padding=1), body, conv(8, 12, 3, padding=1), torch.nn.PixelShuffle(2))
    fast = maskguided.wrap(scaled(net), 3)
    found = maskguided.calibrate(fast, photographs(), max_cost=0.95)
    assert fast.context is None
    assert found.chosen.macs <= 0.95


def test_a_network_in_half_precision_is_calibrated_without_hr_images():
    fast = maskguided.wrap(network().to(torch.bfloat16), 2)
    found = maskguided.calibrate(fast, [x.to(torch.bfloat16) for x in photographs(side=48)], max_cost=0.9)
    assert found.estimated
    assert 0 < fast.keep < 1


def test_what_is_rough_with_a_light_tail_is_not_told_to_take_one(monkeypatch):
    monkeypatch.setattr(sys.modules["maskguided.calibrate"], "is_rough", lambda *_: True)
    for settings, text in (
        ({}, "or less loss, cut later"),
        ({"merge": "features", "coarse_tail": None}, "wrap with merge="),
    ):
        with pytest.warns(maskguided.MaskGuidedWarning, match=text):
            maskguided.calibrate(wrapped(**settings), list(image(2, 3, 40, 48).split(1)), max_cost=0.9)
