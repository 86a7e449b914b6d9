"""What is wrong with the options of a BasicSR run, said before it starts."""

from __future__ import annotations

import copy
import importlib
import math
import multiprocessing
import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import ArgumentError
from ..imaging.images import list_images
from ..training.choices import STAGES
from ..training.choices import Options as StageOptions
from ..values import check_arguments
from .basicsr_kinds import (
    check_kinds,
    check_metrics,
    check_numbers,
    check_pairs,
    check_registered,
    compares,
    lacking,
    warn_of_misspelt,
)
from .basicsr_plugin import import_basicsr

Phase = Literal["train", "test"]
Options = dict[str, Any]

GIVEN = "pretrain_network_given"
"""Entry under `path` where a resumed run finds the pretrain_network_g that it was started with."""

_ALWAYS = ("name", "model_type", "num_gpu", "datasets", "path", "network_g:type")
_NEEDED = {
    "train": (
        "datasets:train:batch_size_per_gpu",
        "datasets:train:num_worker_per_gpu",
        "train:total_iter",
        "train:optim_g:type",
        "train:optim_g:lr",
        "train:scheduler:type",
        "logger:print_freq",
        "logger:save_checkpoint_freq",
        "logger:use_tb_logger",
    ),
    "test": ("val:save_img", "val:suffix"),
}
# basicsr makes a folder of every other entry under `path`.
_FILES = ("strict_load", "pretrain_network", "resume", "param_key")
_FOLDERS = ("experiments_root", "models", "training_states", "log", "visualization", "results_root")


def read_yaml(path: str) -> Options:
    """The options in a file as they are written there; an ArgumentError if there is no such file, or no YAML in it."""
    yaml = importlib.import_module("yaml")  # basicsr needs it, so it is there
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"-opt {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"-opt {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(options, dict):
        raise ArgumentError(f"-opt {path}: a YAML file of options is needed, as in examples/basicsr; this holds none")
    require(options, _ALWAYS)
    check_kinds(options)
    return options


def check(options: Options, phase: Phase) -> None:
    """Raise an ArgumentError for what basicsr would stumble over later, or get wrong in silence."""
    require(options, _ALWAYS + _NEEDED[phase])
    if phase == "train" and options.get("val"):
        require(options, ("val:val_freq", "val:save_img"))
    check_kinds(options)
    check_numbers(options)
    _check_registered(options)
    if options["model_type"] == "MaskGuidedModel":
        if phase == "train":
            check_train(options["train"])
        warn_of_misspelt(options)
    _check_paths(options)
    for name, dataset in options["datasets"].items():
        if phase == "train" and dataset["phase"] not in ("train", "val"):
            raise ArgumentError(f"datasets: {name}: a training run takes train, val, and val_2, val_3, ... beside it")
        _check_dataset(f"datasets: {name}", dataset, options)
    _check_devices(options)


def base_weights(options: Options) -> str | None:
    """The file of the base's weights, which `path: pretrain_network_base` may name as well."""
    base: str | None = options["path"].get("pretrain_network_base")
    weights: str | None = options["network_g"].get("base_weights")
    if base is not None and weights not in (None, base):
        raise ArgumentError(
            f"network_g: base_weights: {weights} and path: pretrain_network_base: {base} mean the same; give one"
        )
    return base if weights is None else weights


def require(options: Options, entries: Iterable[str]) -> None:
    """An ArgumentError for the first entry, as "train:optim_g:type", that is not there."""
    for entry in entries:
        found: Any = options
        for name in entry.split(":"):
            if not isinstance(found, Mapping) or name not in found:
                raise lacking(entry.replace(":", ": "))
            found = found[name]


def check_launcher(launcher: str) -> None:
    """Distributed training needs a GPU for each process, and someone who has started the processes."""
    if launcher != "none" and not torch.cuda.is_available():
        raise ArgumentError(
            f"--launcher {launcher}: basicsr distributes over GPUs, and there is none here; leave it out"
        )
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise ArgumentError(
            "--launcher pytorch: start it with torchrun, which starts a process for each GPU: "
            "torchrun --nproc_per_node 2 -m maskguided basicsr train -opt x.yml --launcher pytorch"
        )


def _check_registered(options: Options) -> None:
    registries = import_basicsr("basicsr.utils.registry")
    check_registered("model_type", options["model_type"], registries.MODEL_REGISTRY)
    check_registered("network_g: type", options["network_g"]["type"], registries.ARCH_REGISTRY)
    for name, dataset in options["datasets"].items():
        require(options, (f"datasets:{name}:type",))
        check_registered(f"datasets: {name}: type", dataset["type"], registries.DATASET_REGISTRY)
        check_pairs(f"datasets: {name}", dataset)
    check_metrics(options)


def check_train(train: Options) -> None:
    """That the options name a stage and what it takes: said before basicsr moves an older run of that name aside."""
    stage = train.get("stage")
    if not stage:
        raise ArgumentError(f"train: stage is missing: which part to train; use one of {', '.join(STAGES)}")
    if stage not in STAGES:
        raise ArgumentError(f"train: stage={stage!r}; use one of {', '.join(STAGES)}, each in a run of its own")
    stage_options(train.get("stage_opt") or {})
    _check_steps(train)


def _check_steps(train: Options) -> None:
    """That basicsr knows the optimizer, its scheduler and their options: both are made, of a weight of no network."""
    basicsr, models = import_basicsr(), import_basicsr("basicsr.models.base_model")
    trial = models.BaseModel({"num_gpu": 0, "is_train": True, "train": copy.deepcopy(dict(train))})
    settings = trial.opt["train"].get("optim_g") or {}
    kind = settings.pop("type", None)
    try:
        trial.optimizers = [trial.get_optimizer(kind, [torch.zeros(1, requires_grad=True)], **settings)]
    except NotImplementedError:
        raise ArgumentError(
            f"train: optim_g: type: {kind}: basicsr {basicsr.__version__} does not know it; use Adam"
        ) from None
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"train: optim_g: {error}") from None
    kind = (train.get("scheduler") or {}).get("type")
    try:
        trial.setup_schedulers()
    except NotImplementedError:
        raise ArgumentError(
            f"train: scheduler: type: {kind}: basicsr {basicsr.__version__} does not know it; use MultiStepLR or "
            "CosineAnnealingRestartLR"
        ) from None
    except (TypeError, AssertionError) as error:
        raise ArgumentError(f"train: scheduler: {error}") from None


def stage_options(given: Any) -> StageOptions:
    """What the entries under `stage_opt` say."""
    if not isinstance(given, Mapping):
        raise ArgumentError(f"train: stage_opt: {given!r}: use entries, as {{head_loss: rank}}")
    check_arguments("train: stage_opt", given, StageOptions)
    return StageOptions(**given)


def _check_paths(options: Options) -> None:
    weights = options["network_g"].get("base_weights")
    if weights and not Path(weights).is_file():
        what = "a folder; name a file in it" if Path(weights).is_dir() else f"no such file (from {Path.cwd()})"
        raise ArgumentError(f"network_g: base_weights: {weights}: {what}")
    for name, value in options["path"].items():
        if not any(part in name for part in _FILES) and name not in _FOLDERS:
            raise ArgumentError(
                f"path: {name}: {value}: basicsr makes a folder of it. Weights of the base go under network_g: "
                "base_weights, or path: pretrain_network_base"
            )
        if value and "pretrain_network" in name and not Path(value).is_file():
            raise ArgumentError(f"path: {name}: {value}: no such file")


def _check_dataset(where: str, dataset: Options, options: Options) -> None:
    require(dataset, ("name", "type"))
    for name in ("dataroot_gt", "dataroot_lq", "meta_info_file"):
        if dataset.get(name) and not Path(dataset[name]).exists():
            raise ArgumentError(f"{where}: {name}: {dataset[name]}: no such file or folder (from {Path.cwd()})")
    if dataset["phase"] != "train" and not dataset.get("dataroot_gt") and compares(options):
        raise ArgumentError(f"{where}: there is no dataroot_gt to compare with; give one, or set val: metrics: ~")
    size, scale = dataset.get("gt_size"), options.get("scale")
    if isinstance(size, int) and isinstance(scale, int) and scale and size % scale:
        raise ArgumentError(f"{where}: gt_size: {size}: HR pixels; use a multiple of scale, {scale}")
    if dataset["phase"] == "train":
        _check_batch(where, dataset)
    if dataset.get("num_worker_per_gpu") and not _workers_can_import():
        raise ArgumentError(
            f"{where}: num_worker_per_gpu: {dataset['num_worker_per_gpu']}: processes start anew here "
            f"({multiprocessing.get_start_method()}), where basicsr cannot be imported beside this torchvision; use 0"
        )


def _check_batch(where: str, dataset: Options) -> None:
    """basicsr leaves out what is no whole batch: with fewer images than that it trains nothing, and says nothing."""
    if dataset["type"] != "PairedImageDataset":
        return
    times, batch = dataset.get("dataset_enlarge_ratio", 1), dataset["batch_size_per_gpu"]
    folder = Path(dataset["dataroot_gt"])
    lmdb = dataset["io_backend"]["type"] == "lmdb"
    named = folder / "meta_info.txt" if lmdb else dataset.get("meta_info_file")  # one image a line
    count = len(list_images(folder)) if named is None else len(Path(named).read_text().splitlines())
    if not count:
        raise ArgumentError(f"{where}: {named or folder} names no image")
    low = Path(dataset["dataroot_lq"])
    if named is None and count != (lows := len(list_images(low))):
        raise ArgumentError(
            f"{where}: lq and gt datasets have different numbers of images: {lows} in {low}, {count} in {folder}"
        )
    if count * times < batch:
        raise ArgumentError(
            f"{where}: {count} images of {folder}, {times} times each, are less than batch_size_per_gpu: {batch}, so "
            f"no step would be run; use dataset_enlarge_ratio: {math.ceil(batch / count)} or more"
        )


def _workers_can_import() -> bool:
    """A process that is forked has basicsr already; one that starts anew imports it without our stand-in."""
    if multiprocessing.get_start_method() == "fork":
        return True
    return find_spec("torchvision.transforms.functional_tensor") is not None


def _check_devices(options: Options) -> None:
    wanted, there = options["num_gpu"], torch.cuda.device_count()
    if not isinstance(wanted, int) or wanted < 0:
        raise ArgumentError(f"num_gpu: {wanted}: use a number of GPUs, 0 for the CPU, or auto")
    if wanted > there:
        here = f"{there} GPU{'s' if there > 1 else ''}" if there else "no GPU"
        raise ArgumentError(f"num_gpu: {wanted} but {here} here: set num_gpu: {there} (--force_yml num_gpu={there})")
    if options["dist"] and wanted == 0:
        raise ArgumentError("num_gpu: 0 with --launcher: distributed training runs on GPUs; set num_gpu: auto")
    if wanted > 1 and not options["dist"] and options["network_g"]["type"] == "MaskGuidedSR":
        raise ArgumentError(
            f"num_gpu: {wanted} without a launcher: a wrapped network trains on several GPUs by "
            f"torchrun --nproc_per_node {wanted} -m maskguided basicsr train -opt x.yml --launcher pytorch, "
            "or on one with num_gpu: 1"
        )
