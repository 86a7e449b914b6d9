"""What is asked of any network, without running it."""

from __future__ import annotations

import copy
import functools
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, CannotSplit

Module = TypeVar("Module", bound=nn.Module)
Hook = TypeVar("Hook", bound=Callable[..., Any])
_SILENT = 1e-3
"""Weights that are no larger do nothing yet."""
_WEAK = 0.25
"""By less than this factor (root mean square) weights of some initialisations pass on what they get (basicsr: 0.14)."""


class Wrapped(nn.Module):
    """The base class of MaskGuided: here, so that `refuse_wrapped` need not import that."""


def network_within(model: nn.Module) -> nn.Module:
    """`model` without the modules that torch.compile, DataParallel and DistributedDataParallel put around a network."""
    while isinstance(model, nn.Module):  # what is none is refused later
        around = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = dict(model.named_children()).get("module" if around else "_orig_mod")
        if inner is None:
            break
        model = inner
    return model


def of_this_thread(hook: Hook) -> Hook:
    """`hook` for what the present thread runs alone: another may be running the same network."""
    own = threading.get_ident()

    def called(*arguments: Any) -> Any:
        return hook(*arguments) if threading.get_ident() == own else None

    return cast(Hook, called)


def refuse_wrapped(model: object) -> None:
    """Refuse what is no network, one that is wrapped already, and one that holds such."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"a torch.nn.Module is needed, not {type(model).__name__}")
    if isinstance(model, Wrapped):
        raise ArgumentError("this network is wrapped already: set its keep, or give fast.unwrap() for another wrap")
    within = [name for name, part in model.named_modules() if isinstance(part, Wrapped)]
    if within:
        raise ArgumentError(f"{within[0]} of this {type(model).__name__} is wrapped already: it is fast as it is")


def refuse_opaque(model: nn.Module) -> None:
    """Refuse a network without values, and one that holds what cannot be looked into."""
    name = type(model).__name__
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise ArgumentError(f"{name} has lazy layers without weights yet: call it once first")
    if any(p.is_meta for p in model.parameters()):
        raise ArgumentError(f"{name} is on the meta device, without values: load its weights first")
    for where, part in model.named_modules():
        scripted, exported = isinstance(part, torch.jit.ScriptModule), "eval" in vars(part)  # which refuses eval()
        if scripted or exported:
            what = "TorchScript" if scripted else "what torch.export made"
            raise CannotSplit(
                f"{name} holds {what} ({where or 'itself'}), into which nobody can look: wrap the network as it was "
                f"before {'torch.jit' if scripted else 'that'}, and export what comes of it"
            )


def first_weight(model: nn.Module) -> nn.Parameter:
    """The first floating-point parameter: where the network is, and in its dtype."""
    return next(p for p in model.parameters() if p.is_floating_point())


@contextmanager
def forgetting(model: nn.Module) -> Iterator[None]:
    """Within it the functools caches in and beside the classes of `model` are empty ones, that are dropped afterwards:
    what a forward looks up there it makes anew, and what is kept there for others stays."""
    kinds = {base for module in model.modules() for base in type(module).__mro__[:-1]}
    beside = {sys.modules.get(kind.__module__) for kind in kinds if not kind.__module__.startswith("torch.")}
    swapped = []
    for place in (*kinds, *(beside - {None})):
        for name, value in list(vars(place).items()):
            function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if isinstance(function, functools._lru_cache_wrapper):
                fresh = functools.lru_cache(**function.cache_parameters())(function.__wrapped__)
                swapped.append((place, name, value))
                setattr(place, name, fresh if function is value else type(value)(fresh))
    try:
        yield
    finally:
        for place, name, value in swapped:
            setattr(place, name, value)


def silent_weights(model: nn.Module) -> list[nn.Parameter]:
    """Trainable weights still near zero (a LayerScale, a last layer of zeros); weak ones, too, where most are, as some
    networks are initialised."""
    weights = [
        weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.is_floating_point() and not name.endswith("bias") and weight.numel()
    ]
    weak = [weight.dim() > 1 and _gain(weight) < _WEAK for weight in weights]
    if 2 * sum(weak) <= sum(weight.dim() > 1 for weight in weights):
        weak = [False] * len(weights)
    return [w for w, is_weak in zip(weights, weak, strict=True) if is_weak or float(w.detach().abs().max()) < _SILENT]


def _gain(weight: Tensor) -> float:
    """By what noise of all inputs grows, roughly."""
    return math.sqrt(float(weight.detach().float().square().mean()) * weight[0].numel())


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
