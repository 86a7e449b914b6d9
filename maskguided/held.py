"""The network that is held: which sizes it takes, what it costs, what of it trains, and how to get it back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .cost import Cost, macs
from .errors import ArgumentError
from .gain import GainEstimate, fresh_estimate
from .knobs import Knobs
from .patches import Grid, continued, round_up
from .probing.modules import first_weight
from .settings import check_size
from .skip import LinearSkip, kind_of, make_skip
from .tails.light import LightTail
from .tails.refine import LightTailed
from .values import as_whole
from .windows.context import LinearContext, make_context


class Held(Knobs):
    """What MaskGuided has beside its forward."""

    model: nn.Module
    constants: nn.Module | None
    refine_tail: LightTail | None
    context: LinearContext | None
    skip: LinearSkip | None
    _given: tuple[nn.Module, ...]

    @property
    def scale(self) -> int:
        """HR pixels per LR pixel, in each direction."""
        return self.split.scale

    def grid(self, height: int, width: int) -> Grid:
        """The patches of an LR image of this size, rounded up to what windows can be cut from."""
        return Grid(*self.split.full_size(*self._accepted(height, width)), self.patch_size, self.halo)

    def accepted(self, x: Tensor) -> Tensor:
        """`x` (B, C, H, W), continued to a size that the network accepts; most accept any."""
        return continued(x, *self._accepted(x.shape[2], x.shape[3]))

    def _accepted(self, height: int, width: int) -> tuple[int, int]:
        multiple, smallest = self.split.probe.multiple_of, self.split.probe.smallest
        return max(round_up(height, multiple), smallest), max(round_up(width, multiple), smallest)

    def cost(self, height: int, width: int) -> Cost:
        """MACs of one LR image of `height` x `width`: dense, coarse, and at `keep`, whatever `min_gain_db` is."""
        if as_whole(height) is None or as_whole(width) is None:
            raise ArgumentError(f"cost({height!r}, {width!r}): use whole numbers of LR pixels, 1 or more")
        check_size(height, width)
        keep, grid = self.keep, self.grid(height, width)
        guided, coarse = (self.macs_at(height, width, keep=share) for share in (keep, 0))
        dense = self.dense_macs(height, width)
        own, every = (sum(p.numel() for p in module.parameters()) for module in (self.model, self))
        return Cost(
            height=height,
            width=width,
            keep=keep,
            dense=dense,
            coarse=coarse,
            guided=guided,
            parameters=own,
            added=every - own,
            k=grid.k(keep),
            patches=grid.count,
        )

    def dense_macs(self, height: int, width: int) -> int:
        """MACs of one LR image of that size in the dense network."""
        return self._macs(self.model, lambda x: self.model(self.accepted(x)), height, width)

    def macs_at(
        self,
        height: int,
        width: int,
        *,
        keep: float | None = None,
        min_gain_db: float | None = None,
        onward: tuple[float, ...] | None = None,
    ) -> int:
        """MACs of one LR image of that size under a `keep` or `min_gain_db`, and `onward`, whatever is set now."""
        asked = copy.copy(self)  # of settings alone: a forward in another thread goes on with its own
        if onward is not None:
            asked._onward = onward  # by the knob it would end the estimate, of which there is one for both
        if keep is not None:
            asked.keep = keep
        if min_gain_db is not None:
            asked.min_gain_db = min_gain_db
        return self._macs(asked, asked, height, width)

    def _macs(self, model: nn.Module, forward: Callable[[Tensor], Tensor], height: int, width: int) -> int:
        like = first_weight(self.model)
        return macs(forward, (1, self.split.probe.in_channels, height, width), like, model)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters would train, and of how many.

        >>> from maskguided import wrap
        >>> from maskguided.adapters.pan_net import PAN
        >>> wrap(PAN(features=8, up_features=8, blocks=4).requires_grad_(False)).print_trainable_parameters()
        trainable params: 1,508 || all params: 7,339 || trainable%: 20.5478
        """
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        every = sum(p.numel() for p in self.parameters())
        print(f"trainable params: {trainable:,} || all params: {every:,} || trainable%: {100 * trainable / every:.4f}")

    def unwrap(self) -> nn.Module:
        """The network that was wrapped: the very object, whose weights neither wrapping nor training has changed."""
        return self._given[-1]

    @property
    def given(self) -> nn.Module:
        """The same, without what torch.compile or DataParallel put around it."""
        return self._given[0]

    def become(self, other: Held) -> None:
        """Take over the split, parts and settings of another wrap of the same network; a user's hooks stay."""
        theirs = other.__dict__.keys() | other._modules.keys()
        users = {name: value for name, value in self.__dict__.items() if name not in theirs or "_hook" in name}
        # A part that the other has not must not stay behind.
        self.__dict__ = {**other.__dict__, "_given": self._given, **users}

    def own_network(self) -> None:
        """From now on hold a copy of the network, to train it; the one that was given stays what it is."""
        if self.model is self.given:
            self.split = self.split.own()
            self.model, self.constants = self.split.model, self.split.constants
            self.refine_tail = self.split.light if isinstance(self.split, LightTailed) else None

    def begin_mode(self) -> None:
        """Put what is added to the network into the mode that the wrap is in."""
        for name, part in self.named_children():
            if name != "model":
                part.train(self.training)

    def begin_estimate(self) -> GainEstimate:
        """A new estimate of what patches bring, of zeros as yet, in place of any that was there."""
        self.estimate = fresh_estimate(self.split.feature_channels, first_weight(self.model)).train(self.training)
        return self.estimate

    def begin_added(self, weights: Mapping[str, Tensor], prefix: str = "") -> None:
        """Begin the parts that `calibrate` has added elsewhere and this wrap has not, for `weights` to be loaded into.

        Args:
            weights: by name; others than of such parts are ignored.
            prefix: of the names.
        """
        has = {name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)}
        if "context" in has and self.context is None:
            self.context = make_context(self.split, self.merge)
        if "estimate" in has and self.estimate is None:
            self.begin_estimate()
        if "skip" in has and self.skip is None:
            self.skip = make_skip(self.split, kind_of(weights[f"{prefix}skip.conv.weight"]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.begin_added(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _replicate_for_data_parallel(self) -> nn.Module:
        """What nn.DataParallel calls for each GPU but the first; a copy would go on to hold the first one's network."""
        raise ArgumentError(
            f"nn.DataParallel around a wrapped {type(self.given).__name__}: wrap a copy of the network on each GPU, or "
            "use DistributedDataParallel"
        )

    def extra_repr(self) -> str:
        return (
            f"split_at={', '.join(map(str, self.split.cuts))} of {len(self.split.blocks)}, {self._how_many}, "
            f"patch_size={self.patch_size}, halo={self.halo}, merge={self.merge}, scorer={self.scorer}"
        )
