"""What refined windows see where their neighbours are not refined.

There the network would see what its blocks make of pixels that nobody computes. A linear guess of that from the
features at the cut, one for each convolution, recovers much of what zeros lose (docs/results.md); `calibrate` fits it
in closed form, and stage refine trains it further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .exchange import Exchange, Sides
from .patches import Grid
from .probing import untouched
from .split import Merge, Split, State


class Context(nn.Module):
    """For each convolution of the refine part, a linear map from the features at the cut to what it would see.

    Args:
        features: channels at the cut.
        channels: input channels of each convolution, in call order.
    """

    def __init__(self, features: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.maps = nn.ParameterList(nn.Parameter(torch.zeros(features + 1, count)) for count in channels)

    def forward(self, number: int, seen: Tensor) -> Tensor:
        """(pixels, F+1) -> (pixels, C) for the convolution of that number."""
        return torch.matmul(seen, self.maps[number].to(seen.dtype))


class Watch(Exchange):
    """Within it, a refine part that runs on the whole map shows what its convolutions see.

    Args:
        maps: the live values (B, C, r*H, r*W) that it starts from.
        size: height and width in LR pixels that they stand for.
        show: called with the number of a convolution with padding, and its input.
    """

    def __init__(self, maps: Sequence[Tensor], size: tuple[int, int], show: Callable[[int, Tensor], None]) -> None:
        batch = torch.zeros(maps[0].shape[0], 1, dtype=torch.long, device=maps[0].device)
        super().__init__(Grid(*size, max(size)), batch, [(value, value) for value in maps])
        self.show = show

    def padded(self, x: Tensor, sides: Sides, mode: str = "constant") -> Tensor:
        if mode == "constant" and id(x) not in self.maps:
            self.show(self.calls, x)
            self.calls += 1
        return F.pad(x, sides, mode)


def watch(split: Split, state: State, size: tuple[int, int], merge: Merge, show: Callable[[int, Tensor], None]) -> None:
    """Run the refine part on the whole map; `show` gets what each of its convolutions sees, in call order."""
    names = split.reads if merge == "features" else tuple(split.kinds)
    state = {name: state[name] for name in names}
    maps = [value for name, value in state.items() if split.kinds[name] == "map"]
    with Watch(maps, size, show):
        after = split.body(state)
        if merge == "image":
            split.tail(after)


def make_context(split: Split, merge: Merge) -> Context:
    """A context for the network that `split` is of, which as yet guesses zeros."""
    channels: list[int] = []
    size = split.probe.sizes_of(split.multiple_of)[0]
    with untouched(split.model):
        state = split.window(size)
        watch(split, state, size, merge, lambda number, x: channels.append(x.shape[1]))
    return Context(split.feature_channels, channels).to(state[split.features])
