"""The settings of a wrapped network: what may be chosen, and what is chosen where the user does not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from .errors import ArgumentError, warn
from .parts import Merge, RefineTail, Skip
from .split import Split
from .tails.coarse import CoarseTail
from .values import as_number, check_one_of

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
    "skip": get_args(Skip),
    "global_ops": get_args(GlobalOps),
}


def merge_and_tail(
    split: Split, merge: Merge | None, coarse_tail: CoarseTail | None, refine_tail: RefineTail
) -> tuple[Merge, CoarseTail]:
    """Both as given; by default what this network allows, and what a tail that is named needs."""
    if merge is None:
        names_a_tail = coarse_tail is not None or refine_tail == "light"  # which merge="features" has not
        merge = "features" if split.can_skip and split.can_join and not names_a_tail else "image"
    return merge, ("copy" if split.can_skip else "light") if coarse_tail is None else coarse_tail


def warn_if_unused(merge: Merge, **of_coarse_tail: str) -> None:
    """Say which settings of the coarse tail are of no use where there is none."""
    for name, value in of_coarse_tail.items():
        if merge != "image" and value not in ("copy", "all"):
            warn(
                f"{name}={value!r} with merge={merge!r} has no effect: the network's own tail runs on the whole image, "
                "and there is no other; use merge='image'"
            )


def check_possible(split: Split, merge: Merge, coarse_tail: CoarseTail, global_ops: GlobalOps) -> None:
    """Refuse what this network cannot do, and say where the coarse image is not what one would expect."""
    name, rest = type(split.model).__name__, f"blocks {split.split_at + 1} to {len(split.blocks)}"
    check_global_ops(split, global_ops, merge)
    if split.only_on_large:
        warn(
            f"modules of this {name} do something else on large images than on small ones "
            f"({', '.join(sorted(split.only_on_large))}): windows keep to themselves, and refined patches may not be "
            "what the network makes of them"
        )
    if split.probe.alike > 1:
        warn(
            f"{name} returns {split.probe.alike} images of one size, and the last of a list or the first of a tuple is "
            "taken for the result; if it is another, wrap the network in a module that returns that one alone"
        )
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
        "bilinear until it is fitted or trained"
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


def check_skip(merge: Merge, skip: Skip) -> None:
    """Refuse what would stand in for blocks left out where nothing looks at it."""
    if skip != "identity" and merge != "features":
        raise ArgumentError(
            f"skip={skip!r} with merge={merge!r}: there the coarse tail makes what is not refined; use "
            "merge='features', or coarse_tail='light'"
        )


def check_cuts(split: Split, merge: Merge, context: Context, skip: Skip) -> None:
    """Refuse several cuts where patches cannot leave in between."""
    if len(split.cuts) == 1:
        return
    if not split.can_join:  # then there is no merge to name
        raise ArgumentError(
            f"split_at={split.cuts}: blocks between these cuts of this {type(split.model).__name__} write what is no "
            "map (a vector of the whole image), and patches that leave cannot be put back into that; cut once"
        )
    if merge == "image":
        raise ArgumentError(
            f"split_at={split.cuts} with merge='image': a patch that leaves at a later cut would need a coarse tail "
            "for that cut; use merge='features', or one cut"
        )
    if context == "linear":
        raise ArgumentError(f"split_at={split.cuts} with context='linear': it guesses from one cut; use 'zeros'")
    if skip != "identity":
        raise ArgumentError(f"split_at={split.cuts} with skip={skip!r}: it guesses from one cut; use 'identity'")


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
        each = (
            "; of colours it makes one image each: x.flatten(0, 1)[:, None]" if channels == 1 and x.dim() == 4 else ""
        )
        raise ArgumentError(
            f"input of shape {tuple(x.shape)}; this network takes (B, {channels}, H, W) with B >= 1{each}"
        )
    if not x.is_floating_point():
        raise ArgumentError(f"input of {x.dtype}; a network takes floats in its own range, as x.float() / 255")
    check_size(*x.shape[2:])


def check_score(score: object, expected: tuple[int, int, int]) -> None:
    """Refuse a score that is not one number a patch, (B, rows, cols)."""
    if not isinstance(score, Tensor):
        raise ArgumentError(f"score of type {type(score).__name__}; expected a tensor {expected}")
    if score.shape != expected:
        raise ArgumentError(f"score of shape {tuple(score.shape)}; expected {expected}")
    if score.is_complex():
        raise ArgumentError(f"score of {score.dtype}; patches are ranked by real numbers")


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
