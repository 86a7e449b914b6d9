"""What we know of architectures by name: the registry, and the base class of the adapters.

An adapter is a Split in one small file: which parts make it recognise a network, its stem, its blocks and
its tail. A network that no adapter knows is split automatically.
"""

from __future__ import annotations

import copy
import importlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from itertools import pairwise
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from .automatic import automatic_split
from .errors import ArgumentError, CannotSplit, MaskGuidedError, warn
from .probing.modules import copied
from .probing.probe import Probe, probe_network
from .probing.untouched import untouched
from .split import Cuts, Split, State, Stretch, first_and_later, first_cut, taken
from .split_checks import check_whole

_OURS = ("pan", "edsr", "rcan")
_GROUP = "maskguided.adapters"
_ANOTHER = "its forward makes another image of the parts that it knows"
AUTOMATIC = "automatic"
"""Stands for no adapter."""

_registry: dict[str, type[Adapter]] = {}
_loaded = False


class Adapter(Split):
    """A network of the form stem - blocks - tail, with one map that runs through the blocks.

    A subclass says which networks it knows (`missing`), and the three parts. `stem` returns a state whose
    "features" go through the blocks; whatever else is in it is kept for the tail.
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
        """Refuse what is no state: what is to be cut into windows must be maps, and have names."""
        made = f"adapter {self.name!r}: its {maker} makes"
        if not isinstance(state, dict) or self.features not in state:
            found = list(state) if isinstance(state, dict) else type(state).__name__
            raise CannotSplit(f"{made} {found}; it takes a dict of maps, {self.features!r} among them")
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.dim() != 4:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise CannotSplit(f"{made} {name!r}, {what}; live values are maps (B, C, H, W): expand it to one")

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
        """The network that these weights belong to, loaded with all of them and in eval mode.

        Args:
            weights: a flat state dict.
            scale: needed only where names and shapes do not tell it.

        Raises:
            KeyError, CheckpointError: they belong to another network.
            ArgumentError: `scale` is needed, or is not theirs.
        """
        raise ArgumentError(f"adapter {cls.name!r} cannot build a network from weights: wrap one from Python")

    def prefix(self, x: Tensor) -> State:
        return self._run_blocks(self.stem(x), self.body_blocks()[: self.split_at])

    def body(self, state: State) -> State:
        return self._run_blocks(state, self.body_blocks()[self.split_at :])

    def skip(self, state: State) -> State:
        return dict(state)

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        if len(self.cuts) == 1:
            return (self.undivided,)
        blocks, reads = self.body_blocks(), {name: self.kinds[name] for name in self.reads}

        def between(start: int, end: int) -> Stretch:
            return Stretch(lambda state: self._run_blocks(state, blocks[start:end]), dict, reads, self.writes)

        return tuple(between(*ends) for ends in pairwise((*self.cuts, len(blocks))))

    def copy_tail(self) -> nn.Module:
        return _CopiedTail(self)

    def _run_blocks(self, state: State, blocks: Sequence[nn.Module]) -> State:
        features = state[self.features]
        for block in blocks:
            features = block(features)
        return {**state, self.features: features}


_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
"""What a tail may count without calling it, as in len(self.net.blocks)."""


class _CopiedTail(nn.Module):
    """An adapter's tail on a copy of the network without the modules that the tail does not call."""

    def __init__(self, split: Adapter) -> None:
        super().__init__()
        called: set[int] = set()
        with untouched(split.model):
            state = split.body(split.prefix(split.example(*split.probe.sizes[0])))
            hooks = [m.register_forward_hook(lambda m, *_: called.add(id(m))) for m in split.model.modules()]
            try:
                split.tail(state)
            finally:
                for hook in hooks:
                    hook.remove()
        needed = {id(m) for m in split.model.modules() if any(id(part) in called for part in m.modules())}
        left_out: dict[int, Any] = {
            id(module): nn.Identity()
            for module in split.model.modules()
            if id(module) not in needed and not isinstance(module, _CONTAINERS)
        }
        self.model = copied(split.model, left_out)
        self._split = copy.copy(split)
        self._split.model = self.model

    def forward(self, state: State) -> Tensor:
        return self._split.tail(taken(state))


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
                warn(f"adapter {entry.value} cannot be loaded: {type(error).__name__}: {error}", stacklevel=2)
        _loaded = True
    return dict(_registry)


def named(name: str) -> type[Adapter]:
    """The adapter called `name`; an ArgumentError that lists the known ones where there is none."""
    known = adapters()
    if not isinstance(name, str) or name not in known:
        raise ArgumentError(f"no adapter is called {name!r}; known: {', '.join(known)}")
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


def _missing(adapter: type[Adapter], model: nn.Module) -> str | None:
    """What `adapter` misses in `model`; where it gives no such answer, that."""
    try:
        missing: object = adapter.missing(model)
    except Exception as error:  # whatever a foreign adapter raises: it must not stand before the others
        return f"its missing raises {type(error).__name__}: {error}"
    if missing is None or isinstance(missing, str):
        return missing
    return f"its missing returns {missing!r}; it takes None for a network that it knows, else what that lacks, in words"


@torch.inference_mode(False)  # in which tensors do not tell that they were changed
def check_parts(split: Adapter) -> None:
    """That `reads` and `writes` name what the body does, as only that is cut and put back; and the tail makes an image.

    Nor may a part change what it is given: the base is looked at again after windows were cut out of it.

    Raises:
        CannotSplit: one of them does not, or one does.
    """

    def refuse(why: str) -> NoReturn:
        raise CannotSplit(f"adapter {split.name!r}: {why} (docs/new_backbone.md, Skip)")

    def made_by(part: str, state: State) -> Any:
        copies = {name: value.clone() for name, value in state.items()}
        versions = {name: value._version for name, value in copies.items()}
        with untouched(split.model):
            made = getattr(split, part)(dict(copies))
        for name in (name for name, value in copies.items() if value._version != versions[name]):
            refuse(f"its {part} changes {name!r} in place; let it take a copy, state[{name!r}].clone()")
        return made

    with untouched(split.model):
        whole = split.prefix(split.example(*split.probe.sizes[0]))
    for name in (name for name in split.reads if name not in whole):
        refuse(f"its `reads` names {name!r}, which its prefix does not make")
    before = {name: whole[name] for name in split.reads}
    try:
        after = made_by("body", before)
    except KeyError as error:
        refuse(f"its body takes {error}, which its `reads` does not name")
    left_out = made_by("skip", whole) if split.can_skip else after
    changed = [name for name, value in after.items() if name not in before or not torch.equal(value, before[name])]
    for name in (name for name in split.writes if name not in after):
        refuse(f"its `writes` names {name!r}, which its body does not make")
    for name in (name for name in split.writes if name not in left_out):
        refuse(f"its `writes` names {name!r}, for which its skip has no stand-in")
    for name in (name for name in changed if name not in split.writes):
        refuse(f"its body makes {name!r}, which its `writes` does not name")
    made = made_by("tail", {**whole, **after})
    if not isinstance(made, Tensor) or made.dim() != 4:
        what = f"a tensor {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise CannotSplit(f"adapter {split.name!r}: its tail makes {what}; it takes one image (B, C, H, W)")


def lacks(model: nn.Module, *parts: str) -> str | None:
    """For `missing`: which of these (dotted) attributes `model` does not have, in words; None if it has all."""
    absent = [part for part in parts if not _has(model, part)]
    return f"it has no {', '.join(absent)}" if absent else None


def split(
    model: nn.Module,
    split_at: Cuts = "auto",
    *,
    adapter: str | None = None,
    body: str | Sequence[str] | None = None,
    cut: str | None = None,
    check: bool = True,
) -> Split:
    """Split a super-resolution network after block `split_at` of its body. The network is not changed.

    Args:
        model: takes (B, C, H, W), returns one image (B, C', s*H, s*W).
        split_at: 1..N-1, or "auto" for half of the depth; or several numbers that rise, as (4, 8, 12).
        adapter: name of the one to use; "automatic" for none. Default: the first that knows the network.
        body: the blocks, for a network that no adapter shall split: their module names, or a pattern for them in
            which * stands for one part of a name, as in "layers.*.blocks.*".
        cut: name of the last block that runs on the whole image, instead of `split_at`; not with an adapter.
        check: compare the parts with the network on small images.

    Raises:
        CannotSplit: what failed, at which module, and what to do.
        ArgumentError: `split_at` is out of range, or the adapter does not know this network.

    >>> import torch
    >>> from maskguided.adapters.pan_net import PAN
    >>> parts = split(PAN(features=8, up_features=8, blocks=4), split_at=3)
    >>> x = torch.rand(1, 3, 9, 12)
    >>> bool((parts.tail(parts.body(parts.prefix(x))) == parts.model(x)).all())
    True
    """
    found = probe_network(model)
    if check and not found.is_finite:
        height, width = found.sizes[0]
        raise CannotSplit(
            f"{type(model).__name__} gives NaN or infinity on a random image of {height}x{width}: are its weights "
            "whole, and its values in this dtype's range?"
        )
    first, later = first_and_later(split_at)
    if body is not None or cut is not None:
        if adapter not in (None, AUTOMATIC):
            raise ArgumentError(f"adapter={adapter!r} knows the blocks: body= and cut= are for networks without one")
        adapter = AUTOMATIC
    chosen, missed = _choose_adapter(model, adapter)
    if chosen is not None:
        is_consistent = False
        try:
            parts = chosen(model, first, found)
            parts.cut_again(later)
            if check:
                check_parts(parts)
                is_consistent = True
                check_whole(parts)
            parts.missed = missed
            return parts
        except CannotSplit as error:
            if adapter is not None:
                raise
            missed[chosen.name] = _ANOTHER if is_consistent else str(error)
        except MaskGuidedError:
            raise
        except Exception as error:  # whatever a foreign adapter raises
            said = f"{type(error).__name__}: {error}"
            if adapter is not None:
                raise CannotSplit(f"adapter {chosen.name!r} fails on this {type(model).__name__}: {said}") from error
            missed[chosen.name] = said
    try:
        found_parts = automatic_split(model, first, found, later=later, body=body, cut=cut, check=check)
    except CannotSplit as error:
        tried = "; ".join(f"{name}: {why}" for name, why in missed.items())
        raise CannotSplit(f"{error}. Adapters tried: {tried}" if tried else str(error)) from error
    found_parts.missed = missed
    return found_parts


def _choose_adapter(model: nn.Module, name: str | None) -> tuple[type[Adapter] | None, dict[str, str]]:
    if name is None:
        return recognise(model)
    if name == AUTOMATIC:
        return None, {}
    adapter = named(name)
    missing = _missing(adapter, model)
    if missing is not None:
        raise ArgumentError(f"adapter {name!r} does not know this {type(model).__name__}: {missing}")
    return adapter, {}


def _has(model: nn.Module, part: str) -> bool:
    owner: object = model
    for name in part.split("."):
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True
