"""Global operations: channel attention, spatial mean, sum and deviation, instance and group norm, transposed attention.

A block that holds one is no function of a neighbourhood, so refining windows is not what the whole network does. On
windows it is computed per window, as the MGA paper does, or per image (per_image.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .reductions import (
    ADAPTIVE_POOLS,
    NAMES,
    along,
    is_first_step,
    is_flat,
    is_global,
    is_transposed,
)


class GlobalOps(TorchFunctionMode):
    """Sees every torch function; `reduce` gets those that take in a whole map (B, C, H, W)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in NAMES:
            return func(*args, **kwargs)
        if not args and "input" in kwargs:  # torch.mean(input=x, dim=1)
            args, kwargs = (kwargs["input"],), {name: value for name, value in kwargs.items() if name != "input"}
        if args and self.takes_in(func, args, kwargs):
            return self.reduce(func, args[0], args[1:], kwargs)
        return func(*args, **kwargs)

    def takes_in(self, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether the call is for `reduce`."""
        return is_global(func, args, kwargs)

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError


class Seen(GlobalOps):
    """Within it, on a whole image, global operations do what they do, and their names are kept.

    `flat` and `transposed` say afterwards whether there were some that could mean less on windows (see `Reading`): on a
    whole image they are known by the size of its maps. `picks` says whether images of the batch were picked out of it,
    so that those of one batch may go different ways; `parts`, whether maps were pooled to more than a pixel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.flat = self.transposed = self.picks = self.parts = False
        self._pixels: set[int] = set()
        self._first_steps: list[Any] = []  # held, so that no other tensor takes over an id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = super().__torch_function__(func, types, args, kwargs)
        name = getattr(func, "__name__", "")
        if name == "conv2d" and result.shape[0] == 1:
            self._pixels.add(result.shape[2] * result.shape[3])
        elif name == "__getitem__" and args[0].dim() == 4 and isinstance(args[1], Tensor):
            self.picks = True
        elif args and name in ADAPTIVE_POOLS and not is_global(func, args, kwargs):
            self.parts = True
        elif args and is_first_step(func, args, kwargs):
            self._first_steps.append(result)
        return result

    def takes_in(self, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        if is_global(func, args, kwargs):
            return True
        if is_transposed(func, args, kwargs):
            transposed = args[0].shape[0] == 1 and args[0].shape[-1] in self._pixels
            self.transposed |= transposed
            return transposed
        if along(func, args, kwargs) is not None:
            return args[0].shape[0] == 1 and args[0].shape[2] * args[0].shape[3] in self._pixels
        flat = is_flat(func, args, kwargs) and self._is_whole(args[0])
        self.flat |= flat
        return flat

    def _is_whole(self, x: Tensor) -> bool:
        """Whether `x` (1, C, h*w), or what is left of it after a first step, is of a whole map."""
        pixels = x.shape[2] * (x.shape[3] if x.dim() == 4 else 1)
        return x.shape[0] == 1 and (pixels in self._pixels or any(x is first for first in self._first_steps))

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        self.names.append(func.__name__)
        return func(x, *args, **kwargs)


class LocalOnly(GlobalOps):
    """Within it, NaN does not pass through global operations: what is left of its spread is local."""

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        result = func(torch.nan_to_num(x), *args, **kwargs)
        keeps_size = isinstance(result, Tensor) and result.shape == x.shape
        return result + 0 * x if keeps_size else result
