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
_DEVIATIONS = ("std", "var", "std_mean", "var_mean")
_REDUCTIONS = ("mean", "sum", "amax", "amin", *_DEVIATIONS)
_NORM = ("input", "running_mean", "running_var", "weight", "bias")
_BATCH_NORM = (*_NORM, "training", "momentum", "eps")
_NORMS = ("batch_norm", "instance_norm")
_INSTANCE_NORM = (*_NORM, "use_input_stats", "momentum", "eps")


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
        windows: of all images, B*k.
        owned: (h, w) of a window -> (B*k, 1, h, w) bool: the pixels that count in a mean. Windows overlap by their
            halos and at borders where they were moved inward; a pixel counts in the patch that it belongs to. Default:
            all count.
    """

    def __init__(self, k: int, windows: int, owned: Callable[[int, int], Tensor] | None = None) -> None:
        super().__init__()
        self.k, self.windows, self.owned = k, windows, owned

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        if x.shape[0] != self.windows:
            return self._folded(func, x, args, kwargs)
        if func.__name__ in _MEANS:
            return self._mean(x, func, args, kwargs)
        if func.__name__ in _NORMS:
            return self._normalised(x, func.__name__ == "batch_norm", (x, *args), kwargs)
        if self.owned is not None and func.__name__ in ("sum", *_DEVIATIONS):
            x = self._counted(x, func.__name__, args, kwargs)
        together = x.reshape(-1, self.k, *x.shape[1:]).transpose(1, 2).flatten(2, 3)  # (B, C, k*h, w)
        result = func(together, *args, **kwargs)
        return tuple(map(self._apart, result)) if isinstance(result, tuple) else self._apart(result)

    def _folded(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        """Of a map whose channels lie in groups along the batch, as after x.reshape(b * groups, -1, h, w)."""
        # Else it is no map of all windows, or a norm has weights for as many channels as there are now.
        groups, rest = divmod(x.shape[0], self.windows)
        if rest or groups < 2 or func.__name__ in _NORMS:
            return func(x, *args, **kwargs)

        def folded(value: Tensor) -> Tensor:
            return value.reshape(x.shape[0], x.shape[1], *value.shape[2:])

        result = self.reduce(func, x.reshape(self.windows, -1, *x.shape[2:]), args, kwargs)
        return tuple(map(folded, result)) if isinstance(result, tuple) else folded(result)

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

    def _moments(self, x: Tensor, over_batch: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance (biased) and number of the pixels that count: (B*k, C, 1, 1) or (1, C, 1, 1), float32."""
        x = x.float()  # half precision does not count so far
        counts = x.new_ones(1) if self.owned is None else self.owned(*x.shape[2:]).to(x.dtype)

        def total(value: Tensor) -> Tensor:
            value = value.sum((2, 3), keepdim=True)
            if over_batch:
                return value.sum(0, keepdim=True)
            return value.reshape(-1, self.k, *value.shape[1:]).sum(1).repeat_interleave(self.k, dim=0)

        number = total(counts.expand(x.shape[0], 1, *x.shape[2:]))
        mean = total(x * counts) / number
        return mean, total((x - mean).square() * counts) / number, number

    def _counted(self, x: Tensor, name: str, args: Any, kwargs: Any) -> Tensor:
        """`x` changed so that its plain sum, or deviation, is that of the pixels that count."""
        assert self.owned is not None
        counts = self.owned(*x.shape[2:]).to(x.dtype)
        if name == "sum":
            return x * counts
        unbiased = kwargs.get("unbiased", args[1] if len(args) > 1 and isinstance(args[1], bool) else True)
        correction = kwargs.get("correction", int(unbiased))
        mean, _, number = self._moments(x, over_batch=False)
        every = self.k * x.shape[2] * x.shape[3]
        wider = ((every - correction) / (number - correction)).sqrt()
        changed: Tensor = mean + (x - mean) * counts * wider
        return changed.to(x.dtype)

    def _normalised(self, x: Tensor, over_batch: bool, args: Any, kwargs: Any) -> Tensor:
        """Batch or instance norm by the statistics of `x` itself."""
        given = _given(_BATCH_NORM if over_batch else _INSTANCE_NORM, args, kwargs)
        mean, variance, _ = self._moments(x, over_batch)
        result: Tensor = (x - mean) * (variance + given.get("eps", 1e-5)).rsqrt()
        weight, bias = given.get("weight"), given.get("bias")
        if weight is not None:
            result = result * weight[:, None, None]
        return (result if bias is None else result + bias[:, None, None]).to(x.dtype)

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


def _given(names: tuple[str, ...], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


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
        return size == 1 or (isinstance(size, (tuple, list)) and tuple(size) == (1, 1))
    if name in _REDUCTIONS:
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        return isinstance(dims, (tuple, list)) and {d % 4 for d in dims} == {2, 3}
    if name == "batch_norm":  # which keeps no statistics, and so takes those of what it sees
        return _given(_BATCH_NORM, args, kwargs).get("running_mean") is None
    return name == "instance_norm" and _given(_INSTANCE_NORM, args, kwargs).get("use_input_stats", True)
