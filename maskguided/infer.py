"""Upscale an image of any kind: grey, colour or alpha, 8 or 16 bits, whole or in tiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ArgumentError, ImageError, is_out_of_memory
from .guided import MaskGuided
from .head import BLURS
from .imaging.images import Image, as_pixels, resize, to_tensor
from .patches import Grid, number_of, per_pixel, round_up, select
from .probing.modules import first_weight
from .values import check_one_of, is_whole
from .wrapping import check_wrapped

SMALLEST_TILE = 32
"""LR pixels a side: a smaller one is mostly its context."""
_TILE, _LARGEST_WHOLE = 384, 512 * 512
_TINT = np.array([255, 80, 0], np.float64)


class Upscaled(NamedTuple):
    """An upscaled image and which LR pixels were refined."""

    image: Image
    mask: NDArray[np.bool_]
    """(H, W) of the LR image; True where a patch was refined, in any channel."""


class Canvas(Protocol):
    """Where the parts of a result go: an array, or a file."""

    def __setitem__(self, place: tuple[slice, slice], pixels: NDArray[Any]) -> None: ...


def upscale(
    model: MaskGuided,
    image: Image,
    *,
    tile: int | None = None,
    tile_pad: int = 16,
    alpha: Literal["model", "bicubic"] = "model",
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> Upscaled:
    """Upscale one image on the model's device and in its dtype.

    Args:
        model: a wrapped network for images in 0..1.
        image: (H, W), (H, W, 3) or (H, W, 4) of uint8 or uint16; the result has its kind.
        tile: side of the tiles in LR pixels, to bound memory; 0: the whole image at once. `keep` holds over the
            image where the scorer is "input" or "linear", else within each tile; `min_gain_db` takes each for one.
            Default: 384 for images of more than 512x512, if the network allows tiles.
        tile_pad: context around a tile, in LR pixels; no seams if it is at least the receptive-field radius.
        alpha: how the alpha channel grows.
        on_tile: called with (done, total) after each tile; of an alpha channel it is not told.
    """
    check_wrapped(model)
    check_one_of("alpha", alpha, ("model", "bicubic"))
    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.uint16):
        what = getattr(image, "dtype", type(image).__name__)
        raise ImageError(f"an image of {what}; it must be a NumPy array of uint8 or uint16")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise ImageError(f"an image of shape {image.shape}; it must be (H, W), (H, W, 3) or (H, W, 4)")
    has_alpha = image.ndim == 3 and image.shape[2] == 4
    colour = image[..., :3] if image.ndim == 3 else image
    if has_alpha and (colour == colour[..., :1]).all():  # grey and alpha, which OpenCV reads as colours
        colour = colour[..., 0]
    result = np.empty(upscaled_shape(model, colour), image.dtype)
    mask = upscale_onto(result, model, colour, tile, tile_pad, on_tile)
    if has_alpha:
        shades = [result] * 3 if result.ndim == 2 else [result]
        result = np.dstack([*shades, _upscale_alpha(model, image[..., 3], tile, tile_pad, alpha)])
    return Upscaled(result, mask)


def upscaled_shape(model: MaskGuided, image: Image) -> tuple[int, ...]:
    """The shape of what `upscale` makes of `image`."""
    height, width = image.shape[:2]
    return (height * model.scale, width * model.scale, *image.shape[2:])


def upscale_onto(
    canvas: Canvas,
    model: MaskGuided,
    image: Image,
    tile: int | None,
    tile_pad: int,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.bool_]:
    """`upscale` an image without alpha, part by part onto a canvas of `upscaled_shape`; which pixels were refined."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.bool_)

    def read(rows: slice, cols: slice) -> Tensor:
        return as_input(image[rows, cols], model)

    for part in tiles(model, read, (height, width), tile, tile_pad, on_tile):
        done = _to_image(part.pixels, image)
        row, col = part.row * model.scale, part.col * model.scale
        canvas[row : row + done.shape[0], col : col + done.shape[1]] = done
        mask[part.row : part.row + part.mask.shape[0], part.col : part.col + part.mask.shape[1]] = part.mask
    return mask


def overlay(image: Image, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`image` as 8-bit RGB with the masked LR pixels tinted: (H, W, 3), at the image's size."""
    height, width = image.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    cols = np.arange(width) * mask.shape[1] // width
    tinted = np.empty((height, width, 3), np.uint8)
    for row in range(height):  # an HR image of floats would be the largest thing in memory
        pixels = image[row, :, :3] if image.ndim == 3 else image[row, :, None]
        shown = np.broadcast_to(pixels / np.iinfo(image.dtype).max * 255, (width, 3)).copy()
        chosen = mask[rows[row], cols]
        shown[chosen] = 0.65 * shown[chosen] + 0.35 * _TINT
        tinted[row] = shown.round()
    return tinted


def _upscale_alpha(model: MaskGuided, alpha: Image, tile: int | None, tile_pad: int, how: str) -> Image:
    height, width = (side * model.scale for side in alpha.shape)
    if alpha.min() == alpha.max():  # opaque stays opaque
        return np.full((height, width), alpha.flat[0], alpha.dtype)
    if how == "bicubic":
        return resize(alpha, height, width)
    return upscale(model, alpha, tile=tile, tile_pad=tile_pad).image


def as_input(image: Image, model: MaskGuided) -> Tensor:
    """(H, W[, 3]) -> (B, C, H, W) in 0..1 for this network: grey is repeated, channels go one by one if need be."""
    channels = model.split.probe.in_channels
    x = to_tensor(image)[None]
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
    array = as_pixels(pixels, like.dtype)
    return array.mean(axis=2).round().astype(like.dtype) if like.ndim == 2 else array


class Tile(NamedTuple):
    """A part of an upscaled image."""

    row: int
    col: int
    """Where it starts, in LR pixels."""
    pixels: Tensor
    """(B, C', s*h, s*w), on the CPU, float32."""
    mask: NDArray[np.bool_]
    """(h, w): the LR pixels that were refined."""


def run_tiled(model: MaskGuided, x: Tensor, tile: int, pad: int) -> Tensor:
    """Run `x` (B, C, H, W) tile by tile (see `tiles`): (B, C', s*H, s*W), on the CPU."""
    scale, whole = model.scale, None
    for part in tiles(model, lambda rows, cols: x[:, :, rows, cols], (x.shape[2], x.shape[3]), tile, pad):
        if whole is None:
            whole = part.pixels.new_empty(*part.pixels.shape[:2], x.shape[2] * scale, x.shape[3] * scale)
        height, width = part.pixels.shape[2:]
        row, col = part.row * scale, part.col * scale
        whole[:, :, row : row + height, col : col + width] = part.pixels
    assert whole is not None  # there is at least one tile
    return whole


def tiles(
    model: MaskGuided,
    read: Callable[[slice, slice], Tensor],
    size: tuple[int, int],
    tile: int | None,
    pad: int,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Tile]:
    """Upscale an image part by part; one for which memory is short is done in four parts instead.

    Args:
        model: a wrapped network.
        read: rows and columns -> that part of the LR image, (B, C, h, w).
        size: height and width of the LR image.
        tile, pad, on_tile: see `upscale`.
    """
    if tile is None:
        tile = _TILE if size[0] * size[1] > _LARGEST_WHOLE and model.split.tiling in (None, "supported") else 0
    if not (is_whole(tile, 0) and is_whole(pad, 0)):
        raise ArgumentError(f"tile={tile!r}, tile_pad={pad!r}: use 0 or more LR pixels, whole numbers")
    side = tile or max(size)
    grid = Grid(*size, side)
    above = _threshold(model, read, grid, pad) if grid.count > 1 else None
    waiting = [(row * side, col * side, side) for row in range(grid.rows) for col in range(grid.cols)][::-1]
    done = 0
    while waiting:
        row, col, side = waiting.pop()
        try:
            part = _restored(model, read, size, (row, col, side), pad if tile else 0, above)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            part = None
        if part is None:  # not within the except, where the error still holds the tensors of what failed
            torch.cuda.empty_cache()
            side = -(-side // 2)
            if side < SMALLEST_TILE:
                raise ArgumentError(
                    f"out of memory even with tiles of {2 * side} LR pixels: use --device cpu, or more memory"
                )
            tile = tile or side  # from now on there are borders, which need context
            if grid.count == 1:  # and patches of other parts to rank among
                grid = Grid(*size, side)
                above = _threshold(model, read, grid, pad) if grid.count > 1 else None
            quarters = [(row + down, col + right, side) for down in (0, side) for right in (0, side)]
            waiting += [place for place in quarters if place[0] < size[0] and place[1] < size[1]][::-1]
            continue
        done += 1
        on_tile(done, done + len(waiting))
        yield part


@torch.no_grad()
def _threshold(model: MaskGuided, read: Callable[[slice, slice], Tensor], grid: Grid, pad: int) -> Tensor | None:
    """(B,): the score above which a patch is refined, so that `keep` holds over all tiles, as they see it; None: within
    each, or that it is all.

    A score that looks at features needs the base, which would run twice, and costs more than it brings
    (docs/benchmarks.md).
    """
    if model.scorer not in ("input", "linear") or not 0 < model.keep < 1 or model.min_gain_db is not None:
        return None
    patch, like = model.patch_size, first_weight(model)
    side, reach = round_up(grid.patch_size, patch), max(BLURS) // 2
    context = round_up(reach, patch) if pad >= reach else 0  # against which the detail at a tile's border is seen
    scores = []
    for row, col in itertools.product(range(0, grid.height, side), range(0, grid.width, side)):
        top, left = max(0, row - context), max(0, col - context)
        part = read(slice(top, row + side + context), slice(left, col + side + context))
        first, start, count = (row - top) // patch, (col - left) // patch, side // patch
        score = model.input_score(part.to(like))  # as rounded as tiles are
        score = score[:, first : first + count, start : start + count]
        scores.append(score.flatten(1))
    score = torch.cat(scores, 1).sort(descending=True).values
    k = number_of(model.keep, score.shape[1])
    return score[:, k] if k < score.shape[1] else None


@torch.no_grad()
def _restored(
    model: MaskGuided,
    read: Callable[[slice, slice], Tensor],
    size: tuple[int, int],
    place: tuple[int, int, int],
    pad: int,
    above: Tensor | None,
) -> Tile:
    """The tile at a row and column, of a side, with context around it; at the image's border that is moved inward.

    `above`: (B,), the score above which patches are refined; None: as many as `keep` says.
    """
    row, col, side = place
    like = first_weight(model)
    rows, cols = (_with_context(start, side, pad, whole, model) for start, whole in zip((row, col), size, strict=True))
    window = read(rows, cols).to(like.device, like.dtype)
    window = window.contiguous(memory_format=model.split.memory_format)
    if above is None:
        made = [model.restore(window)]
    else:  # colours that go one by one have as many patches each as are worth it
        made = [_restored_above(model, x, limit) for x, limit in zip(torch.split(window, 1), above, strict=True)]
    refined, grid = torch.cat([image for image, _ in made]), model.grid(*window.shape[2:])
    cells = torch.cat([grid.mask(index) for _, index in made]).any(0)
    mask = per_pixel(cells.cpu(), model.patch_size)
    rows, cols = (
        slice(start - around.start, min(start + side, whole) - around.start)
        for start, around, whole in zip((row, col), (rows, cols), size, strict=True)
    )
    inner = refined[:, :, _times(rows, model.scale), _times(cols, model.scale)].float().cpu()
    return Tile(row, col, inner, mask[rows, cols].numpy())


def _restored_above(model: MaskGuided, x: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """`model.restore` of one image, refining the patches whose score is above `limit`."""
    base = model.run_base(x)
    score = model.score(base)
    index = select(score, int((score > limit).sum()))
    return model.finish(base, index), index


def _with_context(start: int, side: int, pad: int, whole: int, model: MaskGuided) -> slice:
    """What a tile from `start` on is cut out of; it starts and ends where patches of the image do."""
    multiple = model.patch_size  # one of what the network works on multiples of, too
    length = round_up(side + 2 * pad, multiple)
    first = max(min(start - pad, whole - length), 0) // multiple * multiple
    last = max(first + length, round_up(start + side + pad, multiple))
    return slice(first, min(last, whole))


def _times(part: slice, scale: int) -> slice:
    return slice(part.start * scale, part.stop * scale)
