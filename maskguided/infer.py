"""Upscale an image of any kind: grey, colour or alpha, 8 or 16 bits, whole or in tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ArgumentError, ImageError
from .guided import MaskGuided
from .images import Image, resize
from .patches import Grid

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SMALLEST_TILE = 32
_TINT = np.array([255, 80, 0], np.float64)


class Upscaled(NamedTuple):
    """An upscaled image and which LR pixels were refined."""

    image: Image
    mask: NDArray[np.bool_]
    """(H, W) of the LR image; True where a patch was refined."""


def pick_device(name: str) -> torch.device:
    """ "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps"; an ArgumentError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ArgumentError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); use cpu or auto"
        ) from None
    return device


def pick_dtype(name: str, device: torch.device, supports_half: bool | None) -> torch.dtype:
    """ "fp32", "fp16", "bf16" or "auto": half on CUDA if the network is known to allow it, else fp32."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" and supports_half else torch.float32
    if name not in DTYPES:
        raise ArgumentError(f"--dtype {name}: use auto, {', '.join(DTYPES)}")
    if name == "fp16" and supports_half is False:
        raise ArgumentError("--dtype fp16: this network leaves the range of float16, or may; use bf16 or fp32")
    return DTYPES[name]


def upscale(
    model: MaskGuided,
    image: Image,
    *,
    tile: int = 0,
    tile_pad: int = 16,
    alpha: Literal["model", "bicubic"] = "model",
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> Upscaled:
    """Upscale one image on the model's device and in its dtype.

    Args:
        model: a wrapped network for images in 0..1.
        image: (H, W), (H, W, 3) or (H, W, 4) of uint8 or uint16; the result has its kind.
        tile: side of the tiles in LR pixels, to bound memory; 0: the whole image at once. `keep` then holds
            within each tile.
        tile_pad: context around a tile, in LR pixels; no seams if it is at least the receptive-field radius.
        alpha: how the alpha channel grows.
        on_tile: called with (done, total) after each tile.
    """
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise ImageError(f"an image of shape {image.shape}; it must be (H, W), (H, W, 3) or (H, W, 4)")
    colour = image[..., :3] if image.ndim == 3 else image
    pixels, mask = run_tiled(model, _to_tensor(colour, model), tile, tile_pad, on_tile)
    result = _to_image(pixels, colour)
    if image.ndim == 3 and image.shape[2] == 4:
        result = np.dstack([result, _upscale_alpha(model, image[..., 3], tile, tile_pad, alpha)])
    return Upscaled(result, mask)


def overlay(image: Image, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`image` as 8-bit RGB with the masked LR pixels tinted: (H, W, 3), at the image's size."""
    rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    shown = rgb[..., :3].astype(np.float64) / np.iinfo(image.dtype).max * 255
    height, width = shown.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    cols = np.arange(width) * mask.shape[1] // width
    chosen = mask[rows[:, None], cols]
    shown[chosen] = 0.65 * shown[chosen] + 0.35 * _TINT
    tinted: NDArray[np.uint8] = shown.round().astype(np.uint8)
    return tinted


def _upscale_alpha(model: MaskGuided, alpha: Image, tile: int, tile_pad: int, how: str) -> Image:
    if how == "bicubic":
        return resize(alpha, alpha.shape[0] * model.scale, alpha.shape[1] * model.scale)
    if how != "model":
        raise ArgumentError(f"alpha={how!r}; use 'model' or 'bicubic'")
    return upscale(model, alpha, tile=tile, tile_pad=tile_pad).image


def _to_tensor(image: Image, model: MaskGuided) -> Tensor:
    """(H, W[, 3]) -> (B, C, H, W) in 0..1 for this network: grey is repeated, channels go one by one if need be."""
    channels = model.split.probe.in_channels
    x = torch.from_numpy(image.astype(np.float32) / np.iinfo(image.dtype).max)
    x = x[None, None] if x.dim() == 2 else x.permute(2, 0, 1)[None]
    if x.shape[1] == channels:
        return x
    if x.shape[1] == 1 and channels == 3:
        return x.expand(1, 3, -1, -1)
    if channels == 1:
        return x.transpose(0, 1)
    raise ArgumentError(f"this network takes {channels} channels; images have 1 or 3")


def _to_image(pixels: Tensor, like: Image) -> Image:
    """Back to the dtype and the channels of `like`."""
    if pixels.shape[1] == 1 and like.ndim == 3:
        pixels = pixels.transpose(0, 1)
    top = np.iinfo(like.dtype).max
    array = (pixels[0].clamp(0, 1).double() * top).round().permute(1, 2, 0).numpy()
    if like.ndim == 2:
        array = array.mean(axis=2).round()
    return np.ascontiguousarray(array.astype(like.dtype))


def run_tiled(
    model: MaskGuided,
    x: Tensor,
    tile: int,
    pad: int,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, NDArray[np.bool_]]:
    """Run `x` (B, C, H, W) tile by tile; where a GPU's memory is short, with tiles of half the size.

    Returns the HR images, on the CPU, and which LR pixels of the first were refined (see `upscale`).
    """
    if tile < 0 or pad < 0:
        raise ArgumentError(f"tile={tile}, tile_pad={pad}: use 0 or more LR pixels")
    while True:
        try:
            return _run_tiles(model, x, tile or max(x.shape[-2:]), pad if tile else 0, on_tile)
        except torch.OutOfMemoryError:
            tile = (tile or max(x.shape[-2:])) // 2
            torch.cuda.empty_cache()
            if tile < _SMALLEST_TILE:
                raise ArgumentError("out of memory even with tiles of 32 LR pixels: use --device cpu") from None


@torch.inference_mode()
def _run_tiles(
    model: MaskGuided, x: Tensor, tile: int, pad: int, on_tile: Callable[[int, int], None]
) -> tuple[Tensor, NDArray[np.bool_]]:
    scale, like = model.scale, next(model.parameters())
    # A tile is a patch with a halo: the same geometry as in patches.py, windows moved inward at the border.
    grid = Grid(x.shape[2], x.shape[3], tile, pad)
    tops, lefts = (corner.tolist() for corner in grid.corners(torch.arange(grid.count)))
    height, width = grid.window
    result: Tensor | None = None
    mask = np.zeros((grid.height, grid.width), bool)
    for number, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        window = x[:, :, top : top + height, left : left + width].to(like.device, like.dtype)
        refined, index = model.restore(window.contiguous(memory_format=torch.channels_last))
        refined = refined.float().cpu()
        chosen = model.grid(height, width).mask(index)[0].repeat_interleave(model.patch_size, 0)
        chosen = chosen.repeat_interleave(model.patch_size, 1).cpu()
        if result is None:
            result = torch.empty(x.shape[0], refined.shape[1], grid.height * scale, grid.width * scale)
        row, col = number // grid.cols * tile, number % grid.cols * tile
        end_row, end_col = min(row + tile, grid.height), min(col + tile, grid.width)
        mask[row:end_row, col:end_col] = chosen[row - top : end_row - top, col - left : end_col - left]
        result[:, :, row * scale : end_row * scale, col * scale : end_col * scale] = refined[
            :,
            :,
            (row - top) * scale : (end_row - top) * scale,
            (col - left) * scale : (end_col - left) * scale,
        ]
        on_tile(number + 1, grid.count)
    assert result is not None  # a grid has at least one cell
    return result, mask
