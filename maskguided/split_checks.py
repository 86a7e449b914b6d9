"""Whether a split network is the network, and whether its patches stay where they are: tried on small images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from .errors import ArgumentError, CannotSplit
from .parts import State
from .patches import round_up
from .probing.probe import image_of
from .probing.thin import Thin, thinly
from .probing.untouched import no_leftovers, untouched
from .split import Split
from .windows.trial import LARGEST_STEP

_LENGTH = 64  # LR pixels, of the strips on which places are looked at
_NEAR = 8  # LR pixels: a tail may look so far, or farther, but most of what it makes of a pixel stays so near
_ROUNDING = 1e-4  # of an image's range, or more


def _apart(state: State) -> State:
    """The same, no value a view of another's memory: windows are cut from each of them alone."""
    return {name: value.clone() for name, value in state.items()}


def check_whole(split: Split, more: Sequence[tuple[int, int]] = ()) -> None:
    """Law 1 on small inputs, and at the sizes `more` in LR pixels: the parts together are the network.

    Raises:
        CannotSplit: they differ by more than 1e-4 of the output's range (rounding alone stays far below).
    """
    name = f"{type(split.model).__name__}, split after block {split.split_at}"
    first, *others = (split.example(*size) for size in [*split.probe.telling_sizes, *more])
    for number, x in enumerate([first, *others, torch.cat([first, 1 - first])]):  # windows come as a batch
        if number and _holds_thinly(split, x):
            continue
        with untouched(split.model):
            with no_leftovers():  # as the parts, or other algorithms might be chosen for it
                whole = image_of(split.model(x.clone()))  # a network may change its input
            if number == 0:
                split.model(1 - x)  # what it leaves in its blocks must not be right by chance
            if difference := _difference(split, x, whole):
                raise CannotSplit(f"{name}: {_why(split, x, whole, difference)}")


def _why(split: Split, x: Tensor, whole: Tensor, difference: float) -> str:
    """What may be the cause that the parts do not give `whole`, the network's image of `x`."""
    again = image_of(split.model(x.clone()))
    if not _difference(split, x, again):
        return (
            "blocks read what the network's forward has left for them (in an attribute, a list or a dict) and would "
            "find that of another image; hand it to them as an argument"
        )
    if unlike := _unlike(again, whole):
        return (
            f"two runs on one image give two images (largest difference {unlike:.2g}): its forward draws random "
            "numbers, or keeps something of the run before, so there is no one image to go by"
        )
    return (
        f"at {x.shape[2]}x{x.shape[3]} the parts give another image than the network (largest difference "
        f"{difference:.2g}). A forward that changes tensors in place across the cut, that takes another path by size, "
        "or that turns torch.autocast on or off outside its blocks, does this; an adapter can say how to split it "
        "(docs/new_backbone.md)"
    )


def _holds_thinly(split: Split, x: Tensor) -> bool:
    """Whether the parts give the network's image within Thin, whose cheap stand-ins for layers save most of the time:
    what real layers compute has been compared at another size."""
    with untouched(split.model), suppress(Exception), Thin():
        return _difference(split, x, image_of(split.model(x.clone())), rounding=0) == 0
    return False


def _difference(split: Split, x: Tensor, whole: Tensor, rounding: float = _ROUNDING) -> float:
    """By how much the parts differ from the network's image of `x`, see `_unlike`."""
    with no_leftovers():
        parts = split.tail(_apart(split.body(_apart(split.prefix(x)))))
    return _unlike(parts, whole, rounding)


def _unlike(image: Tensor, whole: Tensor, rounding: float = _ROUNDING) -> float:
    """By how much `image` differs from the network's, the range of which is about 1; 0: by rounding."""
    if whole.shape != image.shape:
        return float("inf")
    difference = float((whole - image).abs().max())
    return 0.0 if difference <= rounding * max(1.0, float(whole.abs().max())) else difference


def check_gradients(split: Split) -> None:
    """That the parts' gradients are the network's: what is recorded of a forward is what it computes.

    Raises:
        ArgumentError: they are not, so the network cannot be trained in its parts.
    """
    model, x = split.model, split.example(*split.probe.round_size)
    with untouched(model), torch.enable_grad():
        try:
            model.requires_grad_(True)
            theirs = _gradients(image_of(model(x.clone())), model)
            ours = _gradients(split.tail(split.body(split.prefix(x))), model)
        except RuntimeError:  # blocks that compute their activations twice give none so
            return
    apart = _length([a - b for a, b in zip(ours, theirs, strict=True)])
    whole = _length(theirs)
    if apart > 1e-3 * whole:
        raise ArgumentError(
            f"this {type(model).__name__} cannot be trained in its parts: their gradients are not its own (they differ "
            f"by {apart / whole:.0%}). Its forward holds them back (torch.no_grad) or makes its own "
            "(torch.autograd.Function) outside its blocks; train stage 'coarse' or 'head' alone"
        )


def _gradients(image: Tensor, model: nn.Module) -> list[Tensor]:
    """Of the image's mean square by each parameter."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(image.square().mean(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _length(gradients: list[Tensor]) -> float:
    return float(torch.stack([gradient.cpu().double().norm() for gradient in gradients]).norm())


def check_places(split: Split) -> None:
    """That the image depends on the body, and that a pixel of the live values stands where it does in the image.

    Raises:
        CannotSplit: one of them is not so. Refining patches would change nothing, or other places.
    """
    name = type(split.model).__name__
    with untouched(split.model):
        if not thinly(lambda: _matters(split)):
            raise CannotSplit(
                f"{name}, split after block {split.split_at}: the image does not depend on the blocks after that. If "
                "the network returns several, wrap it in a module that returns the right one alone; if those blocks "
                "serve something else, cut earlier or name the ones that make the image (body=)"
            )
        if _is_shifted(split):
            raise CannotSplit(
                f"{name}, split after block {split.split_at}: it pads images to multiples of {split.multiple_of} above "
                "or at the left, so live values stand elsewhere than the pixels that they are of. Pad images before "
                "the network, and crop what it makes"
            )
        moves = _moves(split)
        if moves == "mirrored":
            raise CannotSplit(
                f"{name}, split after block {split.split_at}: what stands at the left (or top) of a live value stands "
                "at the right (or bottom) of the image, as in an ensemble of mirrored passes or after a transform of "
                "the whole map (torch.fft), so patches do not stay where they are. Of an ensemble, wrap the network "
                "that runs within, and mirror around that"
            )
        if moves == "elsewhere":
            raise CannotSplit(
                f"{name}, split after block {split.split_at}: a pixel of a live value stands elsewhere than in the "
                "image, as where pixels are brought into another order before the blocks and back after them (a "
                "mosaic of every other pixel, torch.roll, torch.fft), so patches do not stay where they are. Wrap the "
                "network that runs within, and order the pixels around that"
            )


def _matters(split: Split) -> bool:
    """Whether the image depends on what the body writes, if only through a weight that is zero as yet."""
    after = split.body(split.window(split.probe.sizes_of(split.multiple_of)[0]))
    image = split.tail(dict(after))
    written = [name for name in split.writes if after[name].is_floating_point()]
    if bool(split.tail({**after, **{name: after[name] * torch.nan for name in written}}).isnan().any()):
        return True
    others = {name: 1 - after[name] for name in written}
    return not torch.equal(split.tail({**after, **others}), image)


def _is_shifted(split: Split) -> bool:
    """Whether the network crops its image above or at the left, so that it is shifted against the live values."""
    step, least = split.multiple_of, split.probe.multiple_of
    if step == least or step > LARGEST_STEP:  # it pads nothing, or only what is padded before
        return False
    height, width = (round_up(max(_LENGTH // 2, split.probe.least), step) + odd for odd in (least, step - least))
    state = split.prefix(split.example(height, width))
    whole = split.rest(dict(state))
    uncropped = split.rest({name: state[name] for name in split.kinds})
    apart: dict[tuple[int, int], float] = {}
    beyond = uncropped.shape[2] - whole.shape[2], uncropped.shape[3] - whole.shape[3]
    for down, right in dict.fromkeys([(0, 0), beyond, (beyond[0] // 2, beyond[1] // 2)]):
        part = uncropped[:, :, down : down + whole.shape[2], right : right + whole.shape[3]]
        apart[down, right] = float((part - whole).abs().mean())
    return min(apart.values()) < 0.7 * apart[0, 0]  # a value that is not padded, as the enlarged image, stays


def _moves(split: Split) -> Literal["mirrored", "elsewhere"] | None:
    """Where a change of the live values shows in the image, for each of several places, if not where it is."""
    step = split.multiple_of
    if step > LARGEST_STEP:
        return None
    length, breadth = (round_up(max(side, split.probe.least), step) for side in (_LENGTH, _LENGTH // 8))
    maps = [name for name, kind in split.kinds.items() if kind == "map"]
    for dim, size in ((-1, (breadth, length)), (-2, (length, breadth))):
        shown = _Shown.of(split, split.example(*size), dim)
        # In one place it may come by chance: a block that ranks what it sees changes what ranks next, too.
        if all(_is_mirrored(shown.along(at, maps), at // step) for at in shown.places(4, 8, 3)):
            return "mirrored"
        if thinly(partial(_is_elsewhere, split, split.example(*size), dim)):
            return "elsewhere"
    return None


def _is_elsewhere(split: Split, x: Tensor, dim: int) -> bool:
    """Whether a change of the features shows elsewhere, and there whatever the image is."""
    found = _Shown.of(split, x, dim).elsewhere(split.features)
    again = _Shown.of(split, 1 - x, dim).elsewhere(split.features) if found else []
    return bool(again) and all(abs(a - b) <= _NEAR / 2 for a, b in zip(found, again, strict=True))


@dataclass(frozen=True)
class _Shown:
    """Where a change of live values shows in the image."""

    split: Split
    state: State
    """The live values."""
    image: Tensor
    """What they give unchanged."""
    dim: int
    """The dimension along which places are counted, in LR pixels."""
    length: int
    """Of it."""

    @classmethod
    def of(cls, split: Split, x: Tensor, dim: int) -> _Shown:
        size = x.shape[2], x.shape[3]
        state = split.window(size, x)
        return cls(split, state, split.rest(dict(state)), dim, size[dim])

    def places(self, *parts: float) -> list[int]:
        """Some that are multiples of a step, at such parts of the length."""
        step = self.split.multiple_of
        return [int(self.length / part) // step * step for part in parts]

    def along(self, at: int, names: list[str]) -> Tensor:
        """By how much the image changes at each step of `multiple_of` LR pixels, if live values `names` do at `at`."""
        changed, step = dict(self.state), self.split.multiple_of
        for name in (name for name in names if self.state[name].is_floating_point()):
            value, ratio = self.state[name].clone(), self.state[name].shape[self.dim] / self.length
            strip = value.narrow(self.dim, int(at * ratio), int(step * ratio) or 1)
            noise = torch.rand(strip.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(strip)
            strip.add_(noise * value.std())
            changed[name] = value
        apart = (self.split.rest(changed) - self.image).abs().transpose(-1, self.dim)
        return apart.amax((0, 1, 2)).view(self.length // step, step * self.split.scale).amax(1)

    def elsewhere(self, features: str) -> list[float]:
        """Around which places, in LR pixels, changes of `features` show that were made at several others, if each shows
        far from where it was made, and in one place; else nothing. (Where all is attended to, it shows everywhere.)"""
        step, found = self.split.multiple_of, []
        for at in self.places(4, 3, 8 / 3):
            power = self.along(at, [features]).square()
            pixels = (torch.arange(len(power), device=power.device) + 0.5) * step
            centre = float((power * pixels).sum() / power.sum())
            far = abs(centre - (at + step / 2)) > _NEAR
            in_one_place = power[(pixels - centre).abs() <= _NEAR].sum() > power.sum() / 2
            if not (far and in_one_place):
                return []
            found.append(centre)
        return found


def _is_mirrored(along: Tensor, at: int) -> bool:
    """Whether a change at step `at` shows at the mirrored one, and not in between."""
    here, there, middle = along[at], along[-1 - at], len(along) // 2
    return bool(there > 0.3 * here and there > 3 * along[middle - 1 : middle + 1].max())


@torch.inference_mode(False)  # in which tensors do not tell that they were changed
def check_adapter(split: Split) -> None:
    """That `reads` and `writes` name what the body does, as only that is cut and put back; and the tail makes an image.

    Nor may a part change what it is given: the base is looked at again after windows were cut out of it.

    Raises:
        CannotSplit: one of them does not, or one does.
    """

    def refuse(why: str) -> NoReturn:
        raise CannotSplit(f"adapter {split.adapter!r}: {why} (docs/new_backbone.md, Skip)")

    def made_by(part: str, state: State) -> Any:
        copies = {name: value.clone() for name, value in state.items()}
        versions = {name: value._version for name, value in copies.items()}
        with untouched(split.model):
            made = getattr(split, part)(dict(copies))
        for name in (name for name, value in copies.items() if value._version != versions[name]):
            refuse(f"its {part} changes {name!r} in place; let it take a copy, state[{name!r}].clone()")
        return made

    x = split.example(*split.probe.sizes[0])
    with untouched(split.model):
        version, whole = x._version, split.prefix(x)
    if x._version != version:
        refuse("its stem changes the image in place; let it take a copy, x.clone()")
    for name in (name for name in split.reads if name not in whole):
        refuse(f"its `reads` names {name!r}, which its prefix does not make")
    before = {name: whole[name] for name in split.reads}
    try:
        after = made_by("body", before)
    except KeyError as error:
        refuse(f"its body takes {error}, which its `reads` does not name")
    left_out = made_by("skip", whole) if split.can_skip else after
    changed = [name for name, value in after.items() if name not in before or not torch.equal(value, before[name])]
    for name in (name for name in split.writes if name not in after):
        refuse(f"its `writes` names {name!r}, which its body does not make")
    for name in (name for name in split.writes if name not in left_out):
        refuse(f"its `writes` names {name!r}, for which its skip has no stand-in")
    for name in (name for name in changed if name not in split.writes):
        refuse(f"its body makes {name!r}, which its `writes` does not name")
    made = made_by("tail", {**whole, **after})
    if not isinstance(made, Tensor) or made.dim() != 4:
        what = f"a tensor {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise CannotSplit(f"adapter {split.adapter!r}: its tail makes {what}; it takes one image (B, C, H, W)")
    with untouched(split.model):
        split.prefix(torch.cat([1 - split.example(*split.probe.round_size)] * 2))
    try:
        again = made_by("tail", {**whole, **made_by("body", before)})
        stale = again.shape != made.shape or not torch.allclose(again, made, rtol=1e-4, atol=1e-4)
    except RuntimeError:  # of shapes that do not go together
        stale = True
    if stale:
        refuse(
            "after its stem has seen another image its tail makes another one of the same state: it reads what "
            "the stem has left in the adapter or the network; put that into the state, as a map"
        )


def check_stretches(split: Split) -> None:
    """That an adapter's body, cut several times, is what its stretches make one after the other; so with its skip.

    Raises:
        CannotSplit: it has a body or a skip of its own, which the stretches know nothing of.
    """
    if len(split.cuts) == 1:
        return
    with untouched(split.model):
        start = split.prefix(split.example(*split.probe.sizes[0]))
        run, left_out = start, start
        for stretch in split.stretches:
            run, left_out = stretch.run(run), stretch.skip(left_out)
        for part, made, whole in (("run", run, split.body(start)), ("skip", left_out, split.skip(start))):
            for name in (n for n in split.writes if n not in made or _unlike(made[n], whole[n])):
                raise CannotSplit(
                    f"adapter {split.adapter!r}: cut after blocks {', '.join(map(str, split.cuts))}, its parts do not "
                    f"make the {name!r} of its {'body' if part == 'run' else part}: let it have a {part}_blocks "
                    "instead (docs/new_backbone.md, Skip), or cut once"
                )
