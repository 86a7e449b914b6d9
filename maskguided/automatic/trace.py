"""Write a network's forward down as a graph that holds for every size, each body block as one node."""

from __future__ import annotations

import operator
import types
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CannotSplit, first_line
from ..parts import Kind
from ..probing.modules import copied, forget_results
from ..probing.probe import LARGE_LEAST, Probe
from ..probing.thin import thinly
from .body import on_one_size
from .layout import Layout, find_layout
from .record import (
    Ambient,
    Attribute,
    CannotFollow,
    Constant,
    Made,
    Recording,
    Step,
    leaves_around,
    like,
    made_in,
    parts_of,
    record,
    with_fixed,
)
from .sizes import BATCH, At, Rounding, Size, fit, size

_MOST_STEPS = 50_000
"""Of a forward on shapes alone: twice those of DAT, some 10 s."""
_LARGE, _SMALL = (1103, 907), (41, 53)
"""LR pixels; sizes that no image will have, for a function might keep what it once made for a size."""
MODEL, CONSTANTS, AT = "model", "constants", "at"
"""Names within the graph: of the network, of tensors that came from elsewhere, and of the sizes."""
USE_AN_ADAPTER = "An adapter can split it (docs/new_backbone.md)"


@dataclass(frozen=True)
class Value:
    """What a node of the graph yields."""

    kind: Kind | None
    """None: a tensor that is no map, vector or constant."""
    shape: tuple[int | Size, ...]
    layout: Layout | None
    """Of a map."""
    from_input: bool
    """Whether pixels reach it; what they don't reach is computed anew wherever it is used."""
    dtype: torch.dtype = torch.float32
    """As it was recorded."""


@dataclass(frozen=True)
class Traced:
    """A network's graph, what its nodes yield, and where its blocks stand."""

    model: nn.Module
    graph: fx.Graph
    constants: nn.Module
    values: dict[fx.Node, Value]
    blocks: list[fx.Node]
    """The calls of the body's blocks, in order."""
    rounding: Rounding
    """What the network makes of the size of its input."""


def recordings(model: nn.Module, blocks: tuple[str, ...], probe: Probe) -> list[Recording]:
    """`model` at sizes that tell what follows from them, with blocks as single steps.

    Raises:
        CannotSplit: the forward branches on pixel values, or takes other steps at every size.
    """
    leaves, made = leaves_around(model, blocks), list[Recording]()
    try:
        for batch, height, width in _sizes(probe):
            made.append(_recorded(model, leaves, probe.input(height, width, batch)))
            _same_steps(made[0], made[-1])
        made += _at_a_large_size(model, leaves, probe, made[0])
    except (CannotFollow, _Differs) as error:
        raise CannotSplit(f"recording {type(model).__name__}: {error}. {USE_AN_ADAPTER}") from error
    return _with_fixed_dtypes(model, leaves, made, probe)


def trace(model: nn.Module, blocks: tuple[str, ...], runs: list[Recording], rounding: Rounding) -> Traced:
    """Generalise recordings: one graph for all sizes, of a network that rounds them up like this.

    Raises:
        CannotSplit: some number in the recordings does not follow from the size in this way.
    """
    try:
        return _Generaliser(model, runs, blocks, rounding).traced()
    except _Differs as error:
        raise CannotSplit(f"tracing {type(model).__name__}: {error}. {USE_AN_ADAPTER}") from error


class _Differs(Exception):
    """Two recordings do not go together."""


def _sizes(probe: Probe) -> list[tuple[int, int, int]]:
    """Batch, height and width. In each pair of sides one is an odd multiple, of no large factors: it is rounded up."""
    step = probe.multiple_of
    a = -(-probe.least // step) | 1
    # Where small ones are not taken, the others are farther apart: all would be rounded up to the same multiple of 48.
    c, e = (max(a + 2, -(-least // step) | 1) for least in ((37, 67) if probe.least < LARGE_LEAST else (57, 109)))
    b, d = a + 1, c + 1
    pairs = [(a, b), (b, a), (a + 2, d), (c, b), (a, e), (e, a + 2)]
    if step >= 8:  # such large multiples are few
        pairs = [(a, b), (b, a), (a + 2, b), (b, a + 2), (a + 2, a)]
    return [*((1, h * step, w * step) for h, w in pairs), (2, a * step, b * step)]


def _recorded(model: nn.Module, leaves: set[str], x: Tensor) -> Recording:
    def look() -> Recording:
        return record(model, leaves, x)

    try:
        return look() if len(x) > 1 else thinly(look)  # not every network takes several images at once
    except CannotFollow:
        raise
    except Exception as error:  # whatever a foreign forward raises
        alone = "" if len(x) == 1 else " (one image is taken, two at once are not; windows come as a batch)"
        what = f"{type(error).__name__}: {first_line(error)}"
        raise _Differs(f"an input of {tuple(x.shape)} raises {what}{alone}") from error


def _at_a_large_size(model: nn.Module, leaves: set[str], probe: Probe, first: Recording) -> list[Recording]:
    """`model` at a size that photographs have: it may cut those into tiles, or hold a table that is too small.

    It runs on shapes alone, which costs the same at any size, but for loops over pixels; where that cannot be, there is
    no such recording.

    Raises:
        _Differs: it takes other steps than those of `first`, at a small size.
    """
    try:
        found = _shapes_of(model, leaves, probe, _LARGE)
    except Exception:  # whatever a foreign network raises: most often it asks for a pixel's value
        return []
    try:
        _same_steps(first, found)
    except _Differs:
        if _are_those_of_pixels(model, leaves, probe, first):
            raise
        return []
    return [found]


def _are_those_of_pixels(model: nn.Module, leaves: set[str], probe: Probe, first: Recording) -> bool:
    """Whether the steps that `model` takes on shapes alone are those of `first`, at a small size."""
    try:
        _same_steps(first, _shapes_of(model, leaves, probe, _SMALL))
    except Exception:  # whatever a foreign network raises
        return False
    return True


def _shapes_of(model: nn.Module, leaves: set[str], probe: Probe, size: tuple[int, int]) -> Recording:
    """A recording, without constants, at an odd multiple of about that size."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import _disable_current_modes

    class Bounded(FakeTensorMode):  # type: ignore[no-untyped-call]
        steps = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise RuntimeError("a loop over pixels, as of a scan in Python, has no end at this size")
            return super().__torch_dispatch__(func, types, args, kwargs or {})

    step, mode = probe.multiple_of, Bounded(allow_non_fake_inputs=True)
    height, width = ((side // step | 1) * step for side in size)
    with mode:
        x = torch.empty(1, probe.in_channels, height, width, device=probe.device, dtype=probe.dtype)
    with _disable_current_modes():  # what counts the work around this would count what is not done
        return replace(record(model, leaves, x, mode), constants=[])


def _with_fixed_dtypes(model: nn.Module, leaves: set[str], runs: list[Recording], probe: Probe) -> list[Recording]:
    """The recordings, with the dtypes that `model` names itself (`x.to(torch.float32)`) apart from its own.

    One recording in another dtype tells them apart. A network that does not run in that keeps them all as its own.
    """
    if not any(Ambient("dtype") in parts_of((step.args, step.kwargs)) for step in runs[0].steps):
        return runs
    dtype = torch.float32 if probe.dtype != torch.float32 else torch.bfloat16
    batch, height, width = runs[0].size
    try:
        other = record(copied(model).to(dtype), leaves, probe.input(height, width, batch).to(dtype))
        _same_steps(runs[0], other)
    except Exception:  # whatever a foreign forward raises in a dtype that is not its own
        return runs
    finally:
        forget_results(model)

    def fixed(step: Step, twin: Step) -> Step:
        args, kwargs = with_fixed((step.args, step.kwargs), (twin.args, twin.kwargs))
        return replace(step, args=args, kwargs=kwargs)

    return [replace(run, steps=list(map(fixed, run.steps, other.steps))) for run in runs]


def _same_steps(one: Recording, other: Recording) -> None:
    for a, b in zip(one.steps, other.steps, strict=False):
        if a.target != b.target:
            raise _Differs(f"{_name(a.target)} at {one.size}, {_name(b.target)} at {other.size}")
    if (len(one.steps), one.image) != (len(other.steps), other.image):
        raise _Differs(f"{len(one.steps)} steps at {one.size}, {len(other.steps)} at {other.size}")


@dataclass
class _Generaliser:
    """Recordings at several sizes -> one graph."""

    model: nn.Module
    recordings: list[Recording]
    blocks: tuple[str, ...]
    rounding: Rounding
    graph: fx.Graph = field(default_factory=fx.Graph)
    constants: nn.Module = field(default_factory=nn.Module)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    calls: list[fx.Node] = field(default_factory=list)
    sizes: list[At] = field(init=False)
    """One for each recording."""
    used: set[Made] = field(init=False)
    """What later steps take of what a step has made, and the image."""
    made: dict[Made, fx.Node] = field(init=False)
    at: fx.Node = field(init=False)
    """Stands for the size that the graph runs at."""

    def traced(self) -> Traced:
        first = self.recordings[0]
        assert first.image is not None
        self.sizes = [_at(recording, self.rounding) for recording in self.recordings]
        self.used = {made for step in first.steps for made in made_in((step.args, step.kwargs))} | {first.image}
        self.at = self.graph.placeholder(AT)
        x = self.graph.placeholder("x")
        self.made = {Made(-1, ()): x}
        self.values[x] = self._value(
            [(at.batch, first.channels, at.height, at.width) for at in self.sizes], from_input=True
        )
        for number in range(len(first.steps)):
            self._add(number)
        self.graph.output(self.made[first.image])
        return Traced(self.model, self.graph, self.constants, self.values, self._run_of_blocks(), self.rounding)

    def _run_of_blocks(self) -> list[fx.Node]:
        """The calls that make the run, of all calls of its modules."""
        if len(self.calls) == len(self.blocks):
            return self.calls
        names = [f"{MODEL}.{name}" for name in self.blocks]
        return on_one_size(self.calls, names, name=lambda call: call.target, size=lambda call: self.values[call].shape)

    def _add(self, number: int) -> None:
        """One step of all recordings as a node, and one node for each tensor of a nested result that is used."""
        steps = [recording.steps[number] for recording in self.recordings]
        step = steps[0]
        args, kwargs = self._merged([(s.args, s.kwargs) for s in steps], _name(step.target))
        from_input = any(self.values[n].from_input for n in _nodes((args, kwargs)) if n in self.values)
        if isinstance(step.target, str):
            node = self.graph.call_module(f"{MODEL}.{step.target}", args, kwargs)
            if step.target in self.blocks:
                self.calls.append(node)
        elif (attribute := _property(step.target)) is not None:
            node = self.graph.call_function(getattr, (args[0], attribute))
        elif (method := _method(step.target)) is not None:
            node = self.graph.call_method(method, args, kwargs)
        else:
            node = self.graph.call_function(step.target, args, kwargs)
        self.values[node] = Value(None, (), None, from_input)
        for path in step.shapes:
            if path == () or Made(number, path) in self.used:
                part = node
                for key in path:
                    part = self.graph.call_function(operator.getitem, (part, key))
                    self.values[part] = Value(None, (), None, from_input)
                self.made[Made(number, path)] = part
                if any(s.shapes.keys() != step.shapes.keys() for s in steps):
                    raise _Differs(f"{_name(step.target)} returns another number of tensors")
                value = self._value([s.shapes[path] for s in steps], from_input)
                self.values[part] = replace(value, dtype=step.dtypes[path])

    def _merged(self, values: list[Any], where: str) -> Any:
        """What the same argument is in all recordings: a node, a literal, or a size as a node."""
        first = values[0]
        if isinstance(first, (Made, Attribute, Constant, Ambient)):
            if any(value != first for value in values):
                raise _Differs(f"{where} takes other tensors")
            return self._node(first)
        if any(type(value) is not type(first) for value in values):
            raise _Differs(
                f"{where} takes {first!r} at {self.recordings[0].size}, and other kinds of arguments elsewhere"
            )
        if isinstance(first, (tuple, list)):
            if any(len(value) != len(first) for value in values):
                raise _Differs(f"{where} takes more or fewer arguments")
            return like(first, [self._merged(list(parts), where) for parts in zip(*values, strict=True)])
        if isinstance(first, dict):
            if any(value.keys() != first.keys() for value in values):
                raise _Differs(f"{where} takes other keys")
            return {key: self._merged([value[key] for value in values], where) for key in first}
        if isinstance(first, slice):
            parts = ([getattr(v, name) for v in values] for name in ("start", "stop", "step"))
            return slice(*(self._merged(part, where) for part in parts))
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            return self._number(values, where)
        if any(value != first for value in values):
            raise _Differs(f"{where} takes {first!r} at {self.recordings[0].size}, other values elsewhere")
        return first

    def _number(self, values: list[Any], where: str) -> Any:
        found = fit(values, self.sizes)
        if found is None:
            raise _Differs(f"{where} takes {values} at {[r.size for r in self.recordings]}, which no formula fits")
        return (
            self.graph.call_function(size, (self.at, found.factors, found.over, found.batched, found.inverse))
            if isinstance(found, Size)
            else found
        )

    def _node(self, source: Made | Attribute | Constant | Ambient) -> fx.Node:
        if isinstance(source, Made):
            return self.made[source]
        if isinstance(source, Ambient):
            return self.graph.call_function(getattr, (self.at, source.name))
        if isinstance(source, Attribute):
            return self.graph.create_node("get_attr", f"{MODEL}.{source.name}")
        name = f"tensor{source.number}"
        if not hasattr(self.constants, name):
            tensors = [run.constants[source.number] for run in self.recordings if run.constants]
            if any(t.shape != tensors[0].shape or not torch.equal(t, tensors[0]) for t in tensors):
                raise _Differs(
                    f"a tensor of shape {tuple(tensors[0].shape)} made outside torch's functions, by numpy or by a "
                    "function under @torch.jit.script (PYTORCH_JIT=0 in the environment makes that a plain one)"
                )
            self.constants.register_buffer(name, tensors[0], persistent=False)
        return self.graph.create_node("get_attr", f"{CONSTANTS}.{name}")

    def _value(self, shapes: list[tuple[int, ...]], from_input: bool) -> Value:
        if any(len(shape) != len(shapes[0]) for shape in shapes):
            raise _Differs("a tensor has another number of dimensions")
        dims = [fit(list(dim), self.sizes) for dim in zip(*shapes, strict=True)]
        if any(dim is None for dim in dims):
            return Value(None, (), None, from_input)
        layout = find_layout(dims)
        if layout is not None:
            return Value("map", tuple(dims), layout, from_input)
        if not any(isinstance(dim, Size) for dim in dims):
            return Value("constant", tuple(dims), None, from_input)
        vector = dims[0] == BATCH and not any(isinstance(dim, Size) for dim in dims[1:])
        return Value("vector" if vector else None, tuple(dims), None, from_input)


def _at(recording: Recording, rounding: Rounding) -> At:
    batch, height, width = recording.size
    return At(batch, height, width, rounding.full(height), rounding.full(width), torch.device("cpu"), torch.float32)


def _nodes(args: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(args, lambda node: found.append(node))
    return found


def _name(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _property(target: Any) -> str | None:
    """The name of a tensor's property whose getter this is: `x.T`."""
    descriptor = getattr(target, "__self__", None)
    getter = _name(target) == "__get__" and isinstance(descriptor, types.GetSetDescriptorType)
    return str(descriptor.__name__) if getter else None  # type: ignore[union-attr]


def _method(target: Any) -> str | None:
    """The name of the tensor method that this is."""
    name = _name(target)
    return name if not name.startswith("__") and getattr(Tensor, name, None) is target else None
