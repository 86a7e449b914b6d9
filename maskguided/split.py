"""What is known of a network in three parts (parts.py): found out by running them, once, when it is first asked for."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .parts import Merge, Parts, State
from .probing import receptive
from .probing.modules import copied, first_weight, silent_weights
from .probing.probe import runs_channels_last
from .probing.thin import thinly
from .probing.untouched import untouched
from .windows.global_ops import Seen
from .windows.trial import SMALLEST_TRIED, Trial, find_trial, holds_for

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What is true of a split network, measured by running it."""

    scale: int
    in_channels: int
    out_channels: int
    blocks: tuple[str, ...]
    """Names of the body's blocks in call order."""
    body_radius: int | None
    """Receptive-field radius of blocks n+1..N in LR pixels: windows alone with such a halo give what the whole map
    gives there. None: an output depends on the whole map or its size, or farther than is measured; windows that
    exchange borders, or share the statistics of global operations, may be exact all the same."""
    radius: int | None
    """Receptive-field radius of blocks n+1..N and the tail together, in LR pixels, or None."""
    multiple_of: int
    """Patches, halos and windows are multiples of this many LR pixels; 1: any size. Images may have any size."""
    supports_half: bool | None
    """Whether float16 is known to work; None: not known."""
    tiling: str | None = None
    """Whether an image may be run in tiles: "supported", "discouraged" or "internal"; None: not known."""
    image_multiple_of: int = 1
    """The network itself takes images whose sides are multiples of this; others are continued to that."""
    rounds_within: bool = False
    """Whether blocks pad, or go in steps, within themselves: at sizes that are no multiple of `multiple_of` windows are
    not exactly what the network is, near the lower and right border at least."""


class Split(Parts):
    """A network in three parts, and what running them has told of it."""

    @property
    def with_own_tail(self) -> Split:
        """This one with the network's own tail: what `tail(body(prefix(x))) == model(x)` is true of."""
        return self

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """The faster one for images and weights, channels last; the usual one where the network does not run so.

        A `view` of its own that goes by the order in memory (HAN's layer attention) does not.
        """
        last = runs_channels_last(self.model, self.example(*self.probe.sizes[0]))
        return torch.channels_last if last else torch.contiguous_format

    @property
    def global_ops(self) -> tuple[str, ...]:
        """Those that blocks n+1..N call and windows/global_ops.py knows; there may be others (attention)."""
        return self.global_ops_on_windows("features")

    def global_ops_on_windows(self, merge: Merge) -> tuple[str, ...]:
        """Those that windows meet: in blocks n+1..N, and for merge="image" in the tail."""
        return self._global_ops[merge]

    @cached_property
    def _global_ops(self) -> dict[Merge, tuple[str, ...]]:
        def look() -> dict[Merge, tuple[str, ...]]:
            state = self.prefix(self.example(*self.probe.round_size))
            with Seen() as seen:
                state = self.body(state)
                in_body = len(seen.names)
                self.tail(state)
            return {"features": tuple(dict.fromkeys(seen.names[:in_body])), "image": tuple(dict.fromkeys(seen.names))}

        with untouched(self.model):
            return thinly(look)

    def exchanges(self, merge: Merge) -> bool:
        """Whether windows that exchange borders (windows/exchange.py) give what the whole map gives: in the body, for
        merge="features", or in body and tail."""
        return self.trial.body and (merge == "features" or self.trial.image)

    @cached_property
    def trial(self) -> Trial:
        """What windows do on small images; in float32 and with noise for weights of zero, which would hide it."""
        split = self._for_trial()
        return Trial() if split is None else find_trial(split)

    def exchanges_at(self, patch_size: int) -> bool:
        """Whether windows of this patch size may exchange borders, too, as `exchanges` says of the usual sizes.

        Small windows may be mistaken for vectors, or for windows that a block cuts itself, or be smaller than what a
        block looks at. Each size is tried once, when it is first asked for.
        """
        found, step = self.trial, self.multiple_of
        small = step == 1 and 0 < patch_size < SMALLEST_TRIED
        if not small and (found.overlapped or patch_size <= step or patch_size % step):
            return patch_size >= found.least
        if patch_size not in self._other_patches:
            split = self._for_trial()
            self._other_patches[patch_size] = split is not None and holds_for(split, found, patch_size)
        return self._other_patches[patch_size]

    @cached_property
    def _other_patches(self) -> dict[int, bool]:
        return {}

    def own(self) -> Split:
        """This split of a copy of the network."""
        memo: dict[int, Any] = {}
        copied(self.model, memo)  # first, for it may hold tensors that deepcopy alone refuses
        return copy.deepcopy(self, memo)

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        """What holds the weights of its parts."""
        return (self.model,)

    def _for_trial(self) -> Split | None:
        """This split, or that of a copy in float32 whose silent weights are noise; None if it cannot be copied."""
        half = torch.finfo(first_weight(self.model).dtype).bits < 32
        if not half and not any(map(silent_weights, self._modules)):
            return self
        try:
            other = self.own()
        except Exception:  # whatever a foreign network raises
            _log.debug("%s cannot be copied for a trial", type(self.model).__name__, exc_info=True)
            return None
        for module in (*other._modules, other.constants):
            if module is not None and half:
                module.float()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in (weight for module in other._modules for weight in silent_weights(module)):
                noise = torch.randn(weight.shape, generator=generator, device="cpu")
                weight.copy_(noise / weight[0].numel() ** 0.5 if weight.dim() > 1 else noise.abs() + 0.5)
        return other

    @cached_property
    def facts(self) -> Facts:
        """Measured when first asked for: the radii take some forwards on narrow strips."""
        body_radius = self._radius("features", lambda state: {name: self.body(state)[name] for name in self.writes})
        whole = None if body_radius is None else self._radius("image", lambda state: {"image": self.rest(state)})
        return Facts(
            scale=self.scale,
            in_channels=self.probe.in_channels,
            out_channels=self.probe.out_channels,
            blocks=self.blocks,
            body_radius=body_radius,
            radius=whole,
            multiple_of=self.multiple_of,
            supports_half=self.supports_half,
            tiling=self.tiling,
            image_multiple_of=self.probe.multiple_of,
            rounds_within=self.rounds_within,
        )

    def _radius(self, merge: Merge, part: receptive.Part) -> int | None:
        maps = [name for name, kind in self.kinds.items() if kind == "map"]

        def afresh(state: State) -> State:
            with untouched(self.model):  # what a strip has left in a block is not seen by the next
                return part(state)

        with untouched(self.model):
            return receptive.radius(self.window, afresh, maps, self.multiple_of, falls_apart=self.exchanges(merge))
