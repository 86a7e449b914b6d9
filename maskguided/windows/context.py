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

from ..parts import Merge, State
from ..patches import Chosen, Grid
from ..probing.untouched import untouched
from ..split import Split
from .arguments import Sides
from .borders import Borders
from .exchange import Exchange

_RANK = 8
"""Of what all convolutions together guess from. (PAN x4: all 40 features gain 0.002 dB and cost 4 % of a patch.)"""


class LinearContext(nn.Module):
    """For each convolution of the refine part, a linear map from the features at the cut to what it would see.

    All of them look at the same few combinations of these features, which are made once for the whole image.

    Args:
        features: channels at the cut.
        channels: input channels of each convolution, in call order.
    """

    def __init__(self, features: int, channels: Sequence[int]) -> None:
        super().__init__()
        rank = min(_RANK, features)
        self.combine = nn.Parameter(torch.eye(features, rank))
        self.maps = nn.ParameterList(nn.Parameter(torch.zeros(rank + 1, count)) for count in channels)

    def combined(self, features: Tensor) -> Tensor:
        """(B, F, r*H, r*W) -> (B, rank, r*H, r*W): what `forward` is to see."""
        return F.conv2d(features, self.combine.to(features.dtype).t()[:, :, None, None])

    def forward(self, number: int, seen: Tensor) -> Tensor:
        """(pixels, rank+1), the last a 1 -> (pixels, C) for the convolution of that number."""
        return torch.matmul(seen, self.maps[number].to(seen.dtype))


class _Shown(Borders):
    """The borders of a whole map, which is no window of a larger one: what is padded is shown, and padded.

    Args:
        maps: the live values (B, C, r*H, r*W) that the refine part starts from.
        size: height and width in LR pixels that they stand for.
        show: called with the number of a convolution with padding, and its input.
    """

    def __init__(self, maps: Sequence[Tensor], size: tuple[int, int], show: Callable[[int, Tensor], None]) -> None:
        first = torch.zeros(maps[0].shape[0], 1, dtype=torch.long, device=maps[0].device)
        super().__init__(Chosen(first, Grid(*size, max(size))), [(value, value) for value in maps])
        self.show = show

    def canvas(self, x: Tensor) -> Tensor:
        if self.map_of(x) is None:
            self._count(x)
        return x

    def padded(self, x: Tensor, sides: Sides, mode: str = "constant") -> Tensor:
        if self.is_numbered(x, mode):
            self._count(x)
        return F.pad(x, sides, mode)

    def _count(self, x: Tensor) -> None:
        self.show(self.calls, x)
        self.calls += 1


def watch(split: Split, state: State, size: tuple[int, int], merge: Merge, show: Callable[[int, Tensor], None]) -> None:
    """Run the refine part on the whole map; `show` gets what each of its convolutions sees, in call order."""
    names = split.reads if merge == "features" else tuple(split.kinds)
    state = {name: state[name] for name in names}
    maps = [value for name, value in state.items() if split.kinds[name] == "map"]
    trial = split.trial
    with Exchange(_Shown(maps, size, show), unit=trial.unit, strangers=trial.strangers, detours=trial.detours):
        after = split.body(state)
        if merge == "image":
            split.tail(after)


def make_context(split: Split, merge: Merge) -> LinearContext | None:
    """A context for the network that `split` is of, which guesses zeros as yet; None where nothing is to be guessed."""
    channels: list[int] = []
    size = split.probe.sizes_of(split.multiple_of)[0]
    with untouched(split.model):
        state = split.window(size)
        watch(split, state, size, merge, lambda number, x: channels.append(x.shape[1]))
    if not channels:
        return None
    with torch.device("cpu"):  # whatever torch's default is
        context = LinearContext(split.feature_channels, channels)
    return context.to(state[split.features])
