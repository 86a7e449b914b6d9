"""Split a network: by the adapter that knows it, or automatically."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from .adapter import AUTOMATIC, Adapter, choose_adapter
from .automatic import automatic_split
from .automatic.alignment import alignment
from .errors import ArgumentError, CannotSplit, MaskGuidedError
from .parts import Cuts, first_and_later
from .probing.modules import network_within
from .probing.probe import Probe, probe_network, with_smallest
from .probing.untouched import untouched
from .split import Split
from .split_checks import check_adapter, check_stretches, check_whole

_ANOTHER = "its forward makes another image of the parts that it knows"


def split(
    model: nn.Module,
    split_at: Cuts = "auto",
    *,
    adapter: str | None = None,
    body: str | Sequence[str] | None = None,
    cut: str | None = None,
    check: bool = True,
) -> Split:
    """Split a super-resolution network after block `split_at` of its body. The network is not changed.

    Args:
        model: takes (B, C, H, W), returns one image (B, C', s*H, s*W). Of what torch.compile or DataParallel made, the
            network within is split.
        split_at: 1..N-1, or "auto" for half of the depth; or several numbers that rise, as (4, 8, 12).
        adapter: name of the one to use; "automatic" for none. Default: the first that knows the network.
        body: the blocks, for a network that no adapter shall split: their module names, or a pattern for them in
            which * stands for one part of a name, as in "layers.*.blocks.*".
        cut: name of the last block that runs on the whole image, instead of `split_at`; not with an adapter.
        check: compare the parts with the network on small images.

    Raises:
        CannotSplit: what failed, at which module, and what to do.
        ArgumentError: `split_at` is out of range, or the adapter does not know this network.

    >>> import torch
    >>> from maskguided.adapters.pan_net import PAN
    >>> parts = split(PAN(features=8, up_features=8, blocks=4), split_at=3)
    >>> x = torch.rand(1, 3, 9, 12)
    >>> bool((parts.tail(parts.body(parts.prefix(x))) == parts.model(x)).all())
    True
    """
    model = network_within(model)
    probe = probe_network(model)
    if check and not probe.is_finite:
        height, width = probe.sizes[0]
        raise CannotSplit(
            f"{type(model).__name__} gives NaN or infinity on a random image of {height}x{width}: are its weights "
            "whole, and its values in this dtype's range?"
        )
    first, later = first_and_later(split_at)
    if body is not None or cut is not None:
        if adapter not in (None, AUTOMATIC):
            raise ArgumentError(f"adapter={adapter!r} knows the blocks: body= and cut= are for networks without one")
        adapter = AUTOMATIC
    chosen, missed = choose_adapter(model, adapter)
    made: Split | str | None = None
    if chosen is not None:
        made = _by_adapter(chosen, model, first, later, probe, check, named=adapter is not None)
        if isinstance(made, str):
            missed[chosen.name] = made
    if not isinstance(made, Split):
        try:
            made = automatic_split(model, first, probe, later=later, body=body, cut=cut, check=check)
        except CannotSplit as error:
            tried = "; ".join(f"{name}: {why}" for name, why in missed.items())
            raise CannotSplit(f"{error}. Adapters tried: {tried}" if tried else str(error)) from error
    parts = made
    parts.missed = missed
    with untouched(model):
        parts.probe = with_smallest(parts.probe, lambda x: parts.rest(parts.prefix(x)))
    return parts


def _check_alignment(parts: Split) -> None:
    """That an adapter has named the multiple that its blocks work on, as attention in fixed windows does."""
    needed = alignment(parts, parts.multiple_of)
    if needed != parts.multiple_of:
        raise CannotSplit(
            f"adapter {parts.adapter!r}: its blocks work on multiples of {needed} LR pixels, to which windows must "
            f"keep: replace(probe, multiple_of={needed}) (docs/new_backbone.md, The size rule)"
        )


def _by_adapter(
    adapter: type[Adapter],
    model: nn.Module,
    first: int | Literal["auto"],
    later: Sequence[int],
    probe: Probe,
    check: bool,
    *,
    named: bool,
) -> Split | str:
    """The parts that an adapter makes, or why they are not the network's; where the user `named` it, that is raised."""
    is_consistent = False
    try:
        parts = adapter(model, first, probe)
        parts.cut_again(later)
        if check:
            check_adapter(parts)
            check_stretches(parts)
            is_consistent = True
            check_whole(parts)
            _check_alignment(parts)
        return parts
    except CannotSplit as error:
        if named:
            raise
        return _ANOTHER if is_consistent else str(error)
    except MaskGuidedError:
        raise
    except Exception as error:  # whatever a foreign adapter raises
        said = f"{type(error).__name__}: {error}"
        if named:
            raise CannotSplit(f"adapter {adapter.name!r} fails on this {type(model).__name__}: {said}") from error
        return said
