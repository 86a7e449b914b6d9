"""Train what wrapping has added, or the refine part, in stages (see training/stages.py for what each trains and how).

    fast = maskguided.wrap(model, split_at=4, merge="image", coarse_tail="residual")
    maskguided.finetune.fit(fast, "photos/", stage="coarse")
    maskguided.finetune.fit(fast, "photos/", stage="head")

Which crops a step sees depends on the seed and the step alone, and a checkpoint holds all that the rest depends on: a
run that is killed and started again ends where it would have ended (on a GPU, up to rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from .errors import ArgumentError, warn
from .files import make_folder_of
from .guided import MaskGuided
from .probing.modules import first_weight
from .probing.untouched import undone_by_failure
from .training.choices import RANKING, Options, too_small
from .training.pool import batches
from .training.recipe import Recipe
from .training.run import Run, accelerate_as_it_was, is_main_process, leave_processes
from .training.samples import Batches, Crops
from .training.stages import REUSABLE
from .training.validation import Validated, Validation
from .values import as_path, is_whole
from .wrapping import check_wrapped

__all__ = ["Options", "Recipe", "Validated", "Validation", "Watcher", "fit", "is_main_process", "leave_processes"]

Watcher = Callable[[int, int, float], None]
"""Told (step, steps, loss) after each step; the command line draws its bar by one."""


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    fast: MaskGuided,
    hr: str | Path | Sequence[str | Path],
    stage: str = "head",
    recipe: Recipe | None = None,
    *,
    lr: str | Path | None = None,
    checkpoint: str | Path | None = None,
    every: int = 200,
    validation: Validation | None = None,
    logs: str | Path | None = None,
    workers: int = 0,
    watch: Watcher = lambda step, steps, loss: None,
) -> list[float]:
    """Train one stage of `fast` on photographs, in place.

    Runs on one device, or on several processes started by `accelerate launch` or `torchrun`; the result is the same for
    the same global batch, up to rounding.

    Args:
        fast: a wrapped network for images in 0..1.
        hr: a folder of HR images, or several.
        stage: coarse, refine, head, all, end or joint; see training/stages.py.
        recipe: steps, batch, rates and losses.
        lr: a folder of LR images of the same names; without it LR is made by basicsr's bicubic.
        checkpoint: a file written every `every` steps; if it is there already, the run goes on from it.
        every: steps from one checkpoint to the next.
        validation: images that are measured as often, and at the start; the best of these weights are kept, then.
        logs: a folder for TensorBoard.
        workers: processes that read images.
        watch: called after each step.

    Returns:
        The loss of each step that was run now.

    Stages "head" and "end" set `fast.scorer` to "head". Parameters that the stage does not train are left frozen and in
    eval mode, those of the network that you gave too, where `fast` still holds it:
    `fast.unwrap().requires_grad_(True).train()` makes it trainable again. The random generators of torch, numpy and
    Python are left as the recipe's seed and the stage leave them. After an exception, Ctrl-C too, `fast` is what it was
    before; the same call with the same `checkpoint` goes on from what was last written there.

    Raises:
        ArgumentError: the stage has nothing to train in this network, or a setting is out of its range.
        CheckpointError: `checkpoint` is of another run.
        MissingDependency: timm, accelerate (`pip install 'maskguided[train]'`) or basicsr is not installed.
    """
    recipe = Recipe() if recipe is None else recipe
    _check(fast, recipe, every, workers)
    if wrong := too_small(fast, stage, recipe.crop, recipe.options):
        warn(wrong)
    crops = _crops(fast, hr, lr, recipe)
    kept = None if checkpoint is None else as_path(checkpoint, "checkpoint")
    if kept is not None:
        make_folder_of(kept)  # before hours are spent on what goes there
    with undone_by_failure(fast, fast.given), accelerate_as_it_was():
        run = Run(fast, stage, recipe, crops.names, kept, logs, validation)
        start = run.resume()
        if start == 0:
            run.validate(0)
        rank, processes = run.accelerator.process_index, run.accelerator.num_processes
        pool = recipe.pool if stage in REUSABLE else 0
        numbers = Batches(recipe.batch, start, recipe.steps, rank, processes, pool=pool)
        losses = []
        for step, given in enumerate(batches(crops, numbers, run.prepare, workers), start + 1):
            losses.append(run.step(step, given))
            watch(step, recipe.steps, losses[-1])
            if step % every == 0 or step == recipe.steps:
                run.validate(step)
                run.save(step)
        run.finish()
    if stage in RANKING:
        fast.scorer = "head"
    return losses


def _crops(fast: MaskGuided, hr: str | Path | Sequence[str | Path], lr: str | Path | None, recipe: Recipe) -> Crops:
    several = [hr] if isinstance(hr, str) or not isinstance(hr, Iterable) else hr
    folders = [as_path(folder, "hr") for folder in several]
    if not folders:
        raise ArgumentError("hr=[]: no folder of HR images; give one or more")
    grey, low = fast.split.probe.in_channels == 1, None if lr is None else as_path(lr, "lr")
    return Crops(folders, scale=fast.scale, size=recipe.crop, lr=low, seed=recipe.seed, grey=grey)


def _check(fast: MaskGuided, recipe: Recipe, every: int, workers: int) -> None:
    check_wrapped(fast)
    if not isinstance(recipe, Recipe):
        raise ArgumentError(f"recipe={recipe!r}; use a Recipe, as Recipe(steps=2000)")
    if (dtype := first_weight(fast).dtype) != torch.float32:
        raise ArgumentError(
            f"fit trains in float32, and this network is {dtype}: call fast.float() before; for mixed precision give "
            "Recipe(precision='bf16')"
        )
    for name, value, least, what in (
        ("every", every, 1, "steps from one checkpoint to the next"),
        ("workers", workers, 0, "processes that read images"),
    ):
        if not is_whole(value, least):
            raise ArgumentError(f"{name}={value!r}: {what}; use a whole number, {least} or more")
