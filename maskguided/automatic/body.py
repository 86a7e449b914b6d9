"""Find the body of a network nobody here has seen: its repeated blocks, in the order they are called.

The network is run once on a small input while every module call is recorded with its shapes and MACs.
Calls of one class, with parameters, inputs and outputs of the same shapes, form a candidate, whatever
holds the modules (Sequential, ModuleList, attributes B1..B6, groups of groups).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import CannotSplit
from ..probing import Probe, untouched

_NEAR_BEST = 0.75  # of the best candidate's MACs: close enough to prefer the outer level


@dataclass
class Call:
    """One call of one module."""

    name: str
    module: nn.Module
    depth: int
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

    def __str__(self) -> str:
        first, last = self.names[0], self.names[-1]
        return f"{len(self.names)} x {self.class_name} ({first} .. {last}), {self.share:.0%} of the MACs"


def candidates(model: nn.Module, probe: Probe) -> list[Candidate]:
    """All runs of at least two same-shape blocks on maps no larger than the input, the best first.

    Best is the outermost level among the runs that hold nearly as many MACs as the largest one does;
    runs of three and more come before pairs.
    """
    height, width = probe.sizes[0]
    calls = list(_record(model, probe))
    total = max(calls[-1].macs, 1)
    groups: dict[Any, list[Call]] = {}
    for call in calls:
        small = call.out_shape is not None and _area(call.out_shape) <= height * width
        if small and call.depth and any(True for _ in call.module.parameters()):
            groups.setdefault(_signature(call), []).append(call)
    runs = [
        Candidate(
            tuple(c.name for c in group),
            type(group[0].module).__name__,
            max(c.depth for c in group),
            sum(c.macs for c in group) / total,
        )
        for group in groups.values()
        if len(group) >= 2
    ]
    if not runs:
        return []
    longer = [run for run in runs if len(run.names) >= 3] or runs
    best = max(run.share for run in longer)
    near = [run for run in longer if run.share >= _NEAR_BEST * best]
    return sorted(runs, key=lambda run: (run in near, -run.depth, run.share), reverse=True)


def find_body(model: nn.Module, probe: Probe) -> Candidate:
    """The best candidate.

    Raises:
        CannotSplit: no two blocks of the network have the same shape.
    """
    found = candidates(model, probe)
    if not found:
        raise CannotSplit(
            f"finding the body: no two modules of {type(model).__name__} have one class, the same parameter shapes "
            "and the same map sizes, so there is no run of blocks to cut. An adapter can name the blocks "
            "(docs/add_an_adapter.md)"
        )
    return found[0]


@dataclass
class _Recorder:
    names: dict[int, str]
    counter: FlopCounterMode
    order: list[Call] = field(default_factory=list)
    open: list[Call] = field(default_factory=list)

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        call = Call(self.names[id(module)], module, len(self.open))
        call.in_shape = next((tuple(a.shape) for a in args if isinstance(a, Tensor)), None)
        call.macs = -self.counter.get_total_flops()
        self.open.append(call)
        self.order.append(call)

    def leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        call = self.open.pop()
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        call.out_shape = tuple(first.shape) if isinstance(first, Tensor) else None
        call.macs = (call.macs + self.counter.get_total_flops()) // 2


def _record(model: nn.Module, probe: Probe) -> Iterator[Call]:
    """Every module call of one forward in the order they begin; the network's own call last."""
    with untouched(model), FlopCounterMode(display=False) as counter:
        recorder = _Recorder({id(module): name for name, module in model.named_modules()}, counter)
        handles = []
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(recorder.enter))
            handles.append(module.register_forward_hook(recorder.leave))
        try:
            model(probe.input(*probe.sizes[0]))
        finally:
            for handle in handles:
                handle.remove()
    yield from recorder.order[1:]
    yield recorder.order[0]


def _signature(call: Call) -> Any:
    shapes = tuple((name, tuple(p.shape)) for name, p in call.module.named_parameters())
    return type(call.module), shapes, call.in_shape, call.out_shape


def _area(shape: tuple[int, ...]) -> int:
    return shape[-1] * shape[-2] if len(shape) == 4 else 0
