"""Look at a network by running it on small inputs, and leave no trace in it."""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import ArgumentError, CannotSplit, first_line
from .patches import round_up
from .thin import thinly

Module = TypeVar("Module", bound=nn.Module)

LARGE_LEAST = 48
_LEAST = (17, LARGE_LEAST)  # LR pixels a side: enough for reflection padding and small strides; for deep U-nets
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48, 5, 10, 20, 40, 7, 14, 28, 9, 18, 36, 11, 22, 15, 30)
"""What networks ask the size of their input to be a multiple of, or round it up to, in the order of trying."""
_SILENT = 1e-3
"""Weights that are no larger do nothing yet."""


@dataclass(frozen=True)
class Probe:
    """What a network takes and gives: found by calling it."""

    in_channels: int
    out_channels: int
    scale: int
    multiple_of: int
    """Height and width of the input must be multiples of this (1: any size)."""
    least: int
    """The smallest height and width that were tried with success, before rounding up to a multiple."""
    device: torch.device
    dtype: torch.dtype
    is_finite: bool = True
    """Whether its image of noise is."""

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two small input sizes that the network takes, different in both directions."""
        return self.sizes_of(self.multiple_of)

    def sizes_of(self, multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two small input sizes, the sides being odd multiples of `multiple`."""
        height, width = _size(multiple, self.least)
        return (height, width), (width, height)

    @property
    def round_size(self) -> tuple[int, int]:
        """A size of many factors of 2: a network that rounds its input up may take another path on it."""
        height, width = (side * -(-self.least // 32) for side in (32, 48))
        return height + -height % self.multiple_of, width + -width % self.multiple_of

    @property
    def telling_sizes(self) -> list[tuple[int, int]]:
        """Sizes that show whether something holds for all: odd ones, small and not, and round ones."""
        step = self.multiple_of
        larger = (round_up(side, step) for side in ((47, 61) if self.least < LARGE_LEAST else (LARGE_LEAST, 71)))
        return [self.sizes[0], self.round_size, (*larger,)]  # type: ignore[list-item]

    def input(self, height: int, width: int, batch: int = 1) -> Tensor:
        """A fixed random image, (batch, in_channels, height, width) in 0..1."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(batch, self.in_channels, height, width, generator=generator)
        return x.to(self.device, self.dtype)


class Wrapped(nn.Module):
    """The base class of MaskGuided: here, so that `refuse_wrapped` need not import that."""


def refuse_wrapped(model: object) -> None:
    """Refuse what is no network, one that is wrapped already, and one that holds such."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"a torch.nn.Module is needed, not {type(model).__name__}")
    if isinstance(model, Wrapped):
        raise ArgumentError("this network is wrapped already: set its keep, or give fast.unwrap() for another wrap")
    within = [name for name, part in model.named_modules() if isinstance(part, Wrapped)]
    if within:
        raise ArgumentError(f"{within[0]} of this {type(model).__name__} is wrapped already: it is fast as it is")


def first_weight(model: nn.Module) -> nn.Parameter:
    """The first floating-point parameter: where the network is, and in its dtype."""
    return next(p for p in model.parameters() if p.is_floating_point())


def probe(model: nn.Module) -> Probe:
    """Find channels, scale and size rule of `model`, in that order of trying: every size, then multiples.

    Raises:
        CannotSplit: no input that was tried gave an image; the text has the last error of the network.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise CannotSplit(f"{type(model).__name__} has no floating-point parameters; is it a network?")
    failure: Exception | str = "it was never called"
    with untouched(model):
        for multiple in MULTIPLES:
            for least in _LEAST:
                for channels in _channel_guesses(model):
                    found = Probe(channels, 0, 0, multiple, least, parameter.device, parameter.dtype)
                    height, width = found.sizes[0]
                    try:
                        result = model(found.input(height, width))
                    except Exception as error:  # whatever a foreign network raises, another input may do
                        if channels == _first_channels(model):  # the others fail for their channels
                            failure = f"{type(error).__name__}: {first_line(error)}"
                        continue
                    out = image_of(result)
                    if channels == 3 and not _is_of_colours(model, found, out):
                        continue
                    scale = out.shape[2] // height
                    if scale and out.shape[2:] == (scale * height, scale * width):
                        finite = bool(out.isfinite().all())
                        found = replace(found, out_channels=out.shape[1], scale=scale, is_finite=finite)
                        return _with_room(model, found)
                    failure = f"{height}x{width} became {out.shape[2]}x{out.shape[3]}, no whole multiple"
    guesses = ", ".join(map(str, _channel_guesses(model)))
    raise CannotSplit(
        f"{type(model).__name__} could not be run on a random image (channels {guesses}; sizes from "
        f"{_LEAST[0]}x{_LEAST[0] + 2} to multiples of {max(MULTIPLES)}); last answer: {failure}"
    )


def _with_room(model: nn.Module, found: Probe) -> Probe:
    """`found`, or a larger `least` of the same rule: where sides are padded by reflection, not all above it will do."""
    for least in (found.least, *(side for side in _LEAST if side > found.least)):
        larger = replace(found, least=least)
        try:
            thinly(functools.partial(model, larger.input(*larger.round_size)))
        except Exception:  # whatever a foreign network raises
            continue
        return larger
    return found


_TELLING = ("out", "output", "sr", "hr", "pred", "prediction", "image", "result")


def image_of(result: Any) -> Tensor:
    """The image that a network's result holds: the largest; of equal ones the last of a list, else the first.

    A list is what a network collects (each one better than the one before); in a tuple or dict the image comes
    first and what else it tells after it, unless a dict calls one of them its output.

    Raises:
        CannotSplit: there is no (B, C, H, W) in it.
    """
    if isinstance(result, Tensor) and result.dim() == 4:
        return result
    parts = result
    if isinstance(result, dict):
        parts = [result[key] for key in sorted(result, key=lambda key: key not in _TELLING)]
    images = [p for p in parts if isinstance(p, Tensor) and p.dim() == 4] if isinstance(parts, (tuple, list)) else []
    if not images:
        kind = f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise CannotSplit(
            f"the network returns {kind} and no image (B, C, H, W) in it. "
            "Wrap it in a module whose forward returns that image alone"
        )
    return max(reversed(images) if isinstance(result, list) else images, key=lambda p: p.shape[2] * p.shape[3])


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run `model` in eval mode without gradients; afterwards every attribute is what it was.

    A forward may assign to its module (basicsr's EDSR: `self.mean = self.mean.type_as(x)`), and a traced
    forward would leave tracing objects there. Within it no weight requires gradients, for views of one that does have
    none to give (torch.utils.flop_counter stumbles over them); attention is computed in steps that can be seen, and
    float32 to all its digits.
    """
    saved = [(module, dict(vars(module))) for module in model.modules()]
    caches = [(value, value.copy()) for m in model.modules() for value in vars(m).values() if _is_cache(value)]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()  # alone: a train() of the network's own need not return it
        model.requires_grad_(False)
        with torch.inference_mode(False), torch.no_grad(), _eagerly(), _in_steps(), _precisely():
            yield
    finally:
        for module, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)
        for cache, content in caches:
            if cache or content:
                cache.clear()
                cache.extend(content) if isinstance(cache, list) else cache.update(content)
        for parameter, train in trained:
            with torch.inference_mode(parameter.is_inference()):  # one that was made so, and trains nowhere else
                parameter.requires_grad = train
        with torch.no_grad():
            for parameter, data in weights:
                parameter.data = data
            for buffer, value in buffers:
                if not buffer.is_meta and not torch.equal(buffer, value):
                    buffer.copy_(value)


def _eagerly() -> AbstractContextManager[Any]:
    """Within it, what torch.compile has made runs as it was: each probe would be compiled anew."""
    compiled = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")  # torch 2.6
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def _in_steps() -> Iterator[None]:
    """Within it, nn.MultiheadAttention takes no short cut, in which nothing is called that could be counted or seen."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _precisely() -> Iterator[None]:
    """Within it float32 is no TF32 or bfloat16, whatever is allowed: three digits are too few to compare results by.

    cuDNN's convolutions are TF32 unless that is forbidden.
    """
    backends: Any = torch.backends
    places: list[Any] = []
    try:
        matmul, conv = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # from torch 2.9 on, where the user has set one of these
        matmul, conv = "highest", False
        places = [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]
        places += [backends.mkldnn.conv, backends.mkldnn.matmul]
    before = [place.fp32_precision for place in places]
    try:
        if matmul != "highest":
            torch.set_float32_matmul_precision("highest")
        if conv:
            backends.cudnn.allow_tf32 = False
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        if matmul != "highest":
            torch.set_float32_matmul_precision(matmul)
        if conv:
            backends.cudnn.allow_tf32 = conv
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within it `model` is in eval mode; afterwards each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def undone_by_failure(wrapped: nn.Module, network: nn.Module) -> Iterator[None]:
    """What is done within it to settings and parts of `wrapped`, to what trains and to modes is undone by an exception.

    The weights of the `network` are not looked at.
    """
    attributes = {**vars(wrapped), "_modules": dict(wrapped._modules)}
    parts = [part for part in wrapped.children() if part is not network]
    values = [(value, value.clone()) for part in parts for value in (*part.parameters(), *part.buffers())]
    trains = [(parameter, parameter.requires_grad) for parameter in wrapped.parameters()]
    modes = [(module, module.training) for module in wrapped.modules()]
    try:
        yield
    except BaseException:
        vars(wrapped).clear()
        vars(wrapped).update(attributes)
        with torch.no_grad():
            for value, before in values:
                value.copy_(before)
        for parameter, train in trains:
            parameter.requires_grad = train
        for module, training in modes:
            module.training = training
        raise


@contextmanager
def no_leftovers() -> Iterator[None]:
    """Within it, memory that torch.empty gives is NaN, so that what relies on what was there before shows."""
    before = torch.get_deterministic_debug_mode()
    deterministic: Any = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory
    try:
        torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms spends seconds importing a compiler
        deterministic.fill_uninitialized_memory = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that have no deterministic way: here none is needed
            yield
    finally:
        deterministic.fill_uninitialized_memory = filled
        torch.set_deterministic_debug_mode(before)


def forget_results(model: nn.Module) -> None:
    """Empty the functools caches beside the classes of `model`: what a forward looks up there it makes anew."""
    for kind in {base for module in model.modules() for base in type(module).__mro__[:-1]}:
        beside = vars(sys.modules.get(kind.__module__, object)) if not kind.__module__.startswith("torch.") else {}
        for value in (*vars(kind).values(), *beside.values()):
            function = getattr(value, "__func__", value)  # of a static method
            if isinstance(function, functools._lru_cache_wrapper):
                function.cache_clear()


def _is_cache(value: object) -> bool:
    """A plain container in which a forward may keep what it made for a size, as masks by (H, W); a module its parts."""
    return type(value) in (dict, OrderedDict, list, set)


def silent_weights(model: nn.Module) -> list[nn.Parameter]:
    """Those of branches that start as nothing (a LayerScale, a last layer of zeros) and that training will wake."""
    return [
        weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.is_floating_point() and not name.endswith("bias")
        and weight.numel() and float(weight.detach().abs().max()) < _SILENT
    ]  # fmt: skip


def copied(module: Module, memo: dict[int, Any] | None = None) -> Module:
    """A deep copy; tensors that a forward has left among the attributes are copied without their history.

    (copy.deepcopy refuses those that take part in a gradient: spandrel's SPAN keeps some.)
    """
    memo = {} if memo is None else memo
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def _size(multiple: int, least: int) -> tuple[int, int]:
    """The two smallest odd multiples from `least` on: a size that no larger multiple rule would accept."""
    odd = -(-least // multiple) | 1
    return odd * multiple, (odd + 2) * multiple


def _channel_guesses(model: nn.Module) -> list[int]:
    """What its first convolution takes comes first; colours before grey, of which a network may work one by one."""
    first = _first_channels(model)
    guesses = [3, 1, 4] if first == 1 else [first, 3, 1, 4]
    return [c for i, c in enumerate(guesses) if c not in guesses[:i]]


def _is_of_colours(model: nn.Module, found: Probe, image: Tensor) -> bool:
    """Whether a network that runs on three channels is made for them.

    One whose first convolution takes a single channel may make colours of their mean; or run each by itself, or look at
    one, and then it is a network for grey images.
    """
    first = _first_conv(model)
    if first is None or first.in_channels != 1:
        return True
    batches: list[int] = []
    handle = first.register_forward_pre_hook(lambda module, given: batches.append(len(given[0])))
    try:
        model(found.input(*found.sizes[0]))
    finally:
        handle.remove()
    return image.shape[1] == 3 and batches[:1] == [1]


def _first_channels(model: nn.Module) -> int:
    first = _first_conv(model)
    return 3 if first is None else first.in_channels


def _first_conv(model: nn.Module) -> nn.Conv2d | None:
    return next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
