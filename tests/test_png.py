"""PNG files that are written as their parts are made: OpenCV reads what was written, and no memory holds it."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageCms
from support import PHOTO, run

from maskguided.imaging import tiff
from maskguided.imaging.images import open_large, read_image, read_profile, write_image
from maskguided.imaging.png import StripedPng, _filtered


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(tiff, "LARGE", 0)


@given(data=st.data(), grey=st.booleans(), deep=st.booleans(), noise=st.booleans())
def test_tiles_of_any_sizes_become_the_image(data, grey, deep, noise, tmp_path_factory):
    height, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 40))
    shape, dtype = (height, width) if grey else (height, width, 3), np.uint16 if deep else np.uint8
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    if not noise:
        pixels = np.sort(pixels, axis=0)
    cuts = sorted({0, height, *data.draw(st.lists(st.integers(0, height), max_size=3))})
    path = tmp_path_factory.mktemp("parts") / "a.png"
    with StripedPng(path, shape, dtype) as file:
        for top, bottom in itertools.pairwise(cuts):
            across = sorted({0, width, *data.draw(st.lists(st.integers(0, width), max_size=3))})
            columns = [slice(*cols) for cols in itertools.pairwise(across)]
            for cols in data.draw(st.permutations(columns)):
                file[top:bottom, cols] = pixels[top:bottom, cols]
            assert len(file._waiting) == 0
    assert np.array_equal(read_image(path), pixels)


def test_quarters_of_a_tile_for_which_memory_was_short_come_in_their_own_order(tmp_path):
    rows, cols = (slice(0, 24), slice(24, 48)), (slice(0, 15), slice(15, 30))
    with StripedPng(tmp_path / "a.png", PHOTO.shape, PHOTO.dtype) as file:
        for place in [(r, c) for r in rows for c in cols] + [(slice(0, 48), slice(30, 60))]:
            file[place] = PHOTO[place]
    assert np.array_equal(read_image(tmp_path / "a.png"), PHOTO)


def test_each_row_is_filtered_by_what_leaves_the_least():
    ramp = np.arange(60, dtype=np.uint8)
    rows = np.stack([ramp, ramp, ramp[::-1], np.full(60, 7, np.uint8)])
    found = _filtered(rows, np.zeros(60, np.uint8), 1)
    assert found[:, 0].tolist() == [1, 2, 1, 1]
    assert np.abs(found[1, 1:].view(np.int8)).sum() == 0
    assert np.abs(found[3, 1:].view(np.int8)).sum() == 7


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("mode", ["colour", "grey", "16 bit"])
def test_a_large_result_is_the_small_one_written_in_parts(mode, weights, tmp_path, monkeypatch):
    image = {"grey": PHOTO[..., 0], "16 bit": PHOTO.astype(np.uint16) * 257}.get(mode, PHOTO)
    write_image(tmp_path / "a.png", image)
    given = ("upscale", "-i", tmp_path / "a.png", "-w", weights, "-t", 32, "--show-mask")
    run(*given, "-o", tmp_path / "parts.png")
    monkeypatch.setattr(tiff, "LARGE", 2**28)
    run(*given, "-o", tmp_path / "whole.png")
    assert np.array_equal(read_image(tmp_path / "parts.png"), read_image(tmp_path / "whole.png"))
    assert read_image(tmp_path / "parts_mask.png").shape[:2] == image.shape[:2]


@pytest.mark.usefixtures("large")
def test_what_fails_on_the_way_leaves_no_file(weights, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", PHOTO)
    monkeypatch.setattr(StripedPng, "_compress", lambda self, rows: (_ for _ in ()).throw(OSError(28, "No space left")))
    said = run("upscale", "-i", tmp_path / "a.png", "-w", weights, "-o", tmp_path / "b.png", code=1).output
    assert "No space left" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.usefixtures("large")
@pytest.mark.skipif(not hasattr(cv2, "imdecodeWithMetadata"), reason="this OpenCV reads no profiles")
def test_a_colour_profile_is_kept_where_it_is_of_such_an_image(weights, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    PIL.Image.fromarray(PHOTO).save(tmp_path / "a.png", icc_profile=profile)
    run("upscale", "-i", tmp_path / "a.png", "-w", weights, "-o", tmp_path / "b.png")
    with PIL.Image.open(tmp_path / "b.png") as written:
        assert written.info["icc_profile"] == profile
    PIL.Image.fromarray(PHOTO[..., 0]).save(tmp_path / "d.jpg", icc_profile=profile)
    with pytest.warns(UserWarning, match=r"/e\.png: the colour profile is left out"):
        run("upscale", "-i", tmp_path / "d.jpg", "-w", weights, "-o", tmp_path / "e.png")
    with (
        pytest.warns(UserWarning, match="the colour profile is left out"),
        open_large(tmp_path / "c.png", (1, 1), np.uint8, profile) as file,
    ):
        file[0:1, 0:1] = np.array([[3]])
    assert read_profile(tmp_path / "c.png") is None
