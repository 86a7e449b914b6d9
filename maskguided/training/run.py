"""A stage in training, on one device or in one of several processes, and the checkpoint that it goes on from."""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import fingerprint
from ..errors import ArgumentError, CheckpointError, first_line, warn
from ..files import torch_save_whole
from ..guided import MaskGuided
from ..optional import optional
from ..probing.modules import first_weight
from .choices import RANKING, Options
from .recipe import Recipe
from .stages import StageInput, loss, prepare, train_only
from .validation import Validated, Validation

_SINCE = ("halo", "exchange", "coarse_on", "onward", "keep", "scorer")
"""What a checkpoint says of its run that older ones did not; often it follows from the rest."""

_STAYS = "other weights that stay (--head)"
"""How a checkpoint calls the hash of what is not trained and has a say in what is."""

_TRAINING = ("training", "maskguided[train]")
"""What needs a package, and what installs it."""

_STATE = ("step", "parameters", "average", "optimizer")
"""What a checkpoint holds beside that, and a run goes on from."""


class _StageLoss(nn.Module):
    """A forward that is the stage's loss, for DistributedDataParallel hooks the forward of a module."""

    def __init__(self, fast: MaskGuided, stage: str, options: Options) -> None:
        super().__init__()
        self.fast, self.stage, self.options = fast, stage, options

    def forward(self, crops: dict[str, Tensor], shared: dict[str, Tensor]) -> Tensor:
        return loss(self.fast, self.stage, StageInput(crops, shared), self.options)


class _Best(NamedTuple):
    """The weights that did best on the images for validation."""

    psnr: float
    step: int
    parameters: list[Tensor]


class Run:
    """A stage in training: model, optimiser, schedule and average, and their checkpoint."""

    best: _Best | None = None

    def __init__(
        self,
        fast: MaskGuided,
        stage: str,
        recipe: Recipe,
        images: str,
        checkpoint: Path | None,
        logs: str | Path | None,
        validation: Validation | None,
    ) -> None:
        self.shown = None if validation is None else validation.begin(fast)
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
        ema = optional("timm.utils", *_TRAINING).ModelEmaV3
        self.average = ema(self.parameters, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        self.model, self.optimizer = self.accelerator.prepare(_StageLoss(fast, stage, recipe.options), optimizer)
        self.logs = _writer(logs) if logs and self.accelerator.is_main_process else None
        self.dense = math.nan if self.shown is None else self._mean(self.shown.dense(fast, self._mine))

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

    def validate(self, step: int) -> None:
        """Measure the weights as they would be kept now, and keep them if they are the best so far."""
        if self.shown is None:
            return
        with self._averaged():
            point = Validated(step, self._mean(self.shown.reached(self.fast, self.stage, self._mine)), self.dense)
            if self.best is None or point.psnr > self.best.psnr:
                self.best = _Best(point.psnr, step, [p.detach().cpu().clone() for p in self.parameters])
        self.shown.tell(point)
        if self.logs is not None:
            self.logs.add_scalar(f"{self.stage}/psnr", point.psnr, step)

    @property
    def _mine(self) -> slice:
        """Of the images for validation, those that this process measures."""
        return slice(self.accelerator.process_index, None, self.accelerator.num_processes)

    def _mean(self, sums: Tensor) -> float:
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        return float(total / count)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The average of the weights in the place of what the last step has made of them."""
        if self.average is None:
            yield
            return
        own = [p.detach().clone() for p in self.parameters]
        _copy_into(self.parameters, list(self.average.module))
        try:
            yield
        finally:
            _copy_into(self.parameters, own)

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
            "best": None if self.best is None else tuple(self.best),
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
        self.best = None if content.get("best") is None else _Best(*content["best"])
        return int(step)

    def finish(self) -> None:
        """Keep the best of the weights, where they were measured, else their average."""
        if self.best is not None:
            _copy_into(self.parameters, self.best.parameters)
        elif self.average is not None:
            _copy_into(self.parameters, [p.detach() for p in self.average.module])
        if self.logs is not None:
            self.logs.close()
        self.accelerator.wait_for_everyone()

    def _identity(self, trained: Sequence[nn.Parameter]) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        fast, shapes = self.fast, [list(p.shape) for p in trained]
        of_wrap = {"split_at": list(fast.split.cuts), "merge": fast.merge, "patch_size": fast.patch_size}
        scorer = "head" if self.stage in RANKING else fast.scorer  # which fit sets itself in the end
        has_a_say = "model.", "coarse_tail.", "refine_tail.", "context.", "skip.", f"{scorer}."
        own = set(map(id, trained))
        stays = {n: p for n, p in fast.named_parameters() if id(p) not in own and n.startswith(has_a_say)}
        since = {**{name: getattr(fast, name) for name in _SINCE}, "scorer": scorer, _STAYS: fingerprint(stays)[:16]}
        of_network = {"network": fingerprint(fast.given.state_dict())[:16], "shapes": shapes}
        seen = {} if self.shown is None else {"validation": self.shown.names}
        return {"stage": self.stage, **asdict(self.recipe), **of_wrap, **since, **of_network, **seen}


@contextmanager
def accelerate_as_it_was() -> Iterator[None]:
    """Afterwards what a process has one of for all its Accelerators is what it was: the user may have one.

    Where processes were launched they stay joined.
    """
    if "LOCAL_RANK" in os.environ or "accelerate.state" not in sys.modules:
        yield
        return
    state = sys.modules["accelerate.state"]
    shared = [kind._shared_state for kind in (state.PartialState, state.AcceleratorState, state.GradientState)]
    before = [dict(content) for content in shared]
    try:
        yield
    finally:
        for content, was in zip(shared, before, strict=True):
            content.clear()
            content.update(was)


def _accelerator(device: torch.device, precision: str, unused: bool) -> Any:
    """What runs a stage on this device, or on those of the processes that were launched.

    `unused`: whether some of what is trained may have no say in a step's loss.
    """
    accelerate = optional("accelerate", *_TRAINING)
    if precision == "fp16" and device.type == "cpu":  # which accelerate leaves out there, without a word
        raise ArgumentError("precision='fp16': on a CPU there is no mixed precision of that kind; use 'bf16' or 'no'")
    launched = "LOCAL_RANK" in os.environ  # by accelerate or torchrun, which then say where each process runs
    if device.type == "cuda" and not launched:
        torch.cuda.set_device(device)
    # Else all runs of a process would have the precision of the first, and its device.
    state = optional("accelerate.state", *_TRAINING).AcceleratorState
    state._reset_state(reset_partial_state=not launched)
    ddp = accelerate.DistributedDataParallelKwargs(find_unused_parameters=unused)
    return accelerate.Accelerator(
        cpu=device.type == "cpu" and not (launched and torch.cuda.is_available()),  # else CPUs are not joined
        mixed_precision=precision,
        kwargs_handlers=[ddp],
    )


def _optimizer(parameters: Sequence[nn.Parameter], recipe: Recipe) -> tuple[Any, Any]:
    """timm's, with a cosine schedule after a warm-up."""
    optim, schedulers = optional("timm.optim", *_TRAINING), optional("timm.scheduler", *_TRAINING)
    try:
        optimizer = optim.create_optimizer_v2(parameters, recipe.optimizer, lr=recipe.rate, weight_decay=0.0)
    except ValueError as error:  # of timm
        raise ArgumentError(f"optimizer={recipe.optimizer!r}: {first_line(error)}; use 'adamw', say") from None
    if getattr(optimizer, "is_second_order", False):
        raise ArgumentError(f"optimizer={recipe.optimizer!r}: it needs second derivatives; use 'adamw', say")
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
    for part in (Path(folder), *Path(folder).parents):
        if part.is_file():
            raise ArgumentError(f"logs={str(folder)!r}: {part} is a file; name a folder for TensorBoard")
    return optional("torch.utils.tensorboard", "--logs", "maskguided[train]").SummaryWriter(str(folder))


def is_main_process() -> bool:
    """Whether this is the one of the processes that `fit` has joined which writes files; True for one alone."""
    return not _joined() or torch.distributed.get_rank() == 0


def leave_processes() -> None:
    """End what `fit` has joined, after the last stage and where all went well: its threads may outlive the interpreter.

    After an error another process may never come here, and some backends wait for it.
    """
    if _joined():
        torch.distributed.destroy_process_group()
        optional("accelerate.state", *_TRAINING).AcceleratorState._reset_state(reset_partial_state=True)


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
