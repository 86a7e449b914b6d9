"""A network from its weight file alone: by the adapters, by spandrel, and what is said where neither knows it."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage import data
from support import OriginalEDSR, difference, image, need_basicsr, need_shared, need_spandrel, run, scaled
from torch import nn

import maskguided
from maskguided import (
    Adapter,
    ArgumentError,
    CheckpointError,
    MissingDependency,
    adapter,
    bench,
    cli,
    networks,
)
from maskguided.adapters.edsr_net import EDSR
from maskguided.adapters.pan_net import PAN
from maskguided.commands import options
from maskguided.imaging.images import read_image, write_image
from maskguided.imaging.pairs import read_pairs
from maskguided.networks import load_network
from maskguided.weights import load_into

PHOTO = data.astronaut()[:72:2, 60:148:2]  # 36 x 44


def from_spandrel(module: str, **settings: object) -> nn.Module:
    return getattr(need_spandrel(f"spandrel.architectures.{module}"), module)(**settings)


def from_basicsr(name: str, **settings: object) -> nn.Module:
    module = need_basicsr(f"basicsr.archs.{name.lower()}_arch")
    return getattr(module, name)(num_in_ch=3, num_out_ch=3, num_feat=16, **settings)


def original_edsr() -> nn.Module:
    model = OriginalEDSR()
    for block in model.body[:-1]:
        block.res_scale = 1.0  # not among the weights
    return model


def compact() -> nn.Module:
    return from_spandrel("Compact", num_feat=16, num_conv=4, upscale=2)


# name: network, architecture, scale, supports_half, tiling
KNOWN = {
    "pan": (lambda: PAN(features=8, up_features=8, blocks=4), "pan", 4, True, None),
    "edsr": (lambda: from_basicsr("EDSR", num_block=4, upscale=4), "edsr", 4, True, None),
    "edsr-x3": (lambda: from_basicsr("EDSR", num_block=3, upscale=3), "edsr", 3, True, None),
    "rcan": (
        lambda: from_basicsr("RCAN", num_group=3, num_block=2, squeeze_factor=4, upscale=2),
        "rcan", 2, False, None,
    ),
    "edsr-original-light": (original_edsr, "edsr", 2, True, None),
    "edsr-original": (lambda: EDSR(features=8, blocks=3, scale=4, value_range=1), "edsr", 4, True, None),
    "compact": (compact, "RealESRGAN Compact", 2, True, "supported"),
    "esrgan": (lambda: from_spandrel("ESRGAN", num_filters=8, num_blocks=3), "ESRGAN", 4, True, "supported"),
    "span": (
        lambda: from_spandrel("SPAN", num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
        "SPAN", 2, True, "supported",
    ),
    "rcan-spandrel": (
        lambda: from_spandrel("RCAN", scale=2, n_resgroups=3, n_resblocks=2, n_feats=16),
        "RCAN", 2, False, "supported",
    ),
}  # fmt: skip


def saved(model: nn.Module, path, how: str = "pth") -> str:
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    if how == "safetensors":
        save_file(weights, path.with_suffix(".safetensors"))
        return str(path.with_suffix(".safetensors"))
    other = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save(weights if how == "pth" else {"params": other, "params_ema": weights}, path)
    return str(path)


@pytest.mark.parametrize("how", ["pth", "params_ema", "safetensors"])
@pytest.mark.parametrize("name", KNOWN)
def test_the_very_network_comes_back_with_its_facts(name, how, tmp_path):
    make, architecture, scale, half, tiling = KNOWN[name]
    model = scaled(make(), gain=0.6)
    path = saved(model, tmp_path / "net.pth", how)
    loaded = load_network(path)
    assert (loaded.architecture, loaded.by) == (architecture, "spandrel" if tiling else "adapter")
    assert not any(module.training for module in loaded.model.modules())
    fast = maskguided.from_file(path, 2, keep=0.25, patch_size=8).eval()
    x = image(1, 3, 21, 30)
    assert torch.equal(fast.unwrap()(x.clone()), model(x.clone()))
    facts = fast.split.facts
    assert (facts.scale, facts.in_channels, facts.supports_half, facts.tiling) == (scale, 3, half, tiling)
    assert fast.split.split_at == 2
    quarter = fast(x)
    assert quarter.shape == (1, 3, 21 * scale, 30 * scale)
    fast.keep = 0
    assert difference(fast(x), quarter) > 0


def test_an_original_edsr_of_the_range_255_takes_images_in_0_to_1(tmp_path):
    model = original_edsr()
    scaled(model, gain=0.6)
    for mean, sign in ((model.sub_mean, -1), (model.add_mean, 1)):
        mean.weight.copy_(torch.eye(3)[..., None, None])
        mean.bias.copy_(sign * 255 * torch.tensor([0.4488, 0.4371, 0.4040]))
    found = load_network(saved(model, tmp_path / "net.pth")).model
    x = image(1, 3, 9, 11)
    assert difference(found(x), model(255 * x) / 255) < 1e-5


def test_the_published_large_edsr_has_its_res_scale(tmp_path):
    model = from_basicsr("EDSR", num_block=2, upscale=2)
    assert load_network(saved(model, tmp_path / "small.pth")).model.body[0].res_scale == 1
    large = EDSR(features=256, blocks=2, scale=2, res_scale=0.1)
    assert load_network(saved(large, tmp_path / "large.pth")).model.body[1].res_scale == 0.1


@pytest.mark.parametrize(
    ("kind", "larger", "deeper", "expected"),
    [
        ("edsr", 1, 1, (1.0, 0.0, 1.0)),
        ("edsr", 255, 1, (255.0, 0.0, 1.0)),
        ("edsr", 1, 10, (1.0, 0.0, 0.1)),
        ("rcan", 1, 1, (255.0, 0.0, 1.0)),
    ],
)
def test_what_a_network_of_basicsr_was_trained_with_is_found(kind, larger, deeper, expected, tmp_path):
    """No file holds it; with the default range an EDSR that was trained in 0..1 loses decibels and says nothing."""
    need_basicsr(f"basicsr.archs.{kind}_arch")
    weights = load_file(Path(__file__).parents[1] / "benchmarks" / "weights" / f"{kind}.safetensors")
    # EDSR is homogeneous but for its biases: these alone are what it is in a larger range.
    found = {name: w.float() * (larger if name.endswith("bias") else 1) for name, w in weights.items()}
    found.update({name: w * deeper for name, w in found.items() if "conv2" in name})
    torch.save(found, tmp_path / "net.pth")
    model = load_network(tmp_path / "net.pth").model
    res_scales = {part.res_scale for part in model.modules() if hasattr(part, "res_scale")}
    assert (model.img_range, float(model.mean.abs().max()), *res_scales) == expected
    lr = torch.from_numpy(PHOTO / 255).permute(2, 0, 1)[None].float()
    small = nn.functional.adaptive_avg_pool2d(model(lr), lr.shape[2:])
    assert float((small - lr).square().mean()) < 10**-3


def test_what_a_network_is_run_with_that_is_not_trained_is_the_default(tmp_path):
    model = from_basicsr("EDSR", num_block=2, upscale=2)
    scaled(model, gain=0.6)
    found = load_network(saved(model, tmp_path / "net.pth")).model
    assert (found.img_range, found.body[0].res_scale) == (255, 1)
    assert torch.equal(found.mean, model.mean)


def test_a_network_that_spandrel_calls_in_its_own_way(tmp_path):
    """FBCNN returns the image and an estimate of the JPEG quality."""
    model = from_spandrel("FBCNN", nc=[8, 8, 8, 512], nb=2).eval()
    loaded = load_network(saved(model, tmp_path / "net.pth"))
    x = image(1, 3, 16, 24)
    assert (loaded.scale, loaded.model.training) == (1, False)
    assert torch.equal(loaded.model(x), model(x)[0])


def test_the_anime_video_weights_are_recognised():
    need_spandrel()
    loaded = load_network(need_shared() / "weights" / "realesr-animevideov3.pth")
    assert str(loaded) == "RealESRGAN Compact (spandrel), x4, float16 works, tiles: supported"
    fast = maskguided.from_file(need_shared() / "weights" / "realesr-animevideov3.pth", keep=0.5)
    assert (fast.scale, len(fast.split.blocks)) == (4, 16)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_official_pan_needs_a_scale_only_where_its_weights_do_not_tell_it(scale):
    path = need_shared() / "weights" / f"PANx{scale}_DF2K.pth"
    if scale == 4:
        assert maskguided.from_file(path).scale == 4
    else:
        with pytest.raises(ArgumentError, match="give scale=2 or scale=3"):
            maskguided.from_file(path)
    assert maskguided.from_file(path, scale=scale).scale == scale
    with pytest.raises(ArgumentError, match="not x5"):
        maskguided.from_file(path, scale=5)


def test_a_scale_that_is_not_the_networks_is_refused(tmp_path):
    for model in (EDSR(features=8, blocks=2), from_spandrel("ESRGAN", num_filters=8, num_blocks=3)):
        path = saved(model, tmp_path / "net.pth")
        with pytest.raises(ArgumentError, match=r"net\.pth: .*x4.*, not x2"):
            maskguided.from_file(path, scale=2)


def test_the_adapter_wins_over_spandrel_only_if_all_weights_fit(tmp_path, monkeypatch):
    class Compact(Adapter):
        @classmethod
        def missing(cls, model):
            return "it is never asked"

        @classmethod
        def recognises(cls, weights):
            return "body.0.weight" in weights

        @classmethod
        def build(cls, weights, scale=None):
            return load_into(compact(), weights)

    path = saved(compact(), tmp_path / "a.pth")
    other = saved(from_spandrel("Compact", num_feat=8, num_conv=4, upscale=2), tmp_path / "b.pth")
    adapter.adapters()
    monkeypatch.setattr(Compact, "name", "other-compact", raising=False)
    monkeypatch.setitem(adapter._registry, "other-compact", Compact)
    assert load_network(path).architecture == "other-compact"
    assert load_network(other).architecture == "RealESRGAN Compact"
    torch.save({"body.0.weight": torch.ones(1)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"other-compact \(these weights are not of this SRVGGNetCompact"):
        load_network(tmp_path / "c.pth")


STATE = {f"{letter}.weight": torch.ones(2) for letter in "abcdef"}


def test_what_nobody_knows_gets_the_whole_story(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / "net.pth")
    common = (
        r"net\.pth: no network is known for these weights \(a\.weight, b\.weight, c\.weight, d\.weight, \.\.\.\)\. "
        r"Adapters tried: pan, edsr, rcan; {} Build .*wrap"
    )
    monkeypatch.setitem(sys.modules, "spandrel", None)
    absent = r"spandrel is not installed: pip install 'maskguided\[spandrel\]'\."
    with pytest.raises(CheckpointError, match=common.format(absent)):
        maskguided.from_file(tmp_path / "net.pth")
    monkeypatch.undo()
    need_spandrel()
    with pytest.raises(CheckpointError, match=common.format(r"spandrel [\d.]+ does not know them\.")):
        maskguided.from_file(tmp_path / "net.pth")
    torch.save({"body.0.weight": torch.ones(8, 3, 3, 3), "body.1.weight": torch.ones(8)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"spandrel [\d.]+ could not load them \(KeyError: .*\)\. Build"):
        maskguided.from_file(tmp_path / "net.pth")


def test_a_package_that_is_needed_and_absent_is_named(tmp_path, monkeypatch):
    path = saved(from_basicsr("EDSR", num_block=2, upscale=2), tmp_path / "net.pth")
    for name in [name for name in sys.modules if name.partition(".")[0] == "basicsr"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "basicsr", None)
    with pytest.raises(MissingDependency, match=r"net\.pth: basicsr.* is not installed: pip install"):
        maskguided.from_file(path)


def test_the_wrong_name_for_a_file(tmp_path):
    path = saved(EDSR(features=8, blocks=2), tmp_path / "net.pth")
    with pytest.raises(
        CheckpointError, match=r"net\.pth: no weights of a network that 'pan' knows.*leave the name out"
    ):
        maskguided.from_file(path, model="pan")
    with pytest.raises(ArgumentError, match="no adapter is called 'esrgan'"):
        maskguided.from_file(path, model="esrgan")
    assert maskguided.from_file(path, model="edsr").scale == 4


@pytest.mark.parametrize("model", [None, "pan"])
def test_a_saved_head_is_no_network(model, tmp_path):
    path = tmp_path / "head.safetensors"
    maskguided.save(maskguided.wrap(PAN(features=8, up_features=8, blocks=4)), path)
    with pytest.raises(
        CheckpointError, match=r"head\.safetensors: this is what maskguided\.save wrote.*maskguided\.load"
    ):
        maskguided.from_file(path, model=model)


def test_the_weights_of_a_whole_wrapped_network_say_which_files_to_give(tmp_path):
    fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4))
    torch.save({"params": fast.state_dict()}, tmp_path / "net_g_7.pth")
    with pytest.raises(CheckpointError, match=r"net_g_7\.pth: these are weights of a whole MaskGuided.*started from"):
        maskguided.from_file(tmp_path / "net_g_7.pth")
    base, head = tmp_path / "net_g_7_base.pth", tmp_path / "net_g_7_maskguided.safetensors"
    torch.save({"params": fast.model.state_dict()}, base)
    maskguided.save(fast, head)
    with pytest.raises(CheckpointError, match=f"here: {re.escape(str(base))}; .* --head: {re.escape(str(head))}$"):
        maskguided.from_file(tmp_path / "net_g_7.pth")


def test_networks_that_do_not_map_an_image_to_an_image_are_refused(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / "net.pth")
    lama = SimpleNamespace(architecture=SimpleNamespace(name="LaMa"), purpose="Inpainting")
    monkeypatch.setattr(networks, "describe", lambda weights: lama)
    with pytest.raises(CheckpointError, match=r"takes it for LaMa, a network for Inpainting; what can be split is"):
        maskguided.from_file(tmp_path / "net.pth")


@pytest.fixture
def compact_file(tmp_path) -> str:
    write_image(tmp_path / "a.png", PHOTO)
    return saved(scaled(compact(), gain=0.8), tmp_path / "net.pth", "params_ema")


def test_the_commands_take_weights_alone(compact_file, tmp_path):
    run(
        "upscale",
        "-i",
        tmp_path / "a.png",
        "-o",
        tmp_path / "b.png",
        "--weights",
        compact_file,
        "--keep",
        1,
        "--halo",
        8,
    )
    dense = load_network(compact_file).model(torch.from_numpy(PHOTO).permute(2, 0, 1)[None] / 255)
    expected = (dense[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert abs(read_image(tmp_path / "b.png").astype(float) - expected).max() <= 1
    shown = run("inspect", "--weights", compact_file).output
    assert shown.startswith("net.pth: RealESRGAN Compact (spandrel), x2, float16 works, tiles: supported\n")
    assert "body: 4 x Conv2d" in shown
    assert "Compact" in run("bench", "-i", tmp_path / "a.png", "--weights", compact_file, "--rounds", 1).output


def test_blocks_are_named_in_every_command_that_wraps(tmp_path):
    """Of RRDBs the dense blocks: three times as many, which the files of calibrate and finetune know from then on."""
    write_image(tmp_path / "a.png", PHOTO)
    path = saved(from_spandrel("ESRGAN", num_filters=8, num_blocks=3), tmp_path / "net.pth")
    given = ("-w", path, "--body", "model.1.sub.*.RDB*", "--split-at", 7)
    head = tmp_path / "net_mg.safetensors"
    run("calibrate", "-i", tmp_path / "a.png", *given, "--side", 24, "-o", head)
    assert maskguided.load(head, load_network(path).model).split.blocks[6] == "model.1.sub.2.RDB1"
    assert " 7 " in run("bench", "-i", tmp_path / "a.png", *given, "--rounds", 1).output
    run("explain", "-i", tmp_path / "a.png", "-o", tmp_path / "why.svg", *given)
    run("export", "-o", tmp_path / "net.pt2", "--size", "24x24", *given)
    for command, why in (("upscale", f"{head} decides that"), ("bench", "has its own split, blocks and merge")):
        assert why in str(run(command, "-i", tmp_path / "a.png", *given, "--head", head, code=1).exception)


def test_a_network_of_four_channels_is_named_as_the_reason(tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    path = saved(from_spandrel("Compact", num_in_ch=4, num_out_ch=4, num_feat=8, upscale=2), tmp_path / "net.pth")
    result = run("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "--weights", path, code=1)
    assert "this network takes 4 channels; images have 1 or 3" in result.output


@pytest.mark.parametrize(("tiling", "why"), [("discouraged", "looks at the whole image"), ("internal", "cuts tiles")])
def test_tiles_that_do_harm_are_warned_of_in_one_line(tiling, why, compact_file, tmp_path, monkeypatch):
    loaded = dataclasses.replace(load_network(compact_file), tiling=tiling)
    monkeypatch.setattr(options, "load_network", lambda *args: loaded)
    monkeypatch.setattr(options, "is_rough", lambda *args: False)  # which is told of, too, and true of random weights
    args = ("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "--overwrite", "--weights", compact_file)
    assert "warning" not in run(*args).output
    output = run(*args, "--tile", 32).output
    assert f"warning: --tile 32: RealESRGAN Compact {why}" in output
    assert output.count("\n") == 2


def test_a_network_that_is_not_for_float16_is_kept_from_it(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", PHOTO)
    path = saved(scaled(KNOWN["rcan-spandrel"][0](), gain=0.6), tmp_path / "net.pth")
    for command in (["upscale", "-o", str(tmp_path / "b.png")], ["bench"]):
        argv = ["maskguided", *command, "-i", str(tmp_path / "a.png"), "--weights", path, "--dtype", "fp16"]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
    run("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "--weights", path)


def test_bench_keeps_its_images_from_a_network_that_changes_its_input(tmp_path):
    """spandrel's RCAN multiplies its input by 255 in place."""
    write_image(tmp_path / "a.png", PHOTO)
    model = load_network(saved(scaled(KNOWN["rcan-spandrel"][0](), gain=0.6), tmp_path / "net.pth")).model
    pairs = read_pairs(tmp_path / "a.png", None, torch.device("cpu"), torch.float32, False)
    before = pairs[0].lr.clone()
    bench.measure(model, pairs, [bench.Setting("features", 1, 16, 2, (0.5,))], rounds=1)
    assert torch.equal(pairs[0].lr, before)
    assert math.isclose(float(before.max()), PHOTO.max() / 255, rel_tol=1e-6)
