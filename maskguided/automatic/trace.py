"""Write a network's forward down as a graph in which the body's blocks, and all that holds none, are leaves."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor, fx, nn

from ..errors import CannotSplit
from ..probing import Probe, untouched
from ..split import Kind

MODEL = "model"
"""Name of the network within the traced holder: every target in the graph begins with it."""


@dataclass(frozen=True)
class Value:
    """What a node of the graph yields."""

    kind: Kind | None
    """None: no tensor (a size, a number), or a tensor that is no map, vector or constant."""
    shape: tuple[int, ...] | None
    """On the first probe size; None: no tensor."""


@dataclass(frozen=True)
class Traced:
    """A network's graph, what its nodes yield, and where its blocks stand."""

    holder: nn.Module
    graph: fx.Graph
    values: dict[fx.Node, Value]
    blocks: list[fx.Node]
    """The calls of the body's blocks, in order."""


def trace(model: nn.Module, blocks: tuple[str, ...], probe: Probe) -> Traced:
    """Trace `model` with torch.fx and learn from two probe inputs what each node yields.

    Raises:
        CannotSplit: the forward branches on values or does what fx cannot follow.
    """
    holder = _Holder(model)
    targets = {f"{MODEL}.{name}" for name in blocks}
    try:
        graph = _traced(holder, targets, probe)
    except Exception as error:  # fx hands on whatever the foreign forward raises on a proxy
        raise CannotSplit(
            f"tracing {type(model).__name__}: torch.fx cannot follow its forward "
            f"({type(error).__name__}: {error}). An adapter can split it (docs/add_an_adapter.md)"
        ) from error
    with untouched(model):
        first, second = probe.sizes
        module = fx.GraphModule(holder, graph)
        one = _observe(module, graph, probe.input(*first))
        two = _observe(module, graph, probe.input(*second, batch=2))
    values = {node: _value(one[node], two[node], first, second) for node in graph.nodes if node in one}
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target in targets]
    return Traced(holder, graph, values, calls)


class _Holder(nn.Module):
    """Calls the network with the image alone, so that its other arguments keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


def _traced(holder: nn.Module, blocks: set[str], probe: Probe) -> fx.Graph:
    """Trace; where the forward branches on sizes (`assert h % 2 == 0`), trace again knowing how that one goes.

    It goes as the probe's size makes it; that other sizes take the same path is checked on the finished split.
    """
    branches: list[bool] = []
    while True:
        tracer = _Tracer(blocks, branches)
        # Restored before anything is computed: a traced forward that assigns to its module leaves a proxy there.
        with untouched(holder.get_submodule(MODEL)):
            try:
                return tracer.trace(holder)
            except _Undecided as open_branch:
                asked = open_branch.node
        with untouched(holder.get_submodule(MODEL)):
            branches.append(_decide(tracer, asked, probe.input(*probe.sizes[0])))


def _decide(tracer: fx.Tracer, asked: fx.Node, example: Tensor) -> bool:
    so_far, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    so_far.graph_copy(tracer.graph, copies)
    so_far.output(copies[asked])
    value = fx.Interpreter(fx.GraphModule(tracer.root, so_far)).run(example)
    if isinstance(value, Tensor):
        raise fx.proxy.TraceError(f"the forward branches on pixel values, at {asked.name}")
    return bool(value)


class _Undecided(Exception):
    """The traced forward asks whether `node` is true."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node


class _Tracer(fx.Tracer):
    """Enters only the modules that hold a block: what lies beside the body need not be traceable."""

    def __init__(self, blocks: set[str], branches: list[bool]) -> None:
        super().__init__()
        self._branches = iter(list(branches))
        self._holds_blocks = {name[:i] for name in blocks for i, c in enumerate(name) if c == "."}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._holds_blocks

    def to_bool(self, obj: fx.Proxy) -> bool:
        for known in self._branches:
            return known
        raise _Undecided(obj.node)


def _observe(module: fx.GraphModule, graph: fx.Graph, x: Tensor) -> dict[fx.Node, Any]:
    """Shape of every tensor that a run yields, by node; other values as they are."""
    seen: dict[fx.Node, Any] = {}

    class Observer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            seen[n] = tuple(result.shape) if isinstance(result, Tensor) else _NOT_A_TENSOR
            return result

    Observer(module, graph=graph).run(x)
    return seen


_NOT_A_TENSOR = object()


def _value(one: Any, two: Any, first: tuple[int, int], second: tuple[int, int]) -> Value:
    if one is _NOT_A_TENSOR:
        return Value(None, None)
    if len(one) == 4:
        ratios = {
            Fraction(a, b)
            for shape, size in ((one, first), (two, second))
            for a, b in zip(shape[2:], size, strict=True)
        }
        if len(ratios) == 1:
            return Value("map", one)
    if one == two:
        return Value("constant", one)
    if one[1:] == two[1:] and (one[0], two[0]) == (1, 2):
        return Value("vector", one)
    return Value(None, one)
