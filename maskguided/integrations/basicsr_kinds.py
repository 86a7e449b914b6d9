"""Of which kind the entries of a BasicSR file are. basicsr itself looks when it uses them: after it has moved an older
run aside, or at the first validation, when the time until then is lost."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ArgumentError, warn
from ..values import check_keys
from .basicsr_plugin import import_basicsr

_ENTRIES = (
    *("datasets", "datasets:*", "datasets:*:io_backend", "network_g", "path", "train:optim_g", "train:scheduler"),
    "val:metrics:*",
)
_ENTRIES_OR_NONE = ("network_g:base", "network_g:head", "train", "logger", "val", "val:metrics")
_TEXT = ("name", "datasets:*:filename_tmpl", "datasets:*:io_backend:type", "val:metrics:*:type")
_TEXT_OR_NONE = (
    *("datasets:*:dataroot_gt", "datasets:*:dataroot_lq", "datasets:*:meta_info_file", "network_g:base_weights"),
    *("path:pretrain_network_g", "path:pretrain_network_base", "path:resume_state"),
)
_NUMBERS = (
    *("datasets:train:batch_size_per_gpu", "datasets:train:dataset_enlarge_ratio", "train:total_iter"),
    *("train:warmup_iter", "train:ema_decay"),
    *("train:optim_g:lr", "logger:print_freq", "logger:save_checkpoint_freq", "val:val_freq", "val:tile_pad"),
)
_NUMBERS_OR_NONE = ("scale", "val:tile")
_WHOLE = ("datasets:train:num_worker_per_gpu", "datasets:train:gt_size", "val:metrics:*:crop_border", "val:tile_pad")
_POSITIVE = (
    *("datasets:train:batch_size_per_gpu", "datasets:train:gt_size", "datasets:train:dataset_enlarge_ratio"),
    *("logger:print_freq", "logger:save_checkpoint_freq", "val:val_freq", "train:total_iter"),
)


_KNOWN = {
    "train": (
        *("stage", "stage_opt", "total_iter", "warmup_iter", "ema_decay", "optim_g", "scheduler"),
        *("pixel_opt", "perceptual_opt"),
    ),
    "val": ("val_freq", "save_img", "suffix", "metrics", "tile", "tile_pad", "pbar", "grids"),
    "logger": ("print_freq", "save_checkpoint_freq", "use_tb_logger", "wandb"),
}
"""What basicsr and MaskGuidedModel look for; it leaves anything else where it is, without a word."""


def lacking(entry: str) -> ArgumentError:
    """What is wrong with options that have no such entry."""
    return ArgumentError(f"the options lack {entry}; see examples/basicsr for whole files")


def check_kinds(options: Mapping[str, Any]) -> None:
    """An ArgumentError for the first entry that is not of its kind; one that is not there is not asked for."""
    for kinds, none, kind, use in (
        (_ENTRIES, False, Mapping, "entries, as in examples/basicsr"),
        (_ENTRIES_OR_NONE, True, Mapping, "entries, as in examples/basicsr"),
        (_TEXT, False, str, "text, in quotes where it is digits"),
        (_TEXT_OR_NONE, True, str, "text, in quotes where it is digits"),
    ):
        _refuse_others(options, kinds, none, kind, use)
    seed = options.get("manual_seed")
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise ArgumentError(f"manual_seed: {seed!r}: use a whole number from 0 to 2**32 - 1")


def check_numbers(options: Mapping[str, Any]) -> None:
    """As check_kinds. YAML reads 1e-4 as text, since it has no point."""
    for where, value in _found(options, _NUMBERS + _NUMBERS_OR_NONE):
        if isinstance(value, str):
            raise ArgumentError(
                f"{where}: {value!r} is text to YAML; write !!float {value}, or the number with a point (0.0001; after "
                "--force_yml always so)"
            )
    for kinds, none, kind, use in (
        (_NUMBERS, False, (int, float), "a number"),
        (_NUMBERS_OR_NONE, True, (int, float), "a number"),
        (_WHOLE, False, int, "a whole number"),
        (("val:tile",), True, int, "a whole number"),
    ):
        _refuse_others(options, kinds, none, kind, use)
    for where, value in _found(options, _POSITIVE):
        if value <= 0:
            raise ArgumentError(f"{where}: {value!r}: use more than 0")


def warn_of_misspelt(options: Mapping[str, Any]) -> None:
    """Say which entries are nearly those that do something."""
    for where, known in _KNOWN.items():
        for name in options.get(where) or {}:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8)
            if near and name not in known:
                warn(f"{where}: {name} is not known and does nothing; did you mean {near[0]}?")


def _refuse_others(options: Mapping[str, Any], entries: tuple[str, ...], none: bool, kind: Any, use: str) -> None:
    """Refuse what is not of that kind, nor, where `none` is as good, None."""
    for where, value in _found(options, entries):
        if not (isinstance(value, kind) or (none and value is None)):
            raise ArgumentError(f"{where}: {value!r}: use {use}")


def check_registered(where: str, name: Any, registry: Any) -> None:
    """That basicsr finds the name, as it is or with the ending that sets its copies of Real-ESRGAN's classes apart."""
    if f"{name}_basicsr" not in registry:
        check_keys(where, [name], list(registry.keys()))


def check_metrics(options: Mapping[str, Any]) -> None:
    """That basicsr knows each metric and is given what it takes."""
    registry = import_basicsr("basicsr.utils.registry").METRIC_REGISTRY
    for where, metric in _found(options, ("val:metrics:*",)):
        kind = metric.get("type")
        check_registered(f"{where}: type", kind, registry)
        for name, parameter in inspect.signature(registry.get(kind)).parameters.items():
            needed = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
            if needed and name not in ("img", "img2") and name not in metric:
                raise lacking(f"{where}: {name}")


def compares(options: Mapping[str, Any]) -> bool:
    """Whether a metric needs the HR image; NIQE needs none."""
    registry = import_basicsr("basicsr.utils.registry").METRIC_REGISTRY
    metrics = (metric for _, metric in _found(options, ("val:metrics:*",)))
    return any("img2" in inspect.signature(registry.get(metric["type"])).parameters for metric in metrics)


def check_pairs(where: str, dataset: Mapping[str, Any]) -> None:
    """That there is what PairedImageDataset reads without asking."""
    if dataset["type"] != "PairedImageDataset":
        return
    crops = ("gt_size", "use_hflip", "use_rot") if dataset["phase"] == "train" else ()
    for entry in ("dataroot_gt", "dataroot_lq", "io_backend", *crops):
        if entry not in dataset or (entry.startswith("dataroot") and not dataset[entry]):
            raise lacking(f"{where}: {entry}")
    if "type" not in dataset["io_backend"]:
        raise lacking(f"{where}: io_backend: type")
    lmdb = dataset["io_backend"]["type"] == "lmdb"
    for entry in ("dataroot_gt", "dataroot_lq"):
        if str(dataset[entry]).endswith(".lmdb") != lmdb:
            raise ArgumentError(
                f"{where}: {entry}: {dataset[entry]}: io_backend: type: lmdb is for folders whose names end in .lmdb, "
                "disk for others"
            )


def _found(options: Mapping[str, Any], entries: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Those of the entries, as "datasets:*:gt_size", that are there, and what they hold."""
    for entry in entries:
        yield from _below(options, entry.split(":"), ())


def _below(found: Any, names: list[str], way: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if not names:
        yield ": ".join(way), found
    elif isinstance(found, Mapping):
        for name in found if names[0] == "*" else names[:1]:
            if name in found:
                yield from _below(found[name], names[1:], (*way, str(name)))
