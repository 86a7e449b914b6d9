"""A graph as plain rows, which can be pickled: torch.fx pickles one as code, and traces that when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx


@dataclass(frozen=True)
class _Value:
    """Stands for what a node of that name makes."""

    name: str


class Row(NamedTuple):
    """A node: see torch.fx.Node for what these are."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any


def rows_of(graph: fx.Graph) -> list[Row]:
    """The nodes of `graph`, in their order."""

    def stand_in(part: Any) -> Any:
        return _Value(part.name) if isinstance(part, fx.Node) else part

    def named(value: Any) -> Any:
        return fx.node.map_aggregate(value, stand_in)

    return [Row(node.op, node.name, node.target, named(node.args), named(node.kwargs)) for node in graph.nodes]


def graph_of(rows: list[Row]) -> fx.Graph:
    """The graph that `rows_of` was given.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> _ = graph.output(graph.call_method("relu", (x,)))
    >>> str(graph_of(rows_of(graph))) == str(graph)
    True
    """
    graph, made = fx.Graph(), dict[str, fx.Node]()

    def found(value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda part: made[part.name] if isinstance(part, _Value) else part)

    for op, name, target, args, kwargs in rows:
        made[name] = graph.create_node(op, target, found(args), found(kwargs), name)
    return graph
