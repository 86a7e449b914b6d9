"""What may be set on a wrapped network, what may not, and what is said of a wrong argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import ResidualOutside

import maskguided
from maskguided import ArgumentError, ExportError, MaskGuidedWarning
from maskguided.adapters.pan_net import PAN
from maskguided.gain import GainEstimate


def pan(**settings):
    return maskguided.wrap(scaled(PAN(features=8, up_features=8, blocks=6)), **{"patch_size": 8, **settings}).eval()


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [("patch_size", 6, 8), ("halo", 2, 0), ("exchange", False, True), ("coarse_on", "unrefined", "all")],
)
def test_a_setting_that_is_changed_works_like_one_that_was_wrapped_with(name, value, other):
    settings = {"merge": "image", "coarse_tail": "deep", "keep": 0.4, "halo": 0, name: other}
    torch.manual_seed(1)
    wanted = pan(**{**settings, name: value})
    torch.manual_seed(1)
    found = pan(**settings)
    for fast in (wanted, found):  # a coarse tail that does something
        torch.nn.init.normal_(fast.coarse_tail.branch[-1].weight, std=0.1, generator=torch.Generator().manual_seed(2))
    x = image(1, 3, 26, 30)
    assert difference(found(x), wanted(x)) > 1e-4
    setattr(found, name, value)
    assert torch.equal(found(x), wanted(x))


def test_other_windows_end_what_was_estimated_for_these():
    fast = pan()
    fast.estimate = GainEstimate(fast.split.feature_channels)
    fast.min_gain_db = 0.1
    fast.patch_size = 6
    assert fast.min_gain_db is None
    with pytest.raises(ArgumentError, match="nothing estimates yet"):
        fast.min_gain_db = 0.1


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("keep", "0.5", "keep='0.5': it is the share of patches to refine; use 0 to 1"),
        ("keep", None, "keep=None: it is the share"),
        ("keep", float("nan"), "keep=nan: it is the share"),
        ("merge", "image", r"merge=.image.: this network was wrapped with merge=.features.*fast.unwrap"),
        ("merge", "x", "merge='x'; use one of 'features', 'image'"),
        ("patch_size", 7.5, "patch_size=7.5: use a whole number of LR pixels"),
        ("halo", -1, "halo=-1: use a whole number of LR pixels, 0 or more"),
        ("exchange", "yes", "exchange='yes'; use True or False"),
        ("global_ops", "none", "global_ops='none'; use one of"),
        ("coarse_on", "some", "coarse_on='some'; use one of"),
        ("onward", (0.5,), "this network has 0 of them"),
        ("patch_size", True, "patch_size=True: use a whole number"),
        ("min_gain_db", -1, "min_gain_db=-1: use 0 dB"),
        ("split_at", 4, r"split_at=4: that is decided when a network is wrapped; wrap\(fast.unwrap\(\), split_at=4\)"),
        ("context", "linear", "context='linear': that is decided when"),
        ("coarse_tail", "light", "coarse_tail='light': that is decided when"),
        ("head", 3, "head=3: that is decided when"),
        ("context", 5, "context=5: that is decided when"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_and_changes_nothing(name, value, text):
    fast = pan()
    before = getattr(fast, name)
    with pytest.raises(ArgumentError, match=text):
        setattr(fast, name, value)
    assert getattr(fast, name) == before


def test_numbers_of_other_libraries_will_do():
    fast = pan(split_at=np.int64(2), patch_size=np.int32(16), halo=torch.tensor(1))
    assert (fast.split_at, fast.patch_size, fast.halo) == ((2,), 16, 1)
    assert isinstance(fast.patch_size, int)
    assert pan(split_at=torch.tensor(3)).split_at == (3,)
    fast = pan(split_at=np.array([1, 2, 4]), onward=np.array([0.5, 0.25]))
    assert (fast.split_at, fast.onward) == ((1, 2, 4), (0.5, 0.25))
    fast.keep = nn.Parameter(torch.tensor(0.25), requires_grad=False)
    assert fast.keep == 0.25
    assert "keep" not in dict(fast.named_parameters())


def test_a_single_further_cut_takes_a_bare_share():
    fast = pan(split_at=(2, 4), onward=0.5)
    assert fast.onward == (0.5,)
    with pytest.raises(ArgumentError, match="onward='a': shares from 0 to 1"):
        fast.onward = ("a",)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kep": 0.2}, "wrap: 'kep' is not known; did you mean 'keep'"),
        ({"head": {"hiden": 4}}, "head: 'hiden' is not known; did you mean 'hidden'"),
        ({"head": 3}, "head=3; give the settings of the mask head in a dict"),
        ({"head": {"hidden": 2.5}}, "hidden=2.5; use a whole number"),
        ({"head": {"hidden": "a"}}, "hidden='a'; use a whole number"),
        ({"adapter": ["pan"]}, r"no adapter is called \['pan'\]; known: "),
        ({"merge": ""}, "merge=''; use one of"),
        ({"coarse_tail": 0}, "coarse_tail=0; use one of"),
    ],
)
def test_a_setting_that_is_none_is_named_with_the_nearest(settings, text):
    with pytest.raises(ArgumentError, match=text):
        pan(**settings)


def test_a_wrapped_network_is_not_wrapped_again(tmp_path):
    fast = pan()
    maskguided.save(fast, tmp_path / "pan.safetensors")
    for again in (maskguided.wrap, lambda network: maskguided.load(tmp_path / "pan.safetensors", network)):
        with pytest.raises(ArgumentError, match="wrapped already: set its keep"):
            again(fast)
    with pytest.raises(ArgumentError, match="0 of this Sequential is wrapped already"):
        maskguided.wrap(torch.nn.Sequential(fast))
    for look, network, text in (  # which would trace its forward
        (maskguided.split, fast, "wrapped already: set its keep"),
        (maskguided.split, torch.nn.Sequential(fast), "0 of this Seq"),
        (maskguided.inspect, torch.nn.Sequential(fast), "0 of this Seq"),
        (lambda network: maskguided.inspect(network, 1), fast, r"is cut already; inspect\(fast.unwrap\(\), \.\.\.\)"),
    ):
        with pytest.raises(ArgumentError, match=text):
            look(network)
    for what in (
        lambda network: maskguided.save(network, tmp_path / "x.safetensors"),
        lambda network: maskguided.calibrate(network, []),
        lambda network: maskguided.finetune.fit(network, tmp_path),
        lambda network: maskguided.export(network, tmp_path / "x.pt2", torch.zeros(1, 3, 16, 16)),
    ):
        with pytest.raises(ArgumentError, match="PAN is no wrapped network"):
            what(fast.unwrap())
    for again in (maskguided.wrap, lambda network: maskguided.load(tmp_path / "pan.safetensors", network)):
        with pytest.raises(ArgumentError, match=r"a torch\.nn\.Module is needed, not NoneType"):
            again(None)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ArgumentError, match="is a folder; name a file"):
        maskguided.save(fast, tmp_path / "folder.safetensors")


@pytest.mark.parametrize(
    ("x", "score", "text"),
    [
        (np.zeros((1, 3, 16, 16)), None, "input of type ndarray; a network takes a tensor"),
        (torch.zeros(0, 3, 16, 16), None, r"input of shape \(0, 3, 16, 16\)"),
        (torch.zeros(1, 3, 0, 5), None, "an image of 0x5 pixels"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), None, "input of torch.uint8; a network takes floats"),
        (torch.zeros(1, 3, 16, 16), np.zeros((1, 2, 2)), "score of type ndarray; expected a tensor"),
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 2, 2, dtype=torch.complex64), "ranked by real numbers"),
        (torch.zeros(0, 3, 16, 16), None, r"takes \(B, 3, H, W\) with B >= 1"),
    ],
)
def test_what_is_no_image_or_no_score_is_refused(x, score, text):
    with pytest.raises(ArgumentError, match=text):
        pan()(x, score)


@pytest.mark.parametrize("keep", [0, 0.5, 1])
def test_a_score_is_checked_where_it_decides_nothing_too(keep):
    with pytest.raises(ArgumentError, match=r"score of shape \(1, 1, 2\); expected \(1, 2, 2\)"):
        pan(keep=keep, patch_size=8).explain(torch.rand(1, 3, 16, 16), torch.rand(1, 1, 2))


def test_the_cost_of_an_image_without_pixels_is_refused():
    with pytest.raises(ArgumentError, match="an image of 0x5 pixels"):
        pan().cost(0, 5)


@pytest.mark.parametrize(("sides", "text"), [(("a", 3), r"cost\('a', 3\)"), ((3, 2.5), r"cost\(3, 2\.5\)")])
def test_the_cost_of_sides_that_are_no_whole_numbers_is_refused(sides, text):
    with pytest.raises(ArgumentError, match=f"{text}: use whole numbers of LR pixels"):
        pan().cost(*sides)


@pytest.mark.parametrize("tail", ["copy", "light"])
@pytest.mark.parametrize("coarse_on", ["all", "unrefined"])
@pytest.mark.parametrize("keep", [0, 0.4, 1])
def test_the_result_has_the_memory_format_of_the_input(tail, coarse_on, keep):
    fast, x = pan(merge="image", coarse_tail=tail, coarse_on=coarse_on, keep=keep), image(1, 3, 24, 32)
    plain = fast(x)
    assert plain.is_contiguous()
    found = fast.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert difference(found, plain) < 1e-5


def test_windows_alone_are_refused_where_the_coarse_tail_runs_on_windows():
    fast = pan(merge="image", coarse_on="unrefined")
    with pytest.raises(ArgumentError, match="use 'all'"):
        fast.exchange = False
    assert fast.exchange


def test_who_names_a_coarse_tail_gets_it():
    assert pan().merge == "features"
    assert pan(coarse_tail="light").merge == "image"
    assert pan(coarse_tail="light", merge="features").merge == "features"


@pytest.mark.parametrize("unused", [{"coarse_tail": "light"}, {"coarse_on": "unrefined"}])
@pytest.mark.parametrize("way", ["wrap", "load", "MaskGuided"])
def test_settings_of_a_tail_that_is_not_there_are_warned_of_where_they_are_given(way, unused, tmp_path):
    name, given = next(iter(unused)), {"merge": "features", **unused}
    with pytest.warns(MaskGuidedWarning):
        fast = maskguided.wrap(pan().unwrap(), 2, **given)
    maskguided.save(fast, tmp_path / "a.safetensors")
    again = {
        "wrap": lambda: maskguided.wrap(fast.unwrap(), 2, **given),
        "load": lambda: maskguided.load(tmp_path / "a.safetensors", fast.unwrap()),
        "MaskGuided": lambda: maskguided.MaskGuided(fast.split, **given),
    }
    with pytest.warns(MaskGuidedWarning, match=f"{name}='.*' with merge='features' has no effect") as said:
        again[way]()
    assert [warning.filename for warning in said] == [__file__], "not in ours, nor in torch's decorators"


class Reflecting(ResidualOutside):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 7, padding=3, padding_mode="reflect") for _ in range(4)])


@pytest.mark.parametrize("merge", ["features", "image"])
def test_windows_that_became_too_small_are_refused_at_the_forward(merge):
    fast, x = maskguided.wrap(scaled(Reflecting()), 2, merge=merge, exchange=False, halo=0).train(), image(1, 3, 33, 40)
    before = fast(x)
    fast.patch_size = 2
    with pytest.raises(ArgumentError, match=r"patch_size=2, halo=0: .* windows of 2x2 .* as patch_size=4") as refused:
        fast(x)
    assert type(refused.value.__cause__) is RuntimeError
    assert all(part.training for part in fast.modules())
    with pytest.raises(ArgumentError, match="as patch_size=4"):
        fast.cost(33, 40)
    fast.patch_size = 16
    assert torch.equal(fast(x), before)


class Pooling(ResidualOutside):
    """Its blocks cannot run on less than 36 pixels."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 5, padding=2, padding_mode="reflect")

        def forward(self, x):
            weight = self.conv(F.max_pool2d(x, 12, 12))
            return x * torch.sigmoid(F.interpolate(weight, x.shape[2:], mode="bilinear"))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(4))


def test_a_default_patch_is_one_on_which_the_blocks_run():
    net = scaled(Pooling())
    with pytest.raises(ArgumentError, match=r"windows of 20x20 .* as patch_size=32"):
        maskguided.wrap(net, 2, patch_size=16, exchange=False)
    fast = maskguided.wrap(net, 2, exchange=False)
    assert (fast.patch_size, fast.halo) == (32, 2)
    assert fast(image(1, 3, 50, 70)).shape == (1, 3, 100, 140)


def test_what_fails_for_another_reason_is_handed_on():
    fast, x = maskguided.wrap(scaled(Reflecting()), 2).eval(), image(1, 3, 33, 40)

    def fails(module, given):
        if len(given[0]) > 1:
            raise RuntimeError("no memory left")

    fast.model.blocks[3].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match=r"^no memory left$"):
        fast(x)


def test_what_has_no_values_is_counted_and_not_wrapped():
    fast = pan(merge="image")
    cost = fast.cost(24, 24)
    assert fast.to("meta").cost(24, 24) == cost
    with pytest.raises(ArgumentError, match="PAN is on the meta device"):
        maskguided.wrap(fast.unwrap())


def test_windows_beyond_the_memory_are_told_to_be_smaller():
    with pytest.raises(ArgumentError, match=r"patch_size=10000000, .* use smaller ones"):
        pan(patch_size=10_000_000)


class Padding(nn.Module):
    """A convolution, and in cells of 48 or 64 pixels, to which any map is padded, what a matrix makes of their mean."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.conv, self.mix = side, nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        rows, cols = (-(-length // self.side) for length in (height, width))
        wide = F.pad(x, (0, cols * self.side - width, 0, rows * self.side - height))
        cells = self.conv(wide).view(len(x), 8, rows, self.side, cols, self.side)
        means = self.mix(cells.mean((3, 5))).view(len(x), 8, rows, 1, cols, 1)
        return x + F.relu(cells + means).reshape(wide.shape)[:, :, :height, :width]


def test_windows_alone_are_larger_where_blocks_pad_small_ones_to_large_ones():
    blocks = (Padding(side) for side in (48, 64, 48, 64))
    network = scaled(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.Conv2d(8, 3, 3, padding=1)))
    fast = maskguided.wrap(network, keep=0.25)
    assert (fast.split.multiple_of, fast.exchange, fast.patch_size, fast.halo) == (1, False, 92, 2)
    assert fast.cost(240, 240).ratio < 0.8
    assert maskguided.wrap(network, patch_size=16, keep=0.25).cost(240, 240).ratio > 1.5
    assert maskguided.wrap(network, halo=3).patch_size == 16  # chosen by hand, they stay as they are said to be
    usual = maskguided.wrap(scaled(PAN(features=8, up_features=8, blocks=4)), exchange=False)
    assert (usual.patch_size, usual.halo) == (16, 2)


@pytest.mark.parametrize(
    "trace", [torch.jit.trace, lambda net, x: torch.onnx.export(net, (x,), "x.onnx", dynamo=False)]
)
@pytest.mark.filterwarnings("ignore")
def test_a_trace_that_would_lose_refined_patches_is_refused(trace):
    with pytest.raises(ExportError, match=r"torch\.jit cannot trace a wrapped network .* use maskguided\.export"):
        trace(pan(), image(1, 3, 24, 24))


def test_what_fails_on_windows_of_any_size_is_not_put_down_to_their_size():
    fast = pan()
    fast.unwrap().SCPA_trunk[4].half()
    with pytest.raises(ArgumentError, match=r"windows of 8x8 LR pixels \(.*\); nor on larger ones$"):
        fast(image(1, 3, 33, 40))


def test_a_refine_tail_is_decided_when_a_network_is_wrapped():
    fast = pan()
    with pytest.raises(ArgumentError, match="refine_tail='light': that is decided when a network is wrapped"):
        fast.refine_tail = "light"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_within_autocast_a_network_is_looked_at_as_it_is(dtype):
    with torch.autocast("cpu", dtype=dtype):
        fast = maskguided.wrap(scaled(ResidualOutside()), 2)
        assert torch.is_autocast_enabled("cpu")
    assert (fast.exchange, fast.halo) == (True, 0)


def test_another_network_is_wrapped_anew_and_a_tail_that_is_there_stays():
    fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4), merge="image")
    with pytest.raises(ArgumentError, match="model=PAN: the parts of this wrap are those of the network it was given"):
        fast.model = PAN(features=8, up_features=8, blocks=4)
    with pytest.raises(ArgumentError, match="coarse_tail=None: that is decided when a network is wrapped"):
        fast.coarse_tail = None
    assert fast.model is fast.unwrap()


@pytest.mark.parametrize(("collect", "taken"), [(list, "the last of a list"), (tuple, "the first of a tuple")])
def test_which_of_several_images_is_taken_is_said(collect, taken):
    class Two(ResidualOutside):
        def forward(self, x):
            y = super().forward(x)
            return collect([y, 2 * y])

    net, x = scaled(Two()), image(1, 3, 9, 11)
    with pytest.warns(MaskGuidedWarning, match=f"returns 2 images of one size, and .*{taken}"):
        fast = maskguided.wrap(net, keep=1)
    assert torch.equal(fast(x), net(x)[-1 if collect is list else 0])


def test_settings_of_the_head_may_be_numpys(tmp_path):
    network = PAN(features=8, up_features=8, blocks=4)
    fast = maskguided.wrap(network, head={"hidden": np.int64(8), "channels": np.int64(2), "dynamic": np.bool_(False)})
    maskguided.save(fast, tmp_path / "a.safetensors")
    assert maskguided.load(tmp_path / "a.safetensors", network).head.settings == {
        "hidden": 8, "channels": 2, "dynamic": False,
    }  # fmt: skip
