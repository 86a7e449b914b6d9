"""What may be set on a wrapped network at any time: each value is checked, and takes effect at the next forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .errors import ArgumentError, warn
from .gain import GainEstimate
from .parts import Merge
from .probing.modules import Wrapped
from .settings import (
    CoarseOn,
    GlobalOps,
    Scorer,
    as_share,
    check_choices,
    check_coarse_on,
    check_global_ops,
    check_min_gain,
    check_onward,
    warn_if_unused,
)
from .split import Split
from .values import nearest
from .windows.sizes import check_aligned, check_exchanging

_KNOBS = ("keep", "min_gain_db", "onward", "scorer", "coarse_on", "global_ops", "exchange", "patch_size", "halo")


class Knobs(Wrapped):
    """The settings of MaskGuided, which documents them."""

    split: Split
    estimate: GainEstimate | None
    _onward: tuple[float, ...]
    _exchange: bool
    _patch_size: int
    _halo: int

    @property
    def keep(self) -> float:
        """Share of the patches that are refined in every image: 0 = coarse, 1 = all. Settable at any time.

        Under `min_gain_db` it is what is to be expected on average; setting it ends that.
        """
        return self._keep

    @keep.setter
    def keep(self, share: float) -> None:
        self._keep = as_share("keep", share, "it is the share of patches to refine; use 0 to 1")
        self._min_gain_db: float | None = None

    @contextmanager
    def keep_restored(self) -> Iterator[None]:
        """Afterwards `keep` and `min_gain_db` are what they were."""
        before = self.keep, self.min_gain_db
        try:
            yield
        finally:
            self.keep, self.min_gain_db = before

    @property
    def min_gain_db(self) -> float | None:
        """Least gain for which one more patch is refined, so that each image gets a k of its own. None: `keep` decides.

        The slope of PSNR-Y against keep, dB per unit of keep: at 0.3 an image stops where another tenth of its patches
        would bring less than 0.03 dB, as `calibrate(per_image=True)` estimates. A batch takes as many patches as its
        neediest image.
        """
        return self._min_gain_db

    @min_gain_db.setter
    def min_gain_db(self, least: float | None) -> None:
        self._min_gain_db = check_min_gain(least, self.estimate)

    @property
    def _how_many(self) -> str:
        on_average = "" if self.min_gain_db is None else f" on average (min_gain_db={self.min_gain_db:g})"
        return f"keep={self.keep:g}{on_average}"

    @property
    def onward(self) -> tuple[float, ...]:
        """Share of the refined patches that goes on past the second cut, the third ...; settable at any time."""
        return self._onward

    @onward.setter
    def onward(self, shares: float | Sequence[float]) -> None:
        self._change("_onward", check_onward(shares, len(self.split.cuts) - 1))

    @property
    def all_go_on(self) -> bool:
        """Whether each refined patch goes past every cut: then all patches together are the network itself."""
        return min(self.onward, default=1) == 1

    @property
    def scorer(self) -> Scorer:
        """What ranks the patches: "input", "coarse", "linear" or "head"."""
        return self._scorer

    @scorer.setter
    def scorer(self, scorer: Scorer) -> None:
        check_choices(scorer=scorer)
        self._scorer = scorer

    @property
    def coarse_on(self) -> CoarseOn:
        """Where the coarse tail runs: "all" or "unrefined"."""
        return self._coarse_on

    @coarse_on.setter
    def coarse_on(self, where: CoarseOn) -> None:
        check_choices(coarse_on=where)
        check_coarse_on(where, self.exchange)
        warn_if_unused(self.merge, coarse_on=where)
        self._coarse_on = where

    @property
    def global_ops(self) -> GlobalOps:
        """What a mean over the whole map sees in the refined blocks: "image", "window", or "refuse" for none at all."""
        return self._global_ops

    @global_ops.setter
    def global_ops(self, seen: GlobalOps) -> None:
        check_choices(global_ops=seen)
        check_global_ops(self.split, seen, self.merge)
        self._global_ops = seen
        reading, known = self.split.trial.reading, self.split.global_ops_on_windows(self.merge)
        has_some = bool(known) or reading.flat or reading.transposed or reading.lines
        self._shares_statistics = seen == "image" and has_some

    @property
    def exchange(self) -> bool:
        """Whether convolutions on a window see the refined windows around it."""
        return self._exchange

    @exchange.setter
    def exchange(self, exchange: bool) -> None:
        if not isinstance(exchange, bool):
            raise ArgumentError(f"exchange={exchange!r}; use True or False")
        if exchange and not self.split.exchanges(self.merge):
            warn(
                f"exchange=True: windows of this {type(self.split.model).__name__} that exchange borders are not what "
                "the whole map gives, as was tried; leave it out"
            )
        if hasattr(self, "_coarse_on"):  # else it is checked when it is set
            check_coarse_on(self._coarse_on, exchange)
            check_exchanging(self.split, self._patch_size, exchange)
        self._change("_exchange", exchange)

    @property
    def patch_size(self) -> int:
        """Side of a patch, in LR pixels."""
        return self._patch_size

    @patch_size.setter
    def patch_size(self, side: int) -> None:
        side = check_aligned("patch_size", side, 1, self.split.multiple_of)
        check_exchanging(self.split, side, self.exchange)
        self._change("_patch_size", side)

    @property
    def halo(self) -> int:
        """Context around a patch that is computed and thrown away, in LR pixels."""
        return self._halo

    @halo.setter
    def halo(self, width: int) -> None:
        self._change("_halo", check_aligned("halo", width, 0, self.split.multiple_of))

    @property
    def merge(self) -> Merge:
        """Where refined patches go back: "features" or "image". Decided when the network is wrapped."""
        return self._merge

    @merge.setter
    def merge(self, merge: Merge) -> None:
        check_choices(merge=merge)
        before: Merge = getattr(self, "_merge", merge)
        if before != merge:
            raise ArgumentError(
                f"merge={merge!r}: this network was wrapped with merge={before!r}, which decides what parts it has; "
                f"wrap(fast.unwrap(), merge={merge!r})"
            )
        self._merge: Merge = merge

    @property
    def split_at(self) -> tuple[int, ...]:
        """Blocks after which the network is cut. Decided when it is wrapped."""
        return self.split.cuts

    def __setattr__(self, name: str, value: Any) -> None:
        part = name in ("coarse_tail", "refine_tail", "context", "skip", "head")
        gone = part and value is None and self._modules.get(name) is not None
        if name == "model" and "split" in vars(self) and value is not self.split.model:
            raise ArgumentError(
                f"model={type(value).__name__}: the parts of this wrap are those of the network it was given; wrap the "
                "other one, or load its weights into fast.unwrap()"
            )
        if name == "split_at" or gone or (part and not isinstance(value, nn.Module | None)):
            raise ArgumentError(
                f"{name}={value!r}: that is decided when a network is wrapped; wrap(fast.unwrap(), {name}={value!r})"
            )
        known = "_given" not in vars(self) or name.startswith("_") or hasattr(type(self), name) or hasattr(self, name)
        if not known and (meant := nearest(name, _KNOBS)):
            warn(f"fast.{name} is not known; did you mean {meant!r}? It is set as an attribute that nothing looks at")
        if isinstance(getattr(type(self), name, None), property):  # a Parameter, too, is its value: no Module's own
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _change(self, name: str, value: object) -> None:
        """Set what windows are like; where that changes it, the estimate of what patches bring holds no more."""
        if getattr(self, name, None) != value:
            setattr(self, name, value)
            self.forget_estimate()

    def forget_estimate(self) -> None:
        """Drop the estimate of what patches bring, and `min_gain_db`: they were fitted for windows as they were."""
        self.estimate = None
        self._min_gain_db = None
