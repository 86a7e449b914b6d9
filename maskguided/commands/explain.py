"""The command that draws what a network saw and chose: maskguided explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .. import pictures
from ..errors import ArgumentError
from ..imaging.pairs import read_pairs
from ..probing.modules import first_weight
from .console import say
from .options import (
    Device,
    HeadFile,
    Keep,
    ModelName,
    NetScale,
    Overwrite,
    SplitAt,
    Threads,
    WeightFile,
    inputs_of,
    new_picture,
    one_image,
    pick_device,
    ready,
    use_threads,
    warn_of_rough,
    with_settings,
)


@with_settings
def explain_command(
    image: Annotated[Path | None, typer.Argument(help="An LR image, as -i.", show_default=False)] = None,
    input: Annotated[Path | None, typer.Option("--input", "-i", help="An LR image.", show_default=False)] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture: .png, .pdf or .svg.")],
    weights: WeightFile = None,
    model: ModelName = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: SplitAt = "auto",
    keep: Keep = None,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Draw what the network saw and chose: LR, coarse, error map, score, refined patches and result side by side."""
    use_threads(threads)
    (image, *others) = inputs_of("explain", *([path] if path else [] for path in (image, input)))
    if others:
        raise ArgumentError(f"{image} and {others[0]}: two images; give one")
    new_picture(output, overwrite, one_image(image))
    where = pick_device(device)
    fast = ready(weights, model, scale, head, split_at, keep=keep, **settings)[1].to(where).eval()
    like, last = first_weight(fast), fast.split.memory_format == torch.channels_last
    pair = read_pairs(image, None, like.device, like.dtype, last, grey=fast.split.probe.in_channels == 1)[0]
    warn_of_rough(fast, pair.lr, weights, head)
    found = pictures.explain_picture(fast, pair.lr, output)
    say(f"{int(found.mask.sum())} of {found.mask[0].numel()} patches refined; {output}")
