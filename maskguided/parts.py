"""The contract between a network and the patch engine: a network in three parts.

    state = split.prefix(x)      stem and blocks 1..n            -> the live values after block n
    state = split.body(state)    blocks n+1..N                   -> the live values after block N
    state = split.skip(state)    the same, those blocks left out -> the live values after block N
    image = split.tail(state)    everything after the body       -> the HR image

`tail(body(prefix(x))) == model(x)`: no approximation enters by the split itself. The parts run on whole
maps and on windows alike, and none of them changes the state it is given.

A *live value* is a tensor that is made before a cut and used after it: the features, a global skip, the LR image that
is enlarged beside the network. A *state* holds them by name. r is a map's ratio to the LR image.

A Split is made by an adapter (adapter.py) or automatically (automatic/); both obey the same laws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

from .errors import ArgumentError
from .patches import round_up
from .probing.modules import first_weight
from .probing.probe import Probe
from .values import as_whole

State = dict[str, Tensor]
"""Live values by name: maps (B, C, r*H, r*W), vectors (B, C, ...) that stand for a whole image, or constants."""

Kind = Literal["map", "vector", "constant"]

Merge = Literal["features", "image"]
"""Where refined patches go back."""

RefineTail = Literal["own", "light"]
"""What makes an image of them: the network's own tail, or a light one."""

Skip = Literal["identity", "1x1", "3x3"]
"""What stands for blocks n+1..N where nothing is refined, with merge="features": `Split.skip`, or that and a guess."""


def moved_out(state: State) -> State:
    """Take all values out of `state`: each can then be freed as soon as the caller drops it, whoever holds `state`."""
    own = dict(state)
    state.clear()
    return own


@dataclass(frozen=True)
class Stretch:
    """The blocks from one cut to the next, or from the last one to the end of the body."""

    run: Callable[[State], State]
    """Live values at its start -> at its end; what it does not use is passed on."""
    skip: Callable[[State], State]
    """Live values at its start -> at its end, with its blocks left out."""
    reads: Mapping[str, Kind]
    """Live values that it uses, and how each relates to the image."""
    writes: tuple[str, ...]
    """Live values that it makes."""


class Parts(ABC):
    """A network cut after block `split_at` of its body. See the module's text for its parts and for `skip`.

    It may be cut again further on, for patches that need some of the remaining blocks and not all: `stretches` are
    the pieces of the body between the cuts.
    """

    model: nn.Module
    blocks: tuple[str, ...]
    """Names of the body's blocks in call order."""
    split_at: int
    """Blocks before the first cut."""
    cuts: tuple[int, ...]
    """`split_at`, and where the body is cut again."""
    probe: Probe
    features: str
    """Name of the live value that the next block would take: what the mask head looks at."""
    reads: tuple[str, ...]
    """Live values that the body uses."""
    writes: tuple[str, ...]
    """Live values that the body makes."""
    kinds: Mapping[str, Kind]
    """How each live value relates to the image."""
    feature_channels: int
    """Channels of the map `features`."""
    constants: nn.Module | None = None
    """Tensors that the forward creates; they move with the wrapped network."""
    supports_half: bool | None = None
    multiple_of: int
    """See Facts."""
    tiling: str | None = None
    adapter: str | None = None
    """Name of the adapter that made it; None for an automatic split."""
    missed: Mapping[str, str] = MappingProxyType({})
    """Why adapters that were asked first do not fit, by name."""
    can_skip: bool = True
    """Whether every value that blocks n+1..N write has a stand-in; without one there is no `skip`."""
    can_join: bool = True
    """Whether every such value is a map, into which refined patches can be put back."""
    rounds_within: bool = False
    """See Facts."""
    only_on_large: frozenset[str] = frozenset()
    """Functions that modules call on large images alone, where they are other modules then."""
    refine_tail: RefineTail = "own"
    """Which `tail` is."""

    def __init__(self, model: nn.Module, blocks: tuple[str, ...], split_at: int, probe: Probe) -> None:
        if isinstance(split_at, bool) or not isinstance(split_at, int) or not 1 <= split_at < len(blocks):
            raise ArgumentError(
                f"split_at={split_at!r}: this {type(model).__name__} has {len(blocks)} blocks; "
                f"use 1 to {len(blocks) - 1}" + ("" if isinstance(split_at, int) else ", a whole number")
            )
        self.model = model
        self.blocks = blocks
        self.split_at = split_at
        self.cuts = (split_at,)
        self.probe = probe
        self.multiple_of = probe.multiple_of

    @abstractmethod
    def prefix(self, x: Tensor) -> State:
        """LR image (B, C, H, W) -> live values after block n."""

    @abstractmethod
    def body(self, state: State) -> State:
        """Live values after block n -> after block N; what the body does not use is passed on."""

    @abstractmethod
    def skip(self, state: State) -> State:
        """`body` with its blocks left out: each written value is stood in for by one already computed."""

    @abstractmethod
    def tail(self, state: State) -> Tensor:
        """Live values after block N -> HR image (B, C, scale*H, scale*W)."""

    def halfway(self, state: State) -> Tensor:
        """Live values after block N -> what the last upsampling step starts from, (B, C, r*H, r*W) with r < scale.

        For a lighter tail from there on (tails/refine.py). An adapter need not have it.
        """
        why = f"adapter {self.adapter!r} has no `halfway`" if self.adapter else "no step of its tail enlarges a map"
        raise ArgumentError(
            f"refine_tail='light': where the last upsampling step of this {type(self.model).__name__} begins is not "
            f"known ({why}); use 'own'" + (", or adapter='automatic'" if self.adapter else "")
        )

    def rest(self, state: State) -> Tensor:
        """Body and tail: live values after block n -> HR image."""
        return self.tail(self.body(state))

    @abstractmethod
    def copy_tail(self) -> nn.Module:
        """A module that maps a state after block N, which it empties, to an image, with weights of its own."""

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """The body from cut to cut: one after the other they are `body`, and left out, `skip`."""
        return (self.undivided,)

    @property
    def undivided(self) -> Stretch:
        """The body as one stretch."""
        return Stretch(self.body, self.skip, {name: self.kinds[name] for name in self.reads}, self.writes)

    def cut_again(self, later: Sequence[int]) -> None:
        """Cut the body after these blocks as well, rising numbers beyond `split_at`."""
        cuts = (self.split_at, *later)
        if cuts[-1] >= len(self.blocks):
            raise ArgumentError(
                f"split_at={cuts}: this {type(self.model).__name__} has {len(self.blocks)} blocks; "
                f"use numbers from 1 to {len(self.blocks) - 1}"
            )
        self.cuts = cuts

    def full_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the maps of a state stand for: those of the image, rounded up for windows to fit."""
        multiple = self.multiple_of
        return round_up(height, multiple), round_up(width, multiple)

    @property
    def scale(self) -> int:
        """HR pixels per LR pixel, in each direction."""
        return self.probe.scale

    def window(self, size: tuple[int, int], image: Tensor | None = None) -> State:
        """The live values after block n of `image`, or of a fixed random one of `size`: (height, width), multiples of
        `multiple_of`. Maps that the network has made larger are cropped to `size`."""
        state, full = self.prefix(self.example(*size) if image is None else image), self.full_size(*size)
        cut = {name: state[name] for name in self.kinds}
        if full != size:
            for name, kind in self.kinds.items():
                if kind == "map":
                    rows, cols = (s * w // f for s, w, f in zip(cut[name].shape[2:], size, full, strict=True))
                    cut[name] = cut[name][:, :, :rows, :cols].contiguous()
        return cut

    def example(self, height: int, width: int) -> Tensor:
        """A fixed random image, (1, C, height, width), where the network is now and in its dtype."""
        like = first_weight(self.model)
        return self.probe.input(height, width).to(like.device, like.dtype)


Cuts = int | Literal["auto"] | Sequence[int]
"""After which block, or blocks, a network is cut."""


def first_and_later(split_at: Cuts) -> tuple[int | Literal["auto"], tuple[int, ...]]:
    """The first cut, and the others where there are several.

    >>> first_and_later((4, 8, 12))
    (4, (8, 12))
    """
    number = as_whole(split_at)
    if number is not None or isinstance(split_at, str) or not isinstance(split_at, Iterable):
        return (split_at if number is None else number), ()  # type: ignore[return-value]  # which a Split refuses
    given = [as_whole(n) for n in split_at]
    cuts = [n for n in given if n is not None]
    if not cuts or cuts != given or cuts != sorted(set(cuts)):
        raise ArgumentError(f"split_at={split_at!r}: several cuts are numbers of blocks that rise, as (4, 8, 12)")
    return cuts[0], tuple(cuts[1:])


def first_cut(split_at: int | Literal["auto"], blocks: int) -> int:
    """`split_at` itself, or half of the depth for "auto". (A Split checks the range.)"""
    return max(1, blocks // 2) if split_at == "auto" else split_at
