"""Time as a ratio: what is compared takes turns within one run, so that whatever else the machine does falls on all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .guided import MaskGuided

Key = TypeVar("Key", bound=Hashable)
Input = TypeVar("Input")


class Ratio(NamedTuple):
    """A time as a share of another, from several rounds."""

    middle: float
    """The median of the rounds' ratios."""
    spread: float
    """(largest - smallest) / median."""


@torch.no_grad()  # not inference_mode: what a network keeps of it could not be trained with later
def alternate(
    runs: Mapping[Key, Callable[[Input], object]],
    inputs: Sequence[Input],
    rounds: int,
    warm: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> dict[Key, list[float]]:
    """Seconds of each run for all inputs, by round; on each input all run in turn, each until it is really done.

    Args:
        runs: what is timed, by any key.
        inputs: what each of them gets, one after the other.
        rounds: timed rounds.
        warm: untimed rounds before them.
        progress: called after each input of each round.
    """
    found = {key: [0.0] * rounds for key in runs}
    for number in range(-warm, rounds):
        for given in inputs:
            for key, run in runs.items():
                start = time.perf_counter()
                run(given)
                _until_done(given)
                if number >= 0:
                    found[key][number] += time.perf_counter() - start
            progress()
    return found


def _until_done(given: object) -> None:
    """Wait for the device that an input is on: of several GPUs only one is the current one."""
    if not isinstance(given, Tensor) or given.device.type == "cpu":
        return
    synchronize = getattr(torch, given.device.type).synchronize  # of torch.cuda, torch.mps
    synchronize(*([given.device] if given.device.type != "mps" else []))


def at(
    fast: MaskGuided, setting: str, value: float, forward: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """A call of `fast`, or of `forward`, that first sets a setting (keep, min_gain_db) to `value`."""
    forward = fast if forward is None else forward  # a compiled module has no truth value

    def run(x: Tensor) -> Tensor:
        setattr(fast, setting, value)
        return forward(x)

    return run


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> Ratio:
    """Ours as a share of theirs, by round.

    >>> ratio([1.0, 3.0, 2.0], [4.0, 4.0, 4.0])
    Ratio(middle=0.5, spread=1.0)
    """
    ratios = [float(a / b) for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.median(ratios)
    return Ratio(middle, (max(ratios) - min(ratios)) / middle)
