"""PSNR and SSIM as the super-resolution literature counts them.

Both take uint8 RGB or grey images, (H, W, C) or (H, W), compare the Y channel of BT.601 (16..235) and
leave out a border of `crop` pixels, by convention the scale. Equal to basicsr's with test_y_channel for RGB; basicsr
leaves grey images in 0..255, where PSNR is 1.32 dB lower.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError
from .values import is_whole

Image = NDArray[np.uint8]

BT601 = (65.481, 128.553, 24.966)
"""What R, G and B in 0..1 add to Y, which is 16 without them."""
SMALLEST = 3
"""LR pixels a side: of fewer, a border of the scale leaves nothing of the HR image."""


def luma(image: Image) -> NDArray[np.float64]:
    """The Y channel of BT.601, 16..235, of an RGB uint8 image (H, W, 3) or a grey one (H, W[, 1]).

    >>> luma(np.full((1, 1, 3), 255, np.uint8)).round(3)
    array([[235.]])
    """
    pixels = image.astype(np.float64)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2]) * (219 / 255) + 16
    y: NDArray[np.float64] = pixels[..., :3] @ np.array(BT601) / 255 + 16
    return y


def psnr(a: Image, b: Image, crop: int) -> float:
    """Peak signal-to-noise ratio on Y, in dB; infinite for equal images.

    >>> flat = np.zeros((9, 9, 3), np.uint8)
    >>> round(psnr(flat, flat + np.uint8(1), crop=2), 2)
    49.45
    """
    x, y = _cropped(a, b, crop)
    error = float(np.mean((x - y) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def ssim(a: Image, b: Image, crop: int) -> float:
    """Structural similarity on Y: 11x11 Gaussian window of sigma 1.5, valid part only (Wang et al. 2004)."""
    x, y = _cropped(a, b, crop)
    if min(x.shape) < 11:
        raise ArgumentError(f"ssim: {x.shape[0]}x{x.shape[1]} pixels inside the border; it needs 11x11")
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu_x, mu_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mu_x**2, _blur(y * y) - mu_y**2
    cov = _blur(x * y) - mu_x * mu_y
    score = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return float(score.mean())


def _cropped(a: Image, b: Image, crop: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        raise ArgumentError(f"metrics compare two NumPy arrays, not {type(a).__name__} and {type(b).__name__}")
    if a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] not in (1, 3)):
        raise ArgumentError(f"metrics: an image of shape {a.shape}; use (H, W), (H, W, 1) or RGB (H, W, 3)")
    if not is_whole(crop, 0):
        raise ArgumentError(f"metrics: crop={crop!r}; use 0 or more HR pixels, a whole number")
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ArgumentError(
            f"metrics compare two uint8 images of one shape, not {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
    if min(a.shape[:2]) <= 2 * crop:
        raise ArgumentError(f"metrics: a border of {crop} leaves nothing of {a.shape[0]}x{a.shape[1]} pixels")
    inner = slice(crop, -crop or None)
    return luma(a)[inner, inner], luma(b)[inner, inner]


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    rows = np.lib.stride_tricks.sliding_window_view(x, 11, axis=0) @ taps
    blurred: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(rows, 11, axis=1) @ taps
    return blurred
