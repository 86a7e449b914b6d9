"""Where the last upsampling step of a traced tail begins: what a light tail (tails/refine.py) looks at."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import fx, nn
from torch.nn import functional as F

from .cut import Cut, submodule
from .trace import Traced


def before_last_growth(cut: Cut, traced: Traced) -> fx.Node | None:
    """The map that the tail's last step to a larger one starts from: made by the body, or of what that makes.

    Before PixelShuffle stands the convolution that widens for it, which is part of the step. None where there is none.
    """
    following = {node: _ratio(node, traced) for node in cut.written}  # what the body makes, and what is made of that
    largest, found = max(following.values(), default=Fraction(0)), None
    for node in cut.tail:
        used = [one for one in node.all_input_nodes if one in following]
        if not used or node not in traced.values:
            continue
        own = following[node] = _ratio(node, traced)
        if own <= largest:  # nor is it a step where a side branch comes back from a smaller map
            continue
        largest, found = own, max(used, key=lambda one: following[one])
        if _shuffles(node, traced) and _is_convolution(found, traced) and found not in cut.written:
            found = next((one for one in found.all_input_nodes if one in following), found)
    return found if found is not None and following[found] else None


def leading_to(node: fx.Node, cut: Cut) -> list[fx.Node]:
    """Of the tail, what `node` is made by, and what changes that in place."""
    needed, before = {node}, cut.tail[: cut.tail.index(node) + 1]
    for one in reversed(before):
        if one in needed or (_in_place(one) and one.all_input_nodes[:1] and one.all_input_nodes[0] in needed):
            needed.update((one, *one.all_input_nodes))
    return [one for one in before if one in needed]


def _in_place(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op != "call_module" and name.endswith("_") and not name.endswith("__")


def _ratio(node: fx.Node, traced: Traced) -> Fraction:
    """Pixels of a map of features per LR pixel, along a side; 0 of what is no such map."""
    value = traced.values[node]
    if value.kind != "map" or value.layout is None or not value.dtype.is_floating_point:
        return Fraction(0)
    return value.layout.ratio


def _shuffles(node: fx.Node, traced: Traced) -> bool:
    if node.op == "call_module":
        return isinstance(submodule(node, traced), nn.PixelShuffle)
    return node.target in (F.pixel_shuffle, torch.pixel_shuffle)


def _is_convolution(node: fx.Node, traced: Traced) -> bool:
    if node.op == "call_module":
        return isinstance(submodule(node, traced), nn.Conv2d)
    return node.target in (F.conv2d, torch.conv2d)
