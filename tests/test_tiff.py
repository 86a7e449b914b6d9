"""Large TIFF files, of which a part at a time is read, made and written."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PHOTO, run

from maskguided.imaging import tiff
from maskguided.imaging.images import read_image, write_image
from maskguided.imaging.tiff import StripedTiff, mapped

tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def large(monkeypatch) -> None:
    """Every TIFF is a large one."""
    monkeypatch.setattr(tiff, "LARGE", 0)


def of_kind(kind: str, dtype: type) -> np.ndarray:
    pixels = PHOTO.astype(int) * np.iinfo(dtype).max // 255
    return np.ascontiguousarray(pixels if kind == "colour" else pixels[..., 1]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_a_result_written_in_strips_is_the_one_written_whole(kind, dtype, weights, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", of_kind(kind, dtype))
    common = ("upscale", "-i", tmp_path / "a.png", "-w", weights, "--keep", "0.5", "--tile", "32", "--show-mask")
    whole = run(*common, "-o", tmp_path / "whole.tif").output
    monkeypatch.setattr(tiff, "LARGE", 0)
    strips = run(*common, "-o", tmp_path / "strips.tif").output
    with tifffile.TiffFile(tmp_path / "strips.tif") as file:
        assert file.pages[0].compression == 1
        assert len(file.pages[0].dataoffsets) == 12  # of 16 rows
    monkeypatch.setattr(tiff, "LARGE", 2**28)
    assert np.array_equal(read_image(tmp_path / "strips.tif"), read_image(tmp_path / "whole.tif"))
    assert read_image(tmp_path / "strips.tif").dtype == dtype
    size, share = whole.partition("(")[2].split(",")[:2]
    assert (size, share) == tuple(strips.partition("(")[2].split(",")[:2])
    assert size == "240x192"
    assert 40 < int(share.strip().partition("%")[0]) <= 50
    assert read_image(tmp_path / "strips_mask.png").shape == (48, 60, 3)  # of the LR image


def test_a_small_result_is_compressed(weights, tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    run("upscale", "-i", tmp_path / "a.png", "-w", weights, "-o", tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].compression != 1


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_uncompressed_file_is_mapped(kind, dtype, tmp_path):
    pixels, path = of_kind(kind, dtype), tmp_path / "a.tif"
    photometric = "rgb" if kind == "colour" else "minisblack"
    for how in ({}, {"rowsperstrip": 7}, {"bigtiff": True}):
        tifffile.imwrite(path, pixels, photometric=photometric, **how)
        assert isinstance(read_image(path), np.memmap)
        assert np.array_equal(read_image(path), pixels)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "how",
    [
        {"compression": "zlib"}, {"planarconfig": "separate"}, {"extratags": [(274, 3, 1, 3, True)]},
        {"byteorder": ">"}, {"tile": (16, 16)}, {"photometric": "ycbcr", "dtype": np.uint8},
        {"photometric": "miniswhite", "grey": True}, {"photometric": "minisblack", "planarconfig": "contig"},
        {"alpha": True}, {"dtype": np.float32}, {"pages": 2},
    ],
    ids=str,
)  # fmt: skip
def test_other_files_are_not(how, tmp_path):
    how, path = {"photometric": "rgb", **how}, tmp_path / "a.tif"
    pixels = PHOTO.astype(how.pop("dtype", np.uint16))
    pixels = pixels[..., 1] if how.pop("grey", False) else pixels
    pixels = np.dstack([pixels, pixels[..., 0]]) if how.pop("alpha", False) else pixels
    pages = how.pop("pages", 1)
    with tifffile.TiffWriter(path, byteorder=how.pop("byteorder", None)) as file:
        for _ in range(pages):
            file.write(pixels, metadata=None, **how)
    assert mapped(path) is None
    path.write_bytes(path.read_bytes()[:9])
    assert mapped(path) is None


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_colours_are_not_multiplied_by_alpha(bigtiff, byteorder, tmp_path):
    pixels = np.dstack([PHOTO, PHOTO[..., 0]])
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=bigtiff, byteorder=byteorder) as file:
        file.write(pixels, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(tmp_path / "a.tif"), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_that_are_multiplied_by_alpha_are_divided_by_it(dtype, tmp_path):
    top = np.iinfo(dtype).max
    colours, alpha = PHOTO.astype(float) / 255, np.linspace(0, 1, PHOTO.shape[1])[None, :, None]
    alpha = np.broadcast_to(alpha, (*PHOTO.shape[:2], 1))
    pixels = (np.dstack([colours * alpha, alpha]) * top).round().astype(dtype)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, photometric="rgb", extrasamples=["assocalpha"], iccprofile=b"0" * 200)
    with pytest.warns(UserWarning, match="the colour profile of a TIFF is left out"):
        found = read_image(tmp_path / "a.tif")
    assert (found.dtype, found.shape) == (dtype, pixels.shape)
    assert np.array_equal(found[..., 3], pixels[..., 3])
    away = np.abs(found[..., :3] / top - colours)  # colours and alpha were rounded by half a step, and so is this
    assert (away[:, 2:] <= 1.1 / (top * alpha[:, 2:]) + 0.51 / top).all()
    assert (found[:, 0, :3] == 0).all()


def test_a_file_of_more_than_4_gib_would_be_a_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff, "_CLASSIC", 0)
    with StripedTiff(tmp_path / "a.tif", PHOTO.shape, PHOTO.dtype) as file:
        file[0:48, 0:60] = PHOTO
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
    assert np.array_equal(read_image(tmp_path / "a.tif"), PHOTO)


@given(data=st.data(), grey=st.booleans(), deep=st.booleans())
def test_parts_land_where_they_belong_in_any_order(data, grey, deep, tmp_path_factory):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    shape, dtype = (height, width) if grey else (height, width, 3), np.uint16 if deep else np.uint8
    pixels = np.random.default_rng(0).integers(1, np.iinfo(dtype).max, shape, dtype)
    down, across = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    parts = [
        (slice(*rows), slice(*cols))
        for rows in ((0, down), (down, height))
        for cols in ((0, across), (across, width))
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("parts") / "a.tif"
    with StripedTiff(path, shape, dtype) as file:
        for place in data.draw(st.permutations(parts)):
            file[place] = pixels[place]
    assert np.array_equal(read_image(path), pixels)


@pytest.mark.usefixtures("large")
def test_a_full_disk_leaves_nothing_half_written(weights, tmp_path):
    resource = pytest.importorskip("resource")
    write_image(tmp_path / "a.png", PHOTO)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # no file may be longer
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        said = run("upscale", "-i", tmp_path / "a.png", "-w", weights, "-o", tmp_path / "b.tif", code=1).output
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "too large" in said
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
