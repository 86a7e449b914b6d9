"""What would fail, or be lost, after the work is said before it; and images that programs other than ours wrote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data
from support import scaled
from typer.testing import CliRunner

import maskguided
from maskguided import CannotSplit, CheckpointError
from maskguided.adapters.pan_net import PAN
from maskguided.cli import app
from maskguided.errors import MaskGuidedError
from maskguided.imaging.images import read_image, write_image
from maskguided.infer import upscale

PHOTO = data.astronaut()[:64:2, 60:108:2].copy()  # 32 x 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("asked")
    torch.save({"params": scaled(PAN(features=8, up_features=8, blocks=4), gain=0.5).state_dict()}, path / "pan.pth")
    write_image(path / "in" / "a.png", PHOTO)
    write_image(path / "in" / "a.jpg", PHOTO[::-1].copy())
    write_image(path / "deep" / "deep.png", PHOTO.astype(np.uint16) * 257)
    write_image(path / "dot.png", PHOTO[:2, :2].copy())
    (path / "above" / "below").mkdir(parents=True)
    return path


def run(*arguments: object):
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [*map(str, arguments)])


def test_pictures_of_masks_do_not_take_each_others_name(folder):
    done = run("upscale", "-i", folder / "in", "-o", folder / "out", "--show-mask", "--device", "cpu")
    assert done.exit_code == 0, done.output
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"a_out.png", "a_out.jpg", "a_out_png_mask.png", "a_out_jpg_mask.png"}


def test_capitals_in_a_suffix_are_as_good_as_others(tmp_path):
    fast = maskguided.wrap(scaled(PAN(features=8, up_features=8, blocks=4)), 2, keep=0.25)
    maskguided.save(fast, tmp_path / "HEAD.SAFETENSORS")
    assert maskguided.load(tmp_path / "HEAD.SAFETENSORS", fast.unwrap()).keep == 0.25
    assert maskguided.export(fast.eval(), tmp_path / "NET.PT2", torch.rand(1, 3, 16, 16)) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["upscale", "-i", "{}/in/a.png", "-o", "{}/in/a.png", "--overwrite"], "replaced by its own result"),
        (["upscale", "-i", "{}/in/a.png", "-o", "{}/x.gif"], "results are written as png"),
        (["calibrate", "-i", "{}/in", "-w", "none.pth", "-o", "{}/x.safetensors", "--max-cost", "2"], "more than the"),
        (["upscale", "-i", "{}/in/a.png", "-o", "{}", "--suffix", "a/b"], "part of a file's name"),
        (["upscale", "-i", "{}/in/a.png", "-o", "{}/x.png", "--scale", "3"], "starter network is x4"),
        (["upscale", "-i", "{}/in/a.png", "-o", "{}/x.png", "--merge", "image"], "ships with maskguided has parts"),
        (["upscale", "-i", "{}/in/a.png", "-o", "{}/x.png", "-w", "{}"], "is a folder; name a weight file"),
        (["upscale", "-i", "{}/above", "-o", "{}/x"], "folders in it are not searched"),
        (["upscale", "-i", "{}/in", "-w", "{}/no.pth", "--keep", "0.5", "--min-gain", "1"], "0.5 with --min-gain 1"),
        (["bench", "-i", "{}/in", "-w", "{}/no.pth", "--merge", "both"], "--merge both: 'both' is not valid there"),
        (["bench", "-i", "{}/in", "-w", "{}/no.pth", "--keep", "half"], "--keep half: 'half' is not valid there"),
        (["bench", "-i", "{}/in/a.png", "--hr", "{}/deep/deep.png"], "deep.png: PSNR is measured on images of 8 bits"),
        (["calibrate", "-i", "{}/dot.png", "-o", "{}/x.safetensors", "--split-at", "2"], "an image of 2x2 LR pixels"),
        (
            ["bench", "-i", "{}/dot.png"],
            "dot: an image of 2x2 LR pixels; PSNR leaves its border out, so use images of 3x3",
        ),
        (
            ["finetune", "--hr", "{}/in", "-o", "{}/x.safetensors", "--stage", "head,heads", "--steps", "1"],
            "stage='heads'",
        ),
        (
            ["finetune", "--hr", "{}/in", "-o", "{}/x.safetensors", "-w", "{}/pan.pth", "--stage", "head,coarse"],
            "no coarse tail to train",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence_and_no_file(folder, arguments, text):
    done = run(*(argument.format(folder) for argument in arguments))
    assert isinstance(done.exception, MaskGuidedError), done.output
    assert text in str(done.exception)
    assert not list(folder.glob("x*"))
    assert np.array_equal(read_image(folder / "in" / "a.png"), PHOTO)


@pytest.mark.parametrize("option", ["--threads", "--tile", "--tile-pad", "--scale"])
def test_numbers_out_of_range_are_refused_as_options(folder, option):
    done = run("upscale", "-i", folder / "in" / "a.png", "-o", folder / "x.png", option, -1)
    assert done.exit_code == 2
    assert option in done.output
    assert "greater than or equal to" in done.output


def test_more_threads_than_torch_survives_are_refused(folder):
    done = run("upscale", "-i", folder / "in" / "a.png", "-o", folder / "x.png", "--threads", 100000)
    assert "--threads 100000: use 1 to 1024" in str(done.exception)


def test_a_format_that_is_not_written_fails_before_the_network_runs(folder, tmp_path):
    (tmp_path / "moving.gif").write_bytes((folder / "in" / "a.png").read_bytes())
    done = run("upscale", "-i", tmp_path, "-o", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 1
    assert ".gif is not written; choose the format of the results, as --ext png" in done.output
    assert run("upscale", "-i", tmp_path, "-o", tmp_path / "out", "--device", "cpu", "--ext", "png").exit_code == 0


def test_16_bit_images_are_calibrated_on(folder):
    done = run(
        "calibrate", "-i", folder / "deep", "-o", folder / "deep.safetensors", "-w", folder / "pan.pth",
        "--split-at", 2, "--merge", "image", "--coarse-tail", "light", "--max-cost", 0.9, "--threads", 1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def test_a_head_of_another_network_is_named(tmp_path):
    fast = maskguided.wrap(scaled(PAN(features=8, up_features=8, blocks=4)), 2)
    maskguided.save(fast, tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.safetensors: made for a network with class=PAN; this one has"):
        maskguided.load(tmp_path / "head.safetensors", torch.nn.Conv2d(3, 3, 1))


def test_weights_that_are_not_whole_are_told_from_a_forward_that_cannot_be_split():
    model = scaled(PAN(features=8, up_features=8, blocks=4))
    model.trunk_conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(CannotSplit, match="gives NaN or infinity"):
        maskguided.wrap(model, 2)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_an_even_alpha_channel_stays_as_it_is(value):
    done = upscale(maskguided.starter().eval(), np.dstack([PHOTO, np.full_like(PHOTO[..., 0], value)]))
    assert done.image.shape == (128, 96, 4)
    assert (done.image[..., 3] == value).all()


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_photographs_are_turned_upright(tmp_path, suffix):
    pil = pytest.importorskip("PIL.Image")
    picture, exif = pil.fromarray(PHOTO), pil.Exif()
    exif[0x0112] = 6  # a quarter to the right
    picture.save(tmp_path / f"turned.{suffix}", exif=exif)
    picture.save(tmp_path / f"plain.{suffix}")
    turned, plain = (read_image(tmp_path / f"{name}.{suffix}") for name in ("turned", "plain"))
    assert np.array_equal(turned, np.rot90(plain, -1))


def test_folders_in_a_folder_are_said_to_be_left_out(folder, tmp_path):
    write_image(tmp_path / "in" / "a.png", PHOTO)
    write_image(tmp_path / "in" / "sub" / "b.png", PHOTO)
    (tmp_path / "in" / ".hidden").mkdir()
    with pytest.warns(UserWarning, match="in: 1 folder in it is not searched for images") as said:
        done = run("upscale", "-i", tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert len(said) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_out.png"]
