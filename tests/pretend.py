"""A device named "pretend": it computes on the CPU, refuses tensors of two devices in one operation, as a GPU does, and
notes where the host waits for it.

Once registered it stays for the life of the process, so what uses it has one of its own (test_device.py).
"""

from __future__ import annotations

from contextlib import ContextDecorator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from waiting import waits_for

NAME = "pretend"
waits: list[str] = []
"""What brought values to the host, or has a shape that depends on them."""
waited_for: list[Any] = []
"""Devices whose work was waited for."""

_MADE = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm", "scalar_tensor")
_library = [torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")]  # gone where nothing holds them


class There(Tensor):
    """A tensor of that device; `here` is what computes."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        there = Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device(NAME, 0), requires_grad=here.requires_grad,
        )  # fmt: skip
        there.here = here
        return there

    def __init__(self, here: Tensor) -> None: ...

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        waits.append("tolist")
        return self.here.tolist()


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    flat, shape = pytree.tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, There)]
    to_host = name == "_to_copy" and torch.device(kwargs.get("device") or NAME).type == "cpu"
    if waits_for(func, args) or to_host:
        waits.append(name)
    if name == "copy_" and not isinstance(args[0], There):
        waits.append(name)
        return args[0].copy_(args[1].here)
    strangers = [value for value in tensors if not isinstance(value, There) and value.dim()]
    if not to_host and torch.float64 in (kwargs.get("dtype"), *(value.dtype for value in there)):
        raise TypeError(f"{name}: this device has no float64, as Apple's have none")
    if there and strangers and name not in ("_to_copy", "copy_"):
        places = [(str(value.device), tuple(value.shape)) for value in tensors]
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but they are {places}")
    args, kwargs = pytree.tree_unflatten([_here(value) for value in flat], shape)
    result = func(*args, **kwargs)
    own = {id(value.here): value for value in there}  # what an operation in place returns is its input
    if to_host:
        return result
    return pytree.tree_map_only(Tensor, lambda made: own[id(made)] if id(made) in own else There(made), result)


def _here(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.here if isinstance(value, There) else value


class _Nothing(ContextDecorator):
    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...


class _Module:
    """What torch asks of a device's module."""

    is_available = is_initialized = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda *args: None)
    synchronize = staticmethod(lambda device=None: waited_for.append(device))
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


def register() -> None:
    """Make the device known, around what such tensors cannot do: inference mode, new `data`, torch.tensor there."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else _Nothing()
    tensor, torch.tensor = torch.tensor, lambda *args, device=None, **kwargs: tensor(*args, **kwargs).to(device)
    aten, rest = _library

    def without_device(op: Any) -> Any:
        return lambda *args, device=None, pin_memory=None, layout=None, **kwargs: There(op(*args, **kwargs))

    for name in (*_MADE, "empty.memory_format", "empty_strided"):
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, without_device(op), "PrivateUse1")
    rest.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
