"""A network that restores globally and refines locally: its parts, and the forward.

    forward(lr)
      run_base    prefix: stem and blocks 1..n on the whole image
      choose      score, select: the k patches that need more
      refine      what stands elsewhere, and onto it (scatter) what is refined
        _refined  gather, blocks n+1..N: windows of the chosen patches alone
      finish      `refine`; or all blocks and the tail on the whole image, where all patches are chosen

examples/00_by_hand.py does the same without this class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .base import BaseOutput, Explanation
from .errors import ArgumentError, ExportError, MaskGuidedError, is_out_of_memory
from .gain import log_energies, slopes
from .head import LinearScore, MaskHead, energies, high_frequency
from .held import Held
from .parts import Kind, Merge, RefineTail, Skip, State
from .patches import Chosen, Grid, check_patches, continued, memory_format_of, number_of, others, select
from .settings import (
    CoarseOn,
    Context,
    GlobalOps,
    Scorer,
    check_choices,
    check_cuts,
    check_input,
    check_possible,
    check_refine_tail,
    check_score,
    check_skip,
    merge_and_tail,
    warn_if_unused,
)
from .skip import make_skip
from .split import Split
from .tails.coarse import CoarseTail, make_coarse_tail
from .tails.refine import LightTailed, with_light_tail
from .values import as_whole, check_arguments
from .windows.context import make_context
from .windows.run import on_windows
from .windows.sizes import check_windows, windows_of

Result = TypeVar("Result")
_LR = "input of the coarse tail"  # among the live values that it reads


class MaskGuided(Held):
    """A split network whose deep blocks run only on the patches that need them. Made by `wrap`.

    Input (B, C, H, W) of any size, output (B, C', s*H, s*W).

    Args:
        split: the network in three parts.
        keep: share of the patches to refine, 0..1; k follows from it and the image's size alone.
        patch_size: side of a patch, in LR pixels. Default: 8 where windows exchange borders, else 16; more for a
            network that works on multiples of 3 or more, or whose blocks pad such windows to far larger ones.
        halo: context around a patch that is computed and thrown away, in LR pixels. Default: 0 where windows
            exchange borders or the network works on multiples of more than 8; else 2, or its multiple.
        merge: where refined patches go back. "features": into the map at the end of the body, and the
            network's own tail runs once on the whole. "image": into the coarse HR image (the paper), the
            coarse tail having weights of its own and the network's tail running on the patches. Default: "features"
            where the network allows it and no coarse_tail, nor a light refine_tail, is named.
        scorer: "input" or "coarse": high frequency of the LR or of the coarse HR image, no training
            needed; "linear": a linear predictor of the error, which `calibrate` fits; "head": the mask head,
            once it is trained.
        onward: where the network is cut several times: the share, 0..1, of the refined patches that goes on past each
            further cut, best first; the others leave there. Default: all go on.
        coarse_tail: for merge="image": "copy" of the network's tail, or "light" (one convolution and
            PixelShuffle, added to the bilinear input), which is bilinear until it is fitted or trained, or "deep" or
            "residual" ("light" and a branch of three or of eighteen narrow convolutions, for training).
            Default: "copy"; "light", with merge="image", where blocks cannot be left out.
        coarse_on: for merge="image": where the coarse tail runs. "all": everywhere; "unrefined": on the patches that
            are not refined, which saves its work on the others and loses a little at their borders, where its
            convolutions see zeros. Scorer "coarse" needs it everywhere.
        refine_tail: for merge="image": how refined patches become an image. "own": by the network's tail; "light":
            its last upsampling step is left out, for one convolution and PixelShuffle, which is bilinear until it is
            fitted or trained (tails/refine.py).
        global_ops: what a mean over the whole map (channel attention and the like) sees in the refined blocks.
            "image": all the windows that are refined in an image together; "window": each window alone, as in
            the paper; "refuse": raise an ArgumentError for a network that has one.
        exchange: whether convolutions on a window see the refined windows around it (windows/exchange.py), so that
            refining all patches is the network itself at any halo. False: each window sees itself alone, as in the
            paper. Default: where the network allows it.
        context: what windows that exchange borders see where nothing is refined: "zeros", or "linear", a linear guess
            from the features at the cut, which `calibrate` fits.
        skip: for merge="features": what stands where nothing is refined. "identity": the features at the cut; "1x1" or
            "3x3": and what a convolution of that size, which `calibrate` fits, guesses that the blocks left out add.
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
        onward: float | Sequence[float] | None = None,
        scorer: Scorer = "input",
        coarse_tail: CoarseTail | None = None,
        coarse_on: CoarseOn = "all",
        refine_tail: RefineTail = "own",
        global_ops: GlobalOps = "image",
        exchange: bool | None = None,
        context: Context = "zeros",
        skip: Skip = "identity",
        head: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        merge, coarse_tail = merge_and_tail(split, merge, coarse_tail, refine_tail)
        check_choices(merge=merge, coarse_tail=coarse_tail, coarse_on=coarse_on, refine_tail=refine_tail)
        check_choices(context=context, skip=skip, global_ops=global_ops)
        check_skip(merge, skip)
        if refine_tail == "light":
            check_refine_tail(merge)
            split = with_light_tail(split)
        check_cuts(split, merge, context, skip)
        check_possible(split, merge, coarse_tail, global_ops)
        warn_if_unused(merge, coarse_tail=coarse_tail)
        exchanges = split.exchanges(merge)  # windows are tried now, whatever is asked for, and not within a forward
        side = as_whole(patch_size)
        exchanges = exchanges and (side is None or split.exchanges_at(side))
        # Each setting is checked against those above it.
        self.model, self.split = split.model, split
        self.keep = keep
        self.merge = merge
        self.global_ops = global_ops
        self.exchange = exchanges if exchange is None else exchange
        self.patch_size, self.halo = windows_of(split, merge, patch_size, halo, self.exchange)
        self.coarse_on = coarse_on
        self.scorer = scorer
        self.onward = (1.0,) * (len(split.cuts) - 1) if onward is None else onward
        if not isinstance(head, dict | None):
            raise ArgumentError(f"head={head!r}; give the settings of the mask head in a dict, as {{'hidden': 16}}")
        check_arguments("head", head or {}, MaskHead, skip=1)
        with torch.device("cpu"):  # whatever torch's default is
            self.head, self.linear = MaskHead(split.feature_channels, **(head or {})), LinearScore()
        self.coarse_tail = make_coarse_tail(split, coarse_tail) if merge == "image" else None
        self.coarse_tail_kind: CoarseTail = coarse_tail
        self.refine_tail = split.light if isinstance(split, LightTailed) else None
        self.constants = split.constants
        self._given = (split.model,)  # in a tuple, so that its parameters are not counted twice
        self.context = make_context(split, merge) if context == "linear" else None
        self.skip = make_skip(split, skip)
        for added in (self.head, self.linear):
            added.to(split.example(1, 1))
        self.training = split.model.training
        self.begin_mode()

    def forward(self, x: Tensor, score: Tensor | None = None) -> Tensor:
        """LR image (B, C, H, W) -> HR image (B, C', s*H, s*W).

        Args:
            x: in the network's own range.
            score: (B, rows, cols), to rank the patches by instead of the scorer's (an oracle, your own mask).
        """
        return self.restore(x, score)[0]

    def restore(self, x: Tensor, score: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward`, with the index (B, k) of the patches that were refined."""
        base = self.run_base(x)
        index = self.choose(base, score)
        return self.finish(base, index), index

    def run_base(self, x: Tensor) -> BaseOutput:
        """The first blocks on the whole image."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # it loses what scatter writes
            raise ExportError(
                "torch.jit cannot trace a wrapped network (torch.jit.trace, torch.onnx.export with dynamo=False): use "
                "maskguided.export(fast, path, example), or torch.export"
            )
        check_input(x, self.split.probe.in_channels)
        height, width = x.shape[2:]
        x = self.accepted(x)
        state = self.split.prefix(x)
        skipped = self.split.skip(state) if self.split.can_skip else state  # a light coarse tail takes either
        return BaseOutput(x, state, skipped, self.grid(height, width), (height, width))

    def choose(self, base: BaseOutput, score: Tensor | None = None) -> Tensor:
        """Index (B, k) of the patches to refine; scores are computed only if they decide something."""
        if score is not None:
            check_score(score, (base.x.shape[0], base.grid.rows, base.grid.cols))
            score = score.to(base.x.device)
        if self.min_gain_db is not None:
            return self._worth_more(base, score, self.min_gain_db)
        k = base.grid.k(self.keep)
        if k == 0 or (k == base.grid.count and self.all_go_on):
            return base.every[:, :k]
        return select(self.score(base) if score is None else score, k)

    def _worth_more(self, base: BaseOutput, score: Tensor | None, least: float) -> Tensor:
        """Index (B, k), best first: those that bring more than `least` dB, as many as the neediest image has."""
        assert self.estimate is not None  # see min_gain_db
        index = select(self.score(base) if score is None else score, base.grid.count)
        k = (self.worth(base, index) > least).sum(1).max()
        if self.all_go_on:  # then all of them are the whole network, which may cost less
            k = torch.where(k > self.estimate.whole * base.grid.count, base.grid.count, k)
        return index[:, : int(k)]

    def worth(self, base: BaseOutput, index: Tensor) -> Tensor:
        """What the patches of `index` (B, k) are estimated to bring in this order, (B, k): see `gain.slopes`."""
        assert self.estimate is not None  # see min_gain_db
        return slopes(index, *self.estimate(log_energies(base, self.split.features, self.patch_size)))

    def finish(self, base: BaseOutput, index: Tensor) -> Tensor:
        """The final image (B, C', s*H, s*W): `refine`, or, where all patches are, the rest on the whole map.

        Up to rounding that is what all windows together make, where they see what the map would show them, without the
        work of cutting it. `base` must not be used afterwards: it is freed on the way. `index` is what `choose` gave:
        it is not checked.
        """
        if index.shape[1] == base.grid.count and self.all_go_on:
            return self._cropped(self.split.rest(base.state), base)
        return self.refine(base, index, last=True)

    def refine(self, base: BaseOutput, index: Tensor, *, last: bool = False) -> Tensor:
        """The image (B, C', s*H, s*W) with the patches of `index` (B, k), best first, refined.

        `last`: `base` is of no more use after this, so what it holds may be freed on the way.
        """
        if not last:  # a forward's own index is right
            check_patches(index, base.grid, repeated=False, batch=base.x.shape[0])
        if self.coarse_tail is None:
            return self._cropped(self.split.tail(self._refine_features(base, index, last)), base)
        if index.shape[1] == 0:
            return self._cropped(self._coarse(base, last), base)
        chosen = Chosen(index, base.grid)
        patches = self._refined(self.split.rest, base, base.state, self.split.kinds, chosen)
        return self._cropped(chosen.scatter(patches, onto=self._canvas(base, index, patches, last)), base)

    def coarse_image(self, base: BaseOutput) -> Tensor:
        """The image (B, C', s*H, s*W) with no patch refined."""
        return self.refine(base, base.every[:, :0])

    def score(self, base: BaseOutput) -> Tensor:
        """The scorer's score, (B, rows, cols), float32."""
        if self.scorer == "head":
            return self.head_score(base.state[self.split.features], base.grid)
        if self.scorer == "coarse":
            image = self._on_grid(self.coarse_image(base), base)
            return high_frequency(image, self.patch_size * self.scale)
        return self.input_score(base.x_on_grid)

    def input_score(self, x: Tensor) -> Tensor:
        """The score of scorer "input" or "linear", which look at the LR image alone, (B, rows, cols), float32."""
        if self.scorer != "linear":
            return high_frequency(x, self.patch_size)
        score: Tensor = self.linear(energies(x, self.patch_size))
        return score

    def head_score(self, features: Tensor, grid: Grid) -> Tensor:
        """The mask head's score of features at the cut, (B, rows, cols), float32."""
        score: Tensor = self.head(features, self.patch_size * features.shape[-1] // grid.width)
        return score

    def _refine_features(self, base: BaseOutput, index: Tensor, last: bool) -> State:
        """From cut to cut: the windows of those patches that go on replace what stands in for them."""
        state = base.state
        for stretch, share in zip(self.split.stretches, (1.0, *self.onward), strict=True):
            going, onto = index[:, : number_of(share, index.shape[1])], stretch.skip(state)
            if self.skip is not None and going.shape[1] < base.grid.count:
                onto = self.skip(state, onto)
            refined: State = {}
            if going.shape[1]:
                chosen = Chosen(going, base.grid)
                made = self._refined(stretch.run, base, state, stretch.reads, chosen)
                refined = {name: chosen.scatter(made[name], onto=onto[name]) for name in stretch.writes}
            state = {**onto, **refined}
        if last:
            base.state, base.skipped = {}, {}
        return state

    def _refined(
        self, part: Callable[[State], Result], base: BaseOutput, state: State, kinds: Mapping[str, Kind], chosen: Chosen
    ) -> Result:
        """What the refine part, or a stretch of its body, makes of the windows of chosen patches in `state`."""
        guess = self.context if self.exchange else None
        features = None if guess is None else guess.combined(base.state[self.split.features])
        try:
            return on_windows(
                part, state, kinds, chosen,
                trial=self.split.trial, exchange=self.exchange, share_statistics=self._shares_statistics,
                guess=guess, features=features,
            )  # fmt: skip
        except Exception as error:  # whatever a foreign network raises
            # Settings may have changed since wrap tried them. Where nothing is computed there is nothing to try.
            transformed = torch._C._functorch.is_functorch_wrapped_tensor(base.x)  # by vmap, which no trial bears
            computed = type(base.x) is Tensor and not transformed and not torch.compiler.is_compiling()
            if computed and not isinstance(error, MaskGuidedError) and not is_out_of_memory(error):
                check_windows(self.split, self.merge, self.patch_size, self.halo, self.exchange)
            raise

    def _coarse(self, base: BaseOutput, last: bool) -> Tensor:
        """What the coarse tail makes of the whole image, (B, C', s*H', s*W')."""
        assert self.coarse_tail is not None
        if base.coarse is None:
            skipped = dict(base.skipped)
            if last:
                base.state, base.skipped = {}, {}
            base.coarse = self.coarse_tail(skipped, base.x)
        return base.coarse

    def _canvas(self, base: BaseOutput, index: Tensor, patches: Tensor, last: bool) -> Tensor:
        """The image (B, C', s*H', s*W') that refined patches are put into."""
        covered, everywhere = index.shape[1] == base.grid.count, self.coarse_on == "all"
        if not covered and (everywhere or self.scorer == "coarse"):
            return self._on_grid(self._coarse(base, last), base)
        size = base.grid.height * self.scale, base.grid.width * self.scale
        canvas = patches.new_empty(len(index), patches.shape[1], *size)
        canvas = canvas.contiguous(memory_format=memory_format_of(base.x))
        if covered:
            return canvas
        rest = Chosen(others(index, base.grid), base.grid)
        return rest.scatter(self.coarse_patches(base, rest), onto=canvas)

    def coarse_patches(self, base: BaseOutput, chosen: Chosen) -> Tensor:
        """What the coarse tail makes of the windows of chosen patches alone: (B*k, C', s*h, s*w)."""
        tail = self.coarse_tail
        assert tail is not None
        state = {**base.skipped, _LR: base.x_on_grid}
        # What the body writes has no kind of its own: what stands in for it is a map or a vector.
        reads, known = (*tail.reads, _LR), self.split.kinds
        kinds: dict[str, Kind] = {n: known.get(n, "map" if state[n].dim() == 4 else "vector") for n in reads}
        patches: Tensor = on_windows(
            lambda windows: tail(windows, windows[_LR]), state, kinds, chosen,
            trial=self.split.trial, exchange=self.exchange, share_statistics=self._shares_statistics,
        )  # fmt: skip
        return patches

    def _on_grid(self, image: Tensor, base: BaseOutput) -> Tensor:
        """An HR image, continued to what the grid covers."""
        return continued(image, base.grid.height * self.scale, base.grid.width * self.scale)

    def _cropped(self, image: Tensor, base: BaseOutput) -> Tensor:
        height, width = base.size
        return image[:, :, : height * self.scale, : width * self.scale]

    @torch.no_grad()
    def explain(self, x: Tensor, score: Tensor | None = None) -> Explanation:
        """Refined and coarse image, score, mask and index, for the same arguments as `forward`."""
        base = self.run_base(x)
        score = self.score(base) if score is None else score
        index = self.choose(base, score)
        coarse = self.coarse_image(base)
        return Explanation(self.finish(base, index), coarse, score, base.grid.mask(index), index)
