"""Write a network's forward down as a graph that holds for every size, each body block as one node."""

from __future__ import annotations

import keyword
import operator
import types
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CannotSplit
from ..parts import Kind
from .body import on_one_size
from .layout import Layout, find_layout
from .record import (
    Ambient,
    Attribute,
    Constant,
    Made,
    Recording,
    like,
    made_in,
)
from .recordings import USE_AN_ADAPTER, Differs, name_of
from .sizes import BATCH, At, Rounding, Size, fit, size

MODEL, CONSTANTS, AT = "model", "constants", "at"
"""Names within the graph: of the network, of tensors that came from elsewhere, and of the sizes."""


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
    only_on_large: frozenset[str]
    """Functions that modules call on large images alone."""

    @property
    def output(self) -> fx.Node:
        """The node that returns the image."""
        output: fx.Node = next(node for node in self.graph.nodes if node.op == "output")
        return output


def trace(model: nn.Module, blocks: tuple[str, ...], runs: list[Recording], rounding: Rounding) -> Traced:
    """Generalise recordings: one graph for all sizes, of a network that rounds them up like this.

    Raises:
        CannotSplit: some number in the recordings does not follow from the size in this way.
    """
    try:
        return _Generaliser(model, runs, blocks, rounding).traced()
    except Differs as error:
        raise CannotSplit(f"tracing {type(model).__name__}: {error}. {USE_AN_ADAPTER}") from error


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
        only: frozenset[str] = frozenset().union(*(recording.only_here for recording in self.recordings))
        return Traced(self.model, self.graph, self.constants, self.values, self._run_of_blocks(), self.rounding, only)

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
        args, kwargs = self._merged([(s.args, s.kwargs) for s in steps], name_of(step.target))
        from_input = any(self.values[n].from_input for n in _nodes((args, kwargs)) if n in self.values)
        if isinstance(step.target, str):
            _check_name(step.target)
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
                    raise Differs(f"{name_of(step.target)} returns another number of tensors")
                value = self._value([s.shapes[path] for s in steps], from_input)
                self.values[part] = replace(value, dtype=step.dtypes[path])

    def _merged(self, values: list[Any], where: str) -> Any:
        """What the same argument is in all recordings: a node, a literal, or a size as a node."""
        first = values[0]
        if isinstance(first, (Made, Attribute, Constant, Ambient)):
            if any(value != first for value in values):
                raise Differs(f"{where} takes other tensors")
            return self._node(first)
        if any(type(value) is not type(first) for value in values):
            raise Differs(
                f"{where} takes {first!r} at {self.recordings[0].size}, and other kinds of arguments elsewhere"
            )
        if isinstance(first, (tuple, list)):
            if any(len(value) != len(first) for value in values):
                raise Differs(f"{where} takes more or fewer arguments")
            return like(first, [self._merged(list(parts), where) for parts in zip(*values, strict=True)])
        if isinstance(first, dict):
            if any(value.keys() != first.keys() for value in values):
                raise Differs(f"{where} takes other keys")
            return {key: self._merged([value[key] for value in values], where) for key in first}
        if isinstance(first, slice):
            parts = ([getattr(v, name) for v in values] for name in ("start", "stop", "step"))
            return slice(*(self._merged(part, where) for part in parts))
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            return self._number(values, where)
        if any(value != first for value in values):
            raise Differs(f"{where} takes {first!r} at {self.recordings[0].size}, other values elsewhere")
        return first

    def _number(self, values: list[Any], where: str) -> Any:
        found = fit(values, self.sizes)
        if found is None:
            raise Differs(f"{where} takes {values} at {[r.size for r in self.recordings]}, which no formula fits")
        return (
            self.graph.call_function(size, (self.at, found.factors, found.over, found.batched, found.kind))
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
                raise Differs(
                    f"a tensor of shape {tuple(tensors[0].shape)} made outside torch's functions, by numpy or by a "
                    "function under @torch.jit.script (PYTORCH_JIT=0 in the environment makes that a plain one)"
                )
            self.constants.register_buffer(name, tensors[0], persistent=False)
        return self.graph.create_node("get_attr", f"{CONSTANTS}.{name}")

    def _value(self, shapes: list[tuple[int, ...]], from_input: bool) -> Value:
        if any(len(shape) != len(shapes[0]) for shape in shapes):
            raise Differs("a tensor has another number of dimensions")
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


def _check_name(name: str) -> None:
    """Refuse a module that the code of a graph cannot name."""
    if word := next((part for part in name.split(".") if keyword.iskeyword(part)), None):
        raise Differs(f"the module {name!r} is called by a word of Python, {word!r}: give it another name, as {word}_")


def _at(recording: Recording, rounding: Rounding) -> At:
    batch, height, width = recording.size
    return At(batch, height, width, rounding.full(height), rounding.full(width), torch.device("cpu"), torch.float32)


def _nodes(args: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(args, lambda node: found.append(node))
    return found


def _property(target: Any) -> str | None:
    """The name of a tensor's property whose getter this is: `x.T`."""
    descriptor = getattr(target, "__self__", None)
    getter = name_of(target) == "__get__" and isinstance(descriptor, types.GetSetDescriptorType)
    return str(descriptor.__name__) if getter else None  # type: ignore[union-attr]


def _method(target: Any) -> str | None:
    """The name of the tensor method that this is; of operators, of those that torch writes in Python (`x // 2`)."""
    name = name_of(target)
    plain = not name.startswith("__") or isinstance(target, types.FunctionType)
    return name if plain and getattr(Tensor, name, None) is target else None
