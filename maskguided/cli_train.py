"""The commands around a better wrapped network: maskguided calibrate, finetune and explain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress
from torch import Tensor

from . import bench, checkpoint, finetune, pictures
from .calibrate import calibrate
from .cli_options import (
    Device,
    HeadFile,
    Keep,
    ModelName,
    NetScale,
    Overwrite,
    SplitAt,
    Threads,
    WeightFile,
    new_file,
    ready,
    with_settings,
    wrapped,
)
from .errors import ArgumentError
from .infer import pick_device
from .networks import load_network
from .stages import PAPER, STAGES, Options, check_stage

_PICTURES = (".png", ".pdf", ".svg")
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to save: a .safetensors file.")]


@with_settings
def calibrate_command(
    images: Annotated[Path, typer.Option("--input", "-i", help="An LR image, or a folder of LR images.")],
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
    threads: Threads = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curve here (.png, .pdf, .svg).")] = None,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Fit coarse tail and score in closed form and choose keep for a budget; no training, seconds to minutes."""
    new_file(output, overwrite, ".safetensors")
    if plot is not None:
        new_file(plot, overwrite, *_PICTURES)
    if threads:
        torch.set_num_threads(threads)
    network = load_network(weights, model, scale).model
    fast = wrapped(network, head, split_at, **settings)
    like = next(network.parameters())
    pairs = bench.read_pairs(images, hr, like.device, like.dtype, True)
    search = "auto" if split_at == "auto" and head is None and settings["merge"] is None else None
    with Progress(transient=True) as bar:
        task = bar.add_task("calibrating", total=None)
        found = calibrate(
            fast,
            [_cut(pair, side, fast.scale) for pair in pairs],
            max_drop_db=max_drop,
            max_cost=max_cost,
            max_time=max_time,
            split_at=search,  # type: ignore[arg-type]
            fit=fit or ("all" if head is None else "nothing"),  # type: ignore[arg-type]
            per_image=per_image,
            progress=lambda what: bar.update(task, description=what),
        )
    checkpoint.save(fast, output)
    if plot is not None:
        pictures.curve_picture(found, plot)
    typer.echo(str(found))
    typer.echo(f"saved to {output}; use it with --head {output}")


@with_settings
def finetune_command(
    hr: Annotated[list[Path], typer.Option("--hr", help="Folder of HR images; may be given several times.")],
    output: Output,
    stage: Annotated[
        str, typer.Option(help=f"{', '.join(STAGES)}; several as coarse,head; paper: {', '.join(PAPER)}.")
    ] = "head",
    lr: Annotated[Path | None, typer.Option(help="Folder of LR images; default: basicsr's bicubic of HR.")] = None,
    weights: WeightFile = None,
    model: ModelName = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: SplitAt = "auto",
    steps: Annotated[int, typer.Option(help="Steps of each stage.", min=1)] = 2000,
    batch: Annotated[int, typer.Option(help="Crops of a step, over all processes.", min=1)] = 16,
    crop: Annotated[int, typer.Option(help="Side of a crop, LR pixels.", min=1)] = 48,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    distill: Annotated[float, typer.Option(help="Share of the dense image in the target, 0 to 1.")] = 0.5,
    pixel_loss: Annotated[str, typer.Option(help="Of coarse and refine: l1, or psnr, what is lost to dense.")] = "l1",
    head_loss: Annotated[str, typer.Option(help="rank, l1 (the paper) or none (no supervision).")] = "rank",
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 200,
    logs: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.")] = None,
    pool: Annotated[
        int, typer.Option(help="Different crops; their frozen parts are run once and kept in memory. 0: no end.", min=0)
    ] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read images.", min=0)] = 0,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Train mask head, coarse tail or refine part on photographs; started again after a kill, it goes on."""
    new_file(output, overwrite, ".safetensors")
    if threads:
        torch.set_num_threads(threads)
    stages = PAPER if stage == "paper" else tuple(part.strip() for part in stage.split(","))
    network = load_network(weights, model, scale).model
    fast = wrapped(network, head, split_at, **settings)
    for name in stages:  # all are asked for before any is trained
        check_stage(fast, name)
    fast = fast.to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    options = Options(distill, head_loss, pixel_loss)  # type: ignore[arg-type]
    recipe = finetune.Recipe(steps, batch, crop, rate, precision=precision, pool=pool, options=options)
    saved = [output.with_name(f"{output.stem}.{number}-{name}.checkpoint") for number, name in enumerate(stages)]
    for name, resume in zip(stages, saved, strict=True):
        with _telling_what_is_kept(resume, every), Progress(transient=True) as bar:
            task = bar.add_task(name, total=steps)

            def show(step: int, total: int, value: float, name: str = name, bar: Any = bar, task: Any = task) -> None:
                bar.update(task, completed=step, description=f"{name}, loss {value:.5f}")

            finetune.fit(
                fast, hr, name, recipe, lr=lr, checkpoint=resume, every=every, logs=logs, workers=workers, watch=show
            )
        fast.print_trainable_parameters()
    checkpoint.save(fast, output)
    for resume in saved:
        resume.unlink(missing_ok=True)
    typer.echo(f"saved to {output}; use it with --head {output}")


@with_settings
def explain_command(
    image: Annotated[Path, typer.Option("--input", "-i", help="An LR image.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture: .png, .pdf or .svg.")],
    weights: WeightFile = None,
    model: ModelName = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: SplitAt = "auto",
    keep: Keep = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Draw what the network saw and chose: LR, coarse, error map, score, refined patches and result side by side."""
    if threads:
        torch.set_num_threads(threads)
    new_file(output, overwrite, *_PICTURES)
    if image.is_dir():
        raise ArgumentError(f"--input {image} is a folder; give one image")
    fast = ready(weights, model, scale, head, split_at, keep=keep, **settings)[1].eval()
    like = next(fast.parameters())
    pair = bench.read_pairs(image, None, like.device, like.dtype, True)[0]
    found = pictures.explain_picture(fast, pair.lr, output)
    typer.echo(f"{int(found.mask.sum())} of {found.mask[0].numel()} patches refined; {output}")


@contextmanager
def _telling_what_is_kept(checkpoint: Path, every: int) -> Iterator[None]:
    """Say after Ctrl-C whether the same command goes on from a checkpoint."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"the same command goes on from {checkpoint}" if checkpoint.exists() else "no step is kept yet"
        typer.echo(f"interrupted; {kept} (written every {every} steps)", err=True)
        raise typer.Exit(130) from None


def _cut(pair: bench.Pair, side: int, scale: int) -> Tensor | tuple[Tensor, Tensor]:
    """The middle of an image, at most `side` LR pixels a side."""
    height, width = pair.lr.shape[2:]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    lr = pair.lr[:, :, top : top + side, left : left + side]
    if pair.hr is None:
        return lr
    hr = torch.from_numpy(pair.hr.copy()).permute(2, 0, 1)[None].to(lr.dtype) / 255
    rows, cols = (slice(a * scale, (a + n) * scale) for a, n in ((top, lr.shape[2]), (left, lr.shape[3])))
    return lr, hr[:, :, rows, cols]
