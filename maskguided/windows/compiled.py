"""What torch.compile makes of modes that tell tensors apart by being the same object.

It compiles a forward as a whole (one graph), or in frames: a block that is compiled alone, or all that is called where
a graph breaks (by a `print` in a block). Its guards do not see whether an argument of such a frame is a tensor that a
mode holds, so code made for windows that were just cut would run for others, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from ..optional import torch_since

Result = TypeVar("Result")

COMPILED = torch_since(2, 10)
"""Whether torch.compile of this torch takes windows into its graph."""


def not_compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    """What torch.compiler.disable does, but that takes seconds to import the compiler."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Result:
        set_frames: Any = torch._C._dynamo.eval_frame.set_eval_frame
        before = set_frames(None)
        try:
            return function(*args, **kwargs)
        finally:
            set_frames(before)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    return run


class WindowMode(TorchFunctionMode):
    """A mode that is compiled with the forward as a whole; what runs within it in a frame of its own runs eagerly."""

    _traced = False

    def __enter__(self) -> Any:
        self._traced = torch.compiler.is_compiling()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling() and not self._traced:
            torch._dynamo.graph_break()
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What stands in for func(*args, **kwargs)."""
        raise NotImplementedError


if COMPILED:
    # Neither is a frame of its own, in which it would be compiled whatever is around it; what torch._dynamo.skip does.
    _api: Any = torch._C._dynamo.eval_frame
    _alone = _api._FrameExecStrategy(_api._FrameAction.SKIP, _api._FrameAction.SKIP)
    for _method in (WindowMode.__enter__, WindowMode.__torch_function__):
        _api.set_code_exec_strategy(_method.__code__, _alone)
