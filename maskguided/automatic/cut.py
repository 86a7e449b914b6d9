"""Cut a traced network after block n: three graphs, and the live values that pass between them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CannotSplit
from ..probing import Probe, untouched
from ..split import Split, State
from .trace import MODEL, Traced

_CONSTANTS = "constants"


@dataclass(frozen=True)
class Part:
    """A piece of the network: a graph whose inputs are live values, in the order of `inputs`."""

    graph: fx.Graph
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """Where a traced network is cut, by node."""

    prefix: list[fx.Node]
    body: list[fx.Node]
    tail: list[fx.Node]
    stand_in: dict[fx.Node, fx.Node]
    """For each value that the body writes: the one that takes its place when the body is skipped."""
    features: fx.Node
    """What block n+1 takes."""


class AutomaticSplit(Split):
    """A Split made of the network's own traced graph. The graphs run on the user's modules, not on copies."""

    def __init__(self, traced: Traced, split_at: int, names: tuple[str, ...], probe: Probe) -> None:
        super().__init__(traced.holder.get_submodule(MODEL), names, split_at, probe)
        self.constants = _constants(traced)
        cut = cut_after(traced, names, split_at)
        body = _inputs(cut.body, traced)
        tail = _inputs(cut.tail, traced)
        made = set(cut.body)
        written = [node for node in tail if node in made]
        live = list(dict.fromkeys([*body, *(cut.stand_in.get(n, n) for n in tail), cut.features]))
        _refuse_what_is_no_map([*live, *written], traced)
        self.reads = tuple(node.name for node in body)
        self.writes = tuple(node.name for node in written)
        self.features = cut.features.name
        self._live = tuple(node.name for node in live)
        self.feature_channels = (traced.values[cut.features].shape or (0, 0))[1]
        kinds = {node.name: traced.values[node].kind for node in live}
        self.kinds = {name: kind for name, kind in kinds.items() if kind is not None}
        self._stand_in = {node.name: cut.stand_in[node].name for node in written}
        image = next(node for node in traced.graph.nodes if node.op == "output").args[0]
        placeholder = [node for node in traced.graph.nodes if node.op == "placeholder"]
        self._parts = {
            "prefix": _extract(cut.prefix, placeholder, live, traced),
            "body": _extract(cut.body, body, written, traced),
            "tail": _extract(cut.tail, tail, image, traced),
        }
        self._bind()
        self._protect_inputs()

    def prefix(self, x: Tensor) -> State:
        return dict(zip(self._live, self._run["prefix"](x), strict=True))

    def body(self, state: State) -> State:
        made = self._run["body"](*(state[name] for name in self._parts["body"].inputs))
        return {**state, **dict(zip(self.writes, made, strict=True))}

    def skip(self, state: State) -> State:
        return {**state, **{name: state[stand_in] for name, stand_in in self._stand_in.items()}}

    def tail(self, state: State) -> Tensor:
        image: Tensor = self._run["tail"](*(state[name] for name in self._parts["tail"].inputs))
        return image

    def copy_tail(self) -> nn.Module:
        return _CopiedTail(self._parts["tail"], self.model, self.constants)

    def code(self, part: str) -> str:
        """The Python code of "prefix", "body" or "tail", for reading."""
        return self._run[part].code

    def __deepcopy__(self, memo: dict[int, Any]) -> AutomaticSplit:
        clone = copy.copy(self)
        memo[id(self)] = clone
        clone.model = copy.deepcopy(self.model, memo)
        clone.constants = copy.deepcopy(self.constants, memo)
        clone._bind()
        return clone

    def _bind(self) -> None:
        self._run = {name: _module(part.graph, self.model, self.constants) for name, part in self._parts.items()}
        for module in self._run.values():
            # GraphModule copies what a graph names; the network itself keeps the parts in step with its changes.
            module.add_module(MODEL, self.model)

    def _protect_inputs(self) -> None:
        """Where a part changes an input in place (`res += x`, ReLU(inplace=True)), let it work on a copy."""
        with untouched(self.model):
            values = {name: self.example(*self.probe.sizes[0]) for name in self._parts["prefix"].inputs}
            for name, outputs in (("prefix", self._live), ("body", self.writes), ("tail", ())):
                part = self._parts[name]
                inputs = {key: values[key].clone() for key in part.inputs}
                versions = {key: value._version for key, value in inputs.items()}
                made = self._run[name](*inputs.values())
                _clone_placeholders(part.graph, [key for key in inputs if inputs[key]._version != versions[key]])
                values.update(zip(outputs, made, strict=False))
        self._bind()


def cut_after(traced: Traced, blocks: tuple[str, ...], split_at: int) -> Cut:
    """Cut the graph right before block `split_at` + 1 and behind the last block with what trails it.

    Between two blocks stand the same few operations each time (an activation, a residual sum); behind the
    last block they belong to the body as well, so that skipping the body replaces a whole stage.
    """
    if len(traced.blocks) != len(blocks):
        raise CannotSplit(
            f"tracing: {len(blocks)} blocks were called when the network ran, {len(traced.blocks)} when it was traced; "
            "its forward chooses by values. An adapter can split it (docs/add_an_adapter.md)"
        )
    nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    position = {node: i for i, node in enumerate(nodes)}
    starts = [position[block] for block in traced.blocks]
    stages = [nodes[a:b] for a, b in pairwise(starts)]
    last = nodes[starts[-1] : starts[-1] + len(stages[-1])]
    if _roles(last, traced) != _roles(stages[-1], traced):
        last = last[:1]
    stages.append(last)
    begin, end = starts[split_at], starts[-1] + len(last)
    prefix, body, tail = nodes[:begin], nodes[begin:end], nodes[end:]
    features = next((a for a in traced.blocks[split_at].all_input_nodes if traced.values[a].kind == "map"), None)
    if features is None:
        raise CannotSplit(
            f"cutting after block {split_at}: {traced.blocks[split_at].target} takes no map (B, C, H, W). "
            "An adapter can put its input back on a map (docs/add_an_adapter.md)"
        )
    return Cut(prefix, body, tail, _stand_ins(stages, split_at, body, tail, features, traced), features)


def _stand_ins(
    stages: list[list[fx.Node]],
    split_at: int,
    body: list[fx.Node],
    tail: list[fx.Node],
    features: fx.Node,
    traced: Traced,
) -> dict[fx.Node, fx.Node]:
    """For each value from the body that the tail uses: the value of the same role in the last stage computed."""
    place = {node: (stage, at) for stage in stages for at, node in enumerate(stage)}
    computed = stages[split_at - 1]
    made = set(body)
    found: dict[fx.Node, fx.Node] = {}
    for node in (n for n in _inputs(tail, traced) if n in made):
        stage, at = place[node]
        alike = _roles(stage[: at + 1], traced) == _roles(computed[: at + 1], traced)
        same_role = computed[at] if alike else features
        fitting = [n for n in (same_role, features) if _shape(n, traced) == _shape(node, traced)]
        if not fitting:
            raise CannotSplit(
                f"skipping blocks {split_at + 1} to {len(stages)}: nothing computed before them has the shape "
                f"{_shape(node, traced)} of {node.name}, which the tail uses. Try another split_at"
            )
        found[node] = fitting[0]
    return found


def _inputs(nodes: list[fx.Node], traced: Traced) -> list[fx.Node]:
    """The tensors made outside `nodes` that they use, also by way of sizes that are read anew."""
    inside, found = set(nodes), dict[fx.Node, None]()

    def visit(node: fx.Node) -> None:
        for used in node.all_input_nodes:
            if used in inside:
                continue
            if _read_anew(used, traced):
                visit(used)
            else:
                found[used] = None

    for node in nodes:
        visit(node)
    return list(found)


def _read_anew(node: fx.Node, traced: Traced) -> bool:
    """Sizes and the like are no live values: each part computes them from its own maps, whole or window."""
    return node.op == "get_attr" or (node.op != "placeholder" and traced.values[node].shape is None)


def _extract(nodes: list[fx.Node], inputs: Iterable[fx.Node], outputs: Any, traced: Traced) -> Part:
    """The graph of `nodes`, from `inputs` to `outputs` (nodes, nested as the graph shall return them)."""
    graph = fx.Graph()
    inputs, inside = list(inputs), set(nodes)
    copies = {node: graph.placeholder(node.name) for node in inputs}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if not (_read_anew(node, traced) or node in inside):
                raise CannotSplit(f"cutting: {node.name} is used before it is made")
            for used in node.all_input_nodes:
                copied(used)
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in nodes:
        copied(node)
    graph.output(fx.node.map_arg(outputs, copied))
    graph.lint()
    return Part(graph, tuple(node.name for node in inputs))


def _clone_placeholders(graph: fx.Graph, names: list[str]) -> None:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        if str(node.target) in names:
            with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
                clone = graph.call_function(torch.clone, (node,))
            node.replace_all_uses_with(clone, delete_user_cb=lambda user, clone=clone: user is not clone)


def _constants(traced: Traced) -> nn.Module:
    """Tensors that the forward made while it was traced, as buffers that are not saved."""
    module = nn.Module()
    for node in traced.graph.nodes:
        if node.op == "get_attr" and not node.target.startswith((f"{MODEL}.", f"{_CONSTANTS}.")):
            module.register_buffer(node.target, getattr(traced.holder, node.target), persistent=False)
            node.target = f"{_CONSTANTS}.{node.target}"
    return module


def _module(graph: fx.Graph, model: nn.Module, constants: nn.Module | None) -> fx.GraphModule:
    root = nn.Module()
    root.add_module(MODEL, model)
    root.add_module(_CONSTANTS, constants)
    return fx.GraphModule(root, graph)


class _CopiedTail(nn.Module):
    """The tail with weights of its own: only the modules that it calls."""

    def __init__(self, part: Part, model: nn.Module, constants: nn.Module | None) -> None:
        super().__init__()
        self.inputs = part.inputs
        self.graph = copy.deepcopy(_module(part.graph, model, constants))

    def forward(self, state: State) -> Tensor:
        image: Tensor = self.graph(*(state[name] for name in self.inputs))
        return image


def _refuse_what_is_no_map(nodes: list[fx.Node], traced: Traced) -> None:
    for node in nodes:
        if traced.values[node].kind is None:
            raise CannotSplit(
                f"cutting: the live value {node.name} of shape {traced.values[node].shape} is neither a map "
                "(B, C, r*H, r*W) nor a vector (B, C). An adapter can put it back on its map (docs/add_an_adapter.md)"
            )


def _roles(nodes: list[fx.Node], traced: Traced) -> list[tuple[str, Any]]:
    """What each node does, whichever module does it."""
    return [
        (n.op, type(traced.holder.get_submodule(str(n.target))) if n.op == "call_module" else n.target) for n in nodes
    ]


def _shape(node: fx.Node, traced: Traced) -> tuple[int, ...] | None:
    return traced.values[node].shape
