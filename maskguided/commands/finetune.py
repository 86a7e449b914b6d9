"""The command that trains what wrapping has added: maskguided finetune."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress

from .. import checkpoint, finetune
from ..errors import ArgumentError
from ..networks import load_network
from ..training.choices import PAPER, STAGES, Options, check_stage, check_supervised
from .console import err, log, progress_bar, say
from .options import (
    Device,
    HeadFile,
    Keep,
    ModelName,
    NetScale,
    Output,
    Overwrite,
    SplitAt,
    Threads,
    WeightFile,
    new_file,
    pick_device,
    use_threads,
    with_settings,
    wrapped,
)


@with_settings
def finetune_command(
    hr: Annotated[list[Path], typer.Option("--hr", help="Folder of HR images; may be given several times.")],
    output: Output,
    stage: Annotated[
        str, typer.Option(help=f"{', '.join(STAGES)}; several as coarse,head; paper: {', '.join(PAPER)}.")
    ] = "head",
    lr: Annotated[Path | None, typer.Option(help="Folder of LR images; default: basicsr's bicubic of HR.")] = None,
    val_hr: Annotated[
        Path | None,
        typer.Option(
            help="HR images to measure at each checkpoint, so that the best weights are kept.", show_default="none"
        ),
    ] = None,
    val_lr: Annotated[Path | None, typer.Option(help="LR images of --val-hr; default: basicsr's bicubic.")] = None,
    weights: WeightFile = None,
    model: ModelName = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: SplitAt = "auto",
    keep: Keep = None,
    steps: Annotated[int, typer.Option(help="Steps of each stage.", min=1)] = 2000,
    batch: Annotated[int, typer.Option(help="Crops of a step, over all processes.", min=1)] = 16,
    crop: Annotated[int, typer.Option(help="Side of a crop, LR pixels.", min=1)] = 48,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the crops, and of parts that are new.", min=0)] = 0,
    distill: Annotated[float, typer.Option(help="Share of the dense image in the target, 0 to 1.")] = 0.5,
    pixel_loss: Annotated[str, typer.Option(help="Coarse, refine, joint: l1, or psnr, what is lost to dense.")] = "l1",
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
    new_file(output, overwrite, ".safetensors", inputs=[weights, head])
    use_threads(threads)
    where = pick_device(device)
    stages = PAPER if stage == "paper" else tuple(part.strip() for part in stage.strip(" ,").split(","))
    options = Options(distill, head_loss, pixel_loss)  # type: ignore[arg-type]
    recipe = finetune.Recipe(steps, batch, crop, rate, seed=seed, precision=precision, pool=pool, options=options)
    if val_lr is not None and val_hr is None:
        raise ArgumentError(f"--val-lr {val_lr} without --val-hr: there is nothing to compare its results with")
    network = load_network(weights, model, scale).model
    torch.manual_seed(recipe.seed)  # parts that are new start as they did, when the command is given again
    fast = wrapped(network, head, split_at, keep=keep, **settings)
    for name in stages:  # all are asked for before any is trained
        check_stage(fast, name)
    check_supervised(fast, *stages)
    fast = fast.to(where, memory_format=fast.split.memory_format)  # type: ignore[call-overload]
    saved = [output.with_name(f"{output.stem}.{number}-{name}.checkpoint") for number, name in enumerate(stages)]
    for name, resume in zip(stages, saved, strict=True):
        with _telling_what_is_kept(saved, every), progress_bar() as bar:
            shown = _Shown(bar, name, steps, every)
            finetune.fit(
                fast, hr, name, recipe, lr=lr, checkpoint=resume, every=every, logs=logs, workers=workers,
                validation=None if val_hr is None else finetune.Validation(val_hr, val_lr, shown.validated),
                watch=shown.stepped,
            )  # fmt: skip
        if finetune.is_main_process():
            fast.print_trainable_parameters()
    if finetune.is_main_process():  # the others hold the same weights, and would remove checkpoints before it has saved
        checkpoint.save(fast, output)
        for resume in saved:
            resume.unlink(missing_ok=True)
        say(f"saved to {output}; use it with --head {output}")
    finetune.leave_processes()


class _Shown:
    """How far a stage is: on the bar, and in lines."""

    def __init__(self, bar: Progress, stage: str, steps: int, every: int) -> None:
        self.bar, self.stage, self.every = bar, stage, every
        self.task = bar.add_task(stage, total=steps, unit="steps")

    def stepped(self, step: int, steps: int, loss: float) -> None:
        self.bar.update(self.task, completed=step, description=f"{self.stage}, loss {loss:.5f}")
        if (step % self.every == 0 or step == steps) and finetune.is_main_process():
            log(f"{self.stage}: step {step} of {steps}, loss {loss:.5f}")

    def validated(self, point: finetune.Validated) -> None:
        if finetune.is_main_process():
            self.bar.console.print(f"{self.stage}: step {point.step}, validation {point}", markup=False)


@contextmanager
def _telling_what_is_kept(checkpoints: list[Path], every: int) -> Iterator[None]:
    """Say after Ctrl-C which of the stages' checkpoints, if any is there, the same command goes on from."""
    try:
        yield
    except KeyboardInterrupt:
        last = next((file for file in reversed(checkpoints) if file.exists()), None)
        kept = f"the same command goes on from {last}" if last else "no step is kept yet"
        err.print(f"interrupted; {kept} (written every {every} steps)", markup=False)
        raise typer.Exit(130) from None
