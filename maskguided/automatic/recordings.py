"""Recordings of a network at sizes that tell what follows from them, and what large images make of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..cost import Bounded
from ..errors import CannotSplit, first_line
from ..probing.modules import copied
from ..probing.probe import LARGE_LEAST, Probe
from ..probing.thin import thinly
from .record import Ambient, CannotFollow, Recording, Step, leaves_around, parts_of, record, with_fixed

USE_AN_ADAPTER = "An adapter can split it (docs/new_backbone.md)"
_MOST_STEPS = 50_000
"""Of a forward on shapes alone: twice those of DAT, some 10 s."""
_LARGE, _SMALL = (1103, 907), (41, 53)
"""LR pixels; sizes that no image will have, for a function might keep what it once made for a size."""
_MORE = 26
"""LR pixels from a small size to another: rounded up to 64, say, their sides are no longer the same."""

_LARGER = (21, 263), (263, 25)
"""For networks that must really run: long and thin, since full attention takes the square of the pixels."""
_TILES = ": if it cuts large images into tiles, wrap the network that runs on a tile"


class Differs(Exception):
    """Recordings do not go together."""


def recordings(model: nn.Module, blocks: tuple[str, ...], probe: Probe) -> list[Recording]:
    """`model` at sizes that tell what follows from them, with blocks as single steps.

    Raises:
        CannotSplit: the forward branches on pixel values, or takes other steps at every size.
    """
    leaves, made = leaves_around(model, blocks), list[Recording]()
    try:
        for batch, height, width in _sizes(probe):
            made.append(_recorded(model, leaves, probe.input(height, width, batch)))
            _same_steps(made[0], made[-1])
        made += _at_a_large_size(model, leaves, probe, made)
    except (CannotFollow, Differs) as error:
        raise CannotSplit(f"recording {type(model).__name__}: {error}. {USE_AN_ADAPTER}") from error
    return _with_fixed_dtypes(model, leaves, made, probe)


def _sizes(probe: Probe) -> list[tuple[int, int, int]]:
    """Batch, height and width. In each pair of sides one is an odd multiple, of no large factors: it is rounded up."""
    step = probe.multiple_of
    a = -(-probe.least // step) | 1
    # Where small ones are not taken, the others are farther apart: all would be rounded up to the same multiple of 48.
    apart = (37, 67) if probe.least < LARGE_LEAST else (side * probe.least // LARGE_LEAST for side in (57, 109))
    c, e = (max(a + 2, -(-least // step) | 1) for least in apart)
    b, d = a + 1, c + 1
    pairs = [(a, b), (b, a), (a + 2, d), (c, b), (a, e), (e, a + 2)]
    if step >= 8:  # such large multiples are few
        pairs = [(a, b), (b, a), (a + 2, b), (b, a + 2), (a + 2, a)]
    return [*((1, h * step, w * step) for h, w in pairs), (2, a * step, b * step)]


def _recorded(model: nn.Module, leaves: set[str], x: Tensor) -> Recording:
    def look() -> Recording:
        return record(model, leaves, x)

    try:
        return look() if len(x) > 1 else thinly(look)  # not every network takes several images at once
    except CannotFollow:
        raise
    except Exception as error:  # whatever a foreign forward raises
        alone = "" if len(x) == 1 else " (one image is taken, two at once are not; windows come as a batch)"
        what = f"{type(error).__name__}: {first_line(error)}"
        raise Differs(f"an input of {tuple(x.shape)} raises {what}{alone}") from error


def _at_a_large_size(model: nn.Module, leaves: set[str], probe: Probe, made: Sequence[Recording]) -> list[Recording]:
    """`model` at a size that photographs have: it may cut those into tiles, or hold a table that is too small.

    It runs on shapes alone, which costs the same at any size, but for loops over pixels; where that cannot be, it runs
    at smaller sizes.

    Raises:
        Differs: it takes other steps than those of `made`, at small sizes.
    """
    try:
        found = _shapes_of(model, leaves, probe, _LARGE)
    except Exception:  # whatever a foreign network raises: most often it asks for a pixel's value
        return list(_at_larger_sizes(model, leaves, probe, made))
    within = _within(made)
    unlike = _unlike(made[0], found)
    if unlike is None and found.within <= within and not _by_other_numbers(found, made):
        return [found]
    try:  # on shapes alone a network may take other steps, or call other functions, at any size
        larger = tuple(side + max(_MORE, 2 * probe.multiple_of) for side in _SMALL)
        small = [_shapes_of(model, leaves, probe, size) for size in (_SMALL, larger)]
        _same_steps(made[0], small[0])
    except Exception:  # whatever a foreign network raises
        return [found] if unlike is None else []
    if unlike is not None:
        raise Differs(f"{unlike}{_TILES}")
    others = found.within - within - small[0].within | _by_other_numbers(found, small)
    return [replace(found, only_here=frozenset(others))]


def _at_larger_sizes(
    model: nn.Module, leaves: set[str], probe: Probe, made: Sequence[Recording]
) -> Iterator[Recording]:
    """The same, really run, on long images of few pixels."""
    for height, width in _LARGER:
        x = probe.input(*(_odd_multiple(side, probe) for side in (height, width)))
        try:
            found = _recorded(model, leaves, x)
        except (CannotFollow, Differs):  # it does not take such a size
            continue
        if unlike := _unlike(made[0], found):
            raise Differs(f"{unlike}{_TILES}")
        others = found.within - _within(made) | _by_other_numbers(found, made)
        yield replace(found, constants=[], only_here=frozenset(others))


def _within(made: Sequence[Recording]) -> frozenset[str]:
    return frozenset().union(*(recording.within for recording in made))


def _by_other_numbers(found: Recording, made: Sequence[Recording]) -> set[str]:
    """What leaves call with one number in all of `made`, and in `found` with another, as a kernel that grows by steps.

    What follows the size from pixel to pixel, as the kernel of a pool over the whole map, is no such number. Nothing is
    known where they call other functions at other sizes.
    """
    runs = [recording.numbers for recording in (found, *made)]
    if len({len(run) for run in runs}) > 1:
        return set()
    return {
        f"{one.function} with another {one.argument} than {one.value}"
        for here, one, *others in zip(*runs, strict=True)
        if here[:2] == one[:2] and here != one and all(other == one for other in others)
    }


def _odd_multiple(side: int, probe: Probe) -> int:
    return (side // probe.multiple_of | 1) * probe.multiple_of


def _shapes_of(model: nn.Module, leaves: set[str], probe: Probe, size: tuple[int, ...]) -> Recording:
    """A recording, without constants, at an odd multiple of about that size."""
    from torch.utils._python_dispatch import _disable_current_modes

    mode = Bounded(_MOST_STEPS)
    height, width = (_odd_multiple(side, probe) for side in size)
    with mode:
        x = torch.empty(1, probe.in_channels, height, width, device=probe.device, dtype=probe.dtype)
    with _disable_current_modes():  # what counts the work around this would count what is not done
        return replace(record(model, leaves, x, mode), constants=[])


def _with_fixed_dtypes(model: nn.Module, leaves: set[str], runs: list[Recording], probe: Probe) -> list[Recording]:
    """The recordings, with the dtypes that `model` names itself (`x.to(torch.float32)`) apart from its own.

    One recording in another dtype tells them apart. A network that does not run in that keeps them all as its own.
    """
    described = (part for step in runs[0].steps for part in parts_of((step.args, step.kwargs)))
    if not any(isinstance(part, Ambient) and part.name == "dtype" for part in described):
        return runs
    dtype = torch.float32 if probe.dtype != torch.float32 else torch.bfloat16
    batch, height, width = runs[0].size
    try:
        other = record(copied(model).to(dtype), leaves, probe.input(height, width, batch).to(dtype))
        _same_steps(runs[0], other)
    except Exception:  # whatever a foreign forward raises in a dtype that is not its own
        return runs

    def fixed(step: Step, twin: Step) -> Step:
        args, kwargs = with_fixed((step.args, step.kwargs), (twin.args, twin.kwargs))
        return replace(step, args=args, kwargs=kwargs)

    return [replace(run, steps=list(map(fixed, run.steps, other.steps))) for run in runs]


def _same_steps(one: Recording, other: Recording) -> None:
    if unlike := _unlike(one, other):
        raise Differs(f"its forward takes other steps at other sizes ({unlike})")


def _unlike(one: Recording, other: Recording) -> str | None:
    """In what they are no recordings of the same steps."""
    for a, b in zip(one.steps, other.steps, strict=False):
        if a.target != b.target:
            return f"{name_of(a.target)} at {one.size}, {name_of(b.target)} at {other.size}"
    if (len(one.steps), one.image) != (len(other.steps), other.image):
        return f"{len(one.steps)} steps at {one.size}, {len(other.steps)} at {other.size}"
    return None


def name_of(target: Any) -> str:
    """How errors call the target of a step: a module or a function."""
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))
