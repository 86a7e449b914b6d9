"""Where a traced network is cut: which nodes run before and after, and which values pass between them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import fx, nn

from ..errors import CannotSplit
from ..parts import Kind
from .recordings import USE_AN_ADAPTER
from .sizes import Size
from .trace import MODEL, Traced, Value


@dataclass(frozen=True)
class Cut:
    """Where a traced network is cut, by node."""

    prefix: list[fx.Node]
    body: list[fx.Node]
    tail: list[fx.Node]
    written: list[fx.Node]
    """What the body makes and the tail uses."""
    stand_in: dict[fx.Node, fx.Node]
    """For each value that the body writes: the one that takes its place when the body is skipped, if there is one."""
    features: fx.Node
    """What block n+1 takes."""
    stages: list[list[fx.Node]]
    """What runs from the start of each block to that of the next; the last one with what trails it."""
    number: int
    """n."""


@dataclass(frozen=True)
class Piece:
    """The body from one cut to the next."""

    name: str
    nodes: list[fx.Node]
    inputs: list[fx.Node]
    written: list[fx.Node]
    stand_in: dict[fx.Node, fx.Node]

    @property
    def whole(self) -> bool:
        """Whether every value that it writes has a stand-in."""
        return len(self.stand_in) == len(self.written)

    def summary(self, kinds: Mapping[str, Kind]) -> tuple[str, dict[str, Kind], dict[str, str]]:
        """Name, what it reads and of which kind, what it writes and what stands in for each: of a `whole` piece."""
        reads = {node.name: kinds[node.name] for node in self.inputs}
        return self.name, reads, {node.name: self.stand_in[node].name for node in self.written}


_PADDED = "where the forward pads the image for all of its blocks, pad it before the network and crop what it makes"
_IN_WINDOWS = (
    "where windows are cut out before it and put together after it, the block is a module around all three, to be "
    "written or to be named (body=)"
)
_COLLECTS = ("cat", "concat", "concatenate", "stack", "unsqueeze", "view", "reshape", "flatten")
"""Functions and methods that only put maps together."""


def cut_after(traced: Traced, blocks: tuple[str, ...], split_at: int) -> Cut:
    """Cut the graph right before block `split_at` + 1 and behind the last block with what trails it.

    Between two blocks stand the same few operations each time (an activation, a residual sum); behind the
    last block they belong to the body as well, so that skipping the body replaces a whole stage.
    """
    if len(traced.blocks) != len(blocks):
        raise CannotSplit(
            f"tracing: the run of blocks has {len(blocks)} calls, its modules have {len(traced.blocks)}, and "
            f"nothing tells which of these are meant. {USE_AN_ADAPTER}"
        )
    nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    position = {node: i for i, node in enumerate(nodes)}
    starts = [position[block] for block in traced.blocks]
    stages = [nodes[a:b] for a, b in pairwise(starts)]
    last = nodes[starts[-1] : starts[-1] + len(stages[-1])]
    if _roles(last, traced) != _roles(stages[-1], traced):
        last = last[:1]
    last += [node for node in nodes[starts[-1] + len(last) :] if _takes_apart(node, last)]
    stages.append(last)
    begin = starts[split_at]
    prefix, body = nodes[:begin], [*nodes[begin : starts[-1]], *last]
    tail = [node for node in nodes[starts[-1] :] if node not in last]
    taken = [node for node in traced.blocks[split_at].all_input_nodes if not _made_anew(node, traced)]
    maps = [node for node in taken if traced.values[node].kind == "map"]
    features = next((node for node in maps if traced.values[node].dtype.is_floating_point), None)
    if features is None:
        shapes = [f"({', '.join(map(str, shape))})" for node in taken if (shape := _shape(node, traced))]
        raise CannotSplit(
            f"cutting after block {split_at}: {blocks[split_at]} takes nothing that lies on a map"
            f"{', only ' + ' and '.join(shapes) if shapes else ''}. A block takes a map and gives one: "
            f"{_PADDED if any('H + ' in shape for shape in shapes) else _IN_WINDOWS}. {USE_AN_ADAPTER}"
        )
    made, (image,) = set(body), traced.output.all_input_nodes
    if image in made and image not in last:
        raise made_elsewhere(image)
    written = [node for node in tail_inputs(tail, traced) if node in made]
    stand_in = stand_ins(stages, split_at, written, features, traced)
    return Cut(
        prefix=prefix,
        body=body,
        tail=tail,
        written=written,
        stand_in=stand_in,
        features=features,
        stages=stages,
        number=split_at,
    )


def made_elsewhere(node: fx.Node) -> CannotSplit:
    """That a part needs what is made in none before it."""
    return CannotSplit(
        f"cutting: {node.name} is used before it is made: the image is not made of the blocks alone. If the network "
        "returns several images, wrap it in a module that returns the right one; a block that leaves a value for the "
        f"next call is no block. {USE_AN_ADAPTER}"
    )


def live_at(cut: Cut, traced: Traced) -> list[fx.Node]:
    """What is made before the cut and used after it, the stand-ins of what the body writes included."""
    made = set(cut.body)
    kept = [cut.stand_in.get(node, node) for node in tail_inputs(cut.tail, traced)]
    kept = [node for node in kept if node not in made]
    return list(dict.fromkeys([*inputs_of(cut.body, traced), *kept, cut.features]))


def pieces_between(cuts: list[Cut], traced: Traced) -> list[Piece]:
    """The body between each two cuts, and after the last one."""
    pieces = []
    for cut, following in pairwise(cuts):
        before = set(cut.prefix)
        nodes = [node for node in following.prefix if node not in before]
        made = set(nodes)
        written = [node for node in live_at(following, traced) if node in made]
        stand_in = stand_ins(cut.stages, cut.number, written, cut.features, traced)
        pieces.append(Piece(f"from {cut.number}", nodes, inputs_of(nodes, traced), written, stand_in))
    last = cuts[-1]
    pieces.append(Piece(f"from {last.number}", last.body, inputs_of(last.body, traced), last.written, last.stand_in))
    return pieces


def _takes_apart(node: fx.Node, last: list[fx.Node]) -> bool:
    """Whether `node` is one tensor of the several that the block `last[0]` returns."""
    return node.target is operator.getitem and node.args[0] in last


def stand_ins(
    stages: list[list[fx.Node]],
    split_at: int,
    written: list[fx.Node],
    features: fx.Node,
    traced: Traced,
) -> dict[fx.Node, fx.Node]:
    """For each value that blocks after `split_at` write: the value of the same role in the last stage computed."""
    place = {node: (stage, at) for stage in stages for at, node in enumerate(stage)}
    computed = stages[split_at - 1]
    found: dict[fx.Node, fx.Node] = {}
    for node in written:
        stage, at = place[node]
        alike = _roles(stage[: at + 1], traced) == _roles(computed[: at + 1], traced)
        same_role = computed[at] if alike else features
        fitting = [n for n in (same_role, features) if _is_like(traced.values[n], traced.values[node])]
        if fitting:
            found[node] = fitting[0]
    return found


def inputs_of(nodes: list[fx.Node], traced: Traced) -> list[fx.Node]:
    """The tensors made outside `nodes` that they use."""
    inside = set(nodes)
    used = dict.fromkeys(used for node in nodes for used in node.all_input_nodes if used not in inside)
    return [node for node in used if not _made_anew(node, traced)]


def tail_inputs(tail: list[fx.Node], traced: Traced) -> list[fx.Node]:
    """The tensors made outside `tail` that it uses; of an empty one the image, which the last block gives."""
    return inputs_of([*tail, traced.output], traced)


def _made_anew(node: fx.Node, traced: Traced) -> bool:
    """Whether each part computes it again: what follows from weights and sizes alone (a size, an attention mask).

    A position code does, too, but lies on the map: it is another at each place, and so is gathered.
    """
    if node not in traced.values:
        return True
    value = traced.values[node]
    return not value.from_input and value.kind != "map"


def collected_in_tail(cut: Cut, traced: Traced) -> Cut:
    """`cut`, with what only the tail uses and only puts maps together in the tail; `cut` itself where that is no help.

    A stack that grows by each block (HAN: `res = torch.cat([res, x.unsqueeze(1)], 1)`) has more channels after the body
    than at the cut, so nothing stands in for it. For what it is made of, the blocks' own maps, something does.
    """
    if len(cut.stand_in) == len(cut.written):
        return cut
    inside = set(cut.body)
    late: set[fx.Node] = set()
    for node in reversed(cut.body):
        if _collects(node) and all(user in late or user not in inside for user in node.users):
            late.add(node)
    body = [node for node in cut.body if node not in late]
    tail = [*(node for node in cut.body if node in late), *cut.tail]
    made = set(body)
    written = [node for node in tail_inputs(tail, traced) if node in made]
    stand_in = stand_ins(cut.stages, cut.number, written, cut.features, traced)
    if len(stand_in) < len(written):
        return cut
    return replace(cut, body=body, tail=tail, written=written, stand_in=stand_in)


def _collects(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and getattr(node.target, "__name__", node.target) in _COLLECTS


def _roles(nodes: list[fx.Node], traced: Traced) -> list[tuple[str, Any]]:
    """What each node does, whichever module does it."""
    return [(n.op, type(submodule(n, traced)) if n.op == "call_module" else n.target) for n in nodes]


def submodule(node: fx.Node, traced: Traced) -> nn.Module:
    """What a node that calls a module calls."""
    return traced.model.get_submodule(str(node.target).removeprefix(f"{MODEL}."))


def _is_like(value: Value, other: Value) -> bool:
    """Whether one can stand in for the other: a map of features for neither a mask nor a complex one."""
    numbers = value.dtype == other.dtype or (value.dtype.is_floating_point and other.dtype.is_floating_point)
    return value.shape == other.shape and numbers


def _shape(node: fx.Node, traced: Traced) -> tuple[int | Size, ...]:
    return traced.values[node].shape
