"""Train what wrapping has added, or the refine part, in stages (see training/stages.py for what each trains and how).

    fast = maskguided.wrap(model, split_at=4, merge="image", coarse_tail="residual")
    maskguided.finetune.fit(fast, "photos/", stage="coarse")
    maskguided.finetune.fit(fast, "photos/", stage="head")

Which crops a step sees depends on the seed and the step alone, and a checkpoint holds all that the rest depends on: a
run that is killed and started again ends where it would have ended.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint import fingerprint
from .errors import ArgumentError, CheckpointError, first_line, warn
from .files import torch_save_whole
from .guided import MaskGuided
from .optional import optional
from .probing.modules import first_weight
from .probing.untouched import undone_by_failure
from .training.pool import batches
from .training.samples import Batches, Crops
from .training.stages import RANKING, REUSABLE, Options, StageInput, loss, prepare, too_small, train_only
from .values import as_number, as_path, is_whole
from .wrapping import check_wrapped


@dataclass(frozen=True)
class Recipe:
    """How long and how a stage trains."""

    steps: int = 2000
    batch: int = 16
    """Crops of a step, over all processes."""
    crop: int = 48
    """Side of a crop in LR pixels."""
    rate: float = 1e-3
    """Learning rate, after a warm-up; it falls to a hundredth of that along a cosine."""
    optimizer: str = "adamw"
    """A name that timm.optim.create_optimizer_v2 knows."""
    warmup: int = 50
    """Steps in which the rate grows."""
    ema: float = 0.998
    """Decay of the average of the weights that is kept in the end; 0: none."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""
    seed: int = 0
    precision: str = "no"
    """Mixed precision: "no", "bf16" or "fp16"."""
    pool: int = 0
    """Different crops that the stages coarse, refine, head and joint draw from; what they keep frozen is then run once
    per crop and stays in memory (on PAN x4 a crop of 48x48 takes 1 to 2 MB). 0: crops do not end, nothing is kept."""
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("crop", 1), ("warmup", 0), ("seed", 0), ("pool", 0)):
            if not is_whole(getattr(self, name), least):
                raise ArgumentError(f"{name}={getattr(self, name)!r}: use {least} or more, a whole number")
        if not 0 < as_number(self.rate) < float("inf") or not 0 <= as_number(self.ema) < 1:
            raise ArgumentError(f"rate={self.rate}, ema={self.ema}: use a rate above 0 and an ema of 0 to below 1")
        if not as_number(self.clip) >= 0:
            raise ArgumentError(f"clip={self.clip!r}: use 0 or more")
        if not isinstance(self.options, Options):
            raise ArgumentError(f"options={self.options!r}: use a maskguided.training.stages.Options")
        if self.pool and self.pool < self.batch:
            raise ArgumentError(f"pool={self.pool}: use 0, or at least the batch of {self.batch}")
        if not isinstance(self.optimizer, str):
            raise ArgumentError(f"optimizer={self.optimizer!r}: a name that timm knows; use 'adamw', say")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ArgumentError(f"precision={self.precision!r}; use 'no', 'bf16' or 'fp16'")


_SINCE = ("halo", "exchange", "coarse_on", "onward", "keep", "scorer")
"""What a checkpoint says of its run that older ones did not; often it follows from the rest."""

_STAYS = "other weights that stay (--head)"
"""How a checkpoint calls the hash of what is not trained and has a say in what is."""

_STATE = ("step", "parameters", "average", "optimizer")
"""What a checkpoint holds beside that, and a run goes on from."""

Watcher = Callable[[int, int, float], None]
"""Told (step, steps, loss) after each step; the command line draws its bar by one."""


class _StageLoss(nn.Module):
    """A forward that is the stage's loss, for DistributedDataParallel hooks the forward of a module."""

    def __init__(self, fast: MaskGuided, stage: str, options: Options) -> None:
        super().__init__()
        self.fast, self.stage, self.options = fast, stage, options

    def forward(self, crops: dict[str, Tensor], shared: dict[str, Tensor]) -> Tensor:
        return loss(self.fast, self.stage, StageInput(crops, shared), self.options)


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
        logs: a folder for TensorBoard.
        workers: processes that read images.
        watch: called after each step.

    Returns:
        The loss of each step that was run now. Stages "head" and "end" set `fast.scorer` to "head". What the stage does
        not train stays frozen and in eval mode, as the network that was given does if it is part of that:
        `fast.unwrap().requires_grad_(True).train()` makes it trainable again. The random generators of torch, numpy and
        Python are left as the recipe's seed and the stage leave them.

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
    with undone_by_failure(fast, fast.model):
        run = _Run(fast, stage, recipe, crops.names, kept, logs)
        start = run.resume()
    rank, processes = run.accelerator.process_index, run.accelerator.num_processes
    pool = recipe.pool if stage in REUSABLE else 0
    numbers = Batches(recipe.batch, start, recipe.steps, rank, processes, pool=pool)
    losses = []
    for step, given in enumerate(batches(crops, numbers, run.prepare, workers), start + 1):
        losses.append(run.step(step, given))
        watch(step, recipe.steps, losses[-1])
        if step % every == 0 or step == recipe.steps:
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


def is_main_process() -> bool:
    """Whether this is the one of the processes that `fit` has joined which writes files; True for one alone."""
    return not _joined() or torch.distributed.get_rank() == 0


def leave_processes() -> None:
    """End what `fit` has joined, after the last stage and where all went well: its threads may outlive the interpreter.

    After an error another process may never come here, and some backends wait for it.
    """
    if _joined():
        torch.distributed.destroy_process_group()
        optional("accelerate.state", "training", "train").AcceleratorState._reset_state(reset_partial_state=True)


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Run:
    """A stage in training: model, optimiser, schedule and average, and their checkpoint."""

    def __init__(
        self,
        fast: MaskGuided,
        stage: str,
        recipe: Recipe,
        images: str,
        checkpoint: Path | None,
        logs: str | Path | None,
    ) -> None:
        _seed(recipe.seed)
        self.fast, self.stage, self.recipe, self.images, self.checkpoint = fast, stage, recipe, images, checkpoint
        self.accelerator = _accelerator(
            first_weight(fast).device, recipe.precision, stage in ("end", "joint") or fast.refine_tail is not None
        )
        fast.to(self.accelerator.device)
        parameters = train_only(fast, stage)
        fast.given.to(self.accelerator.device)
        fast.eval()  # no dropout, no batch statistics: what is trained is what will run
        self.identity = self._identity(parameters)
        optimizer, self.schedule = _optimizer(parameters, recipe)
        self.parameters = nn.ParameterList(parameters)
        ema = optional("timm.utils", "training", "train").ModelEmaV3
        self.average = ema(self.parameters, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        self.model, self.optimizer = self.accelerator.prepare(_StageLoss(fast, stage, recipe.options), optimizer)
        self.logs = _writer(logs) if logs and self.accelerator.is_main_process else None

    def prepare(self, low: Tensor, high: Tensor) -> StageInput:
        """Run what the stage keeps frozen."""
        layout = self.fast.split.memory_format
        lr, hr = (x.to(self.accelerator.device, memory_format=layout) for x in (low, high))
        with self.accelerator.autocast():
            return prepare(self.fast, self.stage, lr, hr, self.recipe.options)

    def step(self, step: int, given: StageInput) -> float:
        """One update; the loss, as the mean over all processes."""
        accelerator = self.accelerator
        self.schedule.step_update(step - 1)
        with accelerator.autocast():
            value = self.model(given.crops, given.shared)
        self.optimizer.zero_grad()
        accelerator.backward(value)
        if self.recipe.clip:
            accelerator.clip_grad_norm_(self.parameters.parameters(), self.recipe.clip)
        found = float(accelerator.reduce(value.detach(), reduction="mean"))
        if not np.isfinite(found):  # before it spoils the weights; after the rest, as a GPU is waited for here
            raise ArgumentError(
                f"stage {self.stage}, step {step}: the loss is {found}; use a smaller rate than {self.recipe.rate:g}"
            )
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.parameters, step=step)
        if self.logs is not None:
            self.logs.add_scalar(f"{self.stage}/loss", found, step)
            self.logs.add_scalar(f"{self.stage}/rate", self.optimizer.param_groups[0]["lr"], step)
        return found

    def save(self, step: int) -> None:
        """Write the checkpoint whole, by the main process."""
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        content = {
            "run": self.identity,
            "images": self.images,
            "step": step,
            "parameters": [p.detach().cpu() for p in self.parameters],
            "average": None if self.average is None else [p.detach().cpu() for p in self.average.module],
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }
        torch_save_whole(self.checkpoint, content)

    def resume(self) -> int:
        """Steps that were done already, 0 without a checkpoint."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return 0
        try:
            content = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            own, since = self.identity, (*_SINCE, _STAYS)
            run = {**{name: own[name] for name in since}, **content["run"]}
            differ = {name: run.get(name) for name in own if run.get(name) != own[name]}
            causes = {name: value for name, value in differ.items() if name not in since}
            step, parameters, average, optimizer = (content[name] for name in _STATE)
        except Exception as error:  # whatever a damaged file makes torch raise
            raise CheckpointError(f"{self.checkpoint}: no checkpoint of a training run ({error})") from None
        if differ:
            raise CheckpointError(
                f"{self.checkpoint} is of another run, with {causes or differ}; remove it, or give the same settings "
                "again"
            )
        seen = content.get("images", self.images)
        if seen != self.images:
            warn(
                f"{self.checkpoint}: its {step} steps saw other images ({seen}, here {self.images}); remove "
                "it to train on these alone"
            )
        _copy_into(self.parameters, parameters)
        if self.average is not None:
            _copy_into(self.average.module, average)
        self.optimizer.load_state_dict(optimizer)
        if self.accelerator.scaler is not None:  # of fp16
            self.accelerator.scaler.load_state_dict(content["scaler"])
        return int(step)

    def finish(self) -> None:
        """Keep the average of the weights."""
        if self.average is not None:
            _copy_into(self.parameters, [p.detach() for p in self.average.module])
        if self.logs is not None:
            self.logs.close()
        self.accelerator.wait_for_everyone()

    def _identity(self, trained: Sequence[nn.Parameter]) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        fast, shapes = self.fast, [list(p.shape) for p in trained]
        of_wrap = {"split_at": list(fast.split.cuts), "merge": fast.merge, "patch_size": fast.patch_size}
        has_a_say = "model.", "coarse_tail.", "refine_tail.", "context.", f"{fast.scorer}."
        own = set(map(id, trained))
        stays = {n: p for n, p in fast.named_parameters() if id(p) not in own and n.startswith(has_a_say)}
        since = {**{name: getattr(fast, name) for name in _SINCE}, _STAYS: fingerprint(stays)[:16]}
        of_network = {"network": fingerprint(fast.given.state_dict())[:16], "shapes": shapes}
        return {"stage": self.stage, **asdict(self.recipe), **of_wrap, **since, **of_network}


def _accelerator(device: torch.device, precision: str, unused: bool) -> Any:
    """What runs a stage on this device, or on those of the processes that were launched.

    `unused`: whether some of what is trained may have no say in a step's loss.
    """
    accelerate = optional("accelerate", "training", "train")
    launched = "LOCAL_RANK" in os.environ  # by accelerate or torchrun, which then say where each process runs
    if device.type == "cuda" and not launched:
        torch.cuda.set_device(device)
    # Else all runs of a process would have the precision of the first, and its device.
    state = optional("accelerate.state", "training", "train").AcceleratorState
    state._reset_state(reset_partial_state=not launched)
    ddp = accelerate.DistributedDataParallelKwargs(find_unused_parameters=unused)
    return accelerate.Accelerator(
        cpu=device.type == "cpu" and not (launched and torch.cuda.is_available()),  # else CPUs are not joined
        mixed_precision=precision,
        kwargs_handlers=[ddp],
    )


def _optimizer(parameters: Sequence[nn.Parameter], recipe: Recipe) -> tuple[Any, Any]:
    """timm's, with a cosine schedule after a warm-up."""
    optim, schedulers = optional("timm.optim", "training", "train"), optional("timm.scheduler", "training", "train")
    try:
        optimizer = optim.create_optimizer_v2(parameters, recipe.optimizer, lr=recipe.rate, weight_decay=0.0)
    except ValueError as error:  # of timm
        raise ArgumentError(f"optimizer={recipe.optimizer!r}: {first_line(error)}; use 'adamw', say") from None
    schedule = schedulers.CosineLRScheduler(
        optimizer,
        t_initial=max(recipe.steps, recipe.warmup + 1),
        lr_min=recipe.rate / 100,
        warmup_t=recipe.warmup,
        warmup_lr_init=recipe.rate / 100,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    return optimizer, schedule


def _copy_into(parameters: nn.Module, values: Sequence[Tensor]) -> None:
    own = list(parameters.parameters())
    with torch.no_grad():
        for parameter, value in zip(own, values, strict=True):
            parameter.copy_(value)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _writer(folder: str | Path) -> Any:
    return optional("torch.utils.tensorboard", "--logs", "train").SummaryWriter(str(folder))
