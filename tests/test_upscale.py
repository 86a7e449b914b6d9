"""Images of every kind through the network, tiles, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from skimage import data
from support import scaled
from typer.testing import CliRunner

import maskguided
from maskguided import ArgumentError, ImageError, bench, cli
from maskguided.adapters.pan_net import PAN
from maskguided.cli import app
from maskguided.images import read_image, resize, write_image
from maskguided.infer import overlay, upscale
from maskguided.pairs import read_pairs

PHOTO = data.astronaut()[:96:2, 60:180:2]  # 48 x 60


@pytest.fixture(scope="module")
def fast() -> maskguided.MaskGuided:
    model = scaled(PAN(features=8, up_features=8, blocks=4, scale=2), gain=0.5)
    return maskguided.wrap(model, patch_size=8, keep=0.5).eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "pan.pth"
    torch.save({"params": scaled(PAN(features=8, up_features=8, blocks=4), gain=0.5).state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["grey", "colour", "alpha"])
@pytest.mark.parametrize("alpha", ["model", "bicubic"])
def test_the_result_is_of_the_kind_of_the_input(fast, dtype, kind, alpha):
    pixels = PHOTO.astype(dtype) * (257 if dtype == np.uint16 else 1)
    pixels = {
        "grey": pixels[..., 1],
        "colour": pixels,
        "alpha": np.dstack([pixels, pixels[..., 0]]),
    }[kind]
    done = upscale(fast, pixels, alpha=alpha)
    assert done.image.dtype == dtype
    assert done.image.shape == (96, 120, *pixels.shape[2:])
    assert done.mask.shape == (48, 60)
    assert 0.4 < done.mask.mean() < 0.6


@pytest.mark.parametrize("outscale", ["3.5", "0.4"])
def test_another_size_is_the_result_resized(tmp_path, weights, outscale):
    write_image(tmp_path / "a.png", PHOTO)
    command = ["upscale", "-i", str(tmp_path / "a.png"), "-w", weights, "--suffix"]
    assert CliRunner().invoke(app, [*command, "whole"]).exit_code == 0
    said = CliRunner().invoke(app, [*command, "sized", "-s", outscale, "--show-mask"])
    height, width = int(48 * float(outscale)), int(60 * float(outscale))
    assert f"{width}x{height}" in said.output
    found, whole = read_image(tmp_path / "a_sized.png"), read_image(tmp_path / "a_whole.png")
    assert np.array_equal(found, resize(whole, height, width, lanczos=True))
    assert read_image(tmp_path / "a_sized_mask.png").shape == found.shape
    with pytest.raises(ArgumentError, match="--outscale 0: a multiple of the input's size"):
        CliRunner().invoke(app, [*command, "none", "-s", "0"], catch_exceptions=False)


def test_16_bits_agree_with_8_to_a_level(fast):
    eight, sixteen = upscale(fast, PHOTO).image, upscale(fast, PHOTO.astype(np.uint16) * 257).image
    assert np.abs(eight.astype(int) - sixteen / 257).max() <= 1


def test_bicubic_alpha_is_bicubic_and_colour_does_not_depend_on_it(fast):
    rgba = np.dstack([PHOTO, PHOTO[..., 0]])
    done = upscale(fast, rgba, alpha="bicubic").image
    assert np.array_equal(done[..., 3], resize(PHOTO[..., 0], 96, 120))
    assert np.array_equal(done[..., :3], upscale(fast, PHOTO).image)


def test_a_network_for_one_channel_takes_colour_channel_by_channel():
    fast = maskguided.wrap(scaled(PAN(channels=1, features=8, up_features=8, blocks=4, scale=2), gain=0.5), keep=1)
    colour = upscale(fast, PHOTO).image
    assert colour.shape == (96, 120, 3)
    for channel in range(3):
        assert np.array_equal(colour[..., channel], upscale(fast, np.ascontiguousarray(PHOTO[..., channel])).image)


@pytest.mark.parametrize("tile", [16, 25, 48, 500])
def test_tiles_leave_no_seam_when_the_pad_covers_the_receptive_field(tile):
    model = scaled(PAN(features=8, up_features=8, blocks=4, scale=2), gain=0.5)
    radius = maskguided.split(model, 1).facts.radius
    fast = maskguided.wrap(model, 1, keep=1, halo=radius, patch_size=8).eval()
    pad = radius + 6  # the whole network's, with its stem and first block
    calls: list[tuple[int, int]] = []
    whole = upscale(fast, PHOTO.astype(np.uint16) * 257).image
    tiled = upscale(
        fast, PHOTO.astype(np.uint16) * 257, tile=tile, tile_pad=pad, on_tile=lambda *c: calls.append(c)
    ).image
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert calls[-1][0] == calls[-1][1] == (-(-48 // tile)) * (-(-60 // tile))
    if tile < 30:
        torn = upscale(fast, PHOTO.astype(np.uint16) * 257, tile=tile, tile_pad=0).image
        assert np.abs(whole.astype(int) - torn).max() > 100


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75])
def test_keep_holds_over_all_tiles_where_the_input_alone_ranks_the_patches(fast, keep):
    """What is worth refining lies on the left; within each tile, as a head chooses, as much of the right is taken."""
    rng = np.random.default_rng(0)
    photo = np.dstack([rng.integers(0, 256, (64, 128)), *[np.full((64, 128), 90)] * 2]).astype(np.uint8)
    photo[:, 64:] = 128 + (photo[:, 64:] > 128)  # noise of one grey level
    fast.keep = keep
    whole = upscale(fast, photo, tile=0).mask
    by_tiles = upscale(fast, photo, tile=32, tile_pad=0).mask
    assert by_tiles[:, :64].mean() == min(1, 2 * keep)
    assert by_tiles[:, 64:].mean() == pytest.approx(max(0, 2 * keep - 1), abs=0.1)
    assert (whole != by_tiles).mean() <= 0.15
    fast.scorer = "head"
    try:
        alone = upscale(fast, photo, tile=32, tile_pad=0).mask
    finally:
        fast.scorer = "input"
    assert (alone.reshape(2, 32, 4, 32).mean((1, 3)) == keep).all()


def test_a_flat_image_in_tiles_is_not_refined(fast):
    fast.keep = 0.5
    assert not upscale(fast, np.full((64, 64), 7, np.uint8), tile=32).mask.any()


def test_shapes_that_are_no_image(fast):
    for shape in [(4, 4, 2), (4,), (1, 3, 4, 4)]:
        with pytest.raises(ImageError, match="must be"):
            upscale(fast, np.zeros(shape, np.uint8))
    with pytest.raises(ArgumentError, match="tile=-1"):
        upscale(fast, PHOTO, tile=-1)


def test_the_overlay_tints_the_mask_and_nothing_else():
    mask = np.zeros((48, 60), bool)
    mask[8:16, 8:24] = True
    shown = overlay(PHOTO, mask)
    assert np.array_equal(shown[~mask], PHOTO[~mask])
    assert (shown[mask] != PHOTO[mask]).any(1).mean() > 0.95


def run(*args: object, code: int = 0):
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"{result.output} {result.exception!r}"
    return result


def folder_of_images(path) -> None:
    write_image(path / "colour.png", PHOTO)
    write_image(path / "grey.jpg", PHOTO[..., 0])
    write_image(path / "deep.tif", np.dstack([PHOTO, PHOTO[..., 0]]).astype(np.uint16) * 257)


def test_a_folder_with_one_bad_file_gives_the_rest_and_exit_code_1(weights, tmp_path):
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    folder_of_images(inputs)
    (inputs / "bad.png").write_bytes(b"no image")
    (inputs / "notes.txt").write_text("nor this")
    result = run("upscale", "-i", inputs, "-o", outputs, "--model", "pan", "--weights", weights, code=1)
    assert "bad.png: no image that can be read" in result.output
    assert "2 of 5 failed" in result.output
    assert sorted(p.name for p in outputs.iterdir()) == ["colour_out.png", "deep_out.tif", "grey_out.jpg"]
    assert read_image(outputs / "colour_out.png").shape == (192, 240, 3)
    assert read_image(outputs / "grey_out.jpg").shape == (192, 240)
    deep = read_image(outputs / "deep_out.tif")
    assert (deep.shape, deep.dtype) == ((192, 240, 4), np.uint16)


def test_one_file_to_one_file_with_its_mask_and_never_over_an_old_one(weights, tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    common = ("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", "pan", "--weights", weights)
    run(*common, "--show-mask", "--keep", "0.25", "--split-at", "3", "--tile", "40")
    first = (tmp_path / "b.png").read_bytes()
    assert read_image(tmp_path / "b_mask.png").shape == (192, 240, 3)
    result = run(*common, code=1)
    assert "exists already; add --overwrite" in result.output
    assert (tmp_path / "b.png").read_bytes() == first
    run(*common, "--keep", "1", "--overwrite")
    assert (tmp_path / "b.png").read_bytes() != first


def test_a_saved_head_brings_its_settings(weights, tmp_path):
    from maskguided.networks import load_network

    write_image(tmp_path / "a.png", PHOTO)
    saved = maskguided.wrap(load_network(weights).model, 1, keep=0.125, scorer="head")
    maskguided.save(saved, tmp_path / "head.safetensors")
    args = ("-i", tmp_path / "a.png", "-o", tmp_path, "--model", "pan", "--weights", weights)
    result = run("upscale", *args, "--head", tmp_path / "head.safetensors")
    assert "a_out.png" in result.output
    expected = upscale(saved.eval(), PHOTO).image
    assert np.abs(read_image(tmp_path / "a_out.png").astype(int) - expected).max() <= 1


def test_inspect_and_bench_print_what_they_found(weights, tmp_path):
    assert "body: 4 x SCPA" in run("inspect", "--model", "pan", "--weights", weights, "--split-at", 3).output
    lr, hr = tmp_path / "lr", tmp_path / "hr"
    write_image(lr / "a.png", PHOTO)
    write_image(hr / "a.png", data.astronaut()[:192, :240])
    result = run(
        "bench", "-i", lr, "--hr", hr, "--model", "pan", "--weights", weights, "--split-at", "1,2", "--keep", "0,1",
        "--merge", "features,image", "--rounds", 1, "--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md",
    )  # fmt: skip
    assert "Y, uint8, border = scale" in result.output
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len(rows) == 8
    for row in rows:
        assert (row["macs_ratio"] < 1) == (row["keep"] == 0 and row["merge"] == "features") or row["merge"] == "image"
        assert row["time_ratio"] > 0
        assert (row["psnr"] != row["dense_psnr"]) or row["keep"] == 1
    assert (tmp_path / "r.md").read_text().count("\n| ") == 10


def test_bench_takes_a_saved_head_with_its_settings(weights, tmp_path):
    saved = maskguided.from_file(weights, 3, patch_size=8, halo=1, merge="image", coarse_tail="light")
    maskguided.save(saved, tmp_path / "head.safetensors")
    write_image(tmp_path / "a.png", PHOTO)
    arguments = ["bench", "-i", tmp_path / "a.png", "--weights", weights, "--head", tmp_path / "head.safetensors"]
    run(*arguments, "--rounds", 1, "--keep", "0.25", "--json", tmp_path / "new" / "r.json")
    (row,) = json.loads((tmp_path / "new" / "r.json").read_text())["rows"]
    assert (row["merge"], row["split_at"], row["patch_size"], row["halo"]) == ("image", 3, 8, 1)
    saved.keep = 0.25
    assert row["macs_ratio"] == pytest.approx(saved.cost(*PHOTO.shape[:2]).ratio)
    refused = run(*arguments, "--merge", "image", code=1)
    assert "give either it or them" in str(refused.exception)


def test_bench_without_options_measures_the_starter_as_it_is_used(tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    run("bench", "-i", tmp_path / "a.png", "--rounds", 1, "--json", tmp_path / "r.json")
    coarse, own = json.loads((tmp_path / "r.json").read_text())["rows"]
    starter = maskguided.starter()
    assert (coarse["keep"], own["keep"], own["merge"]) == (0, starter.keep, starter.merge)
    assert own["macs_ratio"] == pytest.approx(starter.cost(*PHOTO.shape[:2]).ratio)


def test_bench_lets_each_image_decide(tmp_path):
    """As the file says without options; MACs are those of what each image refines."""
    lr, hr = tmp_path / "lr", tmp_path / "hr"
    for name, picture in (("flat", np.full_like(data.astronaut(), 90)), ("rich", data.astronaut())):
        large = picture[100:260, 200:440]
        write_image(hr / f"{name}.png", large)
        write_image(lr / f"{name}.png", large.reshape(40, 4, 60, 4, 3).mean((1, 3)).round().astype(np.uint8))
    fast = maskguided.wrap(maskguided.starter().unwrap(), 4)
    maskguided.calibrate(
        fast,
        [torch.from_numpy(data.astronaut()[:80, :80].copy()).permute(2, 0, 1)[None] / 255],
        per_image=True,
        max_cost=0.9,
    )
    maskguided.save(fast, tmp_path / "own.safetensors")
    args = ("bench", "-i", lr, "--hr", hr, "--model", "starter", "--head", tmp_path / "own.safetensors", "--rounds", 1)
    run(*args, "--json", tmp_path / "r.json")
    coarse, own = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert (coarse["keep"], own["min_gain_db"]) == (0, fast.min_gain_db)
    assert "gain" in run(*args, "--min-gain", "1e9,0", "--json", tmp_path / "s.json").output
    none, all_of_it = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert (none["keep"], none["psnr"]) == (0, coarse["psnr"])
    assert none["macs_ratio"] == pytest.approx(coarse["macs_ratio"], rel=0.02)
    assert (all_of_it["keep"], all_of_it["psnr"]) == (1, pytest.approx(all_of_it["dense_psnr"]))
    assert coarse["psnr"] <= own["psnr"] <= all_of_it["psnr"]


def test_bench_says_what_is_wrong_before_it_runs_anything(weights, tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    pairs = read_pairs(tmp_path / "a.png", None, torch.device("cpu"), torch.float32, False)
    model = maskguided.from_file(weights).unwrap()
    good, wrong = bench.Setting("features", 1, 8, 0, (0.5,)), bench.Setting("features", 9, 8, 0, (0.5,))
    done = []
    with pytest.raises(ArgumentError, match="split_at=9"):
        bench.measure(model, pairs, [good, wrong], 1, lambda: done.append(1))
    assert not done


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["upscale", "-i", "nowhere.png", "-o", "out"], "nowhere.png: no such file or folder"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--keep", "2"], "keep=2.0"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--split-at", "99"], "use 1 to"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--split-at", "x"], "--split-at x"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--model", "esrgan", "--weights", "w"], "known: pan, edsr, rcan"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--model", "pan"], "needs --weights"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--weights", "w.pth"], "w.pth: no such file"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--model", "pan", "--weights", "{png}"], "not a readable"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--device", "cuda:77"], "not usable here"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--dtype", "int8"], "fp32, fp16, bf16"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--ext", "gif"], "--ext gif"),
        (["upscale", "-i", "{tmp}", "-o", "{tmp}/o.png"], "name a folder"),
        (["upscale", "-i", "{tmp}", "-o", "{tmp}/o", "--ext", "png"], "2 images would all be written to"),
        (["inspect", "--model", "pan"], "needs --weights"),
        (["bench", "-i", "{png}", "--keep", "a"], "'a' is not valid"),
        (["bench", "-i", "{png}", "--keep", "0.2,2"], "keep=2.0"),
        (["bench", "-i", "{png}", "--json", "{tmp}/r.txt"], "ends in .json"),
        (["bench", "-i", "{png}", "--json", "{tmp}/there/a.json"], "exists already; add --overwrite"),
        (["bench", "-i", "{png}", "--markdown", "{png}/t.md"], "its folder cannot be made"),
        (["bench", "-i", "{png}", "--merge", "both"], "'both' is not valid"),
        (["bench", "-i", "{png}", "--hr", "{tmp}/nowhere"], "no such file or folder"),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(args, text, tmp_path, monkeypatch, capsys):
    write_image(tmp_path / "a.png", PHOTO)
    write_image(tmp_path / "a.jpg", PHOTO)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.json").touch()
    args = [a.format(png=tmp_path / "a.png", tmp=tmp_path) for a in args]
    monkeypatch.setattr(sys, "argv", ["maskguided", *args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_process_ends_with_the_same_sentence_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "maskguided", "upscale", "-i", "nowhere.png", "-o", "o"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: nowhere.png: no such file or folder\n")


def test_the_starter_network_upscales_better_than_bicubic(tmp_path):
    """With no option at all: the network that ships with the package."""
    from maskguided.metrics import psnr

    photo = data.astronaut()
    small = photo.reshape(128, 4, 128, 4, 3).mean((1, 3)).round().astype(np.uint8)
    write_image(tmp_path / "small.png", small)
    run("upscale", "-i", tmp_path / "small.png", "-o", tmp_path / "big.png")
    assert psnr(read_image(tmp_path / "big.png"), photo, 4) > psnr(resize(small, 512, 512), photo, 4)


def test_without_options_the_starter_runs_as_shipped_and_writes_beside_the_input(tmp_path):
    small = data.astronaut()[::4, ::4].copy()
    write_image(tmp_path / "in" / "small.png", small)
    expected = upscale(maskguided.starter().eval(), small).image
    run("upscale", "-i", tmp_path / "in" / "small.png", "--device", "cpu")
    found = read_image(tmp_path / "in" / "small_out.png")
    assert np.abs(found.astype(int) - expected).max() <= 1
    plain = upscale(maskguided.wrap(maskguided.starter().unwrap()).eval(), small).image
    assert np.abs(found.astype(int) - plain).max() > 1
    run("upscale", "-i", tmp_path / "in", "--device", "cpu")
    assert sorted(p.name for p in (tmp_path / "in_out").iterdir()) == ["small_out.png", "small_out_out.png"]
    refused = run("upscale", "-i", tmp_path / "in" / "small.png", "--suffix", "", "--overwrite", code=1)
    assert "replaced by its own result" in str(refused.exception)
    assert np.array_equal(read_image(tmp_path / "in" / "small.png"), small)


def test_commands_take_the_settings_of_a_wrap(tmp_path):
    small = data.astronaut()[::8, ::8].copy()
    write_image(tmp_path / "small.png", small)
    given = ("--split-at", "4", "--merge", "image", "--coarse-on", "unrefined", "--patch-size", "4", "--keep", "0.3")
    run("upscale", "-i", tmp_path / "small.png", "--device", "cpu", *given)
    settings = {"merge": "image", "coarse_on": "unrefined", "patch_size": 4, "keep": 0.3}
    fast = maskguided.wrap(maskguided.starter().unwrap(), 4, **settings).eval()
    found = read_image(tmp_path / "small_out.png").astype(int)
    assert np.abs(found - upscale(fast, small).image).max() <= 1
    fast.coarse_on = "all"
    assert np.abs(found - upscale(fast, small).image).max() > 1
    refused = run("upscale", "-i", tmp_path / "small.png", "--overwrite", "--split-at", "4,8", "--onward", "x", code=1)
    assert "use shares from 0 to 1" in str(refused.exception)
    commands = typer.main.get_command(app).commands
    for name in ("upscale", "calibrate", "finetune", "explain", "export"):
        taken = {parameter.name for parameter in commands[name].params}
        assert {"onward", "merge", "coarse_tail", "coarse_on", "patch_size", "halo", "exchange"} <= taken


def test_the_starter_is_what_its_card_says():
    fast = maskguided.starter()
    assert (fast.split.split_at, fast.merge, fast.scorer, fast.keep) == (4, "image", "head", 0.162)
    cost = fast.cost(128, 128)
    assert cost.ratio < 0.66
    assert cost.parameters == 128_959


def test_short_of_memory_a_tile_is_done_in_four_and_what_was_done_stays(fast, monkeypatch):
    fast.keep, photo = 1, np.tile(PHOTO, (2, 2, 1))
    whole = upscale(fast, photo, tile=0).image
    restore, sizes, steps = fast.restore, [], []

    def short_at_first(x, *args):
        sizes.append(tuple(x.shape[2:]))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return restore(x, *args)

    monkeypatch.setattr(fast, "restore", short_at_first)
    done = upscale(fast, photo, tile=0, tile_pad=fast.split.facts.radius + 8, on_tile=lambda *at: steps.append(at))
    assert np.abs(done.image.astype(int) - whole.astype(int)).max() <= 1
    assert done.mask.all()
    assert sizes[0] == photo.shape[:2]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    monkeypatch.setattr(fast, "restore", lambda x: (_ for _ in ()).throw(RuntimeError("can't allocate memory: 1 TB")))
    with pytest.raises(ArgumentError, match="out of memory even with tiles"):
        upscale(fast, PHOTO)
    monkeypatch.setattr(fast, "restore", lambda x: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        upscale(fast, PHOTO)


def test_large_images_are_cut_into_tiles_by_themselves(fast, monkeypatch):
    from maskguided import infer

    monkeypatch.setattr(infer, "_LARGEST_WHOLE", 30 * 30)
    monkeypatch.setattr(infer, "_TILE", 24)
    steps = []
    upscale(fast, PHOTO, on_tile=lambda *at: steps.append(at))
    assert len(steps) == -(-PHOTO.shape[0] // 24) * -(-PHOTO.shape[1] // 24)
    steps.clear()
    upscale(fast, PHOTO, tile=0, on_tile=lambda *at: steps.append(at))
    assert steps == [(1, 1)]


def test_an_animation_or_a_stack_of_pages_says_that_its_first_picture_is_read(tmp_path):
    import cv2

    assert cv2.imwritemulti(str(tmp_path / "pages.tif"), [PHOTO, PHOTO[::-1]])
    with pytest.warns(UserWarning, match="the first of 2 pictures"):
        assert read_image(tmp_path / "pages.tif").shape == PHOTO.shape


def test_a_format_that_cannot_hold_an_image_is_refused_before_the_work(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", np.dstack([PHOTO, PHOTO[..., 0]]))
    monkeypatch.setattr("maskguided.commands.upscale.upscale", lambda *_, **__: pytest.fail("it was upscaled"))
    result = run("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "o", "--ext", "jpg", code=1)
    assert ".jpg holds no alpha channel" in result.output


@pytest.mark.parametrize("command", ["bench", "calibrate"])
def test_hr_images_of_another_size_are_refused_by_name(command, tmp_path):
    for folder in ("lr", "hr"):
        write_image(tmp_path / folder / "photo.png", PHOTO)
    args = [command, "-i", tmp_path / "lr", "--hr", tmp_path / "hr"]
    args += ["-o", tmp_path / "a.safetensors"] if command == "calibrate" else []
    high, wide = PHOTO.shape[:2]
    expected = f"the HR image of photo is {high}x{wide}; at x4 it should be {4 * high}x{4 * wide}"
    assert expected in str(run(*args, code=1).exception)


def test_names_of_div2k_are_paired(tmp_path):
    write_image(tmp_path / "lr" / "0801x4.png", PHOTO)
    write_image(tmp_path / "hr" / "0801.png", resize(PHOTO, 4 * PHOTO.shape[0], 4 * PHOTO.shape[1]))
    (pair,) = read_pairs(tmp_path / "lr", tmp_path / "hr", torch.device("cpu"), torch.float32, False)
    assert pair.lr.shape[2] * 4 == pair.hr.shape[0]


def test_every_command_takes_grey_images_to_a_network_of_one_channel(tmp_path):
    from safetensors.torch import save_file

    net = scaled(PAN(channels=1, features=8, up_features=8, blocks=4, scale=2), gain=0.5)
    save_file(net.state_dict(), tmp_path / "grey.safetensors")
    write_image(tmp_path / "a.png", PHOTO)  # in colour
    same = ("-i", tmp_path / "a.png", "--weights", tmp_path / "grey.safetensors", "--scale", 2)
    run("bench", *same, "--rounds", 1, "--keep", 0.5)
    run("calibrate", *same, "--split-at", 2, "-o", tmp_path / "h.safetensors")
    run("explain", *same, "-o", tmp_path / "e.png")
    run("export", *same, "-o", tmp_path / "e.pt2", "--size", "24x24")


def test_sizes_by_outscale_are_rounded(tmp_path):
    write_image(tmp_path / "a.png", PHOTO[:30, :10])
    run("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "-s", 2.3)
    assert read_image(tmp_path / "b.png").shape[:2] == (69, 23)


@pytest.mark.parametrize("command", ["upscale", "calibrate", "bench"])
def test_a_folder_in_which_nothing_can_be_written_is_said_before_the_work(command, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", PHOTO)

    def refuse(**_):
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr("maskguided.commands.options.tempfile.TemporaryFile", refuse)
    output = ["--json", tmp_path / "o" / "a.json"] if command == "bench" else ["-o", tmp_path / "o" / "a.safetensors"]
    output = ["-o", tmp_path / "o"] if command == "upscale" else output
    result = run(command, "-i", tmp_path / "a.png", *output, code=1)
    assert "no file can be written there (Permission denied)" in str(result.exception)
