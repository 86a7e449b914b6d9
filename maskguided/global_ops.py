"""Global operations: channel attention, spatial mean and deviation, instance norm.

A block that holds one is no function of a neighbourhood, so refining windows is not what the whole network
does. On windows it is computed per window, as the MGA paper does, or per image: once over all the windows
that are refined in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_POOLS = ("adaptive_avg_pool2d", "adaptive_max_pool2d")
_MEANS = ("adaptive_avg_pool2d", "mean")
_REDUCTIONS = ("mean", "sum", "amax", "amin", "std", "var", "std_mean", "var_mean")


class GlobalOps(TorchFunctionMode):
    """Sees every torch function; `reduce` gets those that take in a whole map (B, C, H, W)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and is_global(func, args, kwargs):
            return self.reduce(func, args[0], args[1:], kwargs)
        return func(*args, **kwargs)

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError


class Seen(GlobalOps):
    """Within it, global operations do what they do, and their names are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        self.names.append(func.__name__)
        return func(x, *args, **kwargs)


class PerImage(GlobalOps):
    """Within it, a global operation on the k windows of each image sees them as one map.

    Args:
        k: windows of an image.
        owned: (h, w) of a window -> (B*k, 1, h, w) bool: the pixels that count in a mean. Windows overlap by their
            halos and at borders where they were moved inward; a pixel counts in the patch that it belongs to. Default:
            all count.
    """

    def __init__(self, k: int, owned: Callable[[int, int], Tensor] | None = None) -> None:
        super().__init__()
        self.k, self.owned = k, owned

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        if x.shape[0] % self.k:
            return func(x, *args, **kwargs)
        if func.__name__ in _MEANS:
            return self._mean(x, func, args, kwargs)
        together = x.reshape(-1, self.k, *x.shape[1:]).transpose(1, 2).flatten(2, 3)  # (B, C, k*h, w)
        result = func(together, *args, **kwargs)
        return tuple(map(self._apart, result)) if isinstance(result, tuple) else self._apart(result)

    def _mean(self, x: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:
        """The mean of the windows' means: no map of all windows is put together for it."""
        if self.owned is not None:  # each pixel that counts weighs as much more as others of its image do not
            counts = self.owned(*x.shape[2:])
            pixels = counts.reshape(-1, self.k, counts[0].numel())
            weight = pixels[0].numel() / pixels.sum((1, 2))
            x = x * (counts * weight.repeat_interleave(self.k)[:, None, None, None]).to(x.dtype)
        each = func(x, *args, **kwargs)
        mean: Tensor = each.reshape(-1, self.k, *each.shape[1:]).mean(1)
        return mean.repeat_interleave(self.k, dim=0)

    def _apart(self, value: Tensor) -> Tensor:
        """(B, C, k*h, w) -> (B*k, C, h, w); what is one value for an image stands for each of its windows."""
        if value.dim() == 4 and value.shape[2] > 1:
            batch, channels, _, cols = value.shape
            return value.reshape(batch, channels, self.k, -1, cols).transpose(1, 2).flatten(0, 1)
        return value.repeat_interleave(self.k, dim=0)


class LocalOnly(GlobalOps):
    """Within it, NaN does not pass through global operations: what is left of its spread is local."""

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        result = func(torch.nan_to_num(x), *args, **kwargs)
        keeps_size = isinstance(result, Tensor) and result.shape == x.shape
        return result + 0 * x if keeps_size else result


def is_global(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `func` reduces a map (B, C, H, W) over all its pixels.

    >>> x = torch.rand(1, 8, 5, 5)
    >>> is_global(torch.mean, (x, (2, 3)), {}), is_global(torch.mean, (x, 1), {})
    (True, False)
    """
    name, x = getattr(func, "__name__", ""), args[0]
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[2] * x.shape[3] == 1:
        return False
    if name in _POOLS:
        size = args[1] if len(args) > 1 else kwargs.get("output_size")
        return size == 1 or tuple(size or ()) == (1, 1)
    if name in _REDUCTIONS:
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        return isinstance(dims, (tuple, list)) and {d % 4 for d in dims} == {2, 3}
    return name == "instance_norm"
