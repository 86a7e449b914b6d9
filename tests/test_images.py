"""Image files: what comes back of them, and which are refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data
from support import PHOTO, run

from maskguided import ImageError, MaskGuidedWarning
from maskguided.imaging.images import is_lossless, list_images, read_image, read_profile, write_image

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)


def test_alpha_of_a_grey_tiff_is_said_to_be_left_out(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PHOTO[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    with pytest.warns(UserWarning, match="alpha channel of a grey TIFF is left out"):
        assert np.array_equal(read_image(tmp_path / "a.tif"), PHOTO[..., 0])


def test_inks_are_no_colours_with_alpha(tmp_path):
    from PIL import Image

    inks = Image.fromarray(PHOTO).convert("CMYK")
    inks.save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.array(inks.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_negative_is_read_as_what_it_shows(dtype, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    shown = PHOTO[..., 0].astype(dtype) * (np.iinfo(dtype).max // 255)
    tifffile.imwrite(tmp_path / "a.tif", np.iinfo(dtype).max - shown, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "a.tif"), shown)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_lossless_images_come_back_as_they_were(dtype, channels, suffix, tmp_path):
    pixels = PIXELS[..., 0] if channels == 0 else PIXELS[..., :channels]
    pixels = pixels.astype(dtype) * (257 if dtype == np.uint16 else 1)
    write_image(tmp_path / f"x{suffix}", pixels)
    again = read_image(tmp_path / f"x{suffix}")
    assert again.dtype == dtype
    assert np.array_equal(again, pixels)


def test_red_stays_red(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    write_image(tmp_path / "red.png", red)
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 200]


def test_a_dark_16_bit_image_stays_16_bit(tmp_path):
    dark = np.full((8, 8), 100, np.uint16)
    write_image(tmp_path / "dark.png", dark)
    assert read_image(tmp_path / "dark.png").dtype == np.uint16


def test_photographs_are_turned_as_their_exif_says(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (20, 10, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_alpha_is_turned_with_its_colours(orientation, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png", exif=exif)
    Image.fromarray(np.ascontiguousarray(pixels[..., [3, 0, 1]])).save(tmp_path / "rgb.png", exif=exif)
    found = read_image(tmp_path / "rgba.png")
    assert np.array_equal(found[..., [3, 0, 1]], read_image(tmp_path / "rgb.png"))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_colour_profiles_are_kept_where_they_fit(suffix, tmp_path):
    from PIL import Image, ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PHOTO).save(tmp_path / f"a{suffix}", icc_profile=profile)
    assert read_profile(tmp_path / f"a{suffix}") == profile
    write_image(tmp_path / f"b{suffix}", PHOTO, profile)
    with Image.open(tmp_path / f"b{suffix}") as written:
        assert written.info["icc_profile"] == profile
    write_image(tmp_path / f"c{suffix}", PHOTO)
    assert read_profile(tmp_path / f"c{suffix}") is None
    grey = "d.png" if suffix == ".webp" else f"d{suffix}"  # a WebP is of RGB whatever it shows, as the profile is
    for name, pixels in (("d.tif", PHOTO), (grey, PHOTO[..., 0])):
        with pytest.warns(UserWarning, match=f"{name}: the colour profile is left out"):
            write_image(tmp_path / name, pixels, profile)
    Image.fromarray(PHOTO).save(tmp_path / "e.tif", icc_profile=profile)
    with pytest.warns(UserWarning, match="e.tif: the colour profile of a TIFF is left out"):
        read_image(tmp_path / "e.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_keep_their_quality(suffix, tmp_path):
    photo = data.astronaut()[:128, 128:256]
    write_image(tmp_path / f"a{suffix}", photo)
    error = np.square(read_image(tmp_path / f"a{suffix}").astype(float) - photo).mean()
    assert 10 * np.log10(255**2 / error) > 37, "of quality 95; at 60 it is 33"


@pytest.mark.parametrize(
    ("name", "pixels", "text"),
    [
        ("x.jpg", PIXELS, "no alpha"),
        ("x.webp", PIXELS[..., :3].astype(np.uint16), "8 bits"),
        ("x.gifx", PIXELS, "unknown image suffix"),
    ],
)
def test_formats_that_cannot_hold_an_image_are_refused(name, pixels, text, tmp_path):
    with pytest.raises(ImageError, match=text):
        write_image(tmp_path / name, pixels)
    assert not list(tmp_path.iterdir())


def test_an_image_of_too_many_pixels_is_an_image_error(tmp_path):
    content = b"\x89PNG\r\n\x1a\n"
    for name, chunk in (
        (b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(chunk)) + name + chunk + struct.pack(">I", zlib.crc32(name + chunk))
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"huge\.png: more pixels than"):
        read_image(tmp_path / "huge.png")


def test_what_is_no_image_is_said_to_be_none(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "none.png")
    for content in (b"", b"hello"):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ImageError, match="no image that can be read"):
            read_image(tmp_path / "bad.png")
    (tmp_path / "five.tif").write_bytes(b"II*\0" + bytes(60))
    with pytest.raises(ImageError, match=r"five\.tif: no image .* or a TIFF of channels, samples or compression"):
        read_image(tmp_path / "five.tif")
    with pytest.raises(ImageError, match="no regular file; save what it gives to one"):
        read_image("/dev/null")
    assert list_images(Path("/dev/null")) == [Path("/dev/null")], "no folder"


@pytest.mark.parametrize(("mode", "dtype", "depth"), [("L", np.uint8, 8), ("I;16", np.uint16, 16), ("1", np.uint8, 1)])
def test_a_grey_that_a_png_calls_transparent_is_alpha(mode, dtype, depth, tmp_path):
    """OpenCV reads that of colours, and leaves that of grey out."""
    pillow = pytest.importorskip("PIL.Image")
    top = 2**depth - 1
    grey = np.array([[top, 7 % (top + 1), 0], [7 % (top + 1), top, top]], dtype)
    stored = pillow.fromarray(grey.astype(bool) if mode == "1" else grey)
    assert stored.mode == mode
    stored.save(tmp_path / "a.png", transparency=grey[0, 1].item())
    image = read_image(tmp_path / "a.png")
    full = np.iinfo(dtype).max
    assert (image.shape, image.dtype) == ((2, 3, 4), dtype)
    assert image[..., 3].tolist() == np.where(grey == grey[0, 1], 0, full).tolist()
    assert image[..., 0].tolist() == (grey.astype(int) * (full // top)).tolist()
    stored.save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").shape == (2, 3)


def test_a_lossless_webp_stays_lossless(tmp_path):
    image = data.astronaut()[:40, :40].copy()
    for name, lossless in (("kept", True), ("lossy", False)):
        write_image(tmp_path / f"{name}.webp", image, lossless=lossless)
        assert is_lossless(tmp_path / f"{name}.webp") == lossless
        assert np.array_equal(read_image(tmp_path / f"{name}.webp"), image) == lossless
        run("upscale", "-i", tmp_path / f"{name}.webp", "--keep", 0)
        assert is_lossless(tmp_path / f"{name}_out.webp") == lossless


def test_a_folder_of_other_files_alone_holds_no_image(tmp_path):
    for name in ("a.txt", "b.json"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(ImageError, match=r"a\.txt and 1 more are no images, and nothing else is in this folder"):
        list_images(tmp_path)
    write_image(tmp_path / "c.png", data.astronaut()[:8, :8].copy())
    (tmp_path / "c.png").rename(tmp_path / "c")
    with pytest.warns(MaskGuidedWarning, match=r"a\.txt and 1 more are no images; they are left out"):
        assert list_images(tmp_path) == [tmp_path / "c"], "by what it begins with"
