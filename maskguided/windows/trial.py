"""Try windows on small images: whether they give what the whole map gives, and what is to be known for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..parts import Parts
from ..patches import Chosen, Grid, round_up
from ..probing.thin import Thin
from ..probing.untouched import untouched
from .borders import Borders, cut_windows
from .detours import When
from .exchange import Exchange
from .global_ops import Seen
from .per_image import PerImage
from .readings import READ_PLAINLY, READINGS, Reading

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]
_SAME, _ROUNDED = 1e-4, 1e-5
"""Largest difference, as a share of the range, of what counts as the same, and of what is the same up to rounding."""
_GRIDS = ((2, 3), (2, 5), (2, 7), (3, 5), (3, 7), (5, 5))
_MAP, _LARGE = 17, 64
"""Sides of maps in LR pixels: more than small windows have, and more than any window of a trial."""
SMALLEST_TRIED = 8
"""LR pixels: patches from here on do as those that are tried."""
LARGEST_STEP = 8
"""LR pixels: what is tried on small images is left out for networks that work on larger multiples."""
_STEP_IS_PATCH = 32
"""LR pixels: networks that work on such multiples, or larger ones, get patches of one where the user says nothing."""


@dataclass(frozen=True)
class Trial:
    """How windows behave that exchange borders and share statistics."""

    body: bool = False
    """Whether they give what the whole map gives at the end of the body."""
    image: bool = False
    """Whether they do so in the image."""
    reading: Reading = READ_PLAINLY
    """How ambiguous global operations are read."""
    strangers: frozenset[Shape] = frozenset()
    """Shapes of what padding, convolutions and reductions get that is no map of windows: of weights, mostly."""
    unit: int = 1
    """What windows are multiples of, in LR pixels."""
    detours: When | None = None
    """When side branches run on the whole map (detours.py); None: never."""
    least: int = 1
    """The smallest patch, in LR pixels, for which that is known: smaller windows might be taken for vectors, or for
    windows that blocks cut their map into themselves."""
    overlapped: bool = True
    """Whether windows overlapped in the trial, because the last row and column of patches were narrower than the rest.
    If not, only patches of one `unit` were tried, and larger ones will be when they are asked for."""
    closely: bool = False
    """Whether windows gave what the map gives up to rounding; if not, they may miss something small."""
    runs: bool = True
    """Whether blocks ran on such windows."""


def find_trial(parts: Parts) -> Trial:
    """How windows of a network do, on small images and on a large one."""
    if parts.only_on_large:  # where none of this would show
        return Trial()
    try:
        with untouched(parts.model):
            found = _on_single_steps(parts) or _on_usual_windows(parts)
        return replace(found, unit=parts.multiple_of)
    except Exception:  # whatever a foreign network raises: it does not work so
        _log.debug("windows of %s do not run", type(parts.model).__name__, exc_info=True)
        return Trial()


def _on_single_steps(parts: Parts) -> Trial | None:
    """How patches of one multiple do, where larger ones take long to try and are seldom asked for; None where more
    has to be tried."""
    step = parts.multiple_of
    if step < _STEP_IS_PATCH:
        return None
    found = _tried_with(parts, _grid_of(parts.model, step, 0))
    return replace(found, least=step, overlapped=False) if found.image and found.closely else None


def _on_usual_windows(parts: Parts) -> Trial:
    step, least = parts.multiple_of, parts.probe.least
    found = _tried_with(parts, _grid(parts, -(-least // 2) + step))
    if not (found.image and found.closely):  # pools of a map's part take no smaller windows than images
        around = _tried_with(parts, _grid(parts, least), detours=True)
        found = max(found, around, key=lambda trial: (trial.body, trial.image, trial.closely))
    if found.body and step <= LARGEST_STEP:
        found = _on_a_large_map(parts, found)
    small = step > 1 and found.body and not _holds_on(parts, found, _grid_of(parts.model, step, 0))
    return replace(found, least=2 * step if small else step)


def holds_for(parts: Parts, found: Trial, patch: int) -> bool:
    """Whether `found` holds for patches of `patch` LR pixels, too, a multiple of `parts.multiple_of`."""
    half = patch // (2 * parts.multiple_of) * parts.multiple_of
    with untouched(parts.model):
        return _holds_on(parts, found, _grid_of(parts.model, patch, half, _MAP))


def _holds_on(parts: Parts, found: Trial, grid: Grid) -> bool:
    """Whether `found` holds on `grid`, too; also True where the network does not run on so few pixels."""
    try:
        other = _again(parts, found, grid)
    except Exception:  # whatever a foreign network raises
        return True
    return (other.body, other.image) >= (found.body, found.image)


def _on_a_large_map(parts: Parts, found: Trial) -> Trial:
    """`found`, less what fails on a map of at least 64 LR pixels a side: blocks may look further there.

    It is tried within Thin (in a tenth of the time, with other values), and in full if that fails.
    """
    step, side = parts.multiple_of, max(_LARGE, parts.probe.least)
    usual = max(round_up(SMALLEST_TRIED, step), 2 * step)
    for patch in (usual, 2 * usual, 4 * usual):  # the first on which blocks run
        other = _thinly_again(parts, found, _grid_of(parts.model, patch, step, side))
        if other.runs:
            break
    if other.body and found.detours:  # windows that do not overlap are put into maps, and cut, in another way
        apart = _thinly_again(parts, found, _grid_of(parts.model, patch, 0, side))
        other = min(other, apart, key=lambda trial: (trial.body, trial.image))
    return replace(found, body=other.body, image=found.image and other.image)


def _thinly_again(parts: Parts, found: Trial, grid: Grid) -> Trial:
    """`found` tried on `grid` within Thin, and in full if that fails."""
    with Thin(every=True):
        other = _again(parts, found, grid)
    return _again(parts, found, grid) if (other.body, other.image) < (found.body, found.image) else other


def _again(parts: Parts, found: Trial, grid: Grid) -> Trial:
    picture = _picture(parts, grid.height, grid.width)
    return _tried_on(parts, picture, grid, [found.reading], detours=found.detours is not None)[0]


def _tried_with(parts: Parts, grid: Grid, detours: bool = False) -> Trial:
    picture = _picture(parts, grid.height, grid.width)
    found, *others = _tried_on(parts, picture, grid, READINGS, detours)
    if others:  # which may be unlike where more is lit: a count of bright pixels, say
        bright = 2 * parts.example(grid.height, grid.width)
        again, *_ = _tried_on(parts, bright, grid, [trial.reading for trial in (found, *others)], detours)
        found = again if again.body and again.image >= found.image else found
    if detours and found.body:  # a map that is never cut again goes with windows, too, if it is of one image
        found, *_ = _tried_on(parts, torch.cat([picture, 1 - picture]), grid, [found.reading], detours)
    return found


def _picture(parts: Parts, height: int, width: int) -> Tensor:
    """Nearer to a photograph than `example`, for noise drives some trained networks (PAN) out of all range; dark at
    its left and bright at its right, so that what is counted twice shows."""
    noise, few = parts.example(height, width), parts.example(4, 5)
    smooth = F.interpolate(few, size=(height, width), mode="bicubic").clamp(0, 1)
    return (noise + smooth) / 2 * torch.linspace(0.1, 1, width, device=noise.device).to(noise)


def _grid(parts: Parts, least: int) -> Grid:
    """For a trial, with patches of at least so many LR pixels."""
    step = parts.multiple_of
    patch = round_up(max(SMALLEST_TRIED, least), step)
    while step <= LARGEST_STEP // 2 and math.gcd(patch // step, 6) > 1:
        patch += step  # a pool by 2 or 3 before a global mean fits by chance where it divides the patch
    return _grid_of(parts.model, patch, min(step, patch - step))


def _grid_of(model: nn.Module, patch: int, less: int, side: int = 1) -> Grid:
    """A grid whose number of patches divides no side of a weight, so that no weight is mistaken for all windows.

    The last row and column are `less` LR pixels narrower, so windows overlap there: what counts a pixel twice shows.
    The map has at least `side` LR pixels a side.
    """
    sizes = {size for weight in model.parameters() if weight.dim() == 4 for size in weight.shape[:2]}
    fewest = -(-(side + less) // patch)
    larger = ((rows, rows + more) for rows in range(fewest, fewest + 4) for more in (1, 2))
    shapes = _GRIDS if fewest <= _GRIDS[0][0] else tuple(larger)
    free = (shape for shape in shapes if not any(size % (shape[0] * shape[1]) == 0 for size in sizes))
    rows, cols = next(free, shapes[0])
    return Grid(rows * patch - less, cols * patch - less, patch)


def _tried_on(parts: Parts, image: Tensor, grid: Grid, readings: Sequence[Reading], detours: bool) -> list[Trial]:
    """Run all windows of an image beside the whole, under each of the readings.

    What a network means by a sum is what makes them agree: what is returned are the readings under which they do, or
    else one that says that they do not. `detours`: whether branches take any.
    """
    state = parts.window((grid.height, grid.width), image)
    with Seen() as seen:
        whole = parts.body(dict(state))
        made = parts.tail(whole)
    if seen.picks:  # then windows of one image are not all of what a block sees at once
        return [Trial(reading=Reading(flat=seen.flat, transposed=seen.transposed))]
    beside = _Beside(parts, grid, state, whole, made, When(parts.multiple_of, seen.parts) if detours else None)
    tried: list[Trial] = []
    doubts: frozenset[str] = frozenset()
    for number, reading in enumerate(readings):
        if any(all(getattr(reading, it) == getattr(other, it) for it in doubts) for other in readings[:number]):
            continue  # the same as one before
        if reading.lines and any(trial.image for trial in tried):
            continue  # nothing is missed
        trial, doubtful = beside.read_as(reading)
        tried.append(trial)
        doubts |= doubtful
    # Several hold where these images do not tell them apart (a gate is closed); then the sizes of the map decide.
    of_sizes = seen.flat, seen.transposed
    holding = sorted(
        (trial for trial in tried if trial.body),
        key=lambda trial: (trial.reading.flat, trial.reading.transposed) != of_sizes,
    )
    if not holding:
        rows: Literal["unknown", "groups"] = "unknown" if "rows" in doubts else "groups"
        return [replace(tried[0], reading=Reading(flat=seen.flat, transposed=seen.transposed, rows=rows))]
    return [trial for trial in holding if trial.image] or holding


@dataclass
class _Beside:
    """All windows of an image beside the whole of it: the maps of its `state` are cut, and its vectors repeated."""

    parts: Parts
    grid: Grid
    state: dict[str, Tensor]
    whole: dict[str, Tensor]
    """What the body makes of it."""
    image: Tensor
    """What the tail makes of that."""
    detours: When | None
    noted: set[Shape] = field(default_factory=set)
    """Shapes of what is no map of windows, of all readings so far."""

    def read_as(self, reading: Reading) -> tuple[Trial, frozenset[str]]:
        """What windows give under a reading, and the fields of it by which another may give something else."""
        parts, grid, state = self.parts, self.grid, self.state
        image = state[parts.features]
        every = torch.arange(grid.count, device=image.device).expand(len(image), -1)
        chosen = Chosen(every, grid)
        windows, cut = cut_windows(state, parts.kinds, chosen)
        known: dict[str, Any] = {"noted": self.noted, "unit": parts.multiple_of}
        statistics = PerImage(chosen, reading=reading, **known)
        try:
            exchange = Exchange(Borders(chosen, cut), detours=self.detours, **known)
            with untouched(parts.model), statistics, exchange:  # what windows leave in a block is not seen by the map
                refined = parts.body(dict(windows))
                patches = parts.tail(refined)
            written = [name for name in parts.writes if self.whole[name].dim() == 4]
            in_body = max((self._difference(self.whole[name], refined[name], chosen) for name in written), default=0.0)
            in_image = self._difference(self.image, patches, chosen)
        except Exception:  # whatever a foreign network raises: it does not work so
            _log.debug("windows that are read as %s do not run", reading, exc_info=True)
            return Trial(strangers=frozenset(self.noted), runs=False), statistics.doubts
        closely = (max(in_body, in_image) if in_image <= _SAME else in_body) <= _ROUNDED
        same = in_body <= _SAME, in_image <= _SAME
        found = Trial(*same, reading, frozenset(self.noted), detours=self.detours, closely=closely)
        return found, statistics.doubts

    def _difference(self, whole: Tensor, windows: Tensor, chosen: Chosen) -> float:
        """The largest one, of the range of `whole`; infinite where one is no number."""
        apart = whole - chosen.scatter(windows, onto=torch.zeros_like(whole))
        found = float(apart.abs().max() / whole.abs().max().clamp_min(1e-30))
        return found if found == found else math.inf
