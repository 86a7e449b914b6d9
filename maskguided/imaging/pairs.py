"""LR and HR images of one name, as a network takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArgumentError, ImageError, warn
from ..metrics import SMALLEST
from .images import Image, list_images, read_image, to_tensor

_TOO_SMALL = (
    f"an image of {{}}x{{}} LR pixels; PSNR leaves its border out, so use images of {SMALLEST}x{SMALLEST} or more"
)


@dataclass(frozen=True)
class Pair:
    """An LR image as a tensor (1, C, H, W) in 0..1 and, where given, its HR image (s*H, s*W, C)."""

    name: str
    lr: Tensor
    hr: NDArray[np.uint8] | None


def read_pairs(
    lr: Path | Sequence[Path],
    hr: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
    *,
    grey: bool = False,
) -> list[Pair]:
    """The LR images of files and folders and, where given, the HR images of the same names.

    Args:
        lr: an image, or a folder of images, or several; of more than one image what cannot be read is left out with a
            warning.
        hr: an image, which may have any name if there is one LR image, or a folder.
        device, dtype, channels_last: of the tensors.
        grey: one channel instead of three.

    Raises:
        ImageError: what is no image, or a folder without one.
        ArgumentError: there is no HR image for an LR image, or it has more than 8 bits a sample.
    """
    places = [lr] if isinstance(lr, Path) else list(lr)
    paths = list(dict.fromkeys(path for place in places for path in list_images(place)))
    is_one = len(places) == 1 and places[0].is_file()
    if hr is not None and hr.is_file() and len(paths) > 1:
        where = places[0] if len(places) == 1 else "--input"
        raise ArgumentError(
            f"--hr {hr} is one image, and {where} holds {len(paths)}; give the folder of their HR images"
        )
    found = {} if hr is None else _by_stem(list_images(hr))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pairs: list[Pair] = []
    for path in paths:
        try:
            x = to_tensor(read_channels(path, grey))[None].to(device, dtype).contiguous(memory_format=layout)
        except ImageError as error:
            if is_one or (path is paths[-1] and not pairs):
                raise
            warn(f"{error}; it is left out")
            continue
        if min(x.shape[2:]) < SMALLEST and not is_one and not (path is paths[-1] and not pairs):
            warn(f"{path}: {_TOO_SMALL.format(*x.shape[2:])}; it is left out")
            continue
        match = hr if hr is not None and hr.is_file() else next((found[n] for n in hr_names(path) if n in found), None)
        if hr is not None and match is None:
            raise ArgumentError(f"--hr {hr}: no HR image is called {path.stem}, as {path} is")
        pairs.append(Pair(path.stem, x, None if match is None else eight_bits(match, grey)))
    return pairs


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    found = {path.stem: path for path in paths}
    for path in (path for path in paths if found[path.stem] != path):
        raise ArgumentError(f"{path} and {found[path.stem].name} have one name; which of them is the HR image?")
    return found


def check_sizes(pairs: Sequence[Pair], scale: int) -> None:
    """Refuse images too small to be compared, and HR images that are not `scale` times their LR images; a few rows and
    columns more are what LR left out."""
    for pair in pairs:
        if min(pair.lr.shape[2:]) < SMALLEST:
            raise ArgumentError(f"{pair.name}: {_TOO_SMALL.format(*pair.lr.shape[2:])}")
        if pair.hr is not None:
            height, width = (side * scale for side in pair.lr.shape[2:])
            if not (0 <= pair.hr.shape[0] - height < scale and 0 <= pair.hr.shape[1] - width < scale):
                raise ArgumentError(
                    f"the HR image of {pair.name} is {pair.hr.shape[0]}x{pair.hr.shape[1]}; "
                    f"at x{scale} it should be {height}x{width}"
                )


def lr_paths(folder: Path, hr: Sequence[Path]) -> list[Path]:
    """The LR image of each HR image."""
    found: dict[str, Path] = {}
    for path in list_images(folder):
        for name in hr_names(path):
            found.setdefault(name, path)
    for path in hr:
        if path.stem not in found:
            raise ImageError(f"{folder}: no LR image is called {path.stem}, as {path} is")
    return [found[path.stem] for path in hr]


def hr_names(lr: Path) -> tuple[str, ...]:
    """What the HR image of an LR image may be called, whatever its suffix: the same, or without x2, x3, ... (DIV2K).

    >>> hr_names(Path("0801x4.png"))
    ('0801x4', '0801')
    """
    return tuple(dict.fromkeys((lr.stem, re.sub("x[2-8]$", "", lr.stem))))


def read_channels(path: Path, grey: bool = False) -> Image:
    """An image as (H, W, 3), or (H, W, 1) for a network of one channel; alpha is left out."""
    image = read_image(path)
    image = image[..., None] if image.ndim == 2 else image[..., :3]
    if grey:
        one: Image = image.mean(2, keepdims=True).round().astype(image.dtype)
        return one
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def eight_bits(path: Path, grey: bool) -> NDArray[np.uint8]:
    """An HR image; an ArgumentError where it has more than 8 bits a sample."""
    image = read_channels(path, grey)
    if image.dtype != np.uint8:
        raise ArgumentError(f"{path}: PSNR is measured on images of 8 bits a sample, not on {image.dtype}")
    return image.astype(np.uint8)
