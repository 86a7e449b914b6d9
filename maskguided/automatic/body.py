"""Find the body of a network nobody here has seen: its repeated blocks, in the order they are called.

The network is run once on a small input while every module call is recorded with its shapes and MACs.
Calls of one class, with parameters, inputs and outputs of the same shapes, form a candidate, whatever
holds the modules (Sequential, ModuleList, attributes B1..B6, groups of groups). So do blocks of several
classes or sizes that one module calls one after the other, each handing on a map of the shape it took.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ..cost import counting
from ..errors import ArgumentError, CannotSplit, first_line
from ..probing.modules import of_this_thread
from ..probing.probe import Probe
from ..probing.untouched import untouched

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

_LARGEST = 3  # times the input's area: rounded up to some multiple, but not yet the HR image
_FEW = 3  # times the MACs of blocks on such maps: then larger maps are where a network works
_UNLIKE = 3  # times the MACs of another: no block beside it in one run
Item = TypeVar("Item")
NEAR_BEST = 0.65  # of another candidate's MACs: close enough for other reasons to decide


@dataclass
class Call:
    """One call of one module."""

    name: str
    module: nn.Module
    depth: int
    parent: str
    """Name of the module that called it."""
    in_shape: tuple[int, ...] | None = None
    out_shape: tuple[int, ...] | None = None
    macs: int = 0


@dataclass(frozen=True)
class Candidate:
    """A run of same-shape blocks that could be the body."""

    names: tuple[str, ...]
    """Module names in call order; a module called twice stands twice."""
    class_name: str
    depth: int
    share: float
    """Of the network's MACs, 0..1."""
    mixed: bool = False
    """Whether its blocks are of several classes or sizes."""

    def __str__(self) -> str:
        first, last = self.names[0], self.names[-1]
        return f"{len(self.names)} x {self.class_name} ({first} .. {last}), {self.share:.0%} of the MACs"


def find_bodies(model: nn.Module, probe: Probe) -> list[Candidate]:
    """All runs of at least two blocks on maps of about the input's size or less, or else of any size, the best first.

    Best is the outermost level among the runs that hold nearly as many MACs as the largest one does, and
    there blocks of one kind before several; runs of three and more come before pairs.

    Raises:
        CannotSplit: no two blocks of the network have the same shape.
    """
    calls, size = _recorded(model, probe)
    runs = _runs(calls, size, _LARGEST)
    anywhere = _runs(calls, size, math.inf)
    # Networks that enlarge the image at once, or step by step, have all or most of their blocks on larger maps.
    if _largest_share(anywhere) > _FEW * _largest_share(runs):
        runs = anywhere
    if not runs and (alike := _runs(calls, size, math.inf, least=0)):
        names = "; ".join(f"{len(run.names)} x {run.class_name} ({run.names[0]} .. {run.names[-1]})" for run in alike)
        raise CannotSplit(
            f"finding the body: {names} are alike, but nothing they do counts among the MACs, as convolutions and "
            "matrix products do and nn.LSTM does not. Name the blocks (body=)"
        )
    if not runs:
        raise CannotSplit(
            f"finding the body: no two modules of {type(model).__name__} have one class, the same parameter shapes "
            "and the same map sizes, so there is no run of blocks to cut. Name the blocks (body=), or write an "
            "adapter (docs/new_backbone.md)"
        )
    best = _largest_share(runs)
    near = [run for run in _longer(runs) if run.share >= NEAR_BEST * best]
    return sorted(runs, key=lambda run: (run in near, -run.depth, not run.mixed, run.share), reverse=True)


def _longer(runs: list[Candidate]) -> list[Candidate]:
    return [run for run in runs if len(run.names) >= 3] or runs


def _largest_share(runs: list[Candidate]) -> float:
    return max((run.share for run in _longer(runs)), default=0.0)


def _runs(calls: list[Call], size: tuple[int, int], largest: float, least: int = 1) -> list[Candidate]:
    """The runs on maps of at most `largest` times the input's area, whose blocks have `least` MACs or more."""
    groups: dict[Any, list[Call]] = {}
    for call in calls[:-1]:
        area = _area(call.out_shape or (), *size)
        fits = 1 < area <= largest * size[0] * size[1]
        if fits and call.depth and _has_weights(call) and ".parametrizations." not in call.name:
            groups.setdefault(_signature(call), []).append(call)
            if call.in_shape == call.out_shape:
                groups.setdefault((call.parent, call.out_shape), []).append(call)
    image_maker = next(filter(_has_weights, reversed(calls[:-1])), None)
    for group in groups.values():
        if len(group) > 2 and group[-1] is image_maker and _stands_apart(group, calls):
            group.pop()
    found = [_candidate(group, calls[-1].macs) for group in groups.values() if len(group) >= 2]
    whole = {run.names for run in found if not run.mixed}
    found = [run for run in found if not (run.mixed and (run.names in whole or not run.share))]
    return [run for run in found if run.share > 0 or not least]


def named_body(model: nn.Module, probe: Probe, body: str | Sequence[str]) -> Candidate:
    """The blocks that a user names, in the order in which the network calls them.

    Args:
        body: their names, or a pattern for them in which * stands for one part of a name: "layers.*.blocks.*". Where
            names are the calls on one size of map, one by one, as in `Facts.blocks`, these calls alone are meant.

    Raises:
        ArgumentError: fewer than two modules of these names are called.
    """
    patterns = list(body) if isinstance(body, Iterable) and not isinstance(body, str) else [body]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ArgumentError(f"body={body!r}: use the blocks' names, or a pattern for them, as 'layers.*.blocks.*'")
    wanted = re.compile("|".join(re.escape(pattern).replace(r"\*", r"[^.]+") for pattern in patterns))
    calls, _ = _recorded(model, probe)
    chosen = [call for call in calls[:-1] if wanted.fullmatch(call.name)]
    if len(chosen) < 2:
        called = dict.fromkeys(re.sub(r"\d+", "*", call.name) for call in calls[:-1])
        raise ArgumentError(
            f"body={body!r}: {len(chosen)} of the modules that this {type(model).__name__} calls have such a name; "
            f"it takes 2 or more. It calls {', '.join(list(called)[:12])}"
        )
    run = on_one_size(chosen, patterns, name=lambda call: call.name, size=lambda call: call.out_shape)
    return _candidate(run, calls[-1].macs)


def on_one_size(
    calls: list[Item], names: Sequence[str], *, name: Callable[[Item], Any], size: Callable[[Item], Hashable]
) -> list[Item]:
    """Of `calls` those on one size of map, if their names are `names` in that order; else all.

    A network may call its blocks again, on maps of another size.
    """
    sizes: dict[Hashable, list[Item]] = {}
    for call in calls:
        sizes.setdefault(size(call), []).append(call)
    return next((group for group in sizes.values() if list(map(name, group)) == list(names)), calls)


def _candidate(group: list[Call], total: int) -> Candidate:
    """A group of several kinds that differ much in MACs is no run, but blocks and what stands around them."""
    classes = dict.fromkeys(type_before_parametrizations(call.module).__name__ for call in group)
    macs = [call.macs for call in group]
    mixed = any(_signature(call) != _signature(group[0]) for call in group)
    balanced = not mixed or max(macs) <= _UNLIKE * min(macs)
    return Candidate(
        tuple(call.name for call in group),
        ", ".join(classes),
        max(call.depth for call in group),
        sum(macs) / max(total, 1) if balanced else 0.0,
        mixed,
    )


def _recorded(model: nn.Module, probe: Probe) -> tuple[list[Call], tuple[int, int]]:
    """All calls of a forward, the network's own last, and the size it ran on."""
    for size in (probe.round_size, probe.sizes[0]):
        try:
            return _record(model, probe, *size), size
        except Exception as error:  # a rule of its own for sizes, or what a foreign forward raises where it is watched
            failure = error
    raise CannotSplit(
        f"watching {type(model).__name__} run: {type(failure).__name__}: {first_line(failure)}"
    ) from failure


@dataclass
class _Recorder:
    names: dict[int, str]
    counter: FlopCounterMode
    order: list[Call] = field(default_factory=list)
    open: list[Call] = field(default_factory=list)

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        call = Call(self.names[id(module)], module, len(self.open), self.open[-1].name if self.open else "")
        call.in_shape = next((tuple(a.shape) for a in args if isinstance(a, Tensor)), None)
        call.macs = -self.counter.get_total_flops()
        self.open.append(call)
        self.order.append(call)

    def leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        call = self.open.pop()
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        call.out_shape = tuple(first.shape) if isinstance(first, Tensor) else None
        call.macs = (call.macs + self.counter.get_total_flops()) // 2


def _record(model: nn.Module, probe: Probe, height: int, width: int) -> list[Call]:
    """Every module call of one forward in the order they begin; the network's own call last."""
    with untouched(model), counting() as counter, ExitStack() as hooks:
        recorder = _Recorder({id(module): name for name, module in model.named_modules()}, counter)
        before, after = of_this_thread(recorder.enter), of_this_thread(recorder.leave)
        for module in model.modules():
            hooks.enter_context(module.register_forward_pre_hook(before))
            hooks.enter_context(module.register_forward_hook(after))
        model(probe.input(height, width))
    return [*recorder.order[1:], recorder.order[0]]


def _signature(call: Call) -> Any:
    shapes = tuple((name, tuple(p.shape)) for name, p in call.module.named_parameters())
    return type_before_parametrizations(call.module), shapes, call.in_shape, call.out_shape


def _has_weights(call: Call) -> bool:
    return any(True for _ in call.module.parameters())


def _stands_apart(group: list[Call], calls: list[Call]) -> bool:
    """Whether the last of `group`, with which the weights end, is held beside the others but has no activation as they
    have: SRVGGNetCompact's last convolution, which makes the image, may have the shape of those before it."""
    holders = {call.name.rpartition(".")[0] for call in group}
    return len(holders) == 1 and calls.index(group[-1]) - calls.index(group[-2]) > 1


def _area(shape: tuple[int, ...], height: int, width: int) -> int:
    """Pixels of a map (B, C, H, W) or (B, H, W, C), each perhaps with bands before H, or the number of tokens
    (B, H*W, C) or (H*W, B, C) of one image."""
    if len(shape) == 5:
        shape = (shape[0], *shape[2:])
    if len(shape) == 4:
        channels_last = shape[1] * width == shape[2] * height and shape[2] * width != shape[3] * height
        return shape[1] * shape[2] if channels_last else shape[2] * shape[3]
    return max(shape[:2]) if len(shape) == 3 else 0
