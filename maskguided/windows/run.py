"""Run a part of a network on the windows of some patches, seeing what is around them as far as may be.

gather -> the part, its convolutions seeing the neighbouring windows -> what it makes of each window
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import ArgumentError
from ..parts import Kind, State
from ..patches import Chosen
from .borders import Borders, Guess, cut_windows
from .compiled import COMPILED, ask_for_pad, never_alone, not_compiled
from .exchange import Exchange
from .per_image import PerImage
from .trial import Trial

Result = TypeVar("Result")
_CHECKPOINTS = frozenset(
    (
        "torch.utils.checkpoint",
        "fairscale.nn.checkpoint.checkpoint_activations",
        "deepspeed.runtime.activation_checkpointing.checkpointing",
    )
)


@never_alone
def on_windows(
    part: Callable[[State], Result],
    state: State,
    kinds: Mapping[str, Kind],
    chosen: Chosen,
    *,
    trial: Trial,
    exchange: bool,
    share_statistics: bool = False,
    guess: Guess | None = None,
    features: Tensor | None = None,
) -> Result:
    """What `part` makes of the windows of the chosen patches in `state`.

    Args:
        part: maps live values to live values or to an image.
        state: the live values it starts from, of the whole map.
        kinds: how each of these relates to the image: maps are cut, vectors repeated, constants handed on.
        chosen: the patches.
        trial: what is known of windows of this network.
        exchange: whether convolutions see the windows around (exchange.py).
        share_statistics: whether global operations see all windows of an image as one map (per_image.py).
        guess: what padded convolutions see where no patch is refined (see Borders); None: zeros.
        features: (B, F, r*H, r*W), what it guesses from.
    """
    windows, cut = cut_windows(state, kinds, chosen)
    neighbours: AbstractContextManager[object] = nullcontext()
    if exchange:
        ask_for_pad(torch.compiler.is_dynamo_compiling())
        borders = Borders(chosen, cut, guess, features)
        neighbours = Exchange(borders, strangers=trial.strangers, detours=trial.detours, unit=trial.unit)
    statistics: AbstractContextManager[object] = nullcontext()
    if share_statistics:
        statistics = PerImage(chosen, unit=trial.unit, reading=trial.reading, strangers=trial.strangers)
    recomputed: AbstractContextManager[object] = nullcontext()
    if (exchange or share_statistics) and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        recomputed = _NothingTwice()
    with statistics, neighbours, recomputed:
        return part(windows)


_CODE = on_windows.__code__  # whatever is put around it below


if not COMPILED:
    # To 2.5 torch.compile leaves function modes out, without a word; to 2.9 it stumbles over what is done in them.
    on_windows = not_compiled(on_windows)


class _NothingTwice(TorchFunctionMode):
    """Refuses blocks that drop their activations, to compute them again when gradients are: by then they would see
    nothing of the windows around."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        frame = sys._getframe(1)
        while frame.f_code is not _CODE and frame.f_back is not None:
            if frame.f_globals.get("__name__") in _CHECKPOINTS:
                raise ArgumentError(
                    f"blocks of this network use {frame.f_globals['__name__']}, and what that computes again sees "
                    "nothing of the windows around; turn it off (use_checkpoint=False in many networks), or use "
                    "exchange=False and global_ops='window', or torch.no_grad() if nothing is trained"
                )
            frame = frame.f_back
        return func(*args, **(kwargs or {}))
