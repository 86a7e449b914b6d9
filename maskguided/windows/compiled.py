"""How torch.compile is told what to leave alone.

It compiles a forward as a whole (one graph), or in frames: a block that is compiled alone, or all that is called where
a graph breaks (by a `print` in a block).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.nn import functional as F

from ..optional import torch_since

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])

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


def never_alone(function: Function) -> Function:
    """`function`, which torch.compile looks into as a part of a forward, and never makes a frame of its own.

    torch._dynamo.skip does so, too, but that takes seconds to import.
    """
    if COMPILED:
        api: Any = torch._C._dynamo.eval_frame
        here, below = api._FrameAction.SKIP, api._FrameAction.DEFAULT
        api.set_code_exec_strategy(function.__code__, api._FrameExecStrategy(here, below))
    return function


_asked_for: set[Callable[..., Any]] = set()


def ask_for_pad(is_traced: bool) -> None:
    """Make torch.compile ask function modes for F.pad, which it otherwise looks into without doing so.

    It may have done that already in this graph, if it `is_traced` by torch.compile: that is then begun anew.
    """
    if F.pad in _asked_for or "torch._dynamo" not in sys.modules:  # which takes seconds to import
        return
    _asked_for.add(F.pad)
    torch.compiler.allow_in_graph(F.pad)  # type: ignore[no-untyped-call]
    if is_traced:
        raise torch._dynamo.exc.UnspecializeRestartAnalysis


# As torch.compiler.assume_constant_result does it, without importing the compiler: where a call is compiled, it runs.
ask_for_pad._dynamo_marked_constant = True  # type: ignore[attr-defined]
