"""Training: a stage trains its own parameters and no others, and learns."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import by_windows, image, need_basicsr, scaled
from torch import Tensor, nn
from torch.nn import functional as F
from training_runs import QUICK, wrapped

import maskguided
from maskguided import ArgumentError, ImageError, finetune
from maskguided.adapters.pan_net import PAN
from maskguided.error_map import patch_error
from maskguided.finetune import Recipe
from maskguided.imaging.images import write_image
from maskguided.networks import load_network
from maskguided.training import stages
from maskguided.training.choices import STAGES, Options
from maskguided.training.pool import batches
from maskguided.training.run import _accelerator
from maskguided.training.samples import Batches, Crops
from maskguided.training.stages import StageInput, rank_loss

pytest.importorskip("timm", reason="training needs timm and accelerate: pip install 'maskguided[train]'")
pytest.importorskip("accelerate", reason="training needs timm and accelerate: pip install 'maskguided[train]'")


OWN = {
    "head": ("head.",),
    "coarse": ("coarse_tail.",),
    "refine": ("model.SCPA_trunk.2", "model.SCPA_trunk.3", "model.trunk_conv", "model.up", "model.att", "model.HR"),
    "all": ("model.", "coarse_tail."),
    "end": ("model.", "coarse_tail.", "head."),
    "joint": ("model.", "coarse_tail."),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("adapter", "tail"), [(None, "deep"), (None, "residual"), ("automatic", "deep")])
def test_a_stage_changes_its_own_parameters_only(photos, stage, adapter, tail):
    fast = wrapped(adapter=adapter, coarse_tail=tail)
    given, original = copy.deepcopy(fast.unwrap().state_dict()), fast.unwrap()
    before = copy.deepcopy(fast.state_dict())
    finetune.fit(fast, photos, stage, QUICK)
    changed = {name for name, value in fast.state_dict().items() if not torch.equal(value, before[name])}
    own = OWN[stage] + (("model.conv_last",) if stage == "refine" else ())
    assert changed
    assert {name for name in changed if not name.startswith(own)} == set()
    assert {o for o in own if any(name.startswith(o) for name in changed)} == set(own)
    assert fast.unwrap() is original
    assert all(torch.equal(given[name], value) for name, value in original.state_dict().items())
    assert (fast.scorer == "head") == (stage in ("head", "end"))


def test_the_coarse_stage_learns(photos):
    fast = maskguided.wrap(load_network().model, 4, merge="image", coarse_tail="deep")
    recipe = Recipe(steps=50, batch=4, crop=24, warmup=2, rate=3e-3, options=Options(distill=1))
    losses = finetune.fit(fast, photos, "coarse", recipe)
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


@pytest.mark.parametrize("stage", ["coarse", "refine"])
def test_the_psnr_loss_is_what_is_lost_against_the_dense_image(stage):
    fast = wrapped(exchange=False)
    fast.keep = 1 if stage == "refine" else 0
    stages.train_only(fast, stage)
    lr, hr = torch.rand(2, 3, 24, 24), torch.rand(2, 3, 48, 48)
    options = Options(pixel_loss="psnr", distill=0)
    found = float(stages.loss(fast, stage, stages.prepare(fast, stage, lr, hr, options), options))
    with torch.no_grad():
        dense = stages.luma(fast.unwrap()(lr))
        image = stages.luma(by_windows(fast, lr) if stage == "refine" else fast(lr))
    own = (dense - stages.luma(hr)).square().mean((1, 2, 3)) + 3e-4
    lost = (image - dense).square().mean((1, 2, 3))
    assert found == pytest.approx(float((10 * torch.log10((own + lost) / own)).mean() * np.log(10) / 10), rel=1e-4)
    assert found > 1e-5


@pytest.mark.parametrize("pixel_loss", ["l1", "psnr"])
@pytest.mark.parametrize("merge", ["image", "features"])
def test_the_joint_stage_is_of_the_image_as_it_will_be(merge, pixel_loss):
    """Its loss is that of a forward at this keep, the patches farthest from the dense image refined."""
    tail = {"coarse_tail": "deep"} if merge == "image" else {"coarse_tail": None}
    fast = wrapped(merge=merge, keep=0.4, **tail)
    stages.train_only(fast, "joint")
    lr, hr = torch.rand(2, 3, 24, 24), torch.rand(2, 3, 48, 48)
    options = Options(pixel_loss=pixel_loss, distill=1)
    given = stages.prepare(fast, "joint", lr, hr, options)
    with torch.enable_grad():
        found = stages.loss(fast, "joint", given, options)
        found.backward()
    with torch.no_grad():
        dense = fast.unwrap()(lr)
        fast.keep = 0
        error = patch_error(fast, fast.run_base(lr), fast(lr), dense)
        fast.keep = 0.4
        image = fast(lr, score=error)
        lost = (image - dense).abs().mean()
        if pixel_loss == "psnr":
            own = stages.luma(dense - hr).square().mean((1, 2, 3)) + 3e-4
            lost = torch.log1p(stages.luma(image - dense).square().mean((1, 2, 3)) / own).mean()
    assert float(found) == pytest.approx(float(lost), rel=1e-4)
    assert float(found) > 1e-5
    for part in (fast.model.conv_first, fast.model.SCPA_trunk[3], fast.model.conv_last):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_the_coarse_stage_learns_by_the_psnr_loss(photos):
    fast = maskguided.wrap(load_network().model, 4, merge="image", coarse_tail="deep")
    recipe = Recipe(steps=50, batch=4, crop=24, warmup=2, rate=3e-3, options=Options(pixel_loss="psnr"))
    losses = finetune.fit(fast, photos, "coarse", recipe)
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])


@pytest.mark.parametrize("head_loss", ["rank", "l1"])
def test_the_error_that_teaches_the_head_does_not_teach_the_images(head_loss):
    fast, lr, hr = wrapped(), image(2, 3, 24, 24), image(2, 3, 48, 48, seed=1)
    stages.train_only(fast, "end")
    tails = [*fast.coarse_tail.parameters(), *fast.model.conv_last.parameters()]
    with torch.enable_grad():
        base = fast.run_base(lr)
        images = F.l1_loss(fast.coarse_image(base), hr) + F.l1_loss(fast.refine(base, base.every), hr)
        whole = stages.loss(fast, "end", stages.prepare(fast, "end", lr, hr, Options()), Options(head_loss=head_loss))
        expected, found = (torch.autograd.grad(value, tails) for value in (images, whole))
    assert whole > images
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("head_loss", ["rank", "l1", "none"])
def test_the_head_learns_which_patches_gain(photos, head_loss):
    fast = wrapped()
    recipe = Recipe(steps=40, batch=4, crop=32, warmup=2, rate=3e-3, ema=0.9, options=Options(head_loss=head_loss))
    losses = finetune.fit(fast, photos, "head", recipe)
    assert np.mean(losses[-8:]) < np.mean(losses[:8])


def test_the_rank_loss_has_its_least_at_the_right_order():
    gain = torch.tensor([[3.0, 1.0, 0.0]])
    right, swapped, wrong = (rank_loss(torch.tensor([s]), gain) for s in ([3.0, 1, 0], [1.0, 3, 0], [0.0, 1, 3]))
    assert right < swapped < wrong
    assert float(right) < 1e-4


def test_a_score_beyond_its_range_refines_a_patch_wholly_or_not_at_all():
    fast, score = wrapped(), torch.ones(1, 2, 3)
    coarse, refined = image(1, 3, 32, 48), image(1, 3, 32, 48, seed=1)
    for beyond, made in ((3 * score, refined), (-2 * score, coarse)):
        assert stages._masked(fast, beyond, coarse, refined, made) < 1e-6


def test_the_head_is_less_than_a_hundredth_of_an_edsr():
    edsr = need_basicsr("basicsr.archs.edsr_arch").EDSR(3, 3, num_feat=64, num_block=16, upscale=4)
    fast = maskguided.wrap(edsr)
    trained = sum(p.numel() for p in stages.train_only(fast, "head"))
    assert trained == sum(p.numel() for p in fast.parameters() if p.requires_grad)
    assert 0 < trained < 0.01 * sum(p.numel() for p in edsr.parameters())


def test_a_pool_prepares_each_crop_once_and_gives_every_batch_as_without_it(photos):
    crops, numbers = Crops([photos], scale=2, size=16), Batches(2, 0, 9, pool=5)
    prepared: list[Tensor] = []

    def prepare(low: Tensor, high: Tensor) -> StageInput:
        prepared.extend(low)
        return StageInput({"lr": low, "twice": high * 2}, {"shared": torch.ones(3)})

    drawn = list(numbers)
    found = list(batches(crops, numbers, prepare, workers=0))
    assert len(found) == len(drawn) == 9
    for given, batch in zip(found, drawn, strict=True):
        assert torch.equal(given.crops["lr"], torch.stack([crops[n][0] for n in batch]))
        assert torch.equal(given.crops["twice"], 2 * torch.stack([crops[n][1] for n in batch]))
        assert torch.equal(given.shared["shared"], torch.ones(3))
    assert len(prepared) == 5
    in_order = [number for batch in drawn for number in batch]
    assert sorted(in_order[:5]) == sorted(in_order[5:10]) == [0, 1, 2, 3, 4]
    assert in_order[:5] != in_order[5:10]


@pytest.mark.parametrize(
    ("stage", "merge"),
    [("coarse", "image"), ("refine", "image"), ("refine", "features"), ("head", "image"), ("head", "features")],
)
def test_what_a_pool_keeps_is_what_the_loss_needs(photos, stage, merge):
    """The loss of a crop that was kept is the loss of the crop, for every stage that may keep."""
    fast = wrapped(merge=merge)
    stages.train_only(fast, stage)
    crops, options = Crops([photos], scale=2, size=19), Options()
    (kept,) = batches(crops, Batches(4, 0, 1, pool=4), lambda *pair: stages.prepare(fast, stage, *pair, Options()), 0)
    order = next(iter(Batches(4, 0, 1, pool=4)))
    pair = (torch.stack(images) for images in zip(*(crops[n] for n in order), strict=True))
    fresh = stages.prepare(fast, stage, *pair, Options())
    losses = [float(stages.loss(fast, stage, given, options)) for given in (kept, fresh)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 0


def test_mixed_precision_workers_and_logs(photos, tmp_path):
    recipe = Recipe(steps=4, batch=2, crop=16, warmup=1, precision="bf16")
    plain, logged = (wrapped() for _ in range(2))
    expected = finetune.fit(plain, photos, "coarse", Recipe(steps=4, batch=2, crop=16, warmup=1))
    half = finetune.fit(logged, photos, "coarse", recipe, workers=2, logs=tmp_path / "logs")
    assert half == pytest.approx(expected, rel=0.02)
    assert half != expected
    assert all(p.dtype == torch.float32 for p in logged.parameters())
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [event.value for event in events.Scalars("coarse/loss")] == pytest.approx(half)


@pytest.mark.parametrize(("hr", "every", "text"), [([], 1, r"hr=\[\]: no folder"), (None, 0, "every=0: steps from")])
def test_what_fit_cannot_start_with(photos, hr, every, text):
    with pytest.raises(ArgumentError, match=text):
        finetune.fit(wrapped(), photos if hr is None else hr, "head", QUICK, every=every)


def test_a_refined_network_is_saved_with_what_was_trained(photos, tmp_path):
    fast, x = wrapped(), image(1, 3, 33, 26)
    finetune.fit(fast, photos, "refine", QUICK)
    maskguided.save(fast, tmp_path / "fast.safetensors")
    again = maskguided.load(tmp_path / "fast.safetensors", wrapped().unwrap())
    assert torch.equal(again(x), fast(x))
    assert not torch.equal(wrapped()(x), fast(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # onto the network as it was trained: it has these weights already
        onto = maskguided.load(tmp_path / "fast.safetensors", copy.deepcopy(fast.model))
    assert torch.equal(onto(x), fast(x))


def test_what_cannot_be_trained(photos, tmp_path):
    with pytest.raises(ArgumentError, match="merge='features' there is no coarse tail"):
        finetune.fit(wrapped(merge="features"), photos, "coarse", QUICK)
    with pytest.raises(ArgumentError, match=r"trains in float32, and this network is torch\.bfloat16"):
        finetune.fit(wrapped().bfloat16(), photos, "head", QUICK)
    with pytest.raises(ArgumentError, match="use one of coarse, refine, head, all, end, joint"):
        finetune.fit(wrapped(), photos, "body", QUICK)
    for stage, head_loss in (("head", "rank"), ("head", "l1"), ("end", "rank")):
        recipe = replace(QUICK, steps=1, crop=8, options=Options(head_loss=head_loss))
        with pytest.warns(UserWarning, match="a crop of 8 LR pixels is one patch of patch_size=8"):
            finetune.fit(wrapped(), photos, stage, recipe)
    with pytest.raises(ImageError, match="use a smaller crop"):
        finetune.fit(wrapped(), photos, "head", Recipe(steps=1, crop=400))
    write_image(tmp_path / "other.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ImageError, match="no LR image is called astronaut"):
        finetune.fit(wrapped(), photos, "head", QUICK, lr=tmp_path)
    with pytest.raises(ArgumentError, match="steps=0"):
        Recipe(steps=0)
    with pytest.raises(ArgumentError, match="rate=nan"):
        Recipe(rate=float("nan"))
    with pytest.raises(ArgumentError, match="pool=8: use 0, or at least the batch of 16"):
        Recipe(pool=8)
    with pytest.raises(ArgumentError, match="distill=2"):
        Options(distill=2)
    assert Options(distill=np.float32(0.5)).distill == 0.5
    with pytest.raises(ArgumentError, match="pixel_loss='l2'; use 'l1' or 'psnr'"):
        Options(pixel_loss="l2")


def test_the_stage_refine_leaves_what_the_base_uses_too():
    conv, act = (lambda a, b: nn.Conv2d(a, b, 3, padding=1)), nn.PReLU()
    body = nn.Sequential(*(nn.Sequential(conv(8, 8), act) for _ in range(4)))
    net = scaled(nn.Sequential(conv(3, 8), body, conv(8, 12), nn.PixelShuffle(2)))
    fast = maskguided.wrap(net, 2)
    stages.train_only(fast, "refine")
    trained = {name for name, parameter in fast.model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{conv}.{name}" for conv in ("1.2.0", "1.3.0", "2") for name in ("weight", "bias")}


@pytest.mark.parametrize("merge", ["features", "image"])
def test_the_stage_refine_trains_windows_where_keep_is_less_than_a_patch(merge):
    fast = maskguided.wrap(scaled(PAN(features=8, up_features=8, blocks=4)), 2, merge=merge, keep=0.05, patch_size=16)
    stages.train_only(fast, "refine")
    given = stages.prepare(fast.eval(), "refine", image(1, 3, 48, 48), image(1, 3, 192, 192), Options())
    with torch.enable_grad():
        value = stages.loss(fast, "refine", given, Options())
        value.backward()
    assert torch.isfinite(value)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in fast.split.model.SCPA_trunk[3].parameters())


def test_a_run_has_the_device_of_its_network_whatever_the_one_before_had(monkeypatch):
    state = pytest.importorskip("accelerate.state").PartialState
    assert _accelerator(torch.device("cpu"), "no", False).device.type == "cpu"
    monkeypatch.setattr(state, "default_device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert _accelerator(torch.device("cuda"), "no", False).device.type == "cuda"
    state._reset_state()


@pytest.mark.parametrize("stage", ["coarse", "refine"])
def test_a_run_that_is_stopped_leaves_what_was_there(photos, tmp_path, stage):
    fast = wrapped().train()
    network, before = fast.unwrap(), copy.deepcopy(fast.state_dict())

    def stop(step: int, steps: int, value: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.fit(fast, photos, stage, QUICK, checkpoint=tmp_path / "run", every=1, watch=stop)
    assert fast.model is network
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    assert all(module.training for module in fast.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert len(finetune.fit(fast, photos, stage, QUICK, checkpoint=tmp_path / "run")) == QUICK.steps - 1
