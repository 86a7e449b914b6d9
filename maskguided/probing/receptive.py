"""Receptive-field radius, measured: one LR column becomes NaN, and the columns that turn NaN are counted.

NaN survives convolutions, activations, sums and resizing whatever the weights are, so this finds the
structural radius, where gradients of deep networks underflow long before its edge. The maps are narrow
strips: a radius of hundreds of pixels is measured on a few thousand.

A dilated convolution may leap over the end of a strip, unseen. So a radius counts only where the longest leap beyond it
would still end within the strip: whatever leaps farther in several convolutions leaps less far in fewer. And it counts
only where parts of maps that are not so narrow give, with that much context, what the whole map gives there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..patches import round_up
from .thin import Thin

_log = logging.getLogger(__name__)

State = dict[str, Tensor]
Part = Callable[[State], State]
StateOf = Callable[[tuple[int, int]], State]

_LENGTHS = (64, 128, 256, 512, 1024)
_LINEAR = 3  # times as large on a strip of twice the length: more grows with its square
_SAME = 3e-5  # of the largest value: more than rounding, less than another result
_BREADTHS = (8, 32)  # the second for networks that take no such narrow maps, or are others on them
_BROADER, _LONG = 32, 128  # LR pixels: by so many broader, and so long, are maps on which a radius is tried


def radius(
    state_of: StateOf, part: Part, maps: Iterable[str], multiple_of: int, *, falls_apart: bool = False
) -> int | None:
    """How many LR pixels to each side of a pixel the values that `part` makes depend on.

    Args:
        state_of: (height, width) of an LR image -> the state it gives.
        part: state -> the values of interest, maps only.
        maps: names of the state's values that are maps.
        multiple_of: height and width of the images must be multiples of this.
        falls_apart: whether it is known that `part` on windows that see each other is what it is on the whole map.

    Returns:
        The radius; None where even the longest strip turns NaN from end to end, as after a global pooling, or where
        `part` runs on no strip.
    """
    looked_at = _Part(state_of, part, tuple(maps), multiple_of, falls_apart)
    for breadth in (round_up(breadth, multiple_of) for breadth in _BREADTHS):
        try:
            found = looked_at.radius_on(breadth)
            if found is None or looked_at.holds_on_broader(breadth, found):
                return found
        except (RuntimeError, ValueError, IndexError):
            _log.debug("no radius on strips of %d", breadth, exc_info=True)
    return None


@dataclass(frozen=True)
class _Part:
    """A part of a network, on strips and on maps that are not so narrow."""

    state_of: StateOf
    run: Part
    maps: tuple[str, ...]
    step: int
    """What sizes are multiples of, in LR pixels."""
    falls_apart: bool

    def radius_on(self, breadth: int) -> int | None:
        """`radius`, on strips of this breadth."""
        found = 0
        for vertical in (False, True):
            with spreading_nan():
                extent = self._extent(breadth, vertical)
            if extent is None:
                return None
            found = max(found, extent)
        return found if self._moves_along(breadth, found) else None

    def holds_on_broader(self, breadth: int, radius: int) -> bool:
        """Whether a radius holds on maps that are not so thin, where a network may look further.

        That is tried within Thin, and in full only if it fails there. Thin makes all channels of one mean, of which a
        norm over the channels leaves nothing to compare: a part with such norms is tried in full as well, unless it is
        known to fall apart into windows. (With rolls all of them may do as the map does, and see its other end.)
        """
        broader = round_up(breadth + _BROADER, self.step)
        for vertical in (False, True):
            with Thin(every=True) as thin:
                alike = self._moves_along(broader, radius, vertical, _LONG)
            doubtful = not alike or (thin.norms and (thin.rolls or not self.falls_apart))
            if doubtful and not self._moves_along(broader, radius, vertical, _LONG):
                return False
        return True

    def _state(self, length: int, breadth: int, vertical: bool) -> State:
        return self.state_of((length, breadth) if vertical else (breadth, length))

    def _moves_along(self, breadth: int, radius: int, vertical: bool = False, least: int = 0) -> bool:
        """Whether a part of the map, of `least` LR pixels or more, with that much context gives what the whole gives
        there.

        It does not where a layer cuts the map into pieces of its own, a number of them or a size, so that all depends
        on how large it is, nor where beyond one end of the map it sees the other.
        """
        less = 5 * self.step
        length = round_up(max(less + 2 * radius + 4 * self.step, least), self.step)
        dim, state = (2 if vertical else 3), self._state(length, breadth, vertical)
        whole = self.run(state)
        for first, last in ((less, length), (0, length - less)):
            window = self.run({**state, **{name: between(state[name], dim, first, last, length) for name in self.maps}})
            begin, end = first + radius * (first > 0), last - radius * (last < length)
            for name, value in whole.items():
                a = between(value, dim, begin, end, length)
                b = between(window[name], dim, begin - first, end - first, last - first)
                if float((a - b).abs().max()) > _SAME * float(a.abs().max()):
                    return False
        return True

    def _extent(self, breadth: int, vertical: bool) -> int | None:
        """How far NaN spreads; None where it comes to the ends of every strip."""
        before, dim = 0, -2 if vertical else -1
        for length in (round_up(length, self.step) for length in _LENGTHS):
            state = self._state(length, breadth, vertical)
            middle, farthest = length // 2 // self.step * self.step, 0
            with _Watch(length, dim) as seen:
                # A stride makes the answer depend on where in its period the pixel lies: try them all.
                for at in range(self.step):
                    reach = self._reach(state, middle + at, length, dim)
                    if reach is None:
                        break
                    farthest = max(farthest, reach)
                else:
                    if not seen.leap or farthest + seen.leap < length // 2 - self.step:
                        return farthest
            # Where each pixel is set against all others, longer strips tell nothing new, and fill the memory.
            if seen.numel > _LINEAR * before > 0:
                return None
            before = seen.numel
        return None

    def _reach(self, state: State, position: int, length: int, dim: int) -> int | None:
        """Distance from LR `position` to the farthest NaN along `dim`; None if an end of the strip is reached."""
        reach = 0
        for hit in hits(self.run(poisoned(state, self.maps, position, length, dim)), dim):
            if bool(hit[0]) or bool(hit[-1]):
                return None
            where = torch.nonzero(hit).flatten() * length // len(hit)
            if len(where):
                reach = max(reach, int((where - position).abs().max()))
        return reach


def between(value: Tensor, dim: int, first: int, last: int, length: int) -> Tensor:
    """A map from LR pixel `first` to `last` of `length` along `dim`."""
    start, end = (at * value.shape[dim] // length for at in (first, last))
    return value.narrow(dim, start, end - start).contiguous()


@contextmanager
def spreading_nan() -> Iterator[None]:
    """Within it, NaN spreads as far as the layers see: no algorithm (Winograd, FFT) mixes neighbouring pixels."""
    mkldnn = torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
    cudnn: Any = torch.backends.cudnn
    enabled, cudnn.enabled = cudnn.enabled, False  # its flags() asks for TF32, too, which the user may have set anew
    try:
        with torch.backends.nnpack.flags(enabled=False), Thin(), _Deformable():
            yield
    finally:
        cudnn.enabled = enabled
        torch.backends.mkldnn.set_flags(_enabled=mkldnn[0])  # type: ignore[no-untyped-call]


class _Deformable(TorchFunctionMode):
    """Within it, a deformable convolution (torchvision) that finds NaN gives nothing else: it looks wherever it is told
    to, and told NaN it would read memory that is not its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "deform_conv2d" not in str(func) or not any(isinstance(a, Tensor) and a.isnan().any() for a in args):
            return func(*args, **kwargs)
        clean = [torch.nan_to_num(a) if isinstance(a, Tensor) else a for a in args]
        return func(*clean, **kwargs) * torch.nan


class _Watch(TorchFunctionMode):
    """Notes what is made within it on a strip of `length` LR pixels along `dim`."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.length, self.dim = length, dim
        self.numel = 0
        """Numbers in the largest tensor."""
        self.leap = 0
        """LR pixels between what two taps of a dilated convolution see, where they are farthest apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "conv2d":
            self._note_conv2d(*args, **kwargs)
        result = func(*args, **kwargs)
        for made in result if isinstance(result, tuple) else (result,):
            if isinstance(made, Tensor):
                self.numel = max(self.numel, made.numel())
        return result

    def _note_conv2d(
        self, input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> None:  # fmt: skip
        dilation = dilation if isinstance(dilation, int) else dilation[self.dim % len(dilation)]
        if dilation > 1 and weight.shape[self.dim] > 1:
            self.leap = max(self.leap, -(-dilation * self.length // input.shape[self.dim]))


def hits(values: State, dim: int) -> Iterator[Tensor]:
    """For each value, where along `dim` a NaN is."""
    for value in values.values():
        others = [d for d in range(value.dim()) if d != value.dim() + dim]
        yield torch.isnan(value).any(dim=others[0]) if len(others) == 1 else torch.isnan(value).sum(dim=others) > 0


def poisoned(state: State, maps: Iterable[str], position: int, length: int, dim: int) -> State:
    """`state` with NaN at LR `position` of `length` along `dim`, in all `maps` that can hold one."""
    poisoned = dict(state)
    for name in (name for name in maps if state[name].is_floating_point()):
        value = state[name].clone()
        size = value.shape[dim]
        start = position * size // length
        end = max(start + 1, (position + 1) * size // length)
        value.narrow(dim, start, end - start).fill_(torch.nan)
        poisoned[name] = value
    return poisoned
