"""What a call promises to leave as it was, in the wrap, in the network and in the process."""

from __future__ import annotations

import copy
import math
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from support import image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Chain, conv
from training_runs import QUICK, wrapped

import maskguided
from maskguided import ArgumentError, bench, calibrate, checkpoint, finetune, infer
from maskguided.adapters.pan_net import PAN
from maskguided.calibration.prices import Macs
from maskguided.finetune import Recipe
from maskguided.imaging.pairs import Pair
from maskguided.probing.untouched import untouched
from maskguided.timing import alternate
from maskguided.training.validation import Validation


def test_a_stage_that_is_stopped_after_another_leaves_what_that_one_trained(folders):
    fast, (hr, lr), x = wrapped(), folders, image(1, 3, 24, 24)
    finetune.fit(fast, hr, "refine", QUICK, lr=lr)
    before = copy.deepcopy(fast.state_dict())

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.fit(fast, hr, "refine", QUICK, lr=lr, watch=stop)
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    assert fast(x).isfinite().all()


def test_a_finished_run_is_found_again_whose_wrap_has_its_scorer_since(folders, tmp_path):
    (hr, lr), fast = folders, wrapped()
    recipe = Recipe(steps=np.int64(2), batch=2, crop=16, warmup=1, rate=np.float64(1e-3))
    assert len(finetune.fit(fast, hr, "head", recipe, lr=lr, checkpoint=tmp_path / "c.pt")) == 2
    assert fast.scorer == "head"
    assert finetune.fit(fast, hr, "head", recipe, lr=lr, checkpoint=tmp_path / "c.pt") == []


def test_seeds_that_numpy_does_not_take_are_refused():
    with pytest.raises(ArgumentError, match="seed=4294967296: use 0 to 4294967295"):
        Recipe(seed=2**32)


def test_an_accelerator_of_the_users_stays_what_it_is(folders):
    accelerate, (hr, lr) = pytest.importorskip("accelerate"), folders
    state = pytest.importorskip("accelerate.state").AcceleratorState
    state._reset_state(reset_partial_state=True)
    try:
        mine = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        finetune.fit(wrapped(), hr, "head", QUICK, lr=lr)
        assert mine.mixed_precision == "bf16"
    finally:
        state._reset_state(reset_partial_state=True)


def test_a_process_that_has_no_image_to_measure_on_adds_numbers_of_one_kind(folders):
    hr, lr = folders
    fast = wrapped()
    shown = Validation(hr, lr).begin(fast)
    none, one = (shown.dense(fast, part) for part in (slice(3, None), slice(0, 3)))
    assert none.dtype == one.dtype == torch.float32
    assert none.tolist() == [0, 0]


class Keeps(Chain):
    """Blocks that keep a map by the size they ran at, as Swin keeps its masks."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.kept = conv(8, 8), {}

        def forward(self, x):
            size = tuple(x.shape[2:])
            if size not in self.kept:
                self.kept[size] = torch.full((1, 1, *size), 1.01)
            return x + self.conv(F.relu(x * self.kept[size]))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(6))


def test_what_a_network_keeps_of_timing_and_tiles_can_be_trained_with():
    net = scaled(Keeps())
    fast = maskguided.wrap(net, 1, merge="image", coarse_tail="light", keep=0.5)
    alternate({"ours": fast, "dense": net}, [image(1, 3, 32, 32)], 1)
    infer.upscale(fast, np.zeros((40, 32, 3), np.uint8), tile=32)
    bench.measure(net, [Pair("a", image(1, 3, 24, 24), None)], [bench.Setting("features", 2, None, None)], 1)
    kept = [value for block in net.blocks for value in block.kept.values()]
    assert kept
    assert not any(value.is_inference() for value in kept)


def test_another_thread_finds_the_weights_while_a_network_is_looked_at():
    net, x, wrong, stop = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(30))), torch.rand(1, 4, 2, 2), [], []

    def forwards() -> None:
        while not stop:
            try:
                net(x)
            except Exception as error:
                wrong.append(error)

    switch = sys.getswitchinterval()
    thread = threading.Thread(target=forwards)
    try:
        sys.setswitchinterval(1e-6)
        thread.start()
        for _ in range(400):
            with untouched(net):
                pass
    finally:
        stop.append(True)
        thread.join()
        sys.setswitchinterval(switch)
    assert wrong == []


@pytest.mark.parametrize(("training", "given"), [(False, {}), (True, {"split_at": "auto"})])
def test_what_calibrate_adds_is_in_the_mode_of_the_wrap(training, given):
    fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4).train(training), 2)
    calibrate(fast, [image(1, 3, 32, 32)[0], image(1, 3, 32, 32, seed=1)[0]], max_cost=1.0, **given)
    assert {part.training for part in fast.modules()} == {training}
    assert {name for name, _ in fast.named_children()} > {"model", "head", "linear"}


def test_all_patches_with_a_light_refine_tail_cost_what_they_cost():
    fast = maskguided.wrap(
        PAN(features=8, up_features=8, blocks=4), 2, merge="image", coarse_tail="light", refine_tail="light"
    )
    x = image(1, 3, 32, 40)
    prices = Macs(fast, [x], {})
    counted = fast.macs_at(32, 40, keep=1.0) / fast.dense_macs(32, 40)
    assert counted < 0.95
    assert math.isclose(prices.at(1.0), counted)


def test_one_image_that_comes_out_the_same_does_not_hide_the_others():
    net = scaled(Chain())
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.zero_()  # black stays black
    noise, black = Pair("noise", image(1, 3, 16, 16), None), Pair("black", torch.zeros(1, 3, 16, 16), None)
    setting = [bench.Setting("features", 2, None, None, keeps=(0.0,))]
    (alone, *_), (both, *_) = (bench.measure(net, pairs, setting, 1) for pairs in ([noise], [noise, black]))
    assert alone.fidelity is not None
    assert both.fidelity == alone.fidelity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_refine_as_many_patches_of_a_dull_image_as_asked(dtype):
    dull = np.random.default_rng(0).normal(128, 2, (128, 128, 3)).round().astype(np.uint8)
    fast = maskguided.starter(scorer="input", keep=0.2).eval().to(dtype)
    assert abs(float(infer.upscale(fast, dull, tile=64).mask.mean()) - 0.2) < 0.02


class Noted(nn.Conv2d):
    """Has a state that is no tensor."""

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}


def test_a_trained_network_with_a_state_of_its_own_is_loaded(tmp_path):
    net = scaled(Chain())
    net.first = Noted(3, 8, 3, padding=1)
    fast = maskguided.wrap(net, 2)
    fast.own_network()
    with torch.no_grad():
        fast.model.blocks[4].conv1.weight.add_(1)
    checkpoint.save(fast, tmp_path / "a.safetensors")
    again = checkpoint.load(tmp_path / "a.safetensors", net)
    assert torch.equal(again.model.blocks[4].conv1.weight, fast.model.blocks[4].conv1.weight)


def test_numbers_of_numpy_and_numbers_too_large():
    fast = maskguided.wrap(scaled(Chain()), 2, patch_size=np.int64(3), exchange=False)
    assert fast.patch_size == 3
    with pytest.raises(ArgumentError, match="keep"):
        fast.keep = 10**400


def test_a_file_with_weights_of_the_network_says_so_on_one_that_was_fine_tuned_since(folders, tmp_path):
    fast, (hr, lr), path = wrapped(), folders, tmp_path / "refine.safetensors"
    finetune.fit(fast, hr, "refine", QUICK, lr=lr)
    maskguided.save(fast, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maskguided.load(path, fast.given)
    since = copy.deepcopy(fast.given)
    with torch.no_grad():
        for parameter in since.parameters():
            parameter.mul_(1.1)
    with pytest.warns(UserWarning, match=r"with other weights; the network's \S+ to \S+, .* train again on this one$"):
        maskguided.load(path, since)


def test_a_coarse_tail_that_is_not_there_is_said_to_run_nowhere_whenever_it_is_set():
    fast = maskguided.wrap(scaled(Chain()), 2, merge="features")
    with pytest.warns(UserWarning, match="coarse_on='unrefined' with merge='features' has no effect"):
        fast.coarse_on = "unrefined"
    with pytest.warns(UserWarning, match="has no effect") as said:
        maskguided.wrap(scaled(Chain()), 2, merge="features", coarse_on="unrefined")
    assert len(said) == 1


@pytest.mark.parametrize(
    ("wrong", "meant"), [("split", "split_at"), ("adaptor", "adapter"), ("bodyy", "body"), ("kep", "keep")]
)
def test_a_misspelt_argument_of_wrap_is_named(wrong, meant):
    with pytest.raises(ArgumentError, match=rf"'{wrong}' is not known; did you mean '{meant}'\? Known: split_at, adap"):
        maskguided.wrap(Chain(), **{wrong: 1})
