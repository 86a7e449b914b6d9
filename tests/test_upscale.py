"""The command that upscales."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage import data
from support import PHOTO, run
from typer.testing import CliRunner

import maskguided
from maskguided import ArgumentError, MaskGuidedWarning
from maskguided.cli import app
from maskguided.imaging.images import read_image, resize, write_image
from maskguided.infer import upscale


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
    (inputs / "link.png").symlink_to("nowhere.png")
    with pytest.warns(MaskGuidedWarning, match=r"in: notes\.txt is no image; it is left out"):
        result = run("upscale", "-i", inputs, "-o", outputs, "--model", "pan", "--weights", weights, code=1)
    assert "bad.png: no image that can be read" in result.output
    assert "link.png: no such file" in result.output
    assert "2 of 5 failed" in result.output
    assert sorted(p.name for p in outputs.iterdir()) == ["colour_out.png", "deep_out.tif", "grey_out.jpg"]
    assert read_image(outputs / "colour_out.png").shape == (192, 240, 3)
    assert read_image(outputs / "grey_out.jpg").shape == (192, 240)
    deep = read_image(outputs / "deep_out.tif")
    assert (deep.shape, deep.dtype) == ((192, 240, 4), np.uint16)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("mat1 and mat2\nshapes"), "b.png: RuntimeError: mat1 and mat2\n"),
        (MemoryError("1 TB wanted"), "out of memory: 1 TB wanted\n"),
    ],
)
def test_an_image_on_which_the_network_fails_leaves_the_rest_alone(weights, tmp_path, monkeypatch, error, text):
    for name, side in (("a", 24), ("b", 20), ("c", 24)):
        write_image(tmp_path / "in" / f"{name}.png", PHOTO[:side, :side].copy())

    def failing(fast, image, **ways):
        if len(image) == 20:
            raise error
        return upscale(fast, image, **ways)

    monkeypatch.setattr("maskguided.commands.upscale.upscale", failing)
    result = run("upscale", "-i", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, code=1)
    assert text in result.output
    assert "1 of 3 failed" in result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_out.png", "c_out.png"]


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


def test_a_folder_that_was_begun_is_gone_on_with(weights, tmp_path):
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.png"):
        write_image(inputs / name, PHOTO)
    common = ("upscale", "-i", inputs, "-o", outputs, "--weights", weights, "--show-mask")
    run(*common)
    before = (outputs / "a_out.png").stat().st_mtime_ns
    (outputs / "b_out.png").unlink()  # as if it was stopped after the picture of its mask
    done = run(*common, "--skip-existing")
    assert "1 of 2 exist already and are left out" in done.output
    assert (outputs / "a_out.png").stat().st_mtime_ns == before
    assert read_image(outputs / "b_out.png").shape == (192, 240, 3)
    assert "2 of 2 exist already" in run(*common, "--skip-existing").output
    assert "give one" in str(run(*common, "--skip-existing", "--overwrite", code=1).exception)


def test_several_images_and_folders_are_upscaled_at_once(monkeypatch, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png", "in/c.png"):
        write_image(tmp_path / name, PHOTO[:16, :16])
    monkeypatch.chdir(tmp_path)
    run("upscale", "-i", "a.png", "b.png", "in", "-i", "./a.png")  # as a shell makes it of -i *.png
    assert {str(path) for path in Path().rglob("*_out.png")} == {"a_out.png", "b_out.png", "in_out/c_out.png"}
    with pytest.warns(maskguided.MaskGuidedWarning, match="2 results of an earlier run in it are left out"):
        again = run("upscale", "--skip-existing", *sorted(str(path) for path in Path().glob("*.png")))
    assert "2 of 2 exist already" in again.output
    run("upscale", "a.png", "in/c.png", "-o", "results")
    assert {path.name for path in Path("results").iterdir()} == {"a_out.png", "c_out.png"}
    write_image(tmp_path / "in" / "a.png", PHOTO)
    for arguments, why in (
        (("a.png", "b.png", "-o", "one.png"), "one.png is a file name, but there are 2 inputs"),
        (("a.png", "in", "-o", "new"), "2 images would all be written to new/a_out.png; leave --output out"),
        ((), "Give an image or a folder"),
    ):
        assert why in str(run("upscale", *arguments, code=1).exception)


def test_results_that_lie_among_the_images_are_not_upscaled_again(weights, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name, PHOTO)
    monkeypatch.chdir(tmp_path)
    common = ("upscale", "-i", tmp_path, "-o", ".", "--weights", weights, "--show-mask")
    run(*common)
    for more in ("--skip-existing", "--overwrite"):
        with pytest.warns(maskguided.MaskGuidedWarning, match="4 results of an earlier run in it are left out"):
            run(*common, more)
        assert sorted(path.name for path in tmp_path.glob("a*")) == ["a.png", "a_out.png", "a_out_mask.png"]


def test_who_stops_a_folder_is_told_how_to_go_on(weights, tmp_path, monkeypatch):
    from maskguided.commands import upscale as command

    def stopped(fast, image, **kwargs):
        if (tmp_path / "out" / "a_out.png").exists():
            raise KeyboardInterrupt
        return upscale(fast, image, **kwargs)

    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / "in" / name, PHOTO)
    monkeypatch.setattr(command, "upscale", stopped)
    done = run("upscale", "-i", tmp_path / "in", "-o", tmp_path / "out", "-w", weights, code=130)
    assert "stopped in b.png; the same command with --skip-existing goes on" in done.output
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_out.png"]


@pytest.mark.parametrize(("where", "given"), [("in", "."), ("in/deeper", "..")])
def test_the_results_of_the_folder_that_one_is_in_lie_beside_it(where, given, weights, tmp_path, monkeypatch):
    write_image(tmp_path / "in" / "a.png", PHOTO)
    (tmp_path / where).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / where)
    run("upscale", "-i", given, "-w", weights)
    assert [p.name for p in (tmp_path / "in_out").iterdir()] == ["a_out.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "in_out"]
    assert "give --output FOLDER" in str(run("upscale", "-i", "/usr/..", "-w", weights, code=1).exception)


@pytest.mark.parametrize("way", ["upscale", "upscale_onto"])
def test_what_another_run_wrote_meanwhile_is_not_replaced(way, weights, tmp_path, monkeypatch):
    from maskguided.commands import upscale as command

    runs = getattr(command, way)

    def meanwhile(*args, **kwargs):
        (tmp_path / "b.png").write_bytes(b"another")
        return runs(*args, **kwargs)

    write_image(tmp_path / "a.png", PHOTO)
    monkeypatch.setattr(command, way, meanwhile)
    if way == "upscale_onto":
        monkeypatch.setattr("maskguided.imaging.tiff.LARGE", 0)
    common = ("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "-w", weights)
    assert "exists already" in run(*common, code=1).output
    assert (tmp_path / "b.png").read_bytes() == b"another"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


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


def test_the_starter_is_what_its_card_says():
    fast = maskguided.starter()
    assert (fast.split.split_at, fast.merge, fast.scorer, fast.keep) == (4, "image", "head", 0.162)
    cost = fast.cost(128, 128)
    assert cost.ratio < 0.66
    assert cost.parameters == 128_959


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


def test_sizes_by_outscale_are_rounded(tmp_path):
    write_image(tmp_path / "a.png", PHOTO[:33, :10])
    run("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "-s", 2.3)
    assert read_image(tmp_path / "b.png").shape[:2] == (76, 23)
    run("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "c.png", "-s", 1.3)
    assert read_image(tmp_path / "c.png").shape[:2] == (43, 13)


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_picture_of_a_mask_replaces_no_result_and_no_image(tmp_path, overwrite):
    for name in ("a.png", "a_mask.png"):
        write_image(tmp_path / "in" / name, PHOTO)
    folder = ("-i", tmp_path / "in", "-o", tmp_path / "out", "--suffix", "")
    single = ("-i", tmp_path / "in" / "a_mask.png", "-o", tmp_path / "in" / "a.png")
    refused = run("upscale", *folder, "--show-mask", *overwrite, code=1)
    assert "a_mask.png, a picture of a mask, would replace" in str(refused.exception)
    refused = run("upscale", *single, "--show-mask", *overwrite, code=1)
    assert "a_mask.png, a picture of a mask, would replace" in str(refused.exception)
    assert np.array_equal(read_image(tmp_path / "in" / "a_mask.png"), PHOTO)


@pytest.mark.parametrize("order", ["<", ">"])
def test_colours_of_a_tiff_are_not_multiplied_by_its_alpha(tmp_path, order):
    import struct

    pixels = np.array([[[200, 100, 50, 128], [9, 250, 7, 0]]], np.uint8)
    tags = [(256, 2), (257, 1), (258, 8), (259, 1), (262, 2), (273, 8), (277, 4), (278, 1), (279, 8), (338, 2)]
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    start = b"II*\0" if order == "<" else b"MM\0*"
    body = struct.pack(f"{order}I", 16) + pixels.tobytes() + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(start + body)
    assert np.array_equal(read_image(tmp_path / "a.tif"), pixels)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_names_that_are_no_utf8_are_files_as_others(tmp_path):
    folder = tmp_path / "in"
    write_image(folder / "a.png", PHOTO)
    (folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    command = [sys.executable, "-m", "maskguided", "upscale", "-i", folder, "-o", tmp_path / "o", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("caf\\udce9.png -> ")
    (made,) = (tmp_path / "o").iterdir()
    assert read_image(made).shape == (4 * PHOTO.shape[0], 4 * PHOTO.shape[1], 3)


@pytest.mark.parametrize("command", ["upscale", "explain", "export"])
def test_a_light_refine_tail_that_is_not_fitted_is_warned_of(command, weights, tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    target = tmp_path / {"upscale": "b.png", "explain": "b.png", "export": "b.pt2"}[command]
    result = run(command, "-i", tmp_path / "a.png", "-o", target, "--weights", weights, "--refine-tail", "light")
    assert result.exit_code == 0, result.output
    text = "and so is what is refined; first `maskguided calibrate .* or leave --refine-tail out"
    assert re.search(text, " ".join(result.output.split()))


def test_a_size_that_nobody_could_read_is_refused_before_the_work(tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    result = run("upscale", "-i", tmp_path / "a.png", "-o", tmp_path / "o", "--outscale", 900, code=1)
    assert "--outscale 900 makes 54000x43200 pixels of this image; use less, for at most 1074 megap" in result.output
    assert not (tmp_path / "o").exists()
