"""Training or evaluating: a network stays in the mode that it is in, and what is measured is measured in eval mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import image, scaled
from torch import nn
from torch.nn import functional as F

import maskguided
from maskguided import ArgumentError, finetune
from maskguided.adapters.pan_net import PAN
from maskguided.error_map import dense_image
from maskguided.finetune import Recipe
from maskguided.gain import fresh_estimate
from maskguided.infer import upscale
from maskguided.training import stages
from maskguided.training.choices import Options


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.norm(F.relu(self.conv(x)))


class ByLayers(nn.Module):
    """HAN's layer attention, with its `view`: of the order in memory it asks that it is that of the shape."""

    def __init__(self):
        super().__init__()
        self.first, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList(Block() for _ in range(4))
        self.last = nn.Sequential(nn.Conv2d(32, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        x, seen = self.first(x), []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        layers = torch.stack(seen, 1)
        rows = layers.view(len(x), 4, -1)
        weights = torch.softmax(rows @ rows.transpose(1, 2) / rows.shape[2], -1)
        return self.last((weights @ rows).view(len(x), -1, *x.shape[2:]))


@pytest.fixture
def net():
    body = nn.Sequential(*[Block() for _ in range(4)])
    return scaled(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), body, nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))
    )


def statistics(net):
    return [buffer.clone() for buffer in net.buffers()]


def modes(net):
    return [module.training for module in net.modules()]


def unchanged(net, before):
    return all(map(torch.equal, statistics(net), before))


@pytest.mark.parametrize("training", [True, False])
def test_a_wrap_is_in_the_mode_of_its_network(net, training, tmp_path):
    net.train(training)
    net[1][3].eval()  # one block frozen by its owner
    before = modes(net)
    fast = maskguided.wrap(net, 2, merge="image", coarse_tail="light")
    assert (fast.training, fast.head.training, modes(net)) == (training, training, before)
    fast.own_network()
    with torch.no_grad():
        fast.model[2].bias.add_(0.1)
    fast.estimate = fresh_estimate(8, image(1))
    maskguided.save(fast, tmp_path / "a.safetensors")
    again = maskguided.load(tmp_path / "a.safetensors", net)
    assert again.model is not net
    assert (again.training, modes(again.model), modes(net)) == (training, before, before)
    assert {*modes(again.head), *modes(again.coarse_tail), *modes(again.estimate)} == {training}


def test_what_looks_at_a_network_that_trains_leaves_its_statistics(net):
    net.train()
    before = statistics(net)
    maskguided.inspect(net)
    fast = maskguided.wrap(net, 2, merge="image", coarse_tail="light")
    maskguided.calibrate(fast, [image(1, 3, 32, 32)], max_cost=0.9)
    dense_image(fast, image(1, 3, 16, 16))
    assert unchanged(net, before)
    assert all(modes(net))
    assert fast.training


def test_the_stage_refine_leaves_the_given_network_s_statistics(net):
    net.train()
    before = statistics(net)
    fast = maskguided.wrap(net, 2)
    stages.train_only(fast, "refine")
    fast.eval()
    stages.prepare(fast, "refine", image(2, 3, 32, 32), image(2, 3, 64, 64), Options())
    assert unchanged(net, before)


def test_training_a_head_leaves_the_network_s_statistics(net, photos):
    net.train()
    before = statistics(net)
    fast = maskguided.wrap(net, 2, merge="image", coarse_tail="light")
    finetune.fit(fast, photos, "head", Recipe(steps=2, batch=2, crop=16, warmup=1))
    assert unchanged(net, before)
    assert not any(modes(fast))


def test_a_trained_copy_may_be_elsewhere_than_the_given_network(net):
    fast = maskguided.wrap(net, 2)
    fast.own_network()
    fast.double()
    found = maskguided.calibrate(fast, [image(1, 3, 32, 32).double()])
    assert found.chosen.keep == fast.keep
    with pytest.raises(ArgumentError, match="this one is a trained copy"):
        maskguided.calibrate(fast, [image(1, 3, 32, 32)], split_at="auto")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("adapter", ["pan", "automatic"])
def test_a_network_that_keeps_what_a_gradient_passed_through_can_be_trained_as_a_copy(adapter):
    net = scaled(PAN(features=8, up_features=8, blocks=4))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.utils.weight_norm(module)  # whose forward leaves its weight among the attributes
    fast, x = maskguided.wrap(net, 2, adapter=adapter), image(1, 3, 19, 23)
    with torch.enable_grad():
        before = fast(x)
        before.sum().backward()
    stages.train_only(fast, "refine")
    assert fast.model is not net
    assert fast.split.model is fast.model
    assert fast.unwrap() is net
    assert torch.equal(fast(x), before)
    with torch.no_grad():
        fast.model.conv_last.bias.add_(1)
    torch.testing.assert_close(fast(x), before + 1)
    assert not torch.equal(net.conv_last.bias, fast.model.conv_last.bias)


class Straight(torch.autograd.Function):
    """Rounds, and hands gradients straight on."""

    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class HeldBack(nn.Sequential):
    """Makes a gradient of its own, or none, outside its blocks."""

    own = False

    def forward(self, x):
        first = self[0](x)
        if self.own:
            return self[2](Straight.apply(self[1](first)))
        with torch.no_grad():
            gate = first.sigmoid()
        return self[2](self[1](first * gate))


@pytest.mark.parametrize("own", [True, False])
def test_a_network_whose_gradients_the_parts_do_not_have_is_not_trained(net, own):
    held = HeldBack(*net)
    held.own = own
    held[0].requires_grad_(False)
    fast = maskguided.wrap(held, 2, merge="image")
    stages.train_only(fast, "coarse")
    for stage in ("refine", "all"):
        with pytest.raises(ArgumentError, match=r"cannot be trained in its parts: .* differ by \d+%.*stage 'coarse'"):
            stages.train_only(fast, stage)
    assert [p.requires_grad for p in held[0].parameters()] == [False, False]
    stages.train_only(maskguided.wrap(net, 2, merge="image"), "all")


def test_a_network_that_does_not_run_channels_last_is_calibrated_used_and_trained_as_it_is(photos):
    net, x = scaled(ByLayers()), image(1, 3, 33, 40)
    with pytest.raises(RuntimeError, match="view"):
        net(x.contiguous(memory_format=torch.channels_last))
    fast = maskguided.wrap(net, keep=0.5, merge="image", coarse_tail="light").eval()
    assert fast.split.memory_format == torch.contiguous_format
    maskguided.calibrate(fast, [image(3, 32, 40)], max_cost=0.9)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)
    assert upscale(fast, pixels).image.shape == (96, 80, 3)
    for pool in (0, 4):
        losses = finetune.fit(fast, photos, "head", Recipe(steps=3, batch=2, crop=16, warmup=1, pool=pool))
        assert len(losses) == 3
    for dtype in (torch.float32, torch.bfloat16):  # of what it is when it is asked
        fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4)).to(dtype)
        assert fast.split.memory_format == torch.channels_last
