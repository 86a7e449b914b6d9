"""Images that decide for themselves: what a patch is said to bring, how many are refined, budgets on average."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import difference, image
from test_calibrate import network, photographs, wrapped
from torch.utils.flop_counter import FlopCounterMode

import maskguided
from maskguided import ArgumentError, export, pictures
from maskguided.calibration.closed_form import Known, fit_gain
from maskguided.error_map import dense_image, patch_error
from maskguided.gain import GainEstimate, slopes
from maskguided.infer import upscale
from maskguided.training import stages
from maskguided.weights import read


def pairs(count: int = 4, side: int = 40) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """LR images and HR images that their dense network comes near to, some nearer than others."""
    fast, made = wrapped(), []
    for number, lr in enumerate(photographs(count, side)):
        dense = dense_image(fast, lr).clamp(0, 1)
        noise = torch.randn(dense.shape, generator=torch.Generator().manual_seed(number))
        made.append((lr, (dense + 0.05 * 2**-number * noise).clamp(0, 1)))
    return made


def decided(**changes):
    fast = wrapped(**{"scorer": "coarse", **changes})
    found = maskguided.calibrate(fast, pairs(), per_image=True, fit="nothing")
    return fast, found


def shares(fast, images):
    with torch.no_grad():
        return [fast.restore(x)[1].shape[1] / fast.grid(*x.shape[2:]).count for x in images]


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 1000))
def test_worth_is_the_slope_of_psnr_against_keep(rows, cols, seed):
    generator = torch.Generator().manual_seed(seed)
    gain, error = torch.rand(2, rows, cols, generator=generator, dtype=torch.float64) * 0.001
    order = torch.randperm(rows * cols, generator=generator)[None]
    error += 0.2  # so large that a step is as good as the slope
    found = slopes(order, gain[None], error[None])[0]
    mse, psnr = (error + gain).mean(), []
    for step in range(rows * cols + 1):
        psnr.append(-10 * math.log10(mse - gain.flatten()[order[0, :step]].sum() / (rows * cols)))
    steps = torch.tensor(psnr, dtype=torch.float64).diff() * rows * cols
    torch.testing.assert_close(found, steps, rtol=0.01, atol=1e-6)


@torch.no_grad()
def test_the_estimate_is_near_to_what_it_was_fitted_to():
    fast, images = wrapped(), pairs(6)
    known = [Known(lr, hr, dense_image(fast, lr), 0.0) for lr, hr in images]
    fit_gain(fast, known)
    for one in known:
        base = fast.run_base(one.lr)
        every = fast.worth(base, base.every)[0]
        gain = patch_error(fast, base, fast.coarse_image(base), fast.refine(base, base.every))
        true = slopes(base.every, gain, patch_error(fast, base, one.dense, one.hr))[0]
        assert torch.corrcoef(torch.stack([every.log(), true.log()]))[0, 1] > 0.8
        assert 0.4 < float(every.sum() / true.sum()) < 2.5


@torch.no_grad()
def test_the_estimate_sees_the_patches_around():
    estimate, logs = GainEstimate(1), torch.zeros(1, 4, 2, 3)
    logs[0, 1, 0, 0], estimate.seen[1] = 1, 1
    estimate.bias[0] = 2
    assert estimate(logs)[0].log().flatten().tolist() == pytest.approx([2] * 6)
    estimate.weight[0, 1], estimate.around[0, 1] = 3, 12
    wanted = [2 + 3 + 12 / 4, 2 + 12 / 6, 2, 2 + 12 / 4, 2 + 12 / 6, 2]  # at a border there are fewer
    assert estimate(logs)[0].log().flatten().tolist() == pytest.approx(wanted)


def test_an_older_file_whose_estimate_sees_a_patch_alone_still_decides(tmp_path):
    fast, _ = decided()
    fast.estimate.around.zero_()
    fast.min_gain_db, path = 0.01, tmp_path / "net.safetensors"
    assert "on average (min_gain_db=0.01)" in repr(fast)
    maskguided.save(fast, path)
    content = read(path)
    assert content.tensors.pop("estimate.around").shape == fast.estimate.weight.shape
    save_file(content.tensors, path, content.metadata)
    again = maskguided.load(path, fast.unwrap())
    assert torch.equal(again.restore(x := photographs()[1])[1], fast.restore(x)[1])


@torch.no_grad()
def test_more_gain_asked_for_means_fewer_patches():
    fast, _ = decided()
    x = photographs()[0]
    coarse = fast.coarse_image(fast.run_base(x))
    counts = []
    for least in (0.0, 0.01, 0.1, 1.0, 10.0, 1e9):
        fast.min_gain_db = least
        counts.append(shares(fast, [x])[0])
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 2
    assert torch.equal(fast(x), coarse)
    fast.min_gain_db = 0
    assert counts[0] == 1
    assert difference(fast(x), fast.unwrap()(x)) < 1e-6


@torch.no_grad()
def test_above_some_share_an_image_runs_whole():
    fast, _ = decided()
    x = photographs()[0]
    fast.estimate.whole.fill_(1.0)
    fast.min_gain_db = float(fast.worth(base := fast.run_base(x), fast.choose(base))[0].median())
    some = shares(fast, [x])[0]
    assert 0.2 < some < 0.9
    fast.estimate.whole.fill_(some - 0.01)
    assert shares(fast, [x]) == [1.0]
    assert torch.equal(fast(x), fast.unwrap()(x))


@torch.no_grad()
def test_images_differ_and_a_batch_takes_what_its_neediest_needs():
    fast, found = decided()
    images = photographs()
    fast.estimate.whole.fill_(1.0)
    own = shares(fast, images)
    assert max(own) - min(own) > 0.1
    assert found.min_gain_db == fast.min_gain_db
    assert shares(fast, [torch.cat(images)]) == [max(own)]


def test_setting_keep_ends_it_and_cost_does_not():
    fast, _ = decided()
    least = fast.min_gain_db
    assert least is not None
    assert fast.cost(40, 40).keep == fast.keep
    assert fast.min_gain_db == least
    fast.keep = 0.25
    assert fast.min_gain_db is None
    assert shares(fast, photographs()) == [pytest.approx(0.25, abs=0.03)] * 4


@pytest.mark.parametrize("least", [-0.1, math.nan])
def test_a_gain_that_is_none_is_refused(least):
    with pytest.raises(ArgumentError, match="use 0 dB"):
        decided()[0].min_gain_db = least


def test_without_an_estimate_no_image_can_decide():
    with pytest.raises(ArgumentError, match="per_image=True"):
        wrapped().min_gain_db = 0.3


def counted(run, images) -> int:
    """MACs of running it on these images, as they really are."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for x in images:
            run(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("scorer", ["input", "coarse", "head", "linear"])
@pytest.mark.parametrize("budget", [{"max_cost": 0.85}, {"max_drop_db": 0.5}, {}])
def test_a_budget_holds_on_average(budget, scorer):
    fast, images = wrapped(keep=0.4, scorer=scorer, halo=0), pairs()
    fit = "all" if scorer == "linear" else "nothing"
    found = maskguided.calibrate(fast, images, per_image=True, fit=fit, **budget)
    lrs = [lr for lr, _ in images]
    if fast.estimate.whole >= max(counts := shares(fast, lrs)):
        assert sum(counts) / len(counts) == pytest.approx(found.chosen.keep, abs=0.02)
    dense = counted(fast.unwrap(), lrs)
    assert counted(fast, lrs) / dense == pytest.approx(found.chosen.macs, rel=0.005)
    assert found.chosen.macs <= budget.get("max_cost", math.inf)
    assert found.chosen.drop <= budget.get("max_drop_db", math.inf)
    assert found.chosen.keep == pytest.approx(0.4) or budget
    least, fast.min_gain_db = fast.min_gain_db, 0  # nothing is dearer than choosing and then the whole network
    assert max(point.macs for point in found.curve) <= counted(fast, lrs) / dense * 1.001
    assert "on average" in str(found)
    assert f"{least:.3f} dB" in str(found)


def test_calibrating_again_without_it_ends_it():
    fast, _ = decided()
    found = maskguided.calibrate(fast, pairs(), max_cost=0.8)
    assert (found.min_gain_db, fast.min_gain_db) == (None, None)


def test_without_hr_images_their_reductions_do():
    fast = wrapped(keep=0.2)
    found = maskguided.calibrate(fast, photographs(side=80), per_image=True)
    assert found.estimated
    assert fast.min_gain_db is not None
    fast.estimate.whole.fill_(1.0)
    assert sum(shares(fast, photographs(side=80))) / 4 == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ArgumentError, match="give HR images"):
        maskguided.calibrate(wrapped(), photographs(side=5), per_image=True)


def test_it_is_saved_and_loaded(tmp_path):
    fast, _ = decided()
    path, x = tmp_path / "net.safetensors", photographs()[1]
    maskguided.save(fast, path)
    again = maskguided.load(path, fast.unwrap())
    assert again.min_gain_db == fast.min_gain_db
    assert torch.equal(again.restore(x)[1], fast.restore(x)[1])
    assert maskguided.load(path, fast.unwrap(), min_gain_db=1e9).restore(x)[1].shape[1] == 0
    fixed = maskguided.load(path, fast.unwrap(), keep=0.2)
    assert (fixed.min_gain_db, fixed.keep) == (None, 0.2)
    fixed.min_gain_db = 0.0  # the estimate is still there
    fast.keep = 0.5
    maskguided.save(fast, path)
    assert maskguided.load(path, fast.unwrap()).min_gain_db is None


def test_a_file_is_for_a_fixed_number_of_patches(tmp_path):
    fast, _ = decided()
    with pytest.raises(ArgumentError, match="set keep"):
        export(fast, tmp_path / "net.pt2", image(1, 3, 24, 24))


def test_each_tile_decides_for_itself():
    fast, _ = decided(scorer="input")  # by which `keep` would hold over all tiles
    pixels = (photographs(1, 64)[0][0].permute(1, 2, 0) * 255).round().byte().numpy()
    fast.estimate.whole.fill_(1.0)
    fast.min_gain_db = 3.0
    whole, tiled = upscale(fast, pixels, tile=0), upscale(fast, pixels, tile=32, tile_pad=8)
    assert whole.image.shape == tiled.image.shape == (128, 128, 3)
    assert 0 < whole.mask.mean() < 1
    assert 0 < tiled.mask.mean() < 1
    fast.min_gain_db = 0
    assert upscale(fast, pixels, tile=32, tile_pad=8).mask.all()


def test_what_it_has_not_seen_counts_as_the_nearest_that_it_has():
    fast, _ = decided()
    terms = fast.estimate.seen.shape[1]
    far, most = torch.full((1, terms, 1, 1), 50.0), fast.estimate.seen[1].view(1, terms, 1, 1)
    for there, here in zip(fast.estimate(far), fast.estimate(most), strict=True):
        assert torch.equal(there, here)


@pytest.mark.parametrize("settings", [{"merge": "features", "coarse_tail": None}, {"exchange": True, "halo": 0}])
def test_it_works_wherever_patches_are_merged(settings):
    fast, _ = decided(**settings)
    fast.min_gain_db = 0
    x = photographs()[0]
    with torch.no_grad():
        assert difference(fast(x), fast.unwrap()(x)) < 1e-6
        fast.min_gain_db = 1e9
        assert torch.equal(fast(x), fast.coarse_image(fast.run_base(x)))


def test_other_windows_are_not_what_was_estimated(tmp_path):
    fast, _ = decided()
    path = tmp_path / "net.safetensors"
    maskguided.save(fast, path)
    with pytest.warns(UserWarning, match="another halo"):
        other = maskguided.load(path, fast.unwrap(), halo=4)
    assert (other.min_gain_db, other.estimate) == (None, None)
    with pytest.warns(UserWarning, match="another halo"), pytest.raises(ArgumentError, match="per_image=True"):
        maskguided.load(path, fast.unwrap(), halo=4, min_gain_db=0.3)
    assert maskguided.load(path, fast.unwrap(), halo=fast.halo).min_gain_db == fast.min_gain_db


def test_training_ends_it():
    fast, _ = decided()
    stages.train_only(fast, "head")
    assert fast.min_gain_db is None


@torch.no_grad()
def test_patches_that_leave_early_do_so_where_images_decide():
    """With all patches chosen and half of them leaving, that is what runs, not the whole network."""
    settings = {"patch_size": 8, "halo": 0, "onward": (0.5,), "keep": 0.4}
    fast = maskguided.wrap(network(), (1, 3), **settings).eval()
    found = maskguided.calibrate(fast, pairs(), per_image=True, fit="nothing", max_cost=0.9)
    images = [lr for lr, _ in pairs()]
    dense = counted(fast.unwrap(), images)
    assert counted(fast, images) / dense == pytest.approx(found.chosen.macs, rel=0.02)
    fast.min_gain_db = 0
    ours = fast(images[0])
    fast.keep = 1
    assert difference(ours, fast(images[0])) < 1e-6
    fast.onward = (1.0,)
    assert difference(ours, fast(images[0])) > 1e-4
    assert (fast.estimate, fast.min_gain_db) == (None, None)  # which were of patches of which half leave


def test_one_patch_and_nan_have_a_say_too():
    fast = wrapped(scorer="input")
    lr, hr = pairs(1, 8)[0]
    maskguided.calibrate(fast, [(lr, hr)], per_image=True, fit="nothing")
    assert fast.min_gain_db >= 0
    with pytest.raises(ArgumentError, match="no numbers"):
        maskguided.calibrate(fast, [lr * math.nan], fit="nothing")


def test_a_calibration_without_images_leaves_it():
    fast, _ = decided()
    least = fast.min_gain_db
    with pytest.raises(ArgumentError, match="no images"):
        maskguided.calibrate(fast, [])
    assert fast.min_gain_db == least
    fast.min_gain_db = torch.tensor(0.25)
    assert fast.min_gain_db == 0.25
    with pytest.raises(ArgumentError, match="use 0 dB"):
        fast.min_gain_db = "0.3"


def test_a_picture_says_what_decided(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    fast, _ = decided()
    pictures.explain_picture(fast.eval(), photographs(1, 40)[0], tmp_path / "why.png")
    assert figures[0].axes[-1].get_title() == f"refined (min_gain_db={fast.min_gain_db:g})"
    fast.keep = 0.25
    pictures.explain_picture(fast, photographs(1, 40)[0], tmp_path / "why.png")
    assert figures[1].axes[-1].get_title() == "refined (keep=0.25)"
    pictures.explain_picture(fast, torch.rand(1, 3, 100, 2), tmp_path / "why.png")
    assert figures[2].get_size_inches()[1] <= 25, "a picture of a tall, narrow image must fit into memory"


def test_what_is_set_to_what_it_was_forgets_no_estimate():
    fast, _ = decided()
    least = fast.min_gain_db
    assert least is not None
    fast.halo, fast.patch_size, fast.exchange, fast.onward = fast.halo, fast.patch_size, fast.exchange, fast.onward
    assert fast.min_gain_db == least
    fast.patch_size *= 2
    assert (fast.min_gain_db, fast.estimate) == (None, None)


def test_a_state_dict_of_a_calibrated_wrap_goes_into_a_fresh_one():
    """As checkpoints of a module do that holds a wrapped network."""
    holder, fresh = torch.nn.Sequential(wrapped()), torch.nn.Sequential(wrapped())
    maskguided.calibrate(holder[0], pairs(), per_image=True)
    assert "0.context.combine" in holder.state_dict()
    fresh.load_state_dict(holder.state_dict())
    fresh[0].keep, fresh[0].scorer, x = holder[0].keep, holder[0].scorer, image(1, 3, 40, 40)
    holder[0].min_gain_db = fresh[0].min_gain_db = holder[0].min_gain_db
    with torch.no_grad():
        assert torch.equal(fresh(x), holder(x))
