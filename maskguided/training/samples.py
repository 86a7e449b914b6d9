"""Training crops from folders of photographs: HR, and LR made on the fly or read from a folder of its own.

Which crop is number i depends on the seed and i alone, so a run that resumes, or is spread over processes, sees
the same crops in the same order.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..errors import ArgumentError, ImageError, warn
from ..imaging.images import Image, list_images, to_tensor
from ..imaging.pairs import lr_paths, read_channels
from ..integrations.basicsr_plugin import import_basicsr

_CONTEXT = 4  # LR pixels around a crop that its bicubic reduction looks at
_KEPT = 2**30  # bytes of images kept in memory by each process


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops (LR (C, size, size), HR (C, s*size, s*size)), float32 in 0..1, flipped and turned at random.

    LR is basicsr's MATLAB-like bicubic, rounded to 8 bits, unless a folder of LR images is given. HR files that
    cannot be read are left out with a warning.

    Args:
        hr: folders, or files, of HR images.
        scale: HR pixels per LR pixel.
        size: side of a crop in LR pixels.
        lr: folder of LR images of the same names.
        seed: another seed, other crops.
        grey: one channel instead of three.

    Raises:
        ImageError: a folder is missing or empty, or hardly an image is as large as a crop.
        ArgumentError: the scale is 1 and there is no `lr`.
    """

    def __init__(
        self,
        hr: Sequence[str | Path],
        *,
        scale: int,
        size: int = 48,
        lr: str | Path | None = None,
        seed: int = 0,
        grey: bool = False,
    ) -> None:
        if scale == 1 and lr is None:
            raise ArgumentError(
                "at scale 1 an image made small is the image itself, and there is nothing to learn: give the folder of "
                "degraded images, lr="
            )
        self.paths = [path for folder in hr for path in list_images(Path(folder))]
        self.lr_paths = None if lr is None else lr_paths(Path(lr), self.paths)
        self.scale, self.size, self.seed, self.grey = scale, size, seed, grey
        self._damaged: set[int] = set()
        self._read = _Images(_KEPT).read  # not for longer: files may be others when they are read again

    def __len__(self) -> int:
        return 2**62  # crops do not end

    @property
    def names(self) -> str:
        """How many images there are, and a hash of their names in their order; the folders may have moved."""
        made = "" if self.lr_paths is None else " with LR"
        digest = hashlib.sha256("\n".join(path.name for path in self.paths).encode())
        return f"{len(self.paths)}{made}, {digest.hexdigest()[:8]}"

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng, largest = np.random.default_rng((self.seed, number)), 0
        for _ in range(100):
            which = int(rng.integers(len(self.paths)))
            if (hr := self._readable(which)) is None:
                continue
            height, width = (side // self.scale for side in hr.shape[:2])
            if min(height, width) >= self.size:
                break
            largest = max(largest, min(height, width))
        else:
            raise ImageError(
                f"no image of at least {self.size * self.scale} pixels a side in 100 drawn from {len(self.paths)} "
                f"({self.paths[0]}, ...): use a smaller crop"
                + (f", of {largest} LR pixels or less" if largest else "")
                + (", or other images" if self._damaged else "")
            )
        top, left = int(rng.integers(height - self.size + 1)), int(rng.integers(width - self.size + 1))
        if self.lr_paths is None:
            low = _reduced(hr[: height * self.scale, : width * self.scale], top, left, self.size, self.scale)
        else:
            low = self._read(self.lr_paths[which], self.grey)
            if low.shape[:2] != (height, width):
                raise ImageError(
                    f"{self.lr_paths[which]} is {low.shape[0]}x{low.shape[1]}, {self.paths[which]} is "
                    f"{hr.shape[0]}x{hr.shape[1]}: at x{self.scale} it should be {height}x{width}"
                )
            low = low[top : top + self.size, left : left + self.size]
        rows = slice(top * self.scale, (top + self.size) * self.scale)
        cols = slice(left * self.scale, (left + self.size) * self.scale)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        lr_crop, hr_crop = (_turned(to_tensor(image), turns, flip) for image in (low, hr[rows, cols]))
        return lr_crop, hr_crop

    def _readable(self, which: int) -> Image | None:
        """An HR image; None of one that cannot be read, of which the user is told once by each process."""
        if which not in self._damaged:
            try:
                return self._read(self.paths[which], self.grey)
            except ImageError as error:
                self._damaged.add(which)
                warn(f"{error}; it is left out")
        return None


class Batches(Sampler[list[int]]):
    """The numbers of the crops of each batch from step `start` on: this process's share of every global batch.

    Args:
        batch: crops of a step, over all processes.
        start, steps: the first step, from 0, and the one to end before.
        rank, processes: which of how many this process is.
        pool: how many different crops there are, each epoch in another order; 0: no end of them.
    """

    def __init__(self, batch: int, start: int, steps: int, rank: int = 0, processes: int = 1, *, pool: int = 0) -> None:
        if batch % processes:
            raise ArgumentError(f"batch={batch}: it is shared by {processes} processes; use a multiple of {processes}")
        self.batch, self.start, self.steps, self.rank, self.processes = batch, start, steps, rank, processes
        self.pool = pool
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            first = step * self.batch
            places = range(first + self.rank, first + self.batch, self.processes)
            yield [self._pooled(place) for place in places] if self.pool else list(places)

    def _pooled(self, place: int) -> int:
        epoch, within = divmod(place, self.pool)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng(epoch).permutation(self.pool).tolist()
        return self._order[1][within]


class Unseen(Sampler[list[int]]):
    """Of each batch the crops that no batch before had."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        seen: set[int] = set()
        for batch in self.batches:
            yield [number for number in dict.fromkeys(batch) if number not in seen]
            seen.update(batch)


def reduce(image: Image, scale: int) -> Image:
    """`image` reduced by basicsr's MATLAB-like bicubic, rounded to 8 bits; its size is cut to a multiple of `scale`."""
    height, width = (side // scale for side in image.shape[:2])
    small = _bicubic(to_tensor(image[: height * scale, : width * scale]), scale)
    return small[0] if image.ndim == 2 else np.ascontiguousarray(small.transpose(1, 2, 0))


def _reduced(hr: Image, top: int, left: int, size: int, scale: int) -> Image:
    """A crop of the reduced image, without reducing all of it."""
    height, width = (side // scale for side in hr.shape[:2])
    above, before = max(0, top - _CONTEXT), max(0, left - _CONTEXT)
    below, after = min(height, top + size + _CONTEXT), min(width, left + size + _CONTEXT)
    part = reduce(hr[above * scale : below * scale, before * scale : after * scale], scale)
    return part[top - above : top - above + size, left - before : left - before + size]


def _bicubic(image: Tensor, scale: int) -> Image:
    imresize = import_basicsr("basicsr.utils.matlab_functions").imresize
    small: Tensor = imresize(image.expand(max(3, image.shape[0]), -1, -1), 1 / scale)[: image.shape[0]]
    return (small.clamp(0, 1) * 255).round().byte().numpy()


class _Images:
    """Images that were read last stay in memory, up to so many bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self.kept: OrderedDict[tuple[Path, bool], Image] = OrderedDict()

    def read(self, path: Path, grey: bool) -> Image:
        """See `pairs.read_channels`."""
        key = path, grey
        if key not in self.kept:
            self.kept[key] = read_channels(path, grey)
            self.size += self.kept[key].nbytes
        self.kept.move_to_end(key)
        while self.size > self.most and len(self.kept) > 1:
            self.size -= self.kept.popitem(last=False)[1].nbytes
        return self.kept[key]


def _turned(image: Tensor, turns: int, flip: bool) -> Tensor:
    return torch.rot90(image.flip(2) if flip else image, turns, (1, 2)).contiguous()
