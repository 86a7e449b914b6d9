"""A network that restores globally and refines locally: wrap, and the forward."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .adapter import split
from .coarse import CoarseTail, continued, make_coarse_tail
from .cost import Cost, macs
from .errors import ArgumentError
from .global_ops import PerImage
from .head import MaskHead, high_frequency
from .patches import Grid, gather, scatter, select
from .split import Split, State

Merge = Literal["features", "image"]
Scorer = Literal["input", "coarse", "head"]
GlobalOps = Literal["image", "window", "refuse"]
_LARGEST_PATCH = 64  # LR pixels: what is chosen unless the user says otherwise


@dataclass(frozen=True)
class Explanation:
    """What a forward saw and chose."""

    refined: Tensor
    """(B, C, s*H, s*W), the output."""
    coarse: Tensor
    """(B, C, s*H, s*W), the output at keep=0."""
    score: Tensor
    """(B, rows, cols), float32: one value a patch, larger where refining should gain more."""
    mask: Tensor
    """(B, rows, cols), bool: the patches that were refined."""
    index: Tensor
    """(B, k), long: the same, best first."""


class MaskGuided(nn.Module):
    """A split network whose deep blocks run only on the patches that need them. Made by `wrap`.

    Input (B, C, H, W) of any size, output (B, C', s*H, s*W).

    Args:
        split: the network in three parts.
        keep: share of the patches to refine, 0..1; k follows from it and the image's size alone.
        patch_size: side of a patch, in LR pixels. Default: 16; more for a network that works on multiples of 4.
        halo: context around a patch that is computed and thrown away, in LR pixels. Default: an eighth of that; 0
            for a network that works on multiples of more than 8.
        merge: where refined patches go back. "features": into the map at the end of the body, and the
            network's own tail runs once on the whole. "image": into the coarse HR image (the paper), the
            coarse tail having weights of its own and the network's tail running on the patches.
        scorer: "input" or "coarse": high frequency of the LR or of the coarse HR image, no training
            needed; "head": the mask head, once it is trained.
        coarse_tail: for merge="image": "copy" of the network's tail, or "light" (one convolution and
            PixelShuffle, added to the bilinear input), which is bilinear until it is fitted or trained.
            Default: "copy"; "light", with merge="image", where blocks cannot be left out.
        global_ops: what a mean over the whole map (channel attention and the like) sees in the refined blocks.
            "image": all the windows that are refined in an image together; "window": each window alone, as in
            the paper; "refuse": raise an ArgumentError for a network that has one.
        head: settings of the mask head (see MaskHead).
    """

    def __init__(
        self,
        split: Split,
        *,
        keep: float = 0.5,
        patch_size: int | None = None,
        halo: int | None = None,
        merge: Merge | None = None,
        scorer: Scorer = "input",
        coarse_tail: CoarseTail | None = None,
        global_ops: GlobalOps = "image",
        head: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        merge = merge or ("features" if split.can_skip else "image")
        coarse_tail = coarse_tail or ("copy" if split.can_skip else "light")
        _one_of("merge", merge, ("features", "image"))
        _one_of("coarse_tail", coarse_tail, ("copy", "light"))
        _one_of("global_ops", global_ops, ("image", "window", "refuse"))
        _possible(split, merge, coarse_tail, global_ops)
        multiple = split.multiple_of
        default = _default_sizes(multiple)
        patch_size = default[0] if patch_size is None else patch_size
        halo = default[1] if halo is None else halo
        _aligned("patch_size", patch_size, 1, multiple)
        _aligned("halo", halo, 0, multiple)
        self.model = split.model
        self.split = split
        self.patch_size, self.halo = patch_size, halo
        self.merge, self.keep, self.scorer = merge, keep, scorer
        self.head = MaskHead(split.feature_channels, **(head or {}))
        self.coarse_tail = make_coarse_tail(split, coarse_tail) if merge == "image" else None
        self.coarse_tail_kind: CoarseTail = coarse_tail
        self.global_ops: GlobalOps = global_ops
        self._shares_statistics = global_ops == "image" and bool(split.global_ops)
        self.constants = split.constants
        self.head.to(split.example(1, 1))

    @property
    def keep(self) -> float:
        """Share of the patches that are refined: 0 = coarse, 1 = all. Settable at any time."""
        return self._keep

    @keep.setter
    def keep(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ArgumentError(f"keep={share}: it is the share of patches to refine; use 0 to 1")
        self._keep = float(share)

    @property
    def scorer(self) -> Scorer:
        """What ranks the patches: "input", "coarse" or "head"."""
        return self._scorer

    @scorer.setter
    def scorer(self, scorer: Scorer) -> None:
        _one_of("scorer", scorer, ("input", "coarse", "head"))
        self._scorer = scorer

    @property
    def scale(self) -> int:
        """HR pixels per LR pixel, in each direction."""
        return self.split.scale

    def forward(self, x: Tensor, score: Tensor | None = None) -> Tensor:
        """LR image (B, C, H, W) -> HR image (B, C', s*H, s*W).

        Args:
            x: in the network's own range.
            score: (B, rows, cols), to rank the patches by instead of the scorer's (an oracle, your own mask).
        """
        return self.restore(x, score)[0]

    def restore(self, x: Tensor, score: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward`, with the index (B, k) of the patches that were refined."""
        height, width = self._check_input(x)
        grid = self.grid(height, width)
        x = self._accepted(x)
        state = self.split.prefix(x)
        coarse = self._skipped(state)
        index = self._choose(x, state, coarse, grid, score)
        image = self._merge(x, state, coarse, index, grid)
        return image[:, :, : height * self.scale, : width * self.scale], index

    def _merge(self, x: Tensor, state: State, coarse: State, index: Tensor, grid: Grid) -> Tensor:
        """Refine the windows of `index` and put them back: into the features, or into the coarse image."""
        if self.coarse_tail is None:
            return self.split.tail(self._refine_features(state, coarse, index, grid))
        image: Tensor = self.coarse_tail(coarse, x)
        if index.shape[1] == 0:
            return image
        with self._statistics(index.shape[1]):
            windows = self.split.tail(self.split.body(self._gather(state, tuple(self.split.kinds), index, grid)))
        canvas = continued(image, grid.height * self.scale, grid.width * self.scale)
        return scatter(windows, index, grid, onto=canvas)

    def _refine_features(self, state: State, coarse: State, index: Tensor, grid: Grid) -> State:
        if index.shape[1] == 0:
            return coarse
        with self._statistics(index.shape[1]):
            windows = self.split.body(self._gather(state, self.split.reads, index, grid))
        refined = {name: scatter(windows[name], index, grid, onto=coarse[name]) for name in self.split.writes}
        return {**coarse, **refined}

    def _skipped(self, state: State) -> State:
        """The state without the refined blocks; a light coarse tail takes it as it is at the cut."""
        return self.split.skip(state) if self.split.can_skip else state

    def _statistics(self, k: int) -> AbstractContextManager[object]:
        """How global operations see the k windows of an image."""
        return PerImage(k) if self._shares_statistics else nullcontext()

    def _gather(self, state: State, names: tuple[str, ...], index: Tensor, grid: Grid) -> State:
        """The windows of live values: maps are cut, vectors repeated for each window, constants handed on."""
        kinds, k = self.split.kinds, index.shape[1]

        def window(name: str) -> Tensor:
            if kinds[name] == "map":
                return gather(state[name], index, grid)
            return state[name].repeat_interleave(k, dim=0) if kinds[name] == "vector" else state[name]

        return {name: window(name) for name in names}

    def _choose(self, x: Tensor, state: State, coarse: State, grid: Grid, score: Tensor | None) -> Tensor:
        """Index (B, k) of the patches to refine; scores are computed only if they decide something."""
        k = grid.k(self.keep)
        if k in (0, grid.count):
            return torch.arange(k, device=x.device).expand(x.shape[0], -1)
        if score is None:
            score = self._score(x, state, coarse)
        if score.shape != (x.shape[0], grid.rows, grid.cols):
            raise ArgumentError(f"score of shape {tuple(score.shape)}; expected {(x.shape[0], grid.rows, grid.cols)}")
        return select(score, k)

    def _score(self, x: Tensor, state: State, coarse: State) -> Tensor:
        """(B, rows, cols), float32."""
        height, width = self.split.full_size(x.shape[2], x.shape[3])
        if self.scorer == "input":
            return high_frequency(continued(x, height, width), self.patch_size)
        if self.scorer == "coarse":
            image = continued(self._coarse_image(x, coarse), height * self.scale, width * self.scale)
            return high_frequency(image, self.patch_size * self.scale)
        features = state[self.split.features]
        score: Tensor = self.head(features, self.patch_size * features.shape[-1] // width)
        return score

    def _coarse_image(self, x: Tensor, coarse: State) -> Tensor:
        image: Tensor = self.split.tail(coarse) if self.coarse_tail is None else self.coarse_tail(coarse, x)
        return image

    def grid(self, height: int, width: int) -> Grid:
        """The patches of an LR image of this size, rounded up to what windows can be cut from."""
        return Grid(*self.split.full_size(height, width), self.patch_size, self.halo)

    @torch.no_grad()
    def explain(self, x: Tensor, score: Tensor | None = None) -> Explanation:
        """Refined and coarse image, score, mask and index, for the same arguments as `forward`."""
        height, width = self._check_input(x)
        grid = self.grid(height, width)
        x = self._accepted(x)
        state = self.split.prefix(x)
        coarse = self._skipped(state)
        score = self._score(x, state, coarse) if score is None else score
        index = self._choose(x, state, coarse, grid, score)
        rows, cols = slice(height * self.scale), slice(width * self.scale)
        refined = self._merge(x, state, coarse, index, grid)[:, :, rows, cols]
        image = self._coarse_image(x, coarse)[:, :, rows, cols]
        return Explanation(refined, image, score, grid.mask(index), index)

    def cost(self, height: int, width: int) -> Cost:
        """MACs of one LR image of `height` x `width`: dense, coarse, and at this keep (see `macs`)."""
        like = self._like()
        shape = (1, self.split.probe.in_channels, height, width)
        keep = self.keep
        grid = self.grid(height, width)
        try:
            dense = macs(lambda x: self.model(self._accepted(x)), shape, like, self)
            guided = macs(self, shape, like, self)
            self.keep = 0
            coarse = macs(self, shape, like, self)
        finally:
            self.keep = keep
        own = sum(p.numel() for p in self.model.parameters())
        every = sum(p.numel() for p in self.parameters())
        return Cost(height, width, keep, dense, coarse, guided, own, every - own, grid.k(keep), grid.count)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters would train, and of how many.

        >>> from maskguided.adapters.pan_net import PAN
        >>> wrap(PAN(features=8, up_features=8, blocks=4).requires_grad_(False)).print_trainable_parameters()
        trainable params: 1,508 || all params: 7,335 || trainable%: 20.5590
        """
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        every = sum(p.numel() for p in self.parameters())
        print(f"trainable params: {trainable:,} || all params: {every:,} || trainable%: {100 * trainable / every:.4f}")

    def unwrap(self) -> nn.Module:
        """The network that was wrapped: the very object, which wrapping did not change."""
        return self.model

    def extra_repr(self) -> str:
        return (
            f"split_at={self.split.split_at} of {len(self.split.blocks)}, keep={self.keep:g}, "
            f"patch_size={self.patch_size}, halo={self.halo}, merge={self.merge}, scorer={self.scorer}"
        )

    def _like(self) -> Tensor:
        return next(p for p in self.model.parameters() if p.is_floating_point())

    def _check_input(self, x: Tensor) -> tuple[int, int]:
        channels = self.split.probe.in_channels
        if x.dim() != 4 or x.shape[1] != channels:
            raise ArgumentError(f"input of shape {tuple(x.shape)}; this network takes (B, {channels}, H, W)")
        return x.shape[2], x.shape[3]

    def _accepted(self, x: Tensor) -> Tensor:
        """`x` continued to a size that the network accepts; most accept any."""
        multiple = self.split.probe.multiple_of
        return continued(x, *(-(-side // multiple) * multiple for side in x.shape[2:]))


@torch.inference_mode(False)  # what is added must stay trainable wherever it is made
def wrap(
    model: nn.Module,
    split_at: int | Literal["auto"] = "auto",
    *,
    adapter: str | None = None,
    body: str | Sequence[str] | None = None,
    cut: str | None = None,
    check: bool = True,
    **settings: Any,
) -> MaskGuided:
    """Make `model` restore globally and refine locally. The model is held, not changed.

    Args:
        model: a super-resolution network: (B, C, H, W) in, (B, C', s*H, s*W) out.
        split_at: how many of its blocks run on the whole image; "auto": half.
        adapter: name of the adapter to use, "automatic" for none; default: the first that knows the network.
        body, cut, check: see `maskguided.split`.
        settings: keep, patch_size, halo, merge, scorer, coarse_tail, head; see MaskGuided.

    Raises:
        CannotSplit: the network could not be split; the text says where and what to do.
        ArgumentError: a setting is out of its range.

    >>> from maskguided.adapters.pan_net import PAN
    >>> fast = wrap(PAN(features=8, up_features=8, blocks=4), split_at=2, keep=0.25)
    >>> fast(torch.rand(1, 3, 33, 47)).shape
    torch.Size([1, 3, 132, 188])
    """
    return MaskGuided(split(model, split_at, adapter=adapter, body=body, cut=cut, check=check), **settings)


def _possible(split: Split, merge: Merge, coarse_tail: CoarseTail, global_ops: GlobalOps) -> None:
    """Refuse what this network cannot do, and say where the coarse image is not what one would expect."""
    name, rest = type(split.model).__name__, f"blocks {split.split_at + 1} to {len(split.blocks)}"
    if global_ops == "refuse" and split.facts.body_radius is None:
        raise ArgumentError(
            f"global_ops='refuse': {rest} of this {name} look at the whole map "
            f"({', '.join(split.global_ops) or 'attention, or a radius of more than 512'}); use 'image' or 'window'"
        )
    if split.can_skip:
        return
    if (merge, coarse_tail) != ("image", "light"):
        raise ArgumentError(
            f"merge={merge!r}, coarse_tail={coarse_tail!r}: {rest} of this {name} cannot be left out, for nothing "
            "computed before them can stand in for what the tail uses; use merge='image' with coarse_tail='light'"
        )
    warnings.warn(
        f"{rest} of this {name} cannot be left out: the coarse image comes from a light tail alone, which is "
        "bilinear until it is fitted or trained",
        stacklevel=4,
    )


def _default_sizes(multiple: int) -> tuple[int, int]:
    """Patch size and halo, so that a window has no more than 1.56 times the pixels of its patch."""
    halo = -(-2 // multiple) * multiple
    return (8 * halo, halo) if 8 * halo <= _LARGEST_PATCH else (-(-_LARGEST_PATCH // multiple) * multiple, 0)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{name}={value!r}; use one of {', '.join(map(repr, allowed))}")


def _aligned(name: str, value: int, least: int, multiple: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{name}={value!r}: use a whole number of LR pixels, {least} or more")
    if value % multiple:
        raise ArgumentError(
            f"{name}={value}: this network works on multiples of {multiple} LR pixels; "
            f"use {value // multiple * multiple or multiple} or {-(-value // multiple) * multiple}"
        )
