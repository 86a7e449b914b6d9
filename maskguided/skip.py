"""What stands where nothing is refined with merge="features": features at the cut, and what a convolution adds to them.

Leaving blocks out (`Split.skip`) is the identity, of which a network whose blocks change much makes a poor image, or
none. One convolution, fitted by `calibrate`, guesses what they would have added for a fraction of their work.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .errors import ArgumentError
from .parts import Skip, State
from .probing.untouched import untouched
from .split import Split


class LinearSkip(nn.Module):
    """A linear guess of what the blocks that are left out add to the live values which they write.

    Args:
        features: name of the live value that it looks at.
        in_channels: of these features.
        writes: channels of each live value that it adds to, by name.
        kernel: side of its convolution.
    """

    def __init__(self, features: str, in_channels: int, writes: Mapping[str, int], kernel: int) -> None:
        super().__init__()
        self.features, self.writes = features, dict(writes)
        self.conv = nn.Conv2d(in_channels, sum(writes.values()), kernel, padding=kernel // 2)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    @property
    def kind(self) -> Skip:
        """The setting that it is."""
        return kind_of(self.conv.weight)

    def forward(self, state: State, skipped: State) -> State:
        """Live values after block n, and what `Split.skip` makes of them -> live values to go on with."""
        added = self.conv(state[self.features]).split(list(self.writes.values()), 1)
        guessed: dict[str, Tensor] = {name: skipped[name] + part for name, part in zip(self.writes, added, strict=True)}
        return {**skipped, **guessed}


def kind_of(weight: Tensor) -> Skip:
    """The setting whose convolution has these weights."""
    return "1x1" if weight.shape[-1] == 1 else "3x3"


def make_skip(split: Split, kind: Skip) -> LinearSkip | None:
    """What adds to the identity for the network that `split` is of, nothing as yet; None for "identity".

    Raises:
        ArgumentError: none of what its blocks write is a map of the size of the features at the cut.
    """
    if kind == "identity":
        return None
    with untouched(split.model):
        state = split.window(split.probe.sizes_of(split.multiple_of)[0])
        features, skipped = state[split.features], split.skip(state)
    maps = {name: skipped[name] for name in split.writes if skipped[name].dim() == 4}
    writes = {name: value.shape[1] for name, value in maps.items() if value.shape[2:] == features.shape[2:]}
    if not writes:
        raise ArgumentError(
            f"skip={kind!r}: what blocks {split.split_at + 1} to {len(split.blocks)} of this "
            f"{type(split.model).__name__} write is no map of the size of the features at the cut; use 'identity'"
        )
    with torch.device("cpu"):  # whatever torch's default is
        skip = LinearSkip(split.features, features.shape[1], writes, int(kind[0]))
    return skip.to(features)
