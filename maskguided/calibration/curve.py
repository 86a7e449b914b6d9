"""What calibrating asks for and finds: a budget, and the curve of PSNR against cost."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArgumentError
from ..parts import Merge, RefineTail, Skip
from ..values import as_number


@dataclass(frozen=True)
class Budget:
    """What may be lost or spent; one of them, or none."""

    drop_db: float | None = None
    cost: float | None = None
    time: float | None = None

    def __post_init__(self) -> None:
        if len(self._given) > 1:
            raise ArgumentError(f"{self}: give one budget; the other is what is found")
        if self.drop_db is not None and not as_number(self.drop_db) > 0:
            raise ArgumentError(f"{self}: use dB above 0, as 0.05")
        if self.share is not None and not as_number(self.share) > 0:
            what = "MACs" if self.time is None else "time"
            raise ArgumentError(f"{self}: a share of the dense network's {what}, as 0.5")
        if self.share is not None and as_number(self.share) > 1:
            percent = as_number(self.share) / 100
            hint = f"; for {100 * percent:g} percent use {percent:g}" if 0.02 <= percent <= 1 else ""
            raise ArgumentError(f"{self}: more than the dense network itself; use a share above 0, at most 1{hint}")

    @property
    def share(self) -> float | None:
        """Of the dense network's MACs or time."""
        return self.cost if self.time is None else self.time

    @property
    def _given(self) -> dict[str, float]:
        every = {"max_drop_db": self.drop_db, "max_cost": self.cost, "max_time": self.time}
        return {name: value for name, value in every.items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._given.items())


@dataclass(frozen=True)
class Point:
    """A keep, in every image or on average, what it costs and what it loses."""

    keep: float
    macs: float
    """MACs over all images as a share of the dense network's, 0 or more."""
    time: float | None
    """The same of the time on this machine; None where nobody asked for it (`max_time`)."""
    drop: float
    """dB on Y below the dense network, mean over the images; without HR images an estimate, see `calibrate`."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` measured and chose; print it for reading."""

    split_at: int
    merge: Merge
    patch_size: int
    halo: int
    exchange: bool
    """Whether refined windows see their neighbours."""
    chosen: Point
    curve: tuple[Point, ...]
    estimated: bool
    """Whether the drops are estimates, for want of HR images."""
    min_gain_db: float | None = None
    """Where each image decides how many patches it needs: what another must bring; every `keep` is a mean then."""
    later: tuple[int, ...] = ()
    """Further cuts."""
    refine_tail: RefineTail = "own"
    skip: Skip = "identity"

    def __str__(self) -> str:
        how = "estimated, no HR images" if self.estimated else "to HR"
        cuts = ", ".join(map(str, (self.split_at, *self.later)))
        tail = "" if self.refine_tail == "own" else f", refine_tail={self.refine_tail}"
        skip = "" if self.skip == "identity" else f", skip={self.skip}"
        lines = [
            f"split_at={cuts}, merge={self.merge}{tail}{skip}, patch_size={self.patch_size}, halo={self.halo}"
            + ("" if self.exchange else " (windows alone)")
            + f", keep={self.chosen.keep:.3f}"
            + ("" if self.min_gain_db is None else f" on average (patches that bring {self.min_gain_db:.3f} dB)")
            + f": {self.chosen.macs:.1%} of the dense MACs, "
            + ("" if self.chosen.time is None else f"{self.chosen.time:.1%} of the time, ")
            + f"{abs(self.chosen.drop):.3f} dB {'below' if self.chosen.drop >= 0 else 'above'} dense (PSNR-Y, {how})",
            "  keep   MACs   time  drop/dB",
            *(f"  {p.keep:4.2f}  {p.macs:5.1%}  {_percent(p.time):>5}  {p.drop:7.3f}" for p in self.curve),
        ]
        return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
