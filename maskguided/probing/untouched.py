"""Run a network and leave no trace in it; undo what failed."""

from __future__ import annotations

import operator
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run `model` in eval mode without gradients; afterwards every attribute is what it was.

    A forward may assign to its module (basicsr's EDSR: `self.mean = self.mean.type_as(x)`), and a traced
    forward would leave tracing objects there. Within it no weight requires gradients (torch.utils.flop_counter stumbles
    over views of those that do), attention is computed in steps that can be seen, and float32 to all its digits.
    """
    saved = [(module, dict(vars(module))) for module in model.modules()]
    caches = [(value, value.copy()) for m in model.modules() for value in vars(m).values() if _is_cache(value)]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()  # alone: a train() of the network's own need not return it
        model.requires_grad_(False)
        with torch.inference_mode(False), torch.no_grad(), _eagerly(), _in_steps(), _precisely(), _without_autocast():
            yield
    finally:
        for module, attributes in saved:
            for added in vars(module).keys() - attributes.keys():
                del vars(module)[added]
            vars(module).update(attributes)  # not cleared before: another thread may be running it
        for cache, content in caches:
            if not _is_as_it_was(cache, content):
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
def _without_autocast() -> Iterator[None]:
    """Within it nothing is cast: a float16 of autocast has too few digits to compare results by."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


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
    """An exception within it brings `wrapped` back to what it was: its settings and parts, what trains, and each
    module's mode. The weights of the `network` are left as they are."""
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


def _is_cache(value: object) -> bool:
    """A plain container in which a forward may keep what it made for a size, as masks by (H, W); a module its parts."""
    return type(value) in (dict, OrderedDict, list, set)


def _is_as_it_was(cache: Any, content: Any) -> bool:
    """Whether it holds the very objects of `content`: then it is not touched, for another thread may read it."""
    if isinstance(cache, dict):
        cache, content = ([*chain.from_iterable(held.items())] for held in (cache, content))
    return len(cache) == len(content) and all(map(operator.is_, cache, content))
