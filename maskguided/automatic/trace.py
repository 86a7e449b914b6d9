"""Write a network's forward down as a graph that holds for every size, each body block as one node."""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CannotSplit
from ..probing import Probe
from ..split import Kind
from .layout import Layout, find_layout
from .record import CannotFollow, Constant, Held, Live, Made, Recording, leaves_around, rebuilt, record
from .sizes import Size, fit, size

MODEL, CONSTANTS, AT = "model", "constants", "at"
"""Names within the graph: of the network, of tensors that came from elsewhere, and of the sizes."""

_UNITS = (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48, 5, 10, 20, 7, 14, 28)


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


@dataclass(frozen=True)
class Traced:
    """A network's graph, what its nodes yield, and where its blocks stand."""

    model: nn.Module
    graph: fx.Graph
    constants: nn.Module
    values: dict[fx.Node, Value]
    blocks: list[fx.Node]
    """The calls of the body's blocks, in order."""
    unit: int
    """The graph holds for heights and widths that are multiples of this."""


def trace(model: nn.Module, blocks: tuple[str, ...], probe: Probe) -> Traced:
    """Record `model` at several sizes and generalise: the smallest unit wins whose multiples all agree.

    Raises:
        CannotSplit: the forward branches on pixel values, or does other things at every size.
    """
    leaves = leaves_around(model, blocks)
    why = "it was never run"
    for unit in sorted({math.lcm(probe.multiple_of, unit) for unit in _UNITS}, key=_units_first):
        try:
            return _Generaliser(model, _recordings(model, leaves, probe, unit), blocks, unit).traced()
        except CannotFollow as error:
            raise CannotSplit(f"recording {type(model).__name__}: {error}. {ADAPTER}") from error
        except _Differs as difference:
            why = str(difference)
    raise CannotSplit(
        f"tracing {type(model).__name__}: its steps differ from size to size, even at multiples of {unit} "
        f"({why}). {ADAPTER}"
    )


ADAPTER = "An adapter can split it (docs/new_backbone.md)"


class _Differs(Exception):
    """Two recordings do not go together."""


def _units_first(unit: int) -> tuple[int, int]:
    return (_UNITS.index(unit) if unit in _UNITS else len(_UNITS)), unit


def _recordings(model: nn.Module, leaves: set[str], probe: Probe, unit: int) -> Iterable[Recording]:
    """The network at sizes that no larger unit would fit by chance, the cheap ones first."""
    a = max(2, -(-probe.least // unit))
    b, c = max(a + 2, -(-35 // unit)), max(a + 3, -(-66 // unit))
    for batch, height, width in ((1, a, a + 1), (1, a + 1, a), (1, a + 1, b), (1, b, a), (1, c, a), (1, a, c)):
        yield _recorded(model, leaves, probe.input(height * unit, width * unit, batch))
    yield _recorded(model, leaves, probe.input(a * unit, (a + 1) * unit, 2))


def _recorded(model: nn.Module, leaves: set[str], x: Tensor) -> Recording:
    try:
        return record(model, leaves, x)
    except CannotFollow:
        raise
    except Exception as error:  # whatever a foreign forward raises
        text = str(error).splitlines()[0] if str(error) else ""
        raise _Differs(f"an input of {tuple(x.shape)} raises {type(error).__name__}: {text}") from error


@dataclass
class _Generaliser:
    """Recordings at several sizes -> one graph."""

    model: nn.Module
    source: Iterable[Recording]
    blocks: tuple[str, ...]
    unit: int
    graph: fx.Graph = field(default_factory=fx.Graph)
    constants: nn.Module = field(default_factory=nn.Module)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    calls: list[fx.Node] = field(default_factory=list)

    def traced(self) -> Traced:
        self.recordings = self._agreeing()
        self.sizes = [r.size for r in self.recordings]
        self.at = self.graph.placeholder(AT)
        x = self.graph.placeholder("x")
        self.made: dict[Made, fx.Node] = {Made(-1, ()): x}
        self.values[x] = self._value([(b, r.channels, h, w) for r in self.recordings for b, h, w in [r.size]], from_input=True)
        for number in range(len(self.recordings[0].steps)):
            self._add(number)
        self.graph.output(self.made[self.recordings[0].image])
        return Traced(self.model, self.graph, self.constants, self.values, self.calls, self.unit)

    def _agreeing(self) -> list[Recording]:
        """All recordings, as soon as two differ in their steps an error."""
        taken: list[Recording] = []
        for recording in self.source:
            taken.append(recording)
            first = taken[0]
            for one, other in zip(first.steps, recording.steps, strict=False):
                if one.target != other.target:
                    raise _Differs(f"{_name(one.target)} at {first.size[1:]}, {_name(other.target)} at {recording.size[1:]}")
            if (len(first.steps), first.image) != (len(recording.steps), recording.image):
                raise _Differs(f"{len(first.steps)} steps at {first.size}, {len(recording.steps)} at {recording.size}")
        used = {made for step in taken[0].steps for made in _made_in((step.args, step.kwargs))}
        self.used = used | {taken[0].image}
        return taken

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
                self.values[part] = self._value([s.shapes[path] for s in steps], from_input)

    def _merged(self, values: list[Any], where: str) -> Any:
        """What the same argument is in all recordings: a node, a literal, or a size as a node."""
        first = values[0]
        if isinstance(first, (Made, Held, Constant, Live)):
            if any(value != first for value in values):
                raise _Differs(f"{where} takes other tensors")
            return self._node(first)
        if any(type(value) is not type(first) for value in values):
            raise _Differs(f"{where} takes {first!r} at {self.sizes[0]}, and other kinds of arguments elsewhere")
        if isinstance(first, (tuple, list)):
            if any(len(value) != len(first) for value in values):
                raise _Differs(f"{where} takes more or fewer arguments")
            merged = [self._merged(list(parts), where) for parts in zip(*values, strict=True)]
            return tuple(merged) if isinstance(first, tuple) else merged
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
            raise _Differs(f"{where} takes {first!r} at {self.sizes[0]}, other values elsewhere")
        return first

    def _number(self, values: list[Any], where: str) -> Any:
        found = fit(values, self.sizes)
        if found is None:
            raise _Differs(f"{where} takes {values} at {self.sizes}, which no formula fits")
        return self.graph.call_function(size, (self.at, *found.terms)) if isinstance(found, Size) else found

    def _node(self, source: Made | Held | Constant | Live) -> fx.Node:
        if isinstance(source, Made):
            return self.made[source]
        if isinstance(source, Live):
            return self.graph.call_function(getattr, (self.at, source.name))
        if isinstance(source, Held):
            return self.graph.create_node("get_attr", f"{MODEL}.{source.name}")
        name = f"tensor{source.number}"
        if not hasattr(self.constants, name):
            tensors = [recording.constants[source.number] for recording in self.recordings]
            if any(t.shape != tensors[0].shape or not torch.equal(t, tensors[0]) for t in tensors):
                raise _Differs(f"a tensor of shape {tuple(tensors[0].shape)} made outside torch's functions")
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
        vector = dims[0] == Size(1, 0, 0, 0, 1, True) and not any(isinstance(dim, Size) for dim in dims[1:])
        return Value("vector" if vector else None, tuple(dims), None, from_input)


def _made_in(described: Any) -> Iterable[Made]:
    found: list[Made] = []

    def visit(value: Any) -> Any:
        if isinstance(value, Made):
            found.append(value)
        return rebuilt(value, visit)

    visit(described)
    return found


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
