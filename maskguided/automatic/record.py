"""Run a network once and write down what it does, each block as one step.

The forward runs as it is, on real tensors: whatever Python does with sizes, loops and branches happens, and
only the torch functions it calls and the modules it calls are seen. What holds for every size is found by
comparing recordings (trace.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..probing.modules import forgetting, of_this_thread
from ..probing.probe import image_of
from ..probing.untouched import untouched
from ..windows.arguments import ORDER, named

Path = tuple[int | str, ...]
"""Where a tensor stands within a nested result: () for the result itself."""

_DTYPES: dict[type, Any] = {bool: torch.bool, int: torch.int64, float: torch.float64}
"""What Python's own types mean where torch takes a dtype; a graph cannot name them."""


class Made(NamedTuple):
    """The tensor at `path` of what step `step` made; step -1 is the network's input."""

    step: int
    path: Path


class Attribute(NamedTuple):
    """A tensor that the network holds, by attribute."""

    name: str


class Constant(NamedTuple):
    """A tensor that came from elsewhere: the number of it in `Recording.constants`."""

    number: int


class Ambient(NamedTuple):
    """The network's own "device" or "dtype", which a part looks up anew wherever it runs."""

    name: str


class Number(NamedTuple):
    """A whole number, or two, that a function is called with."""

    function: str
    argument: str
    value: Any


@dataclass(frozen=True)
class Step:
    """One torch function, or one module, that the forward called."""

    target: Callable[..., Any] | str
    """The function, or the module's name."""
    args: tuple[Any, ...]
    """Its arguments, each tensor replaced by Made, Attribute or Constant."""
    kwargs: dict[str, Any]
    shapes: dict[Path, tuple[int, ...]]
    """Of the tensors it made."""
    dtypes: dict[Path, torch.dtype]


@dataclass
class Recording:
    """What one forward did, in order."""

    size: tuple[int, int, int]
    """Batch, height and width of the input."""
    channels: int
    steps: list[Step] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    image: Made | None = None
    """The image among the network's results."""
    within: set[str] = field(default_factory=set)
    """What the leaves call: names of functions."""
    numbers: list[Number] = field(default_factory=list)
    """By which whole numbers they call them, in order."""
    only_here: frozenset[str] = frozenset()
    """What the leaves do at this size alone, in words: names of functions mostly."""


class CannotFollow(Exception):
    """The forward decides by pixel values."""


def record(model: nn.Module, leaves: set[str], x: Tensor, mode: AbstractContextManager[Any] | None = None) -> Recording:
    """Run `model` on `x` in eval mode and record it.

    Args:
        leaves: names of the modules whose inside is of no interest: each call of one is a step.
        mode: what it runs within.

    Raises:
        CannotFollow: it reads pixel values to decide what to do.
        Exception: whatever the forward itself raises.
    """
    with untouched(model), forgetting(model):
        recorder = _Recorder(model, x)
        with _hooks(model, leaves, recorder), recorder, mode or nullcontext():
            result = model(x)
        image = image_of(result)
        if id(image) not in recorder.known:
            raise CannotFollow("its image does not come from its input by torch functions")
        made = recorder.known[id(image)]
        assert isinstance(made, Made)
        recorder.recording.image = made
    return recorder.recording


# Calls that hand a tensor's content to Python.
_TO_PYTHON = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "is_nonzero", "equal"}

_CASTS = {"to", "type", "type_as", "float", "double", "half", "bfloat16"}
"""Calls that give their tensor itself where it has the dtype already."""

_STEPPING = ("kernel_size", "stride", "dilation", "shifts")
_SHAPING = ("view", "reshape", "unflatten", "unfold")
"""Functions that get lengths, of windows for one."""

_ZEROED: dict[Any, Callable[..., Any]] = {
    torch.empty: torch.zeros,
    torch.empty_like: torch.zeros_like,
    Tensor.new_empty: Tensor.new_zeros,
}
"""What blocks that are left out would have filled must not be what was in memory before."""


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.recording = Recording((x.shape[0], x.shape[2], x.shape[3]), x.shape[1])
        held = list(_held(model))
        self.known: dict[int, Made | Attribute | Constant] = {id(t): Attribute(name) for name, t in held}
        self.known[id(x)] = Made(-1, ())
        self.from_input: set[int] = {-1}
        self.inside = 0
        """How many leaves are open: what they do is theirs."""
        self._dtype = x.dtype
        self._alive: list[Any] = [*(t for _, t in held), x]  # a freed tensor's id would be given to another

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.inside:
            if not name.startswith("__"):  # arithmetic, and attributes
                self.recording.within.add(_with_size(name, args, kwargs))
                self.recording.numbers.extend(_numbers(name, args, kwargs))
            return func(*args, **kwargs)
        before, named = self.described((args, kwargs))
        if name in _TO_PYTHON and self._by_pixels((before, named)):
            raise CannotFollow(f"its forward reads pixel values (Tensor.{name})")
        bases = self._bases((args, kwargs))
        result = func(*args, **kwargs)
        if name in _CASTS and result is args[0]:
            result = result.view_as(result)  # in another dtype it is another tensor, and what uses args[0] uses not it
        if name == "__setitem__":
            self.step(set_item, before, named, args[0])
        elif any(True for _ in tensors(result)):
            self.step(func if "memory_format" in named else _ZEROED.get(func, func), before, named, result)
        for base, version in bases:
            if base._version != version:
                self.step(written_to, self.described((base, result)), {}, base)
        return result

    def step(self, target: Callable[..., Any] | str, args: Any, kwargs: Any, result: Any) -> None:
        """Write down a call; `args` and `kwargs` as `described` gave them before it ran."""
        made = dict(tensors(result))
        number = len(self.recording.steps)
        shapes = {path: tuple(tensor.shape) for path, tensor in made.items()}
        dtypes = {path: tensor.dtype for path, tensor in made.items()}
        self.recording.steps.append(Step(target, args, kwargs, shapes, dtypes))
        if self._by_pixels((args, kwargs)):
            self.from_input.add(number)
        for path, tensor in made.items():
            self.known[id(tensor)] = Made(number, path)
        self._alive.append(result)

    def described(self, value: Any) -> Any:
        """Arguments with each tensor replaced by where it came from."""
        if isinstance(value, Tensor):
            if id(value) not in self.known:
                self.known[id(value)] = self._same_as(value) or self._constant(value)
                self._alive.append(value)
            return self.known[id(value)]
        if isinstance(value, torch.device):
            return Ambient("device")
        if isinstance(value, type):
            value = _DTYPES.get(value, value)
        if isinstance(value, torch.dtype) and value == self._dtype:
            return Ambient("dtype")
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):  # as torch takes an index
            return self.described(torch.from_numpy(value))
        return rebuilt(value, self.described)

    def _same_as(self, value: Tensor) -> Made | Attribute | Constant | None:
        """The known tensor that `value` is under another name, as `Variable(x)` makes one outside torch's functions."""
        alike = (t for _, t in tensors(self._alive[::-1]) if _are_one(t, value))
        return next((self.known[id(t)] for t in alike if id(t) in self.known), None)

    def _constant(self, value: Tensor) -> Constant:
        self.recording.constants.append(value)
        return Constant(len(self.recording.constants) - 1)

    def _bases(self, arguments: Any) -> list[tuple[Tensor, int]]:
        """The known tensors that arguments are views of, each with its version."""
        views = [t for _, t in tensors(arguments) if not t.is_inference() and t._base is not None]
        bases = {id(t._base): t._base for t in views}
        return [(base, base._version) for number, base in bases.items() if base is not None and number in self.known]

    def _by_pixels(self, described: Any) -> bool:
        return any(made.step in self.from_input for made in made_in(described))


def _are_one(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are of the same memory, in the same way."""
    if a.layout != torch.strided or b.layout != torch.strided or a.dtype != b.dtype or a.shape != b.shape:
        return False
    same = a.untyped_storage()._cdata == b.untyped_storage()._cdata
    return bool(same and a.storage_offset() == b.storage_offset() and a.stride() == b.stride())


def _with_size(name: str, args: Any, kwargs: dict[str, Any]) -> str:
    """The name of a function; of a pool over the whole map, too, that of which it is one."""
    if not name.startswith("adaptive_"):
        return name
    size = kwargs.get("output_size", args[1] if len(args) > 1 else None)
    return name if size in (1, (1, 1), [1, 1]) else f"{name} to more than a pixel"


def _numbers(name: str, args: Any, kwargs: dict[str, Any]) -> Iterator[Number]:
    """Those that say over which pixels a function goes."""
    if name in _SHAPING:
        sides = (side for value in args[1:] for side in (value if isinstance(value, (tuple, list)) else (value,)))
        yield from (Number(name, "side", side) for side in sides if isinstance(side, int))
    elif name in ORDER:
        given = named(ORDER[name], args, kwargs)
        yield from (Number(name, it, _plain(given[it])) for it in _STEPPING if given.get(it) is not None)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else value


@contextmanager
def _hooks(model: nn.Module, leaves: set[str], recorder: _Recorder) -> Iterator[None]:
    names = {id(model.get_submodule(name)): name for name in leaves}
    pending: list[tuple[Any, Any]] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not recorder.inside:
            pending.append(recorder.described((args, kwargs)))
        recorder.inside += 1

    def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        recorder.inside -= 1
        if not recorder.inside:
            recorder.step(names[id(module)], *pending.pop(), result)

    before, after = of_this_thread(enter), of_this_thread(leave)
    with ExitStack() as hooks:
        for name in leaves:
            module = model.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(after, with_kwargs=True))
        yield


def leaves_around(model: nn.Module, blocks: tuple[str, ...]) -> set[str]:
    """The outermost modules that hold none of `blocks`, and the blocks themselves."""
    inside = {id(model.get_submodule(name)) for name in blocks}
    names = {id(module): name for name, module in model.named_modules()}  # of several names for one module the first

    def below(module: nn.Module) -> Iterator[str]:
        for child in module.children():
            holds_blocks = id(child) not in inside and any(id(part) in inside for part in child.modules())
            if holds_blocks or isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                yield from below(child)
            else:
                yield names[id(child)]

    return set(below(model))


def set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """`x[index] = value` as a function, so that what uses `x` afterwards depends on it."""
    x[index] = value
    return x


def written_to(x: Tensor, by: Any) -> Tensor:
    """`x`, of which a view has been written to: what uses it afterwards depends on what did that."""
    return x


def tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """The tensors within tuples, lists and dicts, with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            yield from tensors(part, (*path, i))
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors(part, (*path, key))


def rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with `change` applied to each part of a tuple, list, dict or slice; other values as they are."""
    if isinstance(value, (Made, Attribute, Constant, Ambient)):
        return value
    if isinstance(value, (tuple, list)):
        return like(value, [change(part) for part in value])
    if isinstance(value, dict):
        return {key: change(part) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(change(value.start), change(value.stop), change(value.step))
    return value


def like(value: Any, parts: list[Any]) -> Any:
    """`parts` as a list, tuple or named tuple, whichever `value` is."""
    if isinstance(value, list):
        return parts
    return value._make(parts) if hasattr(value, "_make") else tuple(parts)


def made_in(described: Any) -> list[Made]:
    """What earlier steps made, among described arguments."""
    return [part for part in parts_of(described) if isinstance(part, Made)]


def parts_of(described: Any) -> list[Any]:
    """All that stands in described arguments, at any depth."""
    found: list[Any] = []

    def visit(value: Any) -> Any:
        found.append(value)
        return rebuilt(value, visit)

    visit(described)
    return found


def with_fixed(described: Any, other: Any) -> Any:
    """Described arguments with each dtype that is the same in those of a network in another dtype."""
    if isinstance(described, Ambient):
        return other if isinstance(other, torch.dtype) else described
    if type(described) is not type(other) or isinstance(described, (Made, Attribute, Constant)):
        return described
    if isinstance(described, (tuple, list)) and len(described) == len(other):
        return like(described, [with_fixed(*pair) for pair in zip(described, other, strict=True)])
    if isinstance(described, dict):
        return {key: with_fixed(value, other.get(key)) for key, value in described.items()}
    return described


def _held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in model.named_modules():
        for table in (vars(module), module._parameters, module._buffers):
            for name, value in table.items():
                if isinstance(value, Tensor):
                    yield f"{prefix}.{name}" if prefix else name, value
