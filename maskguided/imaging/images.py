"""Image files as arrays: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, of uint8 or uint16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ..errors import ImageError, warn
from ..files import write_whole
from ..optional import optional
from .png import StripedPng, transparent_grey
from .tiff import SUFFIXES as TIFF
from .tiff import StripedTiff, is_large, look_at, mapped

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_PAGED = (*TIFF, ".webp", ".png", ".gif", ".avif")
_NO_ALPHA = (".jpg", ".jpeg", ".bmp")
_EIGHT_BIT = (".jpg", ".jpeg", ".bmp", ".webp")
_NEGATIVE, _INKS = 0, 5
"""What a TIFF says of grey in which zero is white, and of CMYK."""
_PROFILED = (".png", ".jpg", ".jpeg", ".webp")
_PROFILES = (b"iCCP", b"ICC_PROFILE", b"ICCP")
"""What stands before a colour profile in PNG, JPEG and WebP."""

Image = NDArray[Any]


def read_image(path: str | Path) -> Image:
    """Read an image as it is stored: bit depth by its dtype, grey, colour or alpha by its channels.

    Photographs are turned as their EXIF orientation says; colours that are multiplied by alpha are divided by it. A
    large uncompressed TIFF is not read, but mapped.

    Raises:
        ImageError: no such file, no image, or neither 8 nor 16 bits a sample.
    """
    cv2, path = _cv2(), Path(path)
    if not path.is_file():
        what = "no regular file; save what it gives to one" if path.exists() else "no such file"
        raise ImageError(f"{path}: {what}")
    if (image := mapped(path)) is not None:
        return image
    stored, meaning, is_multiplied = look_at(path.read_bytes(), path)
    content = np.frombuffer(stored, np.uint8)
    # OpenCV turns a photograph upright only where it may drop the alpha channel, which JPEG has not.
    upright, as_it_is = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH, cv2.IMREAD_UNCHANGED
    is_colour = stored[:2] == b"\xff\xd8" or meaning == _INKS  # else inks are taken for colours and alpha
    try:
        image = cv2.imdecode(content, upright if is_colour else as_it_is) if content.size else None
        if image is not None and (b"eXIf" in stored or b"EXIF" in stored):
            turned = cv2.imdecode(content, upright)
            image = _turned_like(turned, image) if image.shape[2:] == (4,) else turned
    except (cv2.error, MemoryError):
        raise ImageError(f"{path}: more pixels than OpenCV or the memory can hold") from None
    if image is None:
        kind = f"none of {', '.join(SUFFIXES)} and what else OpenCV knows"
        if stored[:2] in (b"II", b"MM"):
            kind = (
                "a TIFF of channels, samples or compression that OpenCV does not know; grey and RGB of 8 or 16 bits do"
            )
        raise ImageError(f"{path}: no image that can be read: damaged, or {kind}")
    if path.suffix.lower() in _PAGED and _opens(path) and (pages := cv2.imcount(str(path))) > 1:
        warn(f"{path}: the first of {pages} pictures in it is read")
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{path}: {image.dtype} samples; an image of 8 or 16 bits a sample is needed")
    if is_multiplied and image.shape[2:] == (4,):
        image = _divided(image)
    if image.ndim == 2 and (clear := transparent_grey(stored)) is not None:
        alpha = np.where(image == clear, 0, np.iinfo(image.dtype).max).astype(image.dtype)
        image = np.dstack([image, image, image, alpha])
    return _swapped(~image if meaning == _NEGATIVE and image.dtype == np.uint16 else image)


def _divided(image: Image) -> Image:
    """Colours as they are, of those that were multiplied by the alpha channel (H, W, 4)."""
    top = np.iinfo(image.dtype).max
    straight: Image = image.copy()
    for row in straight:  # as floats a large image would take a multiple of its memory
        alpha = row[:, 3:].astype(np.float64)
        row[:, :3] = np.minimum((row[:, :3] * (top / np.maximum(alpha, 1))).round(), top)
    return straight


def _turned_like(upright: Image, image: Image) -> Image:
    """`image` with its alpha channel, turned and mirrored as its colours are in `upright`."""
    for mirrored in (image, image[:, ::-1]):
        for quarters in range(4):
            turned = np.rot90(mirrored, quarters)
            if np.array_equal(turned[..., :3], upright):
                return np.ascontiguousarray(turned)
    return image


def read_profile(path: str | Path) -> bytes | None:
    """The colour profile (ICC) in a PNG, JPEG or WebP file: what its numbers mean, which other files cannot tell."""
    cv2, path = _cv2(), Path(path)
    stored = b"" if path.suffix.lower() in TIFF else path.read_bytes()  # which may be larger than memory
    if not any(mark in stored for mark in _PROFILES) or not hasattr(cv2, "imdecodeWithMetadata"):  # OpenCV 4.12
        return None
    least = cv2.IMREAD_REDUCED_GRAYSCALE_8  # of the pixels, which are not asked for
    _, kinds, found = cv2.imdecodeWithMetadata(np.frombuffer(stored, np.uint8), flags=least)
    profiles = (data.tobytes() for kind, data in zip(kinds, found, strict=True) if kind == cv2.IMAGE_METADATA_ICCP)
    return next(profiles, None)


def write_image(path: str | Path, image: Image, profile: bytes | None = None, *, lossless: bool = False) -> None:
    """Write an image whole or not at all; the suffix chooses the format (JPEG and WebP at quality 95).

    `profile`, as of `read_profile`, is kept where it is of such an image and the format can hold it. `lossless`: a
    WebP keeps all pixels as they are.

    Raises:
        ImageError: the format is unknown, or cannot hold alpha or 16 bits.
    """
    cv2, path = _cv2(), Path(path)
    check_format(path, image)
    suffix = path.suffix.lower()
    key = {
        ".webp": cv2.IMWRITE_WEBP_QUALITY,
        ".jpg": cv2.IMWRITE_JPEG_QUALITY,
        ".jpeg": cv2.IMWRITE_JPEG_QUALITY,
    }.get(suffix)
    quality = [] if key is None else [key, 101 if lossless and suffix == ".webp" else 95]  # OpenCV's word for lossless
    swapped = _swapped(image)
    kept: tuple[Any, ...] = ()
    profile = _fitting(profile, path, image.shape)
    if profile is not None:
        kept = ([cv2.IMAGE_METADATA_ICCP], [np.frombuffer(profile, np.uint8)])

    def write(beside: Path) -> None:
        # As it is encoded: a large file is never in memory.
        to_file, to_memory = cv2.imwrite, cv2.imencode
        if kept:
            to_file, to_memory = cv2.imwriteWithMetadata, cv2.imencodeWithMetadata
        if _opens(beside) and to_file(str(beside), swapped, *kept, quality):
            return
        done, encoded = to_memory(suffix, swapped, *kept, quality)  # where OpenCV cannot open such a path
        if not done:
            raise ImageError(f"{path}: OpenCV could not encode {image.shape} {image.dtype} as {suffix}")
        beside.write_bytes(encoded)  # not tofile, whose error does not say that a disk is full

    write_whole(path, write)


def _fitting(profile: bytes | None, path: Path, shape: tuple[int, ...]) -> bytes | None:
    """The colour profile, if it is of grey, or of RGB, as the file will be; else None and a warning."""
    suffix = path.suffix.lower()
    kind = b"GRAY" if len(shape) == 2 and suffix != ".webp" else b"RGB "  # a WebP is always RGB
    if profile is None or (suffix in _PROFILED and profile[16:20] == kind):
        return profile
    warn(f"{path}: the colour profile is left out; a PNG, JPEG or WebP of colours keeps it")
    return None


def goes_in_parts(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Whether such an image is large, and need not be in memory to be written to this file: see `open_large`."""
    return path.suffix.lower() in (*TIFF, ".png") and is_large(shape, dtype)


def open_large(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike, profile: bytes | None = None, target: Path | None = None
) -> StripedTiff | StripedPng:
    """A file that takes an image part by part; as in `write_image`, a PNG keeps the profile if it is of such images.

    `target`: what the file will be called in the end.
    """
    profile = _fitting(profile, target or path, shape)
    return StripedTiff(path, shape, dtype) if path.suffix.lower() in TIFF else StripedPng(path, shape, dtype, profile)


def check_format(path: Path, image: Image) -> None:
    """Raise an ImageError where a file of this suffix cannot hold the image."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(f"{path}: unknown image suffix {suffix!r}; use one of {', '.join(SUFFIXES)}")
    if suffix in _NO_ALPHA and image.ndim == 3 and image.shape[2] == 4:
        others = ".png or .tif" if image.dtype == np.uint16 else ".png, .tif or .webp"
        raise ImageError(f"{path}: {suffix} holds no alpha channel; use {others}")
    if suffix in _EIGHT_BIT and image.dtype == np.uint16:
        raise ImageError(f"{path}: {suffix} holds 8 bits a sample, the image has 16; use .png or .tif")


def list_images(path: Path) -> list[Path]:
    """The file itself, or what lies in a folder and is not hidden, by name, less what is no image, which is told of."""
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    found = [p for p in inside if not p.is_dir()]
    if not found:
        raise ImageError(f"{path}: no files are in this folder (folders in it are not searched)")
    images = [p for p in found if p.suffix.lower() in SUFFIXES or _is_known(p)]
    other = sorted(set(found) - set(images))
    if other:
        what = "is no image; it is" if len(other) == 1 else f"and {len(other) - 1} more are no images; they are"
        if not images:
            raise ImageError(f"{path}: {other[0].name} {what.split(';')[0]}, and nothing else is in this folder")
        warn(f"{path}: {other[0].name} {what} left out")
    if passed := len(inside) - len(found):
        folders = "1 folder in it is" if passed == 1 else f"{passed} folders in it are"
        warn(f"{path}: {folders} not searched for images")
    return images


def _is_known(path: Path) -> bool:
    """Whether a file begins as an image does."""
    return _opens(path) and bool(_cv2().haveImageReader(str(path)))


def is_lossless(path: str | Path) -> bool:
    """Whether a file is a WebP whose pixels are all that were there."""
    path = Path(path)
    return path.suffix.lower() == ".webp" and b"VP8L" in path.read_bytes()


def resize(image: Image, height: int, width: int, *, lanczos: bool = False) -> Image:
    """Bicubic, for showing and for alpha channels; or Lanczos (8x8)."""
    cv2 = _cv2()
    how = cv2.INTER_LANCZOS4 if lanczos else cv2.INTER_CUBIC
    try:
        resized: Image = cv2.resize(image, (width, height), interpolation=how)
    except (cv2.error, MemoryError):
        raise ImageError(f"an image of {height}x{width} pixels is more than OpenCV or the memory can hold") from None
    return resized


def as_pixels(x: Tensor, dtype: DTypeLike = np.uint8) -> Image:
    """(1, C, H, W) in 0..1 -> (H, W, C) of `dtype`, clamped and rounded."""
    top = np.iinfo(dtype).max
    pixels = (x[0].clamp(0, 1).float().cpu().double() * top).round()
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy().astype(dtype))


def _swapped(image: Image) -> Image:
    """RGB(A) from OpenCV's BGR(A), and back."""
    if image.ndim == 2 or image.shape[2] == 1:
        return image.reshape(image.shape[:2])
    return np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]])


def _opens(path: Path) -> bool:
    """Whether OpenCV may be given this name: one that is no UTF-8, as of old archives, ends the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _cv2() -> Any:
    return optional("cv2", "an image", "opencv-python-headless")


def to_tensor(image: Image) -> Tensor:
    """(H, W[, C]) of uint8 or uint16 -> (C, H, W) float32 in 0..1."""
    pixels = (image[..., None] if image.ndim == 2 else image).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels).astype(np.float32) / np.iinfo(image.dtype).max)
