"""What a forward collects of its blocks as it goes, put together in the tail."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from .cut import Cut, inputs_of, stand_ins
from .trace import Traced

_COLLECTS = ("cat", "concat", "concatenate", "stack", "unsqueeze", "view", "reshape", "flatten")
"""Functions and methods that only put maps together."""


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
    written = [node for node in inputs_of(tail, traced) if node in made]
    stand_in = stand_ins(cut.stages, cut.number, written, cut.features, traced)
    if len(stand_in) < len(written):
        return cut
    return replace(cut, body=body, tail=tail, written=written, stand_in=stand_in)


def _collects(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and getattr(node.target, "__name__", node.target) in _COLLECTS
