"""What maskguided sees in a network, or why it cannot split it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .adapter import AUTOMATIC, recognise
from .automatic import find_bodies
from .cost import macs
from .errors import ArgumentError, CannotSplit, MaskGuidedError, first_line
from .guided import MaskGuided
from .parts import Cuts
from .patches import round_up
from .probing.modules import first_weight, network_within
from .probing.probe import probe_network
from .probing.untouched import untouched
from .split import Facts, Split
from .splitting import split

_SIDE = 64  # LR pixels a side for the share of MACs: large enough that vectors do not count
_KEPT = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Inspection:
    """The answer of `inspect`; print it for reading."""

    network: str
    """Class of the network."""
    adapter: str
    """Name of the adapter that knows it, or "automatic"."""
    missed: dict[str, str]
    """For each adapter tried before: what the network lacks to be its."""
    reason: str | None
    """Why it cannot be split; None if it can."""
    split_at: int = 0
    facts: Facts | None = None
    block_class: str = ""
    live: dict[str, str] = field(default_factory=dict)
    """Live values at the cut: name -> kind and shape."""
    shares: dict[str, float] = field(default_factory=dict)
    """Share of the MACs of prefix, body and tail, 0..1."""
    candidates: tuple[str, ...] = ()
    """The runs of blocks found, best first; none are looked for where `body` names them."""
    later: tuple[int, ...] = ()
    """The cuts after the first, at which patches leave too."""
    windows: str = ""
    """What windows a wrapped network has or `wrap` would choose, or why it would not wrap the network."""
    prices: dict[float, float] = field(default_factory=dict)
    """keep -> MACs as a share of the dense network's, on an LR image of 64x64 (or 2x2 patches, where that is more)."""
    is_wrapped: bool = False
    """Whether that is a wrapped network; else one as `wrap` would make it."""

    @property
    def can_split(self) -> bool:
        """Whether there is a cut to be told of."""
        return self.reason is None

    def __str__(self) -> str:
        lines = [f"{self.network}, adapter: {self.adapter}"]
        lines += [f"  not {name}: {why}" for name, why in self.missed.items()]
        if self.facts is None:
            return "\n".join([*lines, f"cannot be split: {self.reason}"])
        facts, blocks = self.facts, self.facts.blocks
        lines += [
            f"scale {facts.scale}, {facts.in_channels} -> {facts.out_channels} channels, any size"
            + (f"; patches and halos are multiples of {facts.multiple_of}" if facts.multiple_of > 1 else ""),
            *_sizes(facts),
            f"body: {len(blocks)} x {self.block_class}, {blocks[0]} .. {blocks[-1]}",
            f"cut after block {self.split_at}: "
            + ", ".join(f"{part} {share:.0%}" for part, share in self.shares.items())
            + " of the MACs",
            *(["patches leave after block " + " or ".join(map(str, self.later)) + " too"] if self.later else []),
            "live values: " + ", ".join(f"{name} ({what})" for name, what in self.live.items()),
            f"receptive field of the refined blocks: {_radius(facts.body_radius)}"
            f"; with the tail: {_radius(facts.radius)} (radius in LR pixels)",
            f"{'as it is wrapped' if self.is_wrapped else 'by default'}: {self.windows}",
        ]
        if self.prices:
            prices = ", ".join(f"{share:.0%} at keep={keep:g}" for keep, share in self.prices.items())
            lines.append(f"MACs of the dense network's: {prices}")
        if self.candidates:
            lines.append("runs of blocks found, the best first (the outermost of those that hold most of the MACs):")
            lines += [f"  {candidate}" for candidate in self.candidates[:4]]
        return "\n".join(lines)


def inspect(
    model: nn.Module,
    split_at: Cuts = "auto",
    *,
    adapter: str | None = None,
    body: str | Sequence[str] | None = None,
    cut: str | None = None,
) -> Inspection:
    """Say what the body of `model` is and what a cut would give, or why it cannot be split.

    Args:
        model: a network as for `wrap`; or a wrapped one, of which is said what it is as it is set.
        split_at, adapter, body, cut: as for `wrap`; only for a network that is not wrapped.

    Raises:
        ArgumentError: no network, or a cut of one that is wrapped. What cannot be split raises nothing: see `reason`.

    >>> from maskguided.adapters.pan_net import PAN
    >>> found = inspect(PAN(features=8, up_features=8, blocks=4))
    >>> found.can_split, found.adapter, len(found.facts.blocks), found.facts.body_radius
    (True, 'pan', 4, 4)
    >>> from maskguided.checkpoint import starter
    >>> found = inspect(starter())
    >>> found.split_at, found.is_wrapped, found.windows
    (4, True, 'merge image (coarse tail residual), windows of 16x16 LR pixels (halo 1) alone, keep=0.162')
    """
    if isinstance(model, MaskGuided):
        if split_at != "auto" or (adapter, body, cut) != (None, None, None):
            raise ArgumentError("inspect: a wrapped network is cut already; inspect(fast.unwrap(), ...) tries others")
        return _found(model.split, {}, (), model)
    model = network_within(model)
    name = type(model).__name__
    runs: tuple[str, ...] = ()
    try:
        if body is None:
            runs = tuple(dict.fromkeys(str(candidate) for candidate in find_bodies(model, probe_network(model))))
        parts = split(model, split_at, adapter=adapter, body=body, cut=cut)
    except CannotSplit as error:
        missed = recognise(model)[1] if adapter is None and body is None and cut is None else {}
        return Inspection(network=name, adapter=adapter or AUTOMATIC, missed=missed, reason=str(error))
    return _found(parts, dict(parts.missed), runs)


def _found(parts: Split, missed: dict[str, str], runs: tuple[str, ...], fast: MaskGuided | None = None) -> Inspection:
    """What there is to say of a split network, and of what was made of it, or would be."""
    dense = functools.cache(functools.partial(_macs, parts, parts.model))  # both look at one size, mostly
    windows, prices = _would_be(parts, dense) if fast is None else _wrapped(fast, dense)
    return Inspection(
        network=type(parts.model).__name__,
        adapter=parts.adapter or AUTOMATIC,
        missed=missed,
        reason=None,
        split_at=parts.split_at,
        facts=parts.facts,
        block_class=type(parts.model.get_submodule(parts.blocks[0])).__name__,
        live=_live(parts),
        shares=_shares(parts, dense),
        candidates=runs,
        later=parts.cuts[1:],
        windows=windows,
        prices=prices,
        is_wrapped=fast is not None,
    )


def _would_be(parts: Split, dense_at: Callable[[int], int]) -> tuple[str, dict[float, float]]:
    """What `wrap` would make of it, in words, and at which cost."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # of which new parts draw
            warnings.simplefilter("ignore")  # what wrap warns of is for those who wrap
            fast = MaskGuided(parts)
    except MaskGuidedError as error:
        return f"cannot be wrapped: {first_line(error)}", {}
    side = f"{fast.patch_size}x{fast.patch_size} LR pixels"
    where = "that exchange borders" if fast.exchange else f"and a halo of {fast.halo}, for they cannot exchange borders"
    return f"merge {fast.merge}, windows of {side} {where}", _prices(fast, _KEPT, dense_at)


def _wrapped(fast: MaskGuided, dense_at: Callable[[int], int]) -> tuple[str, dict[float, float]]:
    """A wrapped network's settings, in words, and what it costs."""
    light = "" if fast.refine_tail is None else ", refine tail light"
    tail = f" (coarse tail {fast.coarse_tail_kind}{light})" if fast.merge == "image" else ""
    tail += "" if fast.skip is None else f" (skip {fast.skip.kind})"
    side, where = f"{fast.patch_size}x{fast.patch_size}", "that exchange borders" if fast.exchange else "alone"
    how = f"keep={fast.keep:.3g}" + (
        "" if fast.min_gain_db is None else f" on average (patches that bring {fast.min_gain_db:.3g} dB)"
    )
    words = f"merge {fast.merge}{tail}, windows of {side} LR pixels (halo {fast.halo}) {where}, {how}"
    return words, _prices(fast, sorted({*_KEPT, round(fast.keep, 3)}), dense_at)


def _prices(fast: MaskGuided, keeps: Iterable[float], dense_at: Callable[[int], int]) -> dict[float, float]:
    side = round_up(max(_SIDE, 2 * fast.patch_size), fast.split.multiple_of)
    return {keep: fast.macs_at(side, side, keep=keep) / dense_at(side) for keep in keeps}


def _sizes(facts: Facts) -> list[str]:
    """Where images of any size are not what the network alone would make of them."""
    lines = []
    if (step := facts.image_multiple_of) > 1:
        lines.append(f"  images whose sides are no multiples of {step} are continued to that, and cropped")
    if facts.rounds_within:
        lines.append(
            f"  where they are no multiples of {facts.multiple_of}, blocks pad within themselves, or go in "
            "steps of that: refined patches are not exactly the network's near the lower and right border, or, where "
            "blocks shrink maps and enlarge them again, anywhere"
        )
    return lines


def _radius(pixels: int | None) -> str:
    return "the whole map (a global operation, or blocks that read the place in it)" if pixels is None else str(pixels)


def _live(parts: Split) -> dict[str, str]:
    size = parts.probe.sizes[0]
    height = parts.full_size(*size)[0]
    with untouched(parts.model):
        state = parts.prefix(parts.example(*size))

    def words(name: str, kind: str) -> str:
        value = state[name]
        if kind != "map":
            return f"{kind} {tuple(value.shape)}"
        return f"{value.shape[1]} channels at {value.shape[2] / height:g}x"

    return {name: words(name, kind) for name, kind in parts.kinds.items()}


def _shares(parts: Split, dense_at: Callable[[int], int]) -> dict[str, float]:
    side = round_up(_SIDE, parts.multiple_of)
    whole, prefix = dense_at(side), _macs(parts, parts.prefix, side)
    to_body = _macs(parts, lambda x: parts.body(parts.prefix(x)), side)
    return {"prefix": prefix / whole, "body": (to_body - prefix) / whole, "tail": (whole - to_body) / whole}


def _macs(parts: Split, forward: Callable[[Tensor], object], side: int) -> int:
    """MACs of `forward`, the network or some of its parts, on an LR image of side x side pixels."""
    return macs(forward, (1, parts.probe.in_channels, side, side), first_weight(parts.model), parts.model)
