"""Images that a stage in training is measured on, so that what it keeps are the best of its weights."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..bench import quality
from ..error_map import dense_image
from ..errors import ArgumentError
from ..guided import MaskGuided
from ..imaging.images import list_images, to_tensor
from ..imaging.pairs import Pair, check_sizes, eight_bits, read_pairs
from ..probing.modules import first_weight
from ..values import as_path
from .choices import RANKING
from .samples import reduce


class Validated(NamedTuple):
    """What a stage had reached after a step, as PSNR on Y (uint8, border = scale) in dB, mean over the images."""

    step: int
    psnr: float
    """Of the wrapped network, at its keep."""
    dense: float
    """Of the network that was given."""

    def __str__(self) -> str:
        return f"{self.psnr:.2f} dB, {self.psnr - self.dense:+.3f} to dense"


@dataclass
class Validation:
    """Images that are not trained on: `fit` measures them at the start and at each checkpoint; the best weights stay.

    Args:
        hr: an HR image, or a folder of them. They are looked at whole, so a few are enough.
        lr: the LR images of the same names; without them LR is made by basicsr's bicubic.
        watch: told of each measurement; the command line prints it.
    """

    hr: str | Path
    lr: str | Path | None = None
    watch: Callable[[Validated], None] = lambda point: None
    points: list[Validated] = field(default_factory=list, init=False)
    """What the last `fit` measured, in the order of its steps."""

    def begin(self, fast: MaskGuided) -> Images:
        """Read the images, as `fast` takes them; nothing is measured yet.

        Raises:
            ImageError: what is no image, or a folder without one.
            ArgumentError: an HR image that is not of its LR image's size times the scale, or without one.
        """
        self.points.clear()
        hr, grey = as_path(self.hr, "hr"), fast.split.probe.in_channels == 1
        if self.lr is None:
            pairs = [_reduced(path, fast.scale, grey) for path in list_images(hr)]
        else:
            like = first_weight(fast)
            pairs = read_pairs(as_path(self.lr, "lr"), hr, torch.device("cpu"), like.dtype, False, grey=grey)
        check_sizes(pairs, fast.scale)
        return Images(pairs, self)


class Images:
    """Pairs of LR and HR images, and how near to HR networks come."""

    def __init__(self, pairs: Sequence[Pair], asked: Validation) -> None:
        self.pairs, self.asked = pairs, asked

    def tell(self, point: Validated) -> None:
        """Report a measurement to whoever asked for it."""
        self.asked.points.append(point)
        self.asked.watch(point)

    @property
    def names(self) -> str:
        """How many images there are, and a hash of them."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(pair.name.encode() + pair.lr.numpy().tobytes())
        return f"{len(self.pairs)}, {digest.hexdigest()[:8]}"

    def reached(self, fast: MaskGuided, stage: str, mine: slice) -> Tensor:
        """Sums over the images of `mine`: dB of `fast` as it is after `stage`, and how many images these are."""
        shown = copy.copy(fast)  # of settings alone
        if stage in RANKING:
            shown.scorer = "head"
        return self._sums(fast, shown, mine)

    def dense(self, fast: MaskGuided, mine: slice) -> Tensor:
        """The same of the network that was given."""
        return self._sums(fast, lambda x: dense_image(fast, x), mine)

    @torch.no_grad()
    def _sums(self, fast: MaskGuided, network: Callable[[Tensor], Tensor], mine: slice) -> Tensor:
        like, pairs = first_weight(fast), self.pairs[mine]
        inputs = (pair.lr.to(like).contiguous(memory_format=fast.split.memory_format) for pair in pairs)
        values = [quality(network(x), pair, fast.scale) for x, pair in zip(inputs, pairs, strict=True)]
        return torch.tensor([sum(values), len(values)], dtype=torch.float32, device=like.device)  # of none, too


def _reduced(path: Path, scale: int, grey: bool) -> Pair:
    if scale == 1:
        raise ArgumentError("at scale 1 an image made small is the image itself: give the LR images, lr=")
    hr = eight_bits(path, grey)
    if min(hr.shape[:2]) < scale:
        raise ArgumentError(f"{path}: {hr.shape[0]}x{hr.shape[1]} pixels are less than one of LR, at x{scale}")
    return Pair(path.stem, to_tensor(reduce(hr, scale))[None], hr)
