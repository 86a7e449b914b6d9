"""Where to cut a network and which windows to give it: some are fitted and measured, and the best is taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import ArgumentError, CannotSplit
from ..guided import MaskGuided
from ..parts import Merge, RefineTail
from ..patches import round_up
from ..split import Split
from ..splitting import split
from .closed_form import Known, Progress, fit_parts
from .curve import Budget, Point
from .measure import KEEPS, between, measure
from .prices import Priced, price

_Windows = tuple[int, int, bool]  # patch size, halo, exchange


class _Place(NamedTuple):
    """Where a network is cut, where its branches meet, and what makes an image of refined patches."""

    parts: Split
    merge: Merge
    refine_tail: RefineTail = "own"


class _Best(NamedTuple):
    """What is the best up to now."""

    rating: float
    place: _Place
    fast: MaskGuided
    prices: Priced


def search(fast: MaskGuided, images: Sequence[Known], budget: Budget, progress: Progress) -> Priced:
    """Make `fast` the best of some splits and merges, then of windows and refine tails there: the cheapest or the
    nearest to dense.

    Its parts are fitted then, and its prices returned.

    Places are compared on the usual windows. Where none meets the budget on these, all places get the other windows.
    Which tail is the better hangs on the network and the budget, and hardly on where it is cut.
    """
    best: _Best | None = None
    missed: list[float] = []  # what it costs, or loses, where a budget is not met
    dense: dict[tuple[int, int], int] = {}

    def compare(candidates: Iterable[tuple[_Place, _Windows]]) -> None:
        nonlocal best
        for place, windows in candidates:
            candidate = _candidate(fast, place, windows)
            if candidate is not None:
                rating = math.inf if best is None else best.rating
                found = _rated(candidate, images, budget, rating, missed, dense, progress)
                if found is not None and (best is None or found[0] < best.rating):
                    best = _Best(found[0], place, candidate, found[1])

    def windows_at(place: _Place) -> list[_Windows]:
        return _windows(fast, place, budget.time is not None)

    places = list(_places(fast))
    compare((place, windows_at(place)[0]) for place in places)
    if best is None:
        compare((place, windows) for place in places for windows in windows_at(place)[1:])
    else:
        at, others = best.place, windows_at(best.place)[1:]
        compare((at, windows) for windows in others)
        if fast.split.refine_tail == "own":
            light = _Place(at.parts, "image", "light")
            compare((light, windows) for windows in windows_at(light))
    if best is None:
        raise ArgumentError(f"calibrate: {_unmet(budget, missed)}")
    fast.become(best.fast)
    return best.prices


def _unmet(budget: Budget, missed: Sequence[float]) -> str:
    """Why there is no best."""
    if not missed:
        return "split_at='auto': the network can be cut at none of the places that are tried; name one"
    if budget.drop_db is None:
        return f"no split meets {budget}: even with nothing refined the cheapest costs {min(missed):.2f}; allow more"
    return f"no split meets {budget}: even with all patches refined the best loses {min(missed):.3f} dB; allow more"


def _rated(
    candidate: MaskGuided,
    images: Sequence[Known],
    budget: Budget,
    best: float,
    missed: list[float],
    dense: dict[tuple[int, int], int],
    progress: Progress,
) -> tuple[float, Priced] | None:
    """What it costs or loses within the budget, the less the better, and its prices; None where it cannot meet it.

    What it costs or loses then is added to `missed`. None, too, as soon as it is seen to be no better than the `best`:
    fitting and measuring take most of a search.
    """
    tail = "" if candidate.refine_tail is None else ", light refine tail"
    windows = f"patch {candidate.patch_size}+{candidate.halo}"
    where = f"split_at={candidate.split.split_at}, {candidate.merge}{tail}, {windows}"

    def told(what: str) -> None:
        progress(f"{where}: {what}")

    prices = price(candidate, images, "all", budget, told, dense)
    if not prices.affords(budget):
        missed.append(prices.paid.at(0))
        return None
    if budget.drop_db is None:
        fit_parts(candidate, images, "all", told)
        return measure(candidate, images, prices, candidate.keep, told).drop, prices
    if prices.macs.at(0) >= best:
        return None
    fit_parts(candidate, images, "all", told)
    most = prices.macs.keep(min(best, prices.macs.at(1)))
    high = measure(candidate, images, prices, most, told)
    if high.drop > budget.drop_db:
        missed.append(high.drop)
        return None
    return _cheapest(candidate, images, prices, budget.drop_db, high, told), prices


def _cheapest(
    candidate: MaskGuided, images: Sequence[Known], prices: Priced, drop_db: float, high: Point, progress: Progress
) -> float:
    """The least share of the dense MACs at which no more than `drop_db` is lost, between measured points.

    `high`: a point where less is lost, to search below.
    """
    keeps, low = [keep for keep in KEEPS if keep < high.keep], None
    while keeps:  # those between what loses too much and what does not
        middle = measure(candidate, images, prices, keeps[len(keeps) // 2], progress)
        if middle.drop > drop_db:
            low, keeps = middle, [keep for keep in keeps if keep > middle.keep]
        else:
            high, keeps = middle, [keep for keep in keeps if keep < middle.keep]
    if low is not None:
        high = measure(candidate, images, prices, between(low, high, drop_db), progress)
    return high.macs


def _places(fast: MaskGuided) -> Iterable[_Place]:
    """Splits at an eighth to three quarters of the depth, with both merges where the network has both."""
    blocks, name = len(fast.split.blocks), fast.split.adapter
    for at in sorted({min(blocks - 1, max(1, round(blocks * share))) for share in (0.125, 0.25, 0.5, 0.75)}):
        try:
            parts = split(fast.unwrap(), at, adapter=name, body=None if name else fast.split.blocks)
        except CannotSplit:  # though it can be cut elsewhere
            continue
        # Mostly the better, by which the other is left out the sooner.
        yield _Place(parts, "image", fast.split.refine_tail)
        if parts.can_skip:
            yield _Place(parts, "features")


def _windows(fast: MaskGuided, place: _Place, timed: bool) -> list[_Windows]:
    """Patch, halo and whether windows exchange borders, to be tried there; the usual first.

    Exchange computes no pixel twice, but a border to what is not refined is but a guess: where the coarse image is good
    already, a halo is worth its work (docs/benchmarks.md). To a network of few channels copying borders may cost more
    time than a halo.
    """
    parts = place.parts
    if fast.exchange and parts.exchanges(place.merge):
        ways = [(8, 0, True), (16, 1, True), (16, 2, False)] + [(16, 1, False)] * timed
    else:
        own = [] if fast.exchange else [(fast.patch_size, fast.halo, False)]  # larger where small ones cost too much
        ways = [*own, (16, 2, False), (16, 1, False), (32, 1, False)]
    step, least = parts.multiple_of, {True: parts.trial.least, False: 1}
    fitting = ((max(round_up(patch, step), least[how]), round_up(halo, step), how) for patch, halo, how in ways)
    return list(dict.fromkeys(fitting))


def _candidate(fast: MaskGuided, place: _Place, windows: _Windows) -> MaskGuided | None:
    """The network wrapped so; None where it cannot run on such windows, or its branches cannot meet there."""
    patch_size, halo, exchange = windows
    of_image: dict[str, Any] = {}
    if place.merge == "image":
        kind = "light" if fast.merge != "image" or fast.coarse_tail_kind == "copy" else fast.coarse_tail_kind
        of_image = {"coarse_tail": kind, "coarse_on": fast.coarse_on}
    try:
        return MaskGuided(
            place.parts, keep=fast.keep, patch_size=patch_size, halo=halo, merge=place.merge,
            refine_tail=place.refine_tail, global_ops=fast.global_ops, exchange=exchange, head=fast.head.settings,
            **of_image,
        ).eval()  # fmt: skip
    except ArgumentError:
        return None
