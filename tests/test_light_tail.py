"""A light tail for refined patches: the laws of a split, with another last upsampling step."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from PIL import Image
from support import NETWORKS as EVERY
from support import PHOTO, by_windows, difference, image, need_basicsr, run, scaled
from torch import nn
from torch.nn import functional as F
from toys import Block, Chain, blurred, conv

import maskguided
from maskguided import ArgumentError, CheckpointError, MaskGuided
from maskguided.adapters.edsr_net import EDSR
from maskguided.adapters.pan_net import PAN
from maskguided.training.choices import Options
from maskguided.training.stages import loss, prepare, train_only


def basicsr(kind: str, scale: int) -> nn.Module:
    module = need_basicsr(f"basicsr.archs.{kind.lower()}_arch")
    more = {"num_group": 3, "num_block": 1, "squeeze_factor": 2} if kind == "RCAN" else {"num_block": 4}
    net: nn.Module = getattr(module, kind)(3, 3, num_feat=8, upscale=scale, img_range=1.0, **more)
    return net


NETWORKS = {
    "pan x4": (lambda: PAN(features=8, up_features=6, blocks=4), 2, 6),
    "pan x3": (lambda: PAN(features=8, up_features=6, blocks=4, scale=3), 1, 8),
    "edsr x4": (lambda: EDSR(features=8, blocks=4), 2, 8),
    "edsr x2": (lambda: EDSR(features=8, blocks=4, scale=2), 1, 8),
    "edsr x4, light already": (lambda: EDSR(features=8, blocks=4, light_tail=True), 1, 8),
    "basicsr's EDSR x4": (lambda: basicsr("EDSR", 4), 2, 8),
    "basicsr's EDSR x3": (lambda: basicsr("EDSR", 3), 1, 8),
    "basicsr's RCAN x4": (lambda: basicsr("RCAN", 4), 2, 8),
}
"""Each with the resolution of the map that its last upsampling step takes, and the channels."""


def wrapped(name: str = "pan x4", **changes: object) -> MaskGuided:
    net = scaled(NETWORKS[name][0]())
    settings = {"refine_tail": "light", "coarse_tail": "light", "patch_size": 6, "keep": 0.4, **changes}
    fast = maskguided.wrap(net, 2 if "RCAN" not in name else 1, **settings)
    for part in (fast.coarse_tail, fast.refine_tail):
        if part is not None:
            scaled(part, seed=1)
    return fast.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_stops_before_the_last_upsampling_step(name):
    """What it looks at is the network's own: its last layers make the network's image of it."""
    fast, x = wrapped(name), image(1, 3, 12, 18)
    _, factor, channels = NETWORKS[name]
    seen: list[torch.Tensor] = []
    last = [m for m in fast.model.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda m, args, out: seen.extend((args[0], out))) for m in last]
    fast.model(x)
    for hook in hooks:
        hook.remove()
    halfway = fast.split.looks_at(fast.split.prefix(x))
    assert halfway.shape == (1, channels, 12 * factor, 18 * factor)
    made = [*seen, *(F.leaky_relu(t, 0.2) for t in seen)]
    assert any(t.shape == halfway.shape and torch.equal(t, halfway) for t in made) or _is_a_sum(halfway, seen)


def _is_a_sum(x: torch.Tensor, seen: list[torch.Tensor]) -> bool:
    """Whether `x` is one of the maps seen plus another, or one of them before or after PixelShuffle."""
    same = [t for t in seen if t.shape == x.shape]
    shuffled = (F.pixel_shuffle(t, 2) for t in seen if t.shape[1] % 4 == 0)
    return any(torch.equal(a + b, x) for a, b in itertools.combinations(same, 2)) or any(
        t.shape == x.shape and torch.equal(t, x) for t in shuffled
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_all_refined_is_body_and_light_tail_on_the_whole_map(name):
    fast, x = wrapped(name, keep=1), image(2, 3, 20, 27)
    whole = fast.split.rest(fast.split.prefix(x))
    assert whole.shape == (2, 3, 20 * fast.scale, 27 * fast.scale)
    assert difference(by_windows(fast, x), whole) < 1e-5
    assert difference(by_windows(fast, x), fast.unwrap()(x)) > 1e-2  # it is another tail


@pytest.mark.parametrize("name", ["msrresnet", "rrdbnet", "rrdbnet-x2", "pan-small-x3", "edsr-original"])
def test_so_it_is_for_networks_that_are_split_automatically(name):
    net, x = scaled(EVERY[name]()), image(1, 3, 20, 24)
    fast = maskguided.wrap(net, adapter="automatic", refine_tail="light", coarse_tail="light", keep=1).eval()
    scaled(fast.refine_tail, seed=1)
    assert difference(by_windows(fast, x), fast.split.rest(fast.split.prefix(x))) < 1e-5
    expected = {"rrdbnet": (2, 64), "msrresnet": (2, 64), "rrdbnet-x2": (1, 64), "pan-small-x3": (1, 8)}
    factor, channels = expected.get(name, (1, 16))
    assert fast.split.looks_at(fast.split.prefix(x)).shape == (1, channels, 20 * factor, 24 * factor)


class BlurringTail(Chain):
    """Before its last step, something that windows cannot see their neighbours in."""

    def finish(self, x):
        return super().finish(blurred(x))


class Gated(Chain):
    """Behind its last step, a gate that comes back from a smaller map."""

    def finish(self, x):
        x = super().finish(x)
        return x * F.interpolate(F.avg_pool2d(x, 4), scale_factor=4.0).sigmoid()


def test_a_side_branch_that_comes_back_is_no_upsampling_step():
    parts, x = maskguided.split(scaled(Gated())), image(1, 3, 16, 24)
    state = parts.body(parts.prefix(x))
    assert torch.equal(parts.halfway(state), nn.Sequential(*parts.model.blocks)(parts.model.first(x)))


def test_a_tail_of_zeros_hides_nothing_of_what_windows_cannot_do():
    fast = maskguided.wrap(scaled(BlurringTail()), 2, refine_tail="light")
    assert (fast.split.exchanges("features"), fast.split.exchanges("image")) == (True, False)
    assert not fast.exchange


def test_automatic_split_and_adapter_look_at_the_same():
    net, x = scaled(PAN(features=8, up_features=6, blocks=4)), image(1, 3, 12, 18)
    ways = [maskguided.wrap(net, 2, adapter=name, refine_tail="light").split for name in ("pan", "automatic")]
    assert torch.equal(*(parts.looks_at(parts.prefix(x)) for parts in ways))


def test_refined_patches_are_those_of_the_light_tail_and_the_others_coarse():
    """With a halo as wide as the network looks, each alone."""
    fast, x = wrapped(patch_size=8, halo=24, exchange=False), image(1, 3, 24, 32)
    assert fast.split.facts.radius <= 24
    whole, coarse = fast.split.rest(fast.split.prefix(x)), fast.coarse_image(fast.run_base(x))
    found, index = fast.restore(x)
    assert 0 < index.shape[1] < 12
    for number in range(12):
        row, col = (32 * n for n in divmod(number, 4))
        expected = whole if number in index else coarse
        there = (..., slice(row, row + 32), slice(col, col + 32))
        assert difference(found[there], expected[there]) < 1e-5


def test_the_dense_network_stays_what_it_was():
    net, x = scaled(PAN(features=8, up_features=6, blocks=4)).eval(), image(1, 3, 12, 12)
    before, weights = net(x), copy.deepcopy(net.state_dict())
    fast = maskguided.wrap(net, 2, refine_tail="light")
    assert fast.merge == "image"
    assert torch.equal(fast.unwrap()(x), before)
    assert net.state_dict().keys() == weights.keys()


def test_it_costs_less_by_what_the_last_step_does():
    x4 = {tail: wrapped(refine_tail=tail, keep=1).cost(24, 24) for tail in ("own", "light")}
    last = 16 * 24 * 24 * (2 * 9 * 6 * 6 + 6 * 6 + 9 * 6 * 3)  # upconv2, HRconv2, att2, conv_last
    light = 4 * 24 * 24 * 9 * 6 * 12 + 24 * 24 * 9 * 3 * 16  # and the bilinear input
    assert x4["own"].guided - x4["light"].guided == last - light
    assert x4["own"].dense == x4["light"].dense
    assert x4["own"].coarse == x4["light"].coarse


@pytest.mark.parametrize("name", ["pan x4", "edsr x4", "basicsr's RCAN x4"])
def test_calibrate_fits_it_to_the_dense_network(name):
    """Where the dense network's own image is linear in what the light tail sees, it is found exactly."""
    fast = wrapped(name, keep=0.5)
    with torch.no_grad():
        kernel = torch.randn(fast.refine_tail.conv.weight.shape, generator=torch.Generator().manual_seed(2)) * 0.1

    def dense(x):
        seen = fast.split.looks_at(fast.split.prefix(x))
        bilinear = F.interpolate(x, scale_factor=float(fast.scale), mode="bilinear")
        return bilinear + F.pixel_shuffle(F.conv2d(seen, kernel, padding=1), fast.refine_tail.factor)

    fast._given = (_As(dense, fast.unwrap()),)  # the target
    maskguided.calibrate(fast, [image(3, 30, 36, seed=n) for n in range(4)], max_cost=0.9)
    assert difference(fast.refine_tail.conv.weight, kernel) < 1e-2


class _As(nn.Module):
    """A network that makes what a function says."""

    def __init__(self, made, net):
        super().__init__()
        self.made, self.like = made, nn.Parameter(next(net.parameters()).detach().clone())

    def forward(self, x):
        return self.made(x)


def test_calibrated_it_is_nearer_to_the_dense_network_than_bilinear():
    fast = maskguided.wrap(
        scaled(PAN(features=8, up_features=6, blocks=4)), 2, refine_tail="light", coarse_tail="light"
    )
    photos = [image(3, 40, 40, seed=n) for n in range(4)]
    fast.eval().keep = 1
    before = [difference(fast(x[None]), fast.unwrap()(x[None])) for x in photos]
    maskguided.calibrate(fast, photos)
    fast.keep = 1
    after = [difference(fast(x[None]), fast.unwrap()(x[None])) for x in photos]
    assert max(after) < 0.7 * max(before)


@torch.enable_grad()
@pytest.mark.parametrize("adapter", ["pan", "automatic"])
def test_stage_refine_trains_it_with_what_it_looks_through(adapter):
    fast = wrapped(keep=1, adapter=adapter)
    crops = image(2, 3, 18, 18), image(2, 3, 72, 72)
    trained = train_only(fast, "refine")
    assert (fast.refine_tail is fast.split.light, fast.model is fast.split.parts.model) == (True, True)
    names = {name for name, p in fast.named_parameters() if any(p is t for t in trained)}
    assert {"refine_tail.conv.weight", "model.upconv1.weight", "model.SCPA_trunk.3.conv3.weight"} <= names
    assert not {n for n in names if "upconv2" in n or "conv_last" in n or "SCPA_trunk.0" in n}
    given = prepare(fast, "refine", *crops, Options(distill=1))
    optimizer, losses = torch.optim.Adam(trained, 3e-3), []
    for _ in range(30):
        value = loss(fast, "refine", given, Options(distill=1))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]


@torch.enable_grad()
@pytest.mark.parametrize("stage", ["joint", "all", "end"])
def test_other_stages_that_train_the_network_train_it_too(stage):
    fast = wrapped(keep=0.5)
    trained = train_only(fast, stage)
    assert any(p is fast.refine_tail.conv.weight for p in trained)
    given = prepare(fast, stage, image(1, 3, 12, 12), image(1, 3, 48, 48), Options(distill=1))
    loss(fast, stage, given, Options(distill=1)).backward()
    assert float(fast.refine_tail.conv.weight.grad.abs().sum()) > 0


def test_it_is_saved_and_loaded(tmp_path):
    fast, x = wrapped(), image(1, 3, 20, 20)
    train_only(fast, "refine")  # a copy of the network from now on
    with torch.no_grad():
        fast.model.upconv1.weight.mul_(1.1)
    maskguided.save(fast, tmp_path / "a.safetensors")
    again = maskguided.load(tmp_path / "a.safetensors", fast.unwrap()).eval()
    assert torch.equal(again(x), fast(x))
    assert again.refine_tail is again.split.light
    own = maskguided.wrap(fast.unwrap(), 2, coarse_tail="light", patch_size=6)
    with pytest.raises(CheckpointError, match="refine_tail=light; this network has refine_tail=own"):
        maskguided.checkpoint.load_onto(tmp_path / "a.safetensors", own)


def test_a_copy_has_its_own():
    fast, x = wrapped(), image(1, 3, 20, 20)
    other, before = copy.deepcopy(fast), fast(x)
    with torch.no_grad():
        other.refine_tail.conv.weight.zero_()
    assert torch.equal(fast(x), before)
    assert difference(other(x), before) > 1e-2


def test_what_cannot_have_it_is_refused_with_what_would():
    net = scaled(PAN(features=8, up_features=6, blocks=4))
    with pytest.raises(ArgumentError, match="merge='image'"):
        maskguided.wrap(net, 2, refine_tail="light", merge="features")
    with pytest.raises(ArgumentError, match="one of 'own', 'light'"):
        maskguided.wrap(net, 2, refine_tail="heavy")
    with pytest.raises(ArgumentError, match="adapter 'edsr' has no `halfway`"):
        maskguided.wrap(scaled(EDSR(features=8, blocks=4, scale=1)), 2, adapter="edsr", refine_tail="light")
    with pytest.raises(ArgumentError, match="no step of its tail enlarges a map"):
        maskguided.wrap(scaled(Denoiser()), 2, adapter="automatic", refine_tail="light")


class Denoiser(nn.Module):
    """Same size out as in."""

    def __init__(self):
        super().__init__()
        self.head, self.tail = conv(3, 8), conv(8, 3)
        self.body = nn.Sequential(*(Block(8) for _ in range(4)))

    def forward(self, x):
        return self.tail(self.body(self.head(x))) + x


def test_the_commands_take_it(tmp_path):
    torch.save(scaled(PAN(features=8, up_features=6, blocks=4)).state_dict(), tmp_path / "pan.pth")
    (tmp_path / "photos").mkdir()
    Image.fromarray(PHOTO).save(tmp_path / "photos" / "a.png")
    given = ("-i", tmp_path / "photos", "-w", tmp_path / "pan.pth", "--split-at", 2, "--coarse-tail", "light")
    run("calibrate", *given, "--refine-tail", "light", "-o", tmp_path / "head.safetensors")
    told = run("inspect", "-w", tmp_path / "pan.pth", "--head", tmp_path / "head.safetensors").output
    assert "coarse tail light, refine tail light" in " ".join(told.split())
    said = run("upscale", "-i", tmp_path / "photos", "-o", tmp_path / "x", "--refine-tail", "light", code=1).exception
    assert "parts trained for its own" in str(said)


@pytest.mark.parametrize("changes", [{"refine_tail": "own"}, {"coarse_tail": "copy"}, {}])
def test_under_autocast_the_image_beside_what_is_learned_is_not_rounded(changes):
    """As in the network, whose bilinear input no convolution makes."""
    fast, x = wrapped("pan x4", **changes), image(1, 3, 20, 27)
    for part in fast.coarse_tail, fast.refine_tail:
        if isinstance(part, nn.Module) and hasattr(part, "bilinear"):
            for parameter in part.parameters():
                nn.init.zeros_(parameter)  # then it is bilinear
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        images = [fast(x, score=None) for fast.keep in (0, 0.4, 1)]
    assert {made.dtype for made in images} == {torch.float32}
    bilinear = F.interpolate(x, scale_factor=4, mode="bilinear")
    if fast.coarse_tail_kind == "light":
        assert difference(images[0], bilinear) < 1e-5
    if fast.refine_tail is not None:
        assert difference(images[2], bilinear) < 1e-5
