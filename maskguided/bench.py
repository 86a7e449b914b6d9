"""Measure a wrapped network against the dense one: same run, same images, same treatment.

In every round the dense network and each setting run on one image after the other, in turn, so that whatever
else the machine does falls on all of them. Times are compared within a round, and the median of the ratios is
reported with its spread.
"""

from __future__ import annotations

import functools
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from . import checkpoint
from .adapter import split
from .cost import macs
from .errors import ArgumentError
from .guided import MaskGuided
from .images import list_images, read_image
from .metrics import psnr
from .probing import image_of
from .split import Merge, Split
from .timing import alternate, at_keep, ratio
from .training.samples import to_tensor

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """An LR image as a tensor and, where given, its HR image."""

    name: str
    lr: Tensor
    hr: np.ndarray[Any, np.dtype[np.uint8]] | None


@dataclass(frozen=True)
class Row:
    """One line of the table; ratios are to the dense network of the same run."""

    merge: str
    split_at: int
    patch_size: int
    halo: int
    keep: float
    macs_ratio: float
    time_ratio: float
    spread: float
    """(largest - smallest) / median of the time ratios over the rounds."""
    psnr: float | None
    """dB on Y, uint8, border = scale; mean over the images."""
    dense_psnr: float | None
    dense_seconds: float
    """For all images, median over the rounds."""


@dataclass(frozen=True)
class Setting:
    """What is measured together with one run of the dense network."""

    merge: Merge
    split_at: int | Literal["auto"]
    patch_size: int | None
    halo: int | None
    """None: what suits the network."""
    keeps: tuple[float, ...]
    head: Path | None = None
    """File of maskguided.save, which decides merge and split; its patch size and halo, unless they are given."""

    def wrap(self, model: nn.Module, parts: Callable[[int | Literal["auto"]], Split]) -> MaskGuided:
        """`model` wrapped so, in eval mode; `parts` splits it at a place."""
        if self.head is not None:
            sizes = {"patch_size": self.patch_size, "halo": self.halo}
            return checkpoint.load(self.head, model, **{k: v for k, v in sizes.items() if v is not None}).eval()
        return MaskGuided(parts(self.split_at), patch_size=self.patch_size, halo=self.halo, merge=self.merge).eval()


def read_pairs(lr: Path, hr: Path | None, device: torch.device, dtype: torch.dtype, channels_last: bool) -> list[Pair]:
    """The LR images of a file or folder, and HR images of the same name (whatever their suffix) or order."""
    lrs = list_images(lr)
    by_stem = {path.stem: path for path in list_images(hr)} if hr is not None else {}
    if hr is not None and hr.is_file():
        by_stem = {lrs[0].stem: hr}
    pairs = []
    for path in lrs:
        if hr is not None and path.stem not in by_stem:
            raise ArgumentError(f"--hr {hr}: no HR image is called {path.stem}, as {path} is")
        x = to_tensor(_rgb(read_image(path)))[None].to(device, dtype)
        x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        pairs.append(Pair(path.stem, x, _hr(by_stem[path.stem]) if by_stem else None))
    return pairs


def measure(
    model: nn.Module,
    pairs: list[Pair],
    settings: Sequence[Setting],
    rounds: int,
    progress: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Rows for every setting and keep; `progress` is called after each setting."""
    rows: list[Row] = []
    parts = functools.cache(lambda place: split(model, place))  # settings share their splits
    wraps = [setting.wrap(model, parts) for setting in settings]
    for setting, fast in zip(settings, wraps, strict=True):
        for keep in setting.keeps:
            fast.keep = keep  # what is out of range is said now, not after minutes
    dense_macs = _total_macs(model, pairs, model)

    def dense_network(x: Tensor) -> Tensor:
        return image_of(model(x.clone()))  # a network may change its input

    for setting, fast in zip(settings, wraps, strict=True):
        if pairs[0].lr.is_contiguous(memory_format=torch.channels_last):  # what is added, as the network is already
            fast.to(memory_format=torch.channels_last)
        runs: dict[float | None, Network] = {None: dense_network}
        runs.update({keep: at_keep(fast, keep) for keep in setting.keeps})
        quality = {keep: _psnr(run, pairs, fast.scale) for keep, run in runs.items()}  # warms up, too
        seconds = alternate(runs, [pair.lr for pair in pairs], rounds, warm=0)
        for keep in setting.keeps:
            time_ratio, spread = ratio(seconds[keep], seconds[None])
            rows.append(
                Row(
                    merge=fast.merge,
                    split_at=fast.split.split_at,
                    patch_size=fast.patch_size,
                    halo=fast.halo,
                    keep=keep,
                    macs_ratio=_total_macs(runs[keep], pairs, model) / dense_macs,
                    time_ratio=time_ratio,
                    spread=spread,
                    psnr=quality[keep],
                    dense_psnr=quality[None],
                    dense_seconds=statistics.median(seconds[None]),
                )
            )
        progress()
    return rows


def machine(threads: int) -> str:
    """Versions and machine type, for the line above a table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"Python {platform.python_version()}, torch {torch.__version__}, {device}, {threads} thread(s)"


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain dictionaries."""
    return [asdict(row) for row in rows]


@torch.inference_mode()
def _psnr(network: Network, pairs: Sequence[Pair], scale: int) -> float | None:
    """Mean over the images; None where there is no HR image. It runs on the first image at least."""
    found = []
    for pair in pairs if pairs[0].hr is not None else pairs[:1]:
        image = (network(pair.lr)[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        if pair.hr is not None:
            height, width = (min(a, b) for a, b in zip(image.shape[:2], pair.hr.shape[:2], strict=True))
            found.append(psnr(image[:height, :width], pair.hr[:height, :width], crop=scale))
    return float(np.mean(found)) if found else None


def _total_macs(network: Network, pairs: list[Pair], model: nn.Module) -> int:
    """Over all images; each size is counted once."""
    sizes = [tuple(pair.lr.shape) for pair in pairs]
    counted = {size: macs(network, size, pairs[0].lr, model) for size in set(sizes)}
    return sum(counted[size] for size in sizes)


def _hr(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = read_image(path)
    if image.dtype != np.uint8:
        raise ArgumentError(f"{path}: PSNR is measured on images of 8 bits a sample, not on {image.dtype}")
    return _rgb(image)


def _rgb(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return image[..., :3] if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
