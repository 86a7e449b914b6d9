"""Cut a traced network after block n: three graphs, and the live values that pass between them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CannotSplit
from ..parts import Kind, State, Stretch, moved_out
from ..probing.modules import copied
from ..probing.probe import Probe
from ..probing.thin import thinly
from ..probing.untouched import untouched
from ..split import Split
from .cut import (
    Cut,
    Piece,
    collected_in_tail,
    cut_after,
    inputs_of,
    live_at,
    made_elsewhere,
    pieces_between,
    tail_inputs,
)
from .last_upsampling import before_last_growth, leading_to
from .layout import Layout
from .recordings import USE_AN_ADAPTER
from .rows import Row, graph_of, rows_of
from .sizes import At, Rounding, Size
from .trace import AT, CONSTANTS, MODEL, Traced

_log = logging.getLogger(__name__)

_IMAGE = "lr image"
"""Name of the LR image in a state: there only where its size is no multiple of the unit, so that maps are larger."""

_VALUES = "live_values"


@dataclass(frozen=True)
class Part:
    """A piece of the network: a graph called with a size and a list of live values, in the order of `inputs`.

    It empties the list, so that what nobody else holds is freed after its last use.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]

    def __reduce__(self) -> Any:
        return _part_of, (rows_of(self.graph), self.inputs)


@dataclass(frozen=True)
class Frame:
    """How the parts of a network are called with the maps of a state."""

    layouts: Mapping[str, Layout]
    """Of all maps: how the network holds them."""
    rounding: Rounding

    @property
    def enlarges(self) -> bool:
        """Whether the network enlarges its input to the rounded size, so that its maps are larger than the image."""
        return any(layout.full for layout in self.layouts.values())

    def full(self, height: int, width: int) -> tuple[int, int]:
        """What the network makes of the size of an image."""
        return (self.rounding.full(height), self.rounding.full(width)) if self.enlarges else (height, width)

    def inputs(self, part: Part, state: State, network: nn.Module) -> tuple[At, list[Any]]:
        """What to call `part`, which runs modules of `network`, with."""
        at = self._at(part, state, network)
        return at, [self.layouts[n].from_map(state[n], at) if n in self.layouts else state[n] for n in part.inputs]

    def _at(self, part: Part, state: State, network: nn.Module) -> At:
        """The size of the LR image, or of windows, which are not enlarged: that of the first map `part` takes."""
        name = next(name for name in part.inputs if name in self.layouts)
        value, ratio = state[name], self.layouts[name].ratio
        if _IMAGE in state:
            height, width = state[_IMAGE].shape[2:]
        else:
            height, width = (side * ratio.denominator // ratio.numerator for side in value.shape[2:])
        whole = _IMAGE in state or not self.enlarges
        full = (self.rounding.full(height), self.rounding.full(width)) if whole else (height, width)
        # A live value may be a mask, or float32 in a network of float16; a tail may have no weights.
        floats = (tensor for tensor in chain(network.parameters(), state.values()) if tensor.is_floating_point())
        return At(value.shape[0], height, width, *full, value.device, next(floats).dtype)


class AutomaticSplit(Split):
    """A Split made of the network's own traced graph. The graphs run on the user's modules, not on copies."""

    def __init__(self, traced: Traced, cuts: tuple[int, ...], names: tuple[str, ...], probe: Probe) -> None:
        super().__init__(traced.model, names, cuts[0], probe)
        self.cut_again(cuts[1:])
        self.constants, self.only_on_large = traced.constants, traced.only_on_large
        found = [cut_after(traced, names, number) for number in cuts]
        pieces = pieces_between(found, traced) if len(cuts) > 1 else []
        cut = found[0] if pieces else collected_in_tail(found[0], traced)
        live = live_at(cut, traced)
        passed = [*live, *cut.written, *(node for piece in pieces for node in (*piece.inputs, *piece.written))]
        _refuse_what_is_no_map(passed, traced)
        halfway = before_last_growth(cut, traced)
        if not all(piece.whole for piece in pieces):
            raise CannotSplit(f"cutting after blocks {cuts}: no value stands in for one that blocks between them make")
        self._live = tuple(node.name for node in live)
        self.reads = tuple(node.name for node in inputs_of(cut.body, traced))
        self.writes = tuple(node.name for node in cut.written)
        self.features = cut.features.name
        self._stand_in = {node.name: cut.stand_in[node].name for node in cut.written if node in cut.stand_in}
        self.can_skip = len(self._stand_in) == len(cut.written)
        kinds = self._describe(passed if halfway is None else [*passed, halfway], traced)
        joined = [*cut.written, *(node for piece in pieces for node in piece.written)]
        self.can_join = all(kinds[node.name] == "map" for node in joined)
        self._pieces = tuple(piece.summary(kinds) for piece in pieces)
        self._parts = _parts_of(cut, live, pieces, traced)
        self._halfway = "" if halfway is None else halfway.name
        if halfway is not None and self._halfway not in self.writes:
            needed = leading_to(halfway, cut)
            self._parts["halfway"] = _extract(needed, inputs_of(needed, traced), [halfway], traced)
        self._bind()
        self._protect_inputs()

    def _describe(self, passed: list[fx.Node], traced: Traced) -> dict[str, Kind]:
        """Note how the values that pass between the parts lie on the image; what each of them is."""
        values = {node.name: traced.values[node] for node in passed}
        kinds: dict[str, Kind] = {name: kind for name, value in values.items() if (kind := value.kind) is not None}
        self.kinds = {name: kinds[name] for name in self._live}
        x = _input(traced)
        values[x.name] = traced.values[x]
        layouts = {name: value.layout for name, value in values.items() if value.layout is not None}
        self.feature_channels = layouts[self.features].channels
        self._frame = Frame(layouts, traced.rounding)
        if self._frame.enlarges:
            self.multiple_of = traced.rounding.unit
        return kinds

    def prefix(self, x: Tensor) -> State:
        size = x.shape[2], x.shape[3]
        rounded = {} if self.full_size(*size) == size else {_IMAGE: x}
        return {**self._made(self._live, "prefix", {**rounded, self._parts["prefix"].inputs[0]: x}), **rounded}

    def full_size(self, height: int, width: int) -> tuple[int, int]:
        return super().full_size(*self._frame.full(height, width))

    def body(self, state: State) -> State:
        return {**state, **self._made(self.writes, "body", state)}

    def skip(self, state: State) -> State:
        if not self.can_skip:
            missing = ", ".join(name for name in self.writes if name not in self._stand_in)
            raise CannotSplit(
                f"skipping blocks {self.split_at + 1} to {len(self.blocks)}: nothing computed before them has the "
                f"shape of {missing}, which the tail uses; a light coarse tail does without (coarse_tail='light')"
            )
        return {**state, **{name: state[stand_in] for name, stand_in in self._stand_in.items()}}

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        def stretch(name: str, reads: Mapping[str, Kind], stand_in: Mapping[str, str]) -> Stretch:
            writes = tuple(stand_in)
            return Stretch(
                lambda state: {**state, **self._made(writes, name, state)},
                lambda state: {**state, **{made: state[before] for made, before in stand_in.items()}},
                reads, writes,
            )  # fmt: skip

        return tuple(stretch(*piece) for piece in self._pieces) or (self.undivided,)

    def tail(self, state: State) -> Tensor:
        at, values = self._frame.inputs(self._parts["tail"], state, self.model)
        del state  # it would hold on to what the tail is done with
        image: Tensor = self._run["tail"].forward(at, values)
        return image

    def halfway(self, state: State) -> Tensor:
        if not self._halfway:
            return super().halfway(state)
        if self._halfway in self.writes:
            return state[self._halfway]
        return self._made((self._halfway,), "halfway", state)[self._halfway]

    def _made(self, names: tuple[str, ...], part: str, state: State) -> State:
        """Run a part; each map among the values it makes takes the form (B, C, H, W)."""
        at, values = self._frame.inputs(self._parts[part], state, self.model)
        made = self._run[part].forward(at, values)  # called, it prints what goes wrong, which may be a trial
        full = self.full_size(at.height, at.width) if _IMAGE in state else (at.height, at.width)
        layouts = self._frame.layouts
        return {
            name: layouts[name].to_map(value, at, full) if name in layouts else value
            for name, value in zip(names, made, strict=True)
        }

    def copy_tail(self) -> nn.Module:
        return _GraphTail(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> AutomaticSplit:
        clone = object.__new__(type(self))
        vars(clone).update(vars(self))
        memo[id(self)] = clone
        clone.model = copied(self.model, memo)
        clone.constants = copy.deepcopy(self.constants, memo)
        clone._bind()
        return clone

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._bind()

    def _bind(self) -> None:
        self._run = {name: _module(part.graph, self.model, self.constants) for name, part in self._parts.items()}
        for module in self._run.values():
            # GraphModule copies what a graph names; these themselves keep the parts in step with their changes.
            module.add_module(MODEL, self.model)
            module.add_module(CONSTANTS, self.constants)

    def _protect_inputs(self) -> None:
        """Where a part changes an input in place (`res += x`, ReLU(inplace=True)), let it work on a copy."""
        with untouched(self.model):
            thinly(self._find_changed_inputs)
        self._bind()

    def _find_changed_inputs(self) -> None:
        state = {self._parts["prefix"].inputs[0]: self.example(*self.probe.sizes_of(self.multiple_of)[0])}
        pieces = [(name, tuple(stand_in)) for name, _, stand_in in self._pieces]

        def run(name: str, outputs: tuple[str, ...]) -> None:
            part = self._parts[name]
            inputs = {key: state[key].clone() for key in part.inputs}
            versions = {key: value._version for key, value in inputs.items()}
            if name == "tail":
                self._run[name](*self._frame.inputs(part, inputs, self.model))
            else:
                state.update(self._made(outputs, name, inputs))
            _clone_inputs(part, [key for key in inputs if inputs[key]._version != versions[key]])

        for name, outputs in (("prefix", self._live), ("body", self.writes), *pieces, ("tail", ())):
            run(name, outputs)
        if "halfway" in self._parts:
            try:
                run("halfway", (self._halfway,))
            except Exception:  # of a foreign network, which is split all the same
                _log.debug("%s has no light tail", type(self.model).__name__, exc_info=True)
                self._halfway = ""
                del self._parts["halfway"]


def _parts_of(cut: Cut, live: list[fx.Node], pieces: list[Piece], traced: Traced) -> dict[str, Part]:
    image = traced.output.args[0]
    return {
        "prefix": _extract(cut.prefix, [_input(traced)], live, traced),
        "body": _extract(cut.body, inputs_of(cut.body, traced), cut.written, traced),
        "tail": _extract(cut.tail, tail_inputs(cut.tail, traced), image, traced),
        **{piece.name: _extract(piece.nodes, piece.inputs, piece.written, traced) for piece in pieces},
    }


def _part_of(rows: list[Row], inputs: tuple[str, ...]) -> Part:
    return Part(graph_of(rows), inputs)


def _input(traced: Traced) -> fx.Node:
    """The LR image."""
    found: fx.Node = next(node for node in traced.graph.nodes if node.op == "placeholder" and node.name != AT)
    return found


def _extract(nodes: list[fx.Node], inputs: Iterable[fx.Node], outputs: Any, traced: Traced) -> Part:
    """The graph of `nodes`, from `inputs` to `outputs` (nodes, nested as the graph shall return them)."""
    graph = fx.Graph()
    inputs, inside = list(inputs), set(nodes)
    at = next(node for node in traced.graph.nodes if node.name == AT)
    copies, values = {at: graph.placeholder(AT)}, graph.placeholder(_VALUES)
    for number, node in enumerate(inputs):
        copies[node] = graph.create_node("call_function", _take, (values, number), name=node.name)

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node not in inside and node in traced.values and traced.values[node].from_input:
                raise made_elsewhere(node)
            for used in node.all_input_nodes:
                copied(used)
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in nodes:
        copied(node)
    graph.output(fx.node.map_arg(outputs, copied))
    graph.lint()
    return Part(graph, tuple(node.name for node in inputs))


def _take(values: list[Any], number: int) -> Any:
    value, values[number] = values[number], None
    return value


def _clone_inputs(part: Part, names: list[str]) -> None:
    for node in [node for node in part.graph.nodes if node.target is _take]:
        if part.inputs[node.args[1]] in names:
            with part.graph.inserting_after(node):
                clone = part.graph.call_function(torch.clone, (node,))
            node.replace_all_uses_with(clone, delete_user_cb=lambda user, clone=clone: user is not clone)


def _module(graph: fx.Graph, model: nn.Module | None, constants: nn.Module | None) -> fx.GraphModule:
    root = nn.Module()
    root.add_module(MODEL, model)
    root.add_module(CONSTANTS, constants)
    return fx.GraphModule(root, graph)


class _GraphTail(nn.Module):
    """The tail with weights of its own: only the modules that it calls."""

    def __init__(self, split: AutomaticSplit) -> None:
        super().__init__()
        self.part, self.frame = split._parts["tail"], split._frame
        self.graph = copied(_module(self.part.graph, split.model, split.constants))

    def __getstate__(self) -> dict[str, Any]:
        own = {name: part for name, part in self._modules.items() if name != "graph"}
        return {**vars(self), "_modules": own, "within": dict(self.graph.named_children())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        within = state.pop("within")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.graph = _module(self.part.graph, within.get(MODEL), within.get(CONSTANTS))

    def forward(self, state: State) -> Tensor:
        image: Tensor = self.graph(*self.frame.inputs(self.part, moved_out(state), self.graph))
        return image


def _refuse_what_is_no_map(nodes: list[fx.Node], traced: Traced) -> None:
    for node in nodes:
        if traced.values[node].kind is None:
            raise CannotSplit(
                f"cutting: the live value {node.name} {_words(traced.values[node].shape)} lies on no map "
                f"and is no vector (B, C). {USE_AN_ADAPTER}"
            )


def _words(shape: tuple[int | Size, ...]) -> str:
    known = f"of shape ({', '.join(map(str, shape))})"
    return known if shape else "whose shape follows from the image's by no formula (as half of it, rounded down)"
