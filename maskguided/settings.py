"""The settings of a wrapped network: what may be chosen, and what is chosen where the user does not."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .coarse import CoarseTail
from .cost import macs_without_data
from .errors import ArgumentError, first_line, is_out_of_memory, warn
from .patches import Grid, round_up
from .probing import first_weight, untouched
from .split import Merge, RefineTail, Split
from .thin import thinly
from .values import as_number, as_whole
from .windows import on_windows

Scorer = Literal["input", "coarse", "linear", "head"]
CoarseOn = Literal["all", "unrefined"]
GlobalOps = Literal["image", "window", "refuse"]
Context = Literal["zeros", "linear"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "merge": get_args(Merge),
    "coarse_tail": get_args(CoarseTail),
    "coarse_on": get_args(CoarseOn),
    "refine_tail": get_args(RefineTail),
    "scorer": get_args(Scorer),
    "context": get_args(Context),
    "global_ops": get_args(GlobalOps),
}
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_LARGEST_PATCH = 64  # LR pixels: what is chosen unless the user says otherwise
_LARGEST_EXCHANGING = 32  # the same where windows exchange borders: larger ones are no faster there
_ALONE = (32, 48, 64, 96, 128)
"""LR pixels: windows alone that are tried where the usual ones cost too much."""
_DEAR = 1.6
"""Times what the pixels of a patch cost in a large image: the usual windows alone have 1.56 times as many pixels."""
_SMALL, _LARGE = 64, 192
"""LR pixels: sides of an image on which a first look is short, and of one in which hardly anything is padded."""


def check_possible(split: Split, merge: Merge, coarse_tail: CoarseTail, global_ops: GlobalOps) -> None:
    """Refuse what this network cannot do, and say where the coarse image is not what one would expect."""
    name, rest = type(split.model).__name__, f"blocks {split.split_at + 1} to {len(split.blocks)}"
    check_global_ops(split, global_ops, merge)
    if merge == "features" and not split.can_join:
        raise ArgumentError(
            f"merge='features': {rest} of this {name} also write what is no map (a vector of the whole image), and "
            "patches cannot be put back into that; use merge='image'"
        )
    if split.can_skip:
        return
    if merge != "image" or coarse_tail == "copy":
        raise ArgumentError(
            f"merge={merge!r}, coarse_tail={coarse_tail!r}: {rest} of this {name} cannot be left out, for nothing "
            "computed before them can stand in for what the tail uses; use merge='image' with coarse_tail='light', "
            "'deep' or 'residual'"
        )
    warn(
        f"{rest} of this {name} cannot be left out: the coarse image comes from a light tail alone, which is "
        "bilinear until it is fitted or trained",
        stacklevel=4,
    )


def check_global_ops(split: Split, global_ops: GlobalOps, merge: Merge) -> None:
    """Refuse a network of which windows look at the whole map, where that is asked for."""
    if global_ops != "refuse":
        return
    by_body, by_tail = split.facts.body_radius is None, merge == "image" and split.facts.radius is None
    if by_body or by_tail:
        parts = f"blocks {split.split_at + 1} to {len(split.blocks)}" + ("" if by_body else ", or what follows them,")
        names = ", ".join(split.global_ops_on_windows(merge)) or "attention, or a radius of more than 512"
        raise ArgumentError(
            f"global_ops='refuse': {parts} of this {type(split.model).__name__} look at the whole map ({names}); "
            "use 'image' or 'window'"
        )


def default_sizes(multiple: int, exchange: bool, least: int = 1) -> tuple[int, int]:
    """Patch size and halo: small patches without one where windows exchange borders; else larger ones, whose
    halo adds 0.56 times as many pixels.

    >>> [default_sizes(multiple, exchange=True) for multiple in (1, 8, 12, 64)]
    [(8, 0), (32, 0), (36, 0), (64, 0)]
    >>> [default_sizes(multiple, exchange=False) for multiple in (1, 8)]
    [(16, 2), (64, 8)]
    """
    halo = round_up(2, multiple)
    if exchange:
        return max(min(4 * halo, round_up(_LARGEST_EXCHANGING, multiple)), least), 0
    if 8 * halo > _LARGEST_PATCH:
        return round_up(_LARGEST_PATCH, multiple), 0
    return 8 * halo, halo


def windows_of(split: Split, merge: Merge, patch_size: int | None, halo: int | None, exchange: bool) -> tuple[int, int]:
    """Patch size and halo: what is given, if windows of that kind run; where nothing is, the default, or a larger patch
    on whose windows the blocks run, or which costs less."""
    default = default_sizes(split.multiple_of, exchange, split.trial.least)
    free = patch_size is None and halo is None and not exchange
    halo = default[1] if halo is None else halo
    if patch_size is None:
        usual = _thrifty_patch(split, *default) if free else default[0]
        return _patch_that_runs(split, merge, usual, halo, exchange), halo
    check_windows(split, merge, patch_size, halo, exchange)
    return patch_size, halo


def _thrifty_patch(split: Split, patch_size: int, halo: int) -> int:
    """`patch_size`, or a larger one, where blocks make so much more of windows alone than of their pixels in an image:
    those that pad them to a multiple of their own, which may be many times as large (HiT-SR's, to 64)."""
    count = functools.cache(functools.partial(_macs_of_body, split))

    def dearness(size: int, image: int) -> float | None:
        image = round_up(image, split.multiple_of)
        window, whole = count(size + 2 * halo), count(image)
        return None if window is None or not whole else (window / size**2) / (whole / image**2)

    if patch_size + 2 * halo < split.probe.least or (dearness(patch_size, _SMALL) or 0) <= _DEAR:
        return patch_size
    found = dict[int, float]()
    sizes = (side - 2 * halo for side in _ALONE if side % split.multiple_of == 0)
    for size in (patch_size, *(size for size in sizes if size > patch_size)):
        found[size] = dearness(size, _LARGE) or math.inf
        if found[size] <= _DEAR:
            return size
    return min(found, key=found.__getitem__)


def _macs_of_body(split: Split, side: int) -> int | None:
    """MACs of blocks n+1..N on an image of `side` x `side` LR pixels; None where they cannot be counted without
    computing."""
    like, shape = first_weight(split.model), (1, split.probe.in_channels, side, side)
    before = macs_without_data(split.prefix, shape, like, split.model)
    after = macs_without_data(lambda x: split.body(split.window((side, side), x)), shape, like, split.model)
    return None if before is None or after is None else after - before


def check_exchanging(split: Split, patch_size: int, exchange: bool) -> None:
    """Refuse patches of which it is known that their windows cannot exchange borders, though others can."""
    if not exchange or split.exchanges_at(patch_size):
        return
    name, step = type(split.model).__name__, split.multiple_of
    if patch_size > step > 1 and split.exchanges_at(step):
        raise ArgumentError(
            f"patch_size={patch_size}: windows that may overlap cannot exchange borders in this {name}; use {step}, or "
            "exchange=False"
        )
    least = next(size for size in itertools.count(patch_size + 1) if split.exchanges_at(size))
    raise ArgumentError(
        f"patch_size={patch_size}: windows so small could be taken for something else in this {name} (vectors, or "
        f"windows that it cuts itself); use {least} or more, or exchange=False"
    )


def check_windows(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> None:
    """Refuse windows that do not fit the network's grid, or that blocks n+1..N cannot run on: one is tried."""
    check_aligned("patch_size", patch_size, 1, split.multiple_of)
    check_aligned("halo", halo, 0, split.multiple_of)
    error = _failure_of(split, merge, patch_size, halo, exchange)
    if error is not None:
        raise _cannot_run(split, patch_size, halo, error, _larger(split, merge, patch_size, halo, exchange)) from error


def _patch_that_runs(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> int:
    """`patch_size`, or the next larger one on whose windows blocks n+1..N run; refused where there is none."""
    check_aligned("halo", halo, 0, split.multiple_of)
    error = _failure_of(split, merge, patch_size, halo, exchange)
    if error is None:
        return patch_size
    larger = _larger(split, merge, patch_size, halo, exchange)
    if larger is None:
        raise _cannot_run(split, patch_size, halo, error, None) from error
    return larger


def _cannot_run(split: Split, patch_size: int, halo: int, error: Exception, larger: int | None) -> ArgumentError:
    """That the blocks fail on such windows, and which patch would do."""
    window, other = patch_size + 2 * halo, "smaller" if is_out_of_memory(error) else "larger"
    return ArgumentError(
        f"patch_size={patch_size}, halo={halo}: blocks {split.split_at + 1} to {len(split.blocks)} of this "
        f"{type(split.model).__name__} cannot run on windows of {window}x{window} LR pixels ({first_line(error)}); "
        f"use {other} ones" + ("" if larger is None else f", as patch_size={larger}")
    )


def _larger(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> int | None:
    """The next larger patch of some on whose windows the blocks run."""
    sides = (split.multiple_of * times for times in (2, 4, 8, 16, 32))
    works = (side for side in sides if side > patch_size and not _failure_of(split, merge, side, halo, exchange))
    return next(works, None)


def _failure_of(split: Split, merge: Merge, patch_size: int, halo: int, exchange: bool) -> Exception | None:
    """What the network raises on a window of that kind; None where it runs."""
    side = round_up(max(patch_size + 2 * halo, split.probe.least), split.multiple_of)
    grid = Grid(side, side, patch_size, halo)
    part = split.rest if merge == "image" else split.body

    def look() -> None:
        state = split.window((side, side))
        first = torch.zeros(1, 1, dtype=torch.long, device=state[split.features].device)
        on_windows(part, state, split.kinds, first, grid, trial=split.trial, exchange=exchange)

    try:
        with untouched(split.model):
            thinly(look)
    except Exception as error:  # whatever a foreign network raises
        return error
    return None


def check_coarse_on(coarse_on: CoarseOn, exchange: bool) -> None:
    """Refuse a coarse tail on windows that do not see each other."""
    if coarse_on == "unrefined" and not exchange:
        raise ArgumentError(
            "coarse_on='unrefined': here windows do not exchange borders (exchange=False, or this network's cannot), "
            "so the coarse tail would end at each of them; use 'all'"
        )


def check_refine_tail(merge: Merge) -> None:
    """Refuse a tail of their own for refined patches that have none."""
    if merge != "image":
        raise ArgumentError(
            f"refine_tail='light' with merge={merge!r}: there the network's own tail runs once on the whole image, and "
            "refined patches have none; use merge='image'"
        )


def check_cuts(split: Split, merge: Merge, context: Context) -> None:
    """Refuse several cuts where patches cannot leave in between."""
    if len(split.cuts) == 1:
        return
    if merge == "image":
        raise ArgumentError(
            f"split_at={split.cuts} with merge='image': a patch that leaves at a later cut would need a coarse tail "
            "for that cut; use merge='features', or one cut"
        )
    if context == "linear":
        raise ArgumentError(f"split_at={split.cuts} with context='linear': it guesses from one cut; use 'zeros'")


def check_onward(shares: float | Sequence[float], further: int) -> tuple[float, ...]:
    """`shares`, one of which may stand alone; refused where they do not fit the cuts."""
    try:
        given: tuple[object, ...] = (shares,) if isinstance(shares, str) else tuple(shares)  # type: ignore[arg-type]
    except TypeError:  # a number
        given = (shares,)
    if len(given) != further:
        raise ArgumentError(
            f"onward={given}: one share for each cut after the first; this network has {further} of them"
        )
    right = "shares from 0 to 1 that do not rise, as (0.6, 0.3)"
    found = tuple(as_share("onward", share, right) for share in given)
    if any(a < b for a, b in itertools.pairwise(found)):
        raise ArgumentError(f"onward={given}: {right}")
    return found


def as_share(name: str, value: object, right: str) -> float:
    """`value` as a number from 0 to 1; `right` is what an error says to use."""
    share = as_number(value)
    if not 0 <= share <= 1:
        raise ArgumentError(f"{name}={value!r}: {right}")
    return share


def check_input(x: object, channels: int) -> None:
    """Refuse what is no batch of LR images (B, channels, H, W)."""
    if not isinstance(x, Tensor):
        raise ArgumentError(f"input of type {type(x).__name__}; a network takes a tensor (B, {channels}, H, W)")
    if x.dim() != 4 or x.shape[1] != channels or not len(x):
        raise ArgumentError(f"input of shape {tuple(x.shape)}; this network takes (B, {channels}, H, W)")
    if not x.is_floating_point():
        raise ArgumentError(f"input of {x.dtype}; a network takes floats in its own range, as x.float() / 255")
    check_size(*x.shape[2:])


def check_score(score: object, expected: tuple[int, int, int]) -> None:
    """Refuse a score that is not one number a patch, (B, rows, cols)."""
    if not isinstance(score, Tensor):
        raise ArgumentError(f"score of type {type(score).__name__}; expected a tensor {expected}")
    if score.shape != expected:
        raise ArgumentError(f"score of shape {tuple(score.shape)}; expected {expected}")


def check_size(height: int, width: int) -> None:
    """Refuse an image without pixels."""
    if height < 1 or width < 1:
        raise ArgumentError(f"an image of {height}x{width} pixels; use 1x1 or larger")


def check_min_gain(least: float | None, estimate: object) -> float | None:
    """`least`; refused where nothing estimates what a patch brings, or where it is no such value."""
    if least is None:
        return None
    if not as_number(least) >= 0:
        raise ArgumentError(f"min_gain_db={least!r}: use 0 dB (refine all patches) or more")
    if estimate is None:
        raise ArgumentError(
            f"min_gain_db={least}: nothing estimates yet what a patch brings; calibrate(..., per_image=True), or "
            "`maskguided calibrate --per-image`, first"
        )
    return float(least)


def check_choices(**choices: object) -> None:
    """Refuse a value of a setting that is not among those allowed."""
    for name, value in choices.items():
        check_one_of(name, value, _CHOICES[name])


def check_keys(where: str, given: Iterable[Any], known: Collection[str]) -> None:
    """An ArgumentError for the first of `given` that is not known; it gives the nearest name.

    >>> check_keys("network_g", ["split_at", "kep"], ["split_at", "keep", "halo"])
    Traceback (most recent call last):
    maskguided.errors.ArgumentError: network_g: 'kep' is not known; did you mean 'keep'? Known: split_at, keep, halo
    """
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ArgumentError(f"{where}: {name!r} is not known; {hint}Known: {', '.join(known)}")


def arguments_of(call: Callable[..., Any]) -> list[str]:
    """Names of the arguments that `call` takes, without those behind * and **."""
    return [name for name, argument in inspect.signature(call).parameters.items() if argument.kind not in _REST]


def check_arguments(where: str, given: Iterable[str], call: Callable[..., Any], skip: int = 0) -> None:
    """`check_keys` with the arguments of `call` but the first `skip`; one with ** checks them itself."""
    if inspect.Parameter.VAR_KEYWORD not in {p.kind for p in inspect.signature(call).parameters.values()}:
        check_keys(where, given, arguments_of(call)[skip:])


def check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among those allowed."""
    if value not in allowed:
        raise ArgumentError(f"{name}={value!r}; use one of {', '.join(map(repr, allowed))}")


def check_aligned(name: str, value: object, least: int, multiple: int) -> int:
    """`value`, a size in LR pixels; refused where it is too small, or no multiple of what the network works on."""
    size = as_whole(value)
    if size is None or size < least:
        raise ArgumentError(f"{name}={value!r}: use a whole number of LR pixels, {least} or more")
    if size % multiple:
        raise ArgumentError(
            f"{name}={size}: this network works on multiples of {multiple} LR pixels; "
            f"use {size // multiple * multiple or multiple} or {round_up(size, multiple)}"
        )
    return size
