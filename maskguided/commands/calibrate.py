"""The command that makes a wrapped network useful without training: maskguided calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress
from torch import Tensor

from .. import checkpoint, pictures
from ..calibrate import calibrate
from ..calibration.curve import Budget
from ..imaging.images import to_tensor
from ..imaging.pairs import Pair, check_sizes, read_pairs
from ..networks import load_network
from ..probing.modules import first_weight
from .console import err, log, say
from .options import (
    Device,
    HeadFile,
    Images,
    Inputs,
    ModelName,
    NetScale,
    Output,
    Overwrite,
    Threads,
    WeightFile,
    inputs_of,
    new_file,
    new_picture,
    pick_device,
    use_threads,
    with_settings,
    wrapped,
)

_SEARCHED = ("merge", "coarse_tail", "coarse_on", "refine_tail", "skip", "patch_size", "halo")
"""Settings that a search sets itself."""


@with_settings
def calibrate_command(
    images: Images = None,
    input: Inputs = None,
    *,
    output: Output,
    hr: Annotated[Path | None, typer.Option(help="HR images of the same names, if there are any.")] = None,
    weights: WeightFile = None,
    model: ModelName = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: Annotated[str, typer.Option(help="A number of blocks; auto: try several.")] = "auto",
    fit: Annotated[
        str | None,
        typer.Option(help="all; score or context alone; nothing: only keep.", show_default="all; nothing with --head"),
    ] = None,
    max_drop: Annotated[float | None, typer.Option(help="dB on Y that may be lost against the dense network.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Share of the dense MACs that may be spent.")] = None,
    max_time: Annotated[
        float | None, typer.Option(help="Share of the dense network's time that may be spent, measured here and now.")
    ] = None,
    per_image: Annotated[
        bool, typer.Option("--per-image", help="Each image decides how many patches it needs; budgets hold on average.")
    ] = False,
    side: Annotated[int, typer.Option(help="Largest side of an image in LR pixels; more is cut off.", min=16)] = 128,
    device: Device = "auto",
    threads: Threads = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curve here (.png, .pdf, .svg).")] = None,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Fit coarse tail and score in closed form and choose keep for a budget; no training, some minutes."""
    Budget(max_drop, max_cost, max_time)  # says what is wrong with it before a network is read
    inputs = inputs_of("calibrate", images, input)
    new_file(output, overwrite, ".safetensors", inputs=[weights, head])
    if plot is not None:
        new_picture(plot, overwrite, *inputs, hr)
    use_threads(threads)
    where = pick_device(device)
    network = load_network(weights, model, scale).model.to(where)
    torch.manual_seed(0)  # the mask head is new, and saved: the same command saves the same weights
    fast = wrapped(network, head, split_at, **settings)
    fast = fast.to(memory_format=fast.split.memory_format)  # as `upscale` runs it: its time may be measured
    like = first_weight(network)
    pairs = read_pairs(inputs, hr, like.device, like.dtype, True, grey=fast.split.probe.in_channels == 1)
    check_sizes(pairs, fast.scale)
    fixed = [f"--{name.replace('_', '-')}" for name in _SEARCHED if settings[name] is not None]
    search = "auto" if split_at == "auto" and head is None and not fixed else None
    if split_at == "auto" and head is None and fixed:
        err.print(
            f"{', '.join(fixed)} as given, so nothing is tried: split_at={fast.split.split_at}, half of the blocks; "
            "--split-at sets another",
            markup=False,
        )
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("calibrating", total=None)

        def show(what: str) -> None:
            bar.update(task, description=what)
            log(what)

        found = calibrate(
            fast,
            [_cut(pair, side, fast.scale) for pair in pairs],
            max_drop_db=max_drop,
            max_cost=max_cost,
            max_time=max_time,
            split_at=search,  # type: ignore[arg-type]
            fit=fit or ("all" if head is None else "nothing"),  # type: ignore[arg-type]
            per_image=per_image,
            progress=show,
        )
    checkpoint.save(fast, output)
    if plot is not None:
        pictures.curve_picture(found, plot)
    say(found)
    if (max_drop, max_cost, max_time) == (None, None, None):
        say(f"no --max-drop, --max-cost or --max-time: keep stays at {fast.keep:g}")
    say(f"saved to {output}; use it with --head {output}")


def _cut(pair: Pair, side: int, scale: int) -> Tensor | tuple[Tensor, Tensor]:
    """The middle of an image, at most `side` LR pixels a side."""
    height, width = pair.lr.shape[2:]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    lr = pair.lr[:, :, top : top + side, left : left + side]
    if pair.hr is None:
        return lr
    hr = to_tensor(pair.hr)[None].to(lr.dtype)
    rows, cols = (slice(a * scale, (a + n) * scale) for a, n in ((top, lr.shape[2]), (left, lr.shape[3])))
    return lr, hr[:, :, rows, cols]
