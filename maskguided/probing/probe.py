"""What a network takes and gives, found by running it on small inputs."""

from __future__ import annotations

import functools
import warnings
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CannotSplit, first_line
from ..patches import round_up
from .modules import of_this_thread, refuse_opaque, refuse_wrapped
from .thin import thinly
from .untouched import untouched

LARGE_LEAST = 48
_LEAST = (17, LARGE_LEAST)  # LR pixels a side: enough for reflection padding and small strides; for deep U-nets
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48, 5, 10, 20, 40, 7, 14, 28, 9, 18, 36, 11, 22, 15, 30)
"""What networks ask the size of their input to be a multiple of, or round it up to, in the order of trying."""
_LARGE = ((1, 256), (64, 256))
"""Multiples and sides for networks that take none of those: they may pad by reflection as far as ConvIR."""
_FEW = ((1, 17), (1, LARGE_LEAST), (8, LARGE_LEAST), (64, LARGE_LEAST))
"""The same where the number of channels is guessed, too."""
_FRAMES = (3, 5, 7, 2)
"""Of a video, one after the other among the channels."""
_LESS_CONTRAST = (0.25, 0.06, 0.015)
_OUTPUT_KEYS = ("out", "output", "sr", "hr", "pred", "prediction", "image", "result")


@dataclass(frozen=True)
class Probe:
    """What a network takes and gives: found by calling it."""

    in_channels: int
    out_channels: int
    scale: int
    multiple_of: int
    """Height and width of the input must be multiples of this (1: any size)."""
    least: int
    """The smallest height and width that were tried with success, before rounding up to an odd multiple."""
    device: torch.device
    dtype: torch.dtype
    smallest: int = 1
    """Smallest height and width that its parts take: below it their padding or pooling fails. Found once it is
    split."""
    contrast: float = 1.0
    """Of its random images: less than all for networks that white noise drives out of the range of numbers."""
    is_finite: bool = True
    """Whether what it makes of these is."""
    alike: int = 1
    """How many images of one shape it returns, one of which is taken (`image_of`)."""

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two small input sizes that the network takes, different in both directions."""
        return self.sizes_of(self.multiple_of)

    def sizes_of(self, multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two small input sizes, the sides being odd multiples of `multiple`."""
        height, width = _size(multiple, self.least)
        return (height, width), (width, height)

    @property
    def round_size(self) -> tuple[int, int]:
        """A size of many factors of 2: a network that rounds its input up may take another path on it."""
        height, width = (round_up(side * -(-self.least // 32), self.multiple_of) for side in (32, 48))
        return height, width

    @property
    def telling_sizes(self) -> list[tuple[int, int]]:
        """Sizes that show whether something holds for all: odd ones, small and not, and round ones."""
        step = self.multiple_of
        larger = (47, 61) if self.least < LARGE_LEAST else (self.least, self.least + 23)
        return [self.sizes[0], self.round_size, tuple(round_up(side, step) for side in larger)]  # type: ignore[list-item]

    def input(self, height: int, width: int, batch: int = 1) -> Tensor:
        """A fixed random image, (batch, in_channels, height, width) in 0..1."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(batch, self.in_channels, height, width, generator=generator, device="cpu")
        x = x if self.contrast == 1 else 0.5 + (x - 0.5) * self.contrast
        return x.to(self.device, self.dtype)


def probe_network(model: nn.Module) -> Probe:
    """Find channels, scale and size rule of `model` by calling it: at any size first, then at multiples.

    Raises:
        ArgumentError: it is no network, or one that is wrapped already.
        CannotSplit: it cannot be looked into, or no input that was tried gave an image; then the text has the
            network's last error.
    """
    refuse_wrapped(model)
    refuse_opaque(model)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise CannotSplit(f"{type(model).__name__} has no floating-point parameters; is it a network?")
    guesses, by_colour = _channel_guesses(model), list[tuple[Probe, Tensor]]()
    sizes = (*product(MULTIPLES, _LEAST), *_LARGE)
    tries = (*product(sizes, guesses), *product(_FEW, _other_channels(model, guesses)))
    failure, telling = "it was never called", 0
    with untouched(model):
        for (multiple, least), channels in tries:
            found = Probe(channels, 0, 0, multiple, least, parameter.device, parameter.dtype)
            height, width = found.sizes[0]
            try:
                result = model(found.input(height, width))
            except Exception as error:  # whatever a foreign network raises, another input may do
                tells = _tells(model, channels, error)
                if tells >= telling:
                    failure, telling = f"{type(error).__name__}: {first_line(error)}", tells
                continue
            out = image_of(result)
            scale = out.shape[2] // height
            if not scale or out.shape[2:] != (scale * height, scale * width):
                failure, telling = f"{height}x{width} became {out.shape[2]}x{out.shape[3]}, no whole multiple", 2
                continue
            found = replace(found, out_channels=out.shape[1], scale=scale, alike=_alike(result, out))
            found = _least_or_multiple(model, found)
            if channels != 3 or _is_of_colours(model, found, out):
                return _with_room(model, _in_range(model, found, out))
            by_colour.append((found, out))
    if by_colour:  # it takes its colours one by one, and no grey image
        with untouched(model):
            return _with_room(model, _in_range(model, *by_colour[0]))
    raise CannotSplit(
        f"{type(model).__name__} could not be run on a random image (channels "
        f"{', '.join(map(str, guesses))}; sizes from "
        f"{_LEAST[0]}x{_LEAST[0] + 2} to {_LARGE[0][1] + 1}x{_LARGE[0][1] + 3}, and multiples of {max(MULTIPLES)}; one "
        f"that takes a single size only cannot be split); last answer: {failure}"
    )


def _tells(model: nn.Module, channels: int, error: Exception) -> int:
    """How much the error of a network that was called with so many channels tells of it."""
    return 2 * (channels == _first_channels(model)) + ("channels, but got" not in str(error))


def _least_or_multiple(model: nn.Module, found: Probe) -> Probe:
    """`found`, with a smaller multiple where that works on larger images and has failed only on small ones."""
    side = min(found.sizes[0])
    for multiple in takewhile(lambda multiple: multiple != found.multiple_of, MULTIPLES):
        if min(_size(multiple, max(_LEAST))) >= side:
            continue
        other = replace(found, multiple_of=multiple, least=_size(multiple, side)[0])
        height, width = other.sizes[0]
        with suppress(Exception):  # whatever a foreign network raises
            if image_of(model(other.input(height, width))).shape[2:] == (found.scale * height, found.scale * width):
                return other
    return found


def _in_range(model: nn.Module, found: Probe, out: Tensor) -> Probe:
    """`found`, with images of so little contrast that what the network makes of them is finite, if there are any."""
    finite = bool(out.isfinite().all())
    if not finite:
        for contrast in _LESS_CONTRAST:
            fainter = replace(found, contrast=contrast)
            if all(image_of(model(fainter.input(*size))).isfinite().all() for size in fainter.telling_sizes):
                return fainter
    return replace(found, is_finite=finite)


def _with_room(model: nn.Module, found: Probe) -> Probe:
    """`found`, with a larger `least` where larger images fail at this one, as they may where padding reflects."""
    for least in (found.least, *(side for side in (*_LEAST, 2 * LARGE_LEAST) if side > found.least)):
        larger = replace(found, least=least)
        try:
            for size in larger.telling_sizes if least >= LARGE_LEAST else [larger.round_size]:
                thinly(functools.partial(model, larger.input(*size)))
        except Exception:  # whatever a foreign network raises
            continue
        return larger
    return found


def with_smallest(found: Probe, run: Callable[[Tensor], Tensor]) -> Probe:
    """`found`, with the least side of images that `run` takes: if one is enough, so are larger ones."""

    def is_taken(side: int) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a deviation of one pixel
                image = thinly(lambda: run(found.input(side, side)))
        except Exception:  # whatever a foreign network raises
            return False
        return min(image.shape[2:]) >= found.scale * side

    sides = range(found.multiple_of, found.sizes[0][0] + 1, found.multiple_of)
    at = 0 if is_taken(sides[0]) else bisect_left(sides, True, lo=1, key=is_taken)
    return replace(found, smallest=sides[min(at, len(sides) - 1)])


def runs_channels_last(model: nn.Module, x: Tensor) -> bool:
    """Whether `model` takes an image `x` that is stored channels last, too: a `view` may go by the order in memory."""
    try:
        with untouched(model):
            model(x.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


def image_of(result: Any) -> Tensor:
    """The image that a network's result holds: the largest; of equal ones the last of a list, else the first.

    What is held within another list, tuple or dict counts where it is larger than what is not.

    A list is what a network collects (each one better than the one before); in a tuple or dict the image comes
    first and what else it tells after it, unless a dict calls one of them its output.

    Raises:
        CannotSplit: there is no (B, C, H, W) in it.
    """
    if isinstance(result, Tensor) and result.dim() == 4:
        return result
    parts = result if isinstance(result, tuple | list) else ()
    if isinstance(result, dict):
        parts = [result[key] for key in sorted(result, key=lambda key: key not in _OUTPUT_KEYS)]
    images = [part for part in parts if isinstance(part, Tensor) and part.dim() == 4]
    for part in parts:  # as of ([image], features)
        with suppress(CannotSplit):
            inner = image_of(part) if isinstance(part, tuple | list | dict) else None
            if inner is not None and all(_area(inner) > _area(image) for image in images):
                images.append(inner)
    if not images:
        kind = f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise CannotSplit(
            f"the network returns {kind} and no image (B, C, H, W) in it. "
            "Wrap it in a module whose forward returns that image alone"
        )
    return max(reversed(images) if isinstance(result, list) else images, key=_area)


def _alike(result: Any, image: Tensor) -> int:
    """How many images in a list or tuple have the shape of the one that is taken."""
    parts = result if isinstance(result, tuple | list) else [image]
    return sum(isinstance(part, Tensor) and part.shape == image.shape for part in parts)


def _area(image: Tensor) -> int:
    return image.shape[2] * image.shape[3]


def _size(multiple: int, least: int) -> tuple[int, int]:
    """The two smallest odd multiples from `least` on: a size that no larger multiple rule would accept."""
    odd = -(-least // multiple) | 1
    return odd * multiple, (odd + 2) * multiple


def _channel_guesses(model: nn.Module) -> list[int]:
    """What its first convolution takes comes first; colours before grey, of which a network may work one by one."""
    first = _first_channels(model)
    return list(dict.fromkeys([3, 1, 4] if first == 1 else [first, 3, 1, 4]))


def _other_channels(model: nn.Module, guesses: list[int]) -> list[int]:
    """What other convolutions take, for networks whose first is not that of the image: of bands in groups, say; and
    several frames of what the first takes."""
    convs = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    frames = (number * _first_channels(model) for number in _FRAMES)
    return [channels for channels in dict.fromkeys((*convs, *frames)) if channels not in guesses]


def _is_of_colours(model: nn.Module, found: Probe, image: Tensor) -> bool:
    """Whether a network that runs on three channels is made for them.

    One whose first convolution takes a single channel may make colours of their mean; or run each by itself, or look at
    one, and then it is a network for grey images.
    """
    first = _first_conv(model)
    if first is None or first.in_channels != 1:
        return True
    batches: list[int] = []
    with first.register_forward_pre_hook(of_this_thread(lambda module, given: batches.append(len(given[0])))):
        model(found.input(*found.sizes[0]))
    return image.shape[1] == 3 and batches[:1] == [1]


def _first_channels(model: nn.Module) -> int:
    first = _first_conv(model)
    return 3 if first is None else first.in_channels


def _first_conv(model: nn.Module) -> nn.Conv2d | nn.Conv3d | None:
    return next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
