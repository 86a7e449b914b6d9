"""Measure a wrapped network against the dense one: same run, same images, same treatment.

In every round the dense network and each setting run on one image after the other, in turn, so that whatever
else the machine does falls on all of them. Times are compared within a round, and the median of the ratios is
reported with its spread.
"""

from __future__ import annotations

import functools
import math
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import checkpoint, metrics
from .guided import MaskGuided
from .imaging.images import as_pixels
from .imaging.pairs import Pair, check_sizes
from .parts import Merge
from .probing.probe import image_of
from .split import Split
from .splitting import split
from .timing import alternate, at, ratio

Network = Callable[[Tensor], Tensor]
Setpoint = tuple[str, float]
"""keep or min_gain_db, and its value."""


@dataclass(frozen=True)
class Row:
    """One line of the table; ratios are to the dense network of the same run."""

    merge: str
    split_at: int
    patch_size: int
    halo: int
    keep: float
    """Share of the patches that is refined; on average, where each image decides."""
    min_gain_db: float | None
    """Where each image decides."""
    macs_ratio: float
    time_ratio: float
    spread: float | None
    """(largest - smallest) / median of the time ratios over the rounds; None for one round, which has none."""
    psnr: float | None
    """dB on Y, uint8, border = scale; mean over the images."""
    dense_psnr: float | None
    dense_seconds: float
    """For all images, median over the rounds."""
    fidelity: float | None
    """PSNR of the images to those of the dense network, in the same way; None where they are the same. It tells of what
    is lost where there is no HR image, or a network is not made for PSNR (of GANs)."""

    @property
    def to_dense(self) -> float | None:
        """dB of PSNR to the dense network's; None without HR images."""
        return None if self.psnr is None or self.dense_psnr is None else self.psnr - self.dense_psnr


@dataclass(frozen=True)
class Setting:
    """What is measured together with one run of the dense network."""

    merge: Merge
    split_at: int | Literal["auto"]
    patch_size: int | None
    halo: int | None
    """None: what suits the network."""
    keeps: tuple[float, ...] = ()
    head: Path | None = None
    """File of maskguided.save, which decides merge and split; its patch size and halo, unless they are given."""
    min_gains: tuple[float, ...] = ()
    """With neither keeps nor these: the coarse image, and what the file or wrap has chosen."""
    body: str | None = None
    """Names of the blocks, for a network without an adapter."""

    def wrap(self, model: nn.Module, parts: Callable[[int | Literal["auto"], str | None], Split]) -> MaskGuided:
        """`model` wrapped so, in eval mode; `parts` splits it at a place of such blocks."""
        if self.head is not None:
            sizes = {"patch_size": self.patch_size, "halo": self.halo}
            return checkpoint.load(self.head, model, **{k: v for k, v in sizes.items() if v is not None}).eval()
        return MaskGuided(
            parts(self.split_at, self.body), patch_size=self.patch_size, halo=self.halo, merge=self.merge
        ).eval()

    def points(self, fast: MaskGuided) -> list[Setpoint]:
        """What is measured of `fast`; what is out of range is said now, not after minutes."""
        points = [*(("keep", keep) for keep in self.keeps), *(("min_gain_db", least) for least in self.min_gains)]
        own = ("keep", fast.keep) if fast.min_gain_db is None else ("min_gain_db", fast.min_gain_db)
        for name, value in points:
            setattr(fast, name, value)
        return points or [("keep", 0.0), own]


def measure(
    model: nn.Module,
    pairs: list[Pair],
    settings: Sequence[Setting],
    rounds: int,
    progress: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Rows for every setting and keep; `progress` is called `steps` times, evenly."""
    rows: list[Row] = []
    parts = functools.cache(lambda place, body: split(model, place, body=body))  # settings share their splits
    wraps = [setting.wrap(model, parts) for setting in settings]
    points_of = [setting.points(fast) for setting, fast in zip(settings, wraps, strict=True)]
    check_sizes(pairs, wraps[0].scale)
    accepted, scale = wraps[0].accepted, wraps[0].scale

    def dense_network(x: Tensor) -> Tensor:
        image = image_of(model(accepted(x.clone())))  # a network may change its input
        return image[:, :, : x.shape[2] * scale, : x.shape[3] * scale]

    dense_macs_at = functools.cache(wraps[0].dense_macs)
    dense_macs = sum(dense_macs_at(*pair.lr.shape[2:]) for pair in pairs)

    for points, fast in zip(points_of, wraps, strict=True):
        if pairs[0].lr.is_contiguous(memory_format=torch.channels_last):  # what is added, as the network is already
            fast.to(memory_format=torch.channels_last)
        runs: dict[Setpoint | None, Network] = {None: dense_network, **{point: at(fast, *point) for point in points}}
        found = _reached(runs, pairs, fast.scale, progress)
        seconds = alternate(runs, [pair.lr for pair in pairs], rounds, warm=0, progress=progress)
        measured = {point: _Measured(seconds[point], *found[point]) for point in runs}
        rows += [_row(fast, point, pairs, measured[point], measured[None], dense_macs) for point in points]
    return rows


def steps(pairs: Sequence[Pair], settings: Sequence[Setting], rounds: int) -> int:
    """How often `measure` calls `progress`: after each image, of each setting, in each round and the one for PSNR."""
    return len(pairs) * len(settings) * (rounds + 1)


class _Measured(NamedTuple):
    """What a run took in each round, and what it reached."""

    seconds: list[float]
    psnr: float | None
    fidelity: float | None


def _row(
    fast: MaskGuided, point: Setpoint, pairs: Sequence[Pair], ours: _Measured, dense: _Measured, dense_macs: int
) -> Row:
    setattr(fast, *point)
    shares = [refined_share(fast, pair) for pair in pairs]
    timed = ratio(ours.seconds, dense.seconds)
    return Row(
        merge=fast.merge,
        split_at=fast.split.split_at,
        patch_size=fast.patch_size,
        halo=fast.halo,
        keep=point[1] if point[0] == "keep" else mean_share(shares, pairs),
        min_gain_db=point[1] if point[0] == "min_gain_db" else None,
        macs_ratio=total_macs(fast, pairs, shares) / dense_macs,
        time_ratio=timed.middle,
        spread=timed.spread if len(ours.seconds) > 1 else None,
        psnr=ours.psnr,
        dense_psnr=dense.psnr,
        dense_seconds=statistics.median(dense.seconds),
        fidelity=ours.fidelity,
    )


def machine(threads: int, device: torch.device | str = "cpu") -> str:
    """Versions and machine type, for the line above a table of what ran on `device`."""
    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    return f"Python {platform.python_version()}, torch {torch.__version__}, {name}, {threads} thread(s)"


@torch.no_grad()
def refined_share(fast: MaskGuided, pair: Pair) -> float:
    """The share of an image's patches that `fast` refines as it is set."""
    if fast.min_gain_db is None:
        return fast.keep
    base = fast.run_base(pair.lr)
    return fast.choose(base).shape[1] / base.grid.count


def total_macs(fast: MaskGuided, pairs: Sequence[Pair], shares: Sequence[float]) -> int:
    """Multiply-adds of `fast` over all images, of each of which it refines that share."""

    @functools.cache
    def counted(height: int, width: int, share: float) -> int:
        # Of an image that decides: all is the network as it is, and none has been chosen, too.
        ends: dict[float, float] = {} if fast.min_gain_db is None else {0: math.inf, 1: 0.0}
        least = ends.get(share)
        return fast.macs_at(height, width, keep=share if least is None else None, min_gain_db=least)

    return sum(counted(*pair.lr.shape[2:], share) for pair, share in zip(pairs, shares, strict=True))


def mean_share(shares: Sequence[float], pairs: Sequence[Pair]) -> float:
    """The share of all patches that is refined: large images count for more."""
    sizes = [pair.lr.shape[2] * pair.lr.shape[3] for pair in pairs]
    return sum(share * size for share, size in zip(shares, sizes, strict=True)) / sum(sizes)


def quality(image: Tensor, pair: Pair, scale: int, metric: Callable[..., float] = metrics.psnr) -> float:
    """PSNR-Y, or another metric, of a result (1, 3, H, W) in 0..1 against the HR image of a pair that has one."""
    assert pair.hr is not None
    pixels = as_pixels(image)
    height, width = (min(a, b) for a, b in zip(pixels.shape[:2], pair.hr.shape[:2], strict=True))
    value: float = metric(pixels[:height, :width], np.ascontiguousarray(pair.hr[:height, :width]), crop=scale)
    return value


@torch.no_grad()
def _reached(
    runs: Mapping[Setpoint | None, Network], pairs: Sequence[Pair], scale: int, progress: Callable[[], None]
) -> dict[Setpoint | None, tuple[float | None, float | None]]:
    """PSNR and fidelity of each run, mean over the images; the dense network's comes first."""
    psnrs: dict[Setpoint | None, list[float]] = {point: [] for point in runs}
    alike: dict[Setpoint | None, list[float]] = {point: [] for point in runs}
    for pair in pairs:
        dense: NDArray[np.uint8] | None = None
        for point, run in runs.items():
            image = run(pair.lr)
            dense = as_pixels(image) if dense is None else dense
            alike[point].append(metrics.psnr(as_pixels(image), dense, crop=scale))
            if pair.hr is not None:
                psnrs[point].append(quality(image, pair, scale))
        progress()
    unlike = {point: [value for value in values if not math.isinf(value)] for point, values in alike.items()}
    return {
        point: (statistics.mean(psnrs[point]) if psnrs[point] else None, statistics.mean(values) if values else None)
        for point, values in unlike.items()
    }
