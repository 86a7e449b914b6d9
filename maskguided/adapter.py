"""What we know of architectures by name: the registry, and the base class of the adapters.

An adapter is a Split in one small file: which parts make it recognise a network, its stem, its blocks and
its tail. A network that no adapter knows is split automatically.
"""

from __future__ import annotations

import copy
import importlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import entry_points
from itertools import pairwise
from operator import attrgetter
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor, nn

from .errors import ArgumentError, CannotSplit, warn
from .parts import State, Stretch, first_cut, moved_out
from .probing.modules import copied, of_this_thread
from .probing.probe import Probe
from .probing.untouched import untouched
from .split import Split
from .values import nearest

_OURS = ("pan", "edsr", "rcan")
_GROUP = "maskguided.adapters"
AUTOMATIC = "automatic"
"""Stands for no adapter."""

_registry: dict[str, type[Adapter]] = {}
_loaded = False


class Adapter(Split):
    """A network of the form stem - blocks - tail, with one map that runs through the blocks.

    A subclass says which networks it knows (`missing`), and the three parts. `stem` returns a state whose
    "features" go through the blocks; whatever else is in it is kept for the tail. Where blocks are called otherwise,
    or leave more behind, it has a `run_blocks` and a `skip_blocks` of its own.
    """

    name: ClassVar[str]
    features = "features"
    reads = ("features",)
    writes = ("features",)

    def __init__(self, model: nn.Module, split_at: int | Literal["auto"], probe: Probe) -> None:
        self.model, self.adapter = model, self.name
        body = self.body_blocks()
        if len(body) < 2:
            raise CannotSplit(
                f"adapter {self.name!r}: its body_blocks gives {len(body)} blocks of this {type(model).__name__}; a "
                "cut needs 2 or more"
            )
        names = {id(module): name for name, module in model.named_modules()}
        for block in (block for block in body if id(block) not in names):
            raise CannotSplit(
                f"adapter {self.name!r}: its body_blocks gives a {type(block).__name__} that is no module "
                f"of this {type(model).__name__}"
            )
        super().__init__(model, tuple(names[id(block)] for block in body), first_cut(split_at, len(body)), probe)
        with untouched(model):
            for maker in ("stem", "prefix"):
                state = getattr(self, maker)(self.example(*probe.sizes[0]))
                self._check_state(maker, state)
        self.kinds = dict.fromkeys(state, "map")
        self.feature_channels = state[self.features].shape[1]

    def _check_state(self, maker: str, state: object) -> None:
        """Refuse what is no state: what is to be cut into windows must be maps of the image's size, and have names."""
        height, width = self.probe.sizes[0]
        made = f"adapter {self.name!r}: its {maker} makes"
        if not isinstance(state, dict) or self.features not in state:
            found = list(state) if isinstance(state, dict) else type(state).__name__
            raise CannotSplit(f"{made} {found}; it takes a dict of maps, {self.features!r} among them")
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.dim() != 4:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise CannotSplit(f"{made} {name!r}, {what}; live values are maps (B, C, H, W): expand it to one")
            high, wide = value.shape[2:]
            if high * width != wide * height:
                raise CannotSplit(
                    f"{made} {name!r}, {tuple(value.shape)}, of an image of {height}x{width}; live values are maps of "
                    "its shape: expand it to one; where the network pads, say multiple_of "
                    "(docs/new_backbone.md, The size rule)"
                )

    @property
    def net(self) -> Any:
        """The network; typed Any, since the adapter alone knows its attributes."""
        return self.model

    @classmethod
    @abstractmethod
    def missing(cls, model: nn.Module) -> str | None:
        """None for a network that this adapter knows; else what it lacks, as in "it has no SCPA_trunk"."""

    @abstractmethod
    def stem(self, x: Tensor) -> State:
        """LR image -> {"features": what block 1 takes, ...: live values for the tail}."""

    @abstractmethod
    def body_blocks(self) -> list[nn.Module]:
        """Blocks 1..N, each a map from (B, C, H, W) to the same shape."""

    @classmethod
    def recognises(cls, weights: Mapping[str, Tensor]) -> bool:
        """Whether these look like weights that `build` takes, by their names; `build` then makes sure of it."""
        return False

    @classmethod
    def build(cls, weights: Mapping[str, Tensor], scale: int | None = None) -> nn.Module:
        """The network that these weights belong to, loaded with all of them.

        Args:
            weights: a flat state dict.
            scale: needed only where names and shapes do not tell it.

        Raises:
            KeyError, CheckpointError: they belong to another network.
            ArgumentError: `scale` is needed, or is not theirs.
        """
        raise ArgumentError(f"adapter {cls.name!r} cannot build a network from weights: wrap one from Python")

    def run_blocks(self, state: State, blocks: Sequence[nn.Module]) -> State:
        """Live values before `blocks`, some of the body's in their order -> after them."""
        features = state[self.features]
        for block in blocks:
            features = block(features)
        return {**state, self.features: features}

    def skip_blocks(self, state: State, blocks: Sequence[nn.Module]) -> State:
        """The same with `blocks` left out: a stand-in for each value that they would have written."""
        return dict(state)

    def prefix(self, x: Tensor) -> State:
        return self.run_blocks(self.stem(x), self.body_blocks()[: self.split_at])

    def body(self, state: State) -> State:
        return self.run_blocks(state, self.body_blocks()[self.split_at :])

    def skip(self, state: State) -> State:
        return self.skip_blocks(state, self.body_blocks()[self.split_at :])

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        if len(self.cuts) == 1:
            return (self.undivided,)
        body, reads = self.body_blocks(), {name: self.kinds[name] for name in self.reads}

        def between(start: int, end: int) -> Stretch:
            run, skip = (partial(part, blocks=body[start:end]) for part in (self.run_blocks, self.skip_blocks))
            return Stretch(run, skip, reads, self.writes)

        return tuple(between(*ends) for ends in pairwise((*self.cuts, len(body))))

    def copy_tail(self) -> nn.Module:
        return _AdapterTail(self)


_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
"""What a tail may count without calling it, as in len(self.net.blocks)."""


class _AdapterTail(nn.Module):
    """An adapter's tail on a copy of the network, without the modules that the tail does not use."""

    def __init__(self, split: Adapter) -> None:
        super().__init__()
        called: set[int] = set()
        with untouched(split.model):
            state = split.body(split.prefix(split.example(*split.probe.sizes[0])))
            with ExitStack() as hooks:
                for module in split.model.modules():
                    hooks.enter_context(module.register_forward_hook(of_this_thread(lambda m, *_: called.add(id(m)))))
                split.tail(dict(state))
        needed = {id(m) for m in split.model.modules() if any(id(part) in called for part in m.modules())}
        left_out: dict[int, Any] = {
            id(module): nn.Identity()
            for module in split.model.modules()
            if id(module) not in needed and not isinstance(module, _CONTAINERS)
        }
        self._split = copy.copy(split)
        self.model = self._split.model = copied(split.model, left_out)
        try:
            with untouched(self.model):
                self._split.tail(state)
        except Exception:  # whatever a foreign tail raises that takes weights of modules without calling them
            self.model = self._split.model = copied(split.model)

    def forward(self, state: State) -> Tensor:
        return self._split.tail(moved_out(state))


AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])


def register(name: str) -> Callable[[AdapterClass], AdapterClass]:
    """Class decorator: make an adapter known under `name`.

    Raises:
        ArgumentError: the name is taken by another class.
    """

    def add(adapter: AdapterClass) -> AdapterClass:
        other = _registry.get(name)
        if other is not None:
            raise ArgumentError(f"adapter {name!r} is registered already, by {other.__module__}.{other.__qualname__}")
        adapter.name = name
        _registry[name] = adapter
        return adapter

    return add


def adapters() -> dict[str, type[Adapter]]:
    """All known adapters by name: ours, then those of installed packages (entry-point group maskguided.adapters)."""
    global _loaded
    if not _loaded:
        for name in _OURS:
            importlib.import_module(f"{__package__}.adapters.{name}")
        for entry in entry_points(group=_GROUP):
            try:
                entry.load()
            except Exception as error:  # whatever a foreign module raises: the others are no worse for it
                warn(f"adapter {entry.value} cannot be loaded: {type(error).__name__}: {error}")
        _loaded = True
    return dict(_registry)


def named(name: str) -> type[Adapter]:
    """The adapter called `name`; an ArgumentError that lists the known ones where there is none."""
    known = adapters()
    if not isinstance(name, str) or name not in known:
        meant = nearest(name.lower(), known) if isinstance(name, str) else None
        hint = f"did you mean {meant!r}? " if meant else ""
        raise ArgumentError(f"no adapter is called {name!r}; {hint}known: {', '.join(known)}")
    return known[name]


def recognise(model: nn.Module) -> tuple[type[Adapter] | None, dict[str, str]]:
    """The first adapter that knows `model`, and what each one before it missed."""
    missed: dict[str, str] = {}
    for name, adapter in adapters().items():
        missing = _missing(adapter, model)
        if missing is None:
            return adapter, missed
        missed[name] = missing
    return None, missed


def choose_adapter(model: nn.Module, name: str | None) -> tuple[type[Adapter] | None, dict[str, str]]:
    """The adapter of this name, or the first that knows `model`; and why those that were asked before do not fit."""
    if name is None:
        return recognise(model)
    if name == AUTOMATIC:
        return None, {}
    adapter = named(name)
    missing = _missing(adapter, model)
    if missing is not None:
        raise ArgumentError(f"adapter {name!r} does not know this {type(model).__name__}: {missing}")
    return adapter, {}


def _missing(adapter: type[Adapter], model: nn.Module) -> str | None:
    """What `adapter` misses in `model`; where it gives no such answer, that."""
    try:
        missing: object = adapter.missing(model)
    except Exception as error:  # whatever a foreign adapter raises: it must not stand before the others
        return f"its missing raises {type(error).__name__}: {error}"
    if missing is None or isinstance(missing, str):
        return missing
    return f"its missing returns {missing!r}; it takes None for a network that it knows, else what that lacks, in words"


def lacks(model: nn.Module, *parts: str) -> str | None:
    """For `missing`: which of these (dotted) attributes `model` does not have, in words; None if it has all."""
    absent = [part for part in parts if not _has(model, part)]
    return f"it has no {', '.join(absent)}" if absent else None


def _has(model: nn.Module, part: str) -> bool:
    try:
        attrgetter(part)(model)
    except AttributeError:
        return False
    return True
