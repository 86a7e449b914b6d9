"""A refine part with a light tail: the network's own up to its last upsampling step, and one convolution from there.

What is nearest to the HR image costs most of a tail: at x4 the last step works on sixteen times as many pixels as the
blocks do. A convolution on the map before it, and PixelShuffle, make its image for a fraction of the work; `calibrate`
fits that convolution to the dense network, stage refine trains it together with the part before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..parts import Parts, State, Stretch
from ..patches import continued
from ..probing.untouched import untouched
from ..split import Split
from .light import LightTail

_HALFWAY, _LR = "halfway", "input of the refine tail"


class LightTailed(Split):
    """A split of which the tail is light: `parts` in all else.

    Args:
        parts: the split network; it is not changed.
        light: from what its `halfway` makes to the HR image.
    """

    def __init__(self, parts: Split, light: LightTail) -> None:
        for name in Parts.__annotations__:
            setattr(self, name, getattr(parts, name))
        self.parts, self.light = parts, light
        self.refine_tail = "light"
        self.kinds = {**parts.kinds, _LR: "map"}

    def prefix(self, x: Tensor) -> State:
        return {**self.parts.prefix(x), _LR: continued(x, *self.full_size(*x.shape[2:]))}

    def body(self, state: State) -> State:
        return self.parts.body(state)

    def skip(self, state: State) -> State:
        return self.parts.skip(state)

    def tail(self, state: State) -> Tensor:
        image: Tensor = self.light({_HALFWAY: self.parts.halfway(state)}, state[_LR])
        return image

    def copy_tail(self) -> nn.Module:
        return self.parts.copy_tail()

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        return self.parts.stretches

    def full_size(self, height: int, width: int) -> tuple[int, int]:
        return self.parts.full_size(height, width)

    @property
    def with_own_tail(self) -> Split:
        return self.parts

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        return self.model, self.light

    def looks_at(self, state: State) -> Tensor:
        """What the light tail's convolution sees of live values after block n, (B, C, r*H, r*W)."""
        return self.parts.halfway(self.body(state))


def with_light_tail(parts: Split) -> LightTailed:
    """`parts` with a light tail, which is bilinear until it is fitted or trained.

    Raises:
        ArgumentError: nobody knows where the last upsampling step of this network begins, or it makes other channels.
    """
    probe, name = parts.probe, type(parts.model).__name__
    if probe.in_channels != probe.out_channels:
        raise ArgumentError(
            f"refine_tail='light' adds the bilinear input, but this {name} maps {probe.in_channels} to "
            f"{probe.out_channels} channels; use 'own'"
        )
    size = probe.sizes_of(parts.multiple_of)[0]
    with untouched(parts.model):
        features = parts.halfway(parts.body(parts.window(size)))
    factor, rest = divmod(probe.scale * size[0], features.shape[2])
    if rest or factor < 2:
        raise ArgumentError(
            f"refine_tail='light': what its halfway makes of {size[0]} LR pixels, {features.shape[2]}, is no part of "
            f"the {probe.scale * size[0]} of the HR image of this {name}; use 'own'"
        )
    with torch.device("cpu"):  # whatever torch's default is
        light = LightTail(_HALFWAY, features.shape[1], probe.out_channels, scale=probe.scale, factor=factor)
    return LightTailed(parts, light.to(features))
