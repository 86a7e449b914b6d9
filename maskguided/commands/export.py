"""The command that writes a wrapped network as ONNX or as a torch.export program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from ..errors import ArgumentError
from ..export import export
from ..imaging.pairs import read_pairs
from .console import say
from .options import (
    HeadFile,
    Keep,
    ModelName,
    NetScale,
    Overwrite,
    SplitAt,
    WeightFile,
    new_file,
    one_image,
    ready,
    warn_of_rough,
    with_settings,
)


@with_settings
def export_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="A file name that ends in .onnx or .pt2.")],
    input: Annotated[
        Path | None, typer.Option("--input", "-i", help="An LR image, to check the file with; its size is the graph's.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH of the LR images, as 128x192: cut from --input, or a smooth picture."),
    ] = None,
    weights: WeightFile = None,
    model: ModelName = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: SplitAt = "auto",
    keep: Keep = None,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Write the wrapped network at this keep as ONNX or torch.export, for images of one size; the file is checked."""
    new_file(output, overwrite, ".onnx", ".pt2")
    _, fast = ready(weights, model, scale, head, split_at, keep=keep, **settings)
    if fast.min_gain_db is not None:
        raise ArgumentError(
            f"{head}: each image decides there how many patches it needs, and a graph refines as many of every image; "
            f"add --keep {fast.keep:.3g}, what it is on average"
        )
    example = _example(input, size, fast.split.probe.in_channels)
    if input is not None:  # a made-up picture does not tell
        warn_of_rough(fast, example, weights, head)
    difference = export(fast, output, example)
    height, width = example.shape[2:]
    say(
        f"{output}: {height}x{width} -> {height * fast.scale}x{width * fast.scale} at keep={fast.keep:g}; "
        f"differs from the network by {difference:.1e} at most"
    )


def _example(path: Path | None, size: str | None, channels: int) -> Tensor:
    """(1, C, H, W): the image, cut to the size where there is one; a smooth picture without one."""
    sides = None if size is None else _sides(size)
    if path is None:
        if sides is None:
            raise ArgumentError("the graph is for one size: give --size HEIGHTxWIDTH, or --input IMAGE")
        return _example_image(channels, *sides)
    image = read_pairs(one_image(path), None, torch.device("cpu"), torch.float32, False, grey=channels == 1)[0].lr
    if sides is None:
        return image
    if image.shape[2] < sides[0] or image.shape[3] < sides[1]:
        raise ArgumentError(f"--size {size}: {path} is {image.shape[2]}x{image.shape[3]} only")
    return image[:, :, : sides[0], : sides[1]].contiguous()


def _example_image(channels: int, height: int, width: int) -> Tensor:
    """(1, C, H, W): smooth, as photographs are; noise of full contrast is nothing that networks know."""
    coarse = 0.3 + 0.4 * torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(0), device="cpu")
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def _sides(size: str) -> tuple[int, int]:
    try:
        height, width = map(int, size.lower().split("x"))
    except ValueError:
        height = width = 0
    if height < 1 or width < 1:
        raise ArgumentError(f"--size {size}: use HEIGHTxWIDTH in LR pixels, as 128x192")
    return height, width
