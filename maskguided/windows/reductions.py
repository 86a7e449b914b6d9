"""Which torch functions reduce a whole map, told by their names and arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import named

ADAPTIVE_POOLS = ("adaptive_avg_pool2d", "adaptive_max_pool2d")
FIXED_POOLS = ("avg_pool2d", "max_pool2d")
_FLAT_POOLS = ("adaptive_avg_pool1d", "adaptive_max_pool1d")
MEANS = ("adaptive_avg_pool2d", "adaptive_avg_pool1d", "avg_pool2d", "mean")
LARGEST = ("max", "amax", "adaptive_max_pool2d", "adaptive_max_pool1d", "max_pool2d")
SMALLEST = ("min", "amin")
DEVIATIONS = ("std", "var", "std_mean", "var_mean")
EXTREMES = ("max", "min")
"""These return indices, too, which stay those within each window."""
_IDEMPOTENT = ("mean", "amax", "amin", *EXTREMES)
"""Reducing once more what they have made changes nothing."""
SECOND_POWERS = ("norm", "vector_norm", "linalg_vector_norm")
OVER_DIMS = frozenset(("mean", "sum", "amax", "amin", "logsumexp", *DEVIATIONS, *EXTREMES, *SECOND_POWERS))
_NORM = ("input", "running_mean", "running_var", "weight", "bias")
NORMS = {
    "batch_norm": (*_NORM, "training", "momentum", "eps"),
    "instance_norm": (*_NORM, "use_input_stats", "momentum", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
}
"""Normalisations, and the names of their positional arguments."""
NORMALISED = "normalize"
"""What transposed attention (products.py) does to its queries and keys."""
SOFTMAX = "softmax"
"""What makes weights of pixels (products.py)."""
NAMES = frozenset((*ADAPTIVE_POOLS, *FIXED_POOLS, *_FLAT_POOLS, *OVER_DIMS, *NORMS, NORMALISED, SOFTMAX))


def is_global(func: Any, args: Any, kwargs: dict[str, Any], *, single: bool = False) -> bool:
    """Whether `func` reduces a map (B, C, H, W), or (B, H, W, C), over all its pixels, or what is left of them.

    `single`: whether what has one pixel may be a map; else it is a vector, of which nothing is left to reduce.

    >>> import torch
    >>> x = torch.rand(1, 8, 5, 5)
    >>> is_global(torch.mean, (x, (2, 3)), {}), is_global(torch.mean, (x, 1), {})
    (True, False)
    >>> is_global(torch.sum, (x.sum(3, keepdim=True), 2), {})  # the rows' sums are summed
    True
    """
    name, x = getattr(func, "__name__", ""), args[0]
    if not isinstance(x, Tensor) or x.dim() != 4:
        return False
    if x.shape[2] * x.shape[3] == 1 and not single:
        return False
    if name in ADAPTIVE_POOLS:
        return _to_one(args, kwargs)
    if name in OVER_DIMS:
        dims = dims_of(name, args, kwargs)
        rest = {dim for dim in (2, 3) if x.shape[dim] > 1}
        if single and not rest:  # the first of two steps, or the second
            return bool(dims) and dims <= {1, 2, 3} and (dims >= {2, 3} or name in _IDEMPOTENT)
        return dims in ({2, 3}, {1, 2}, {1, 2, 3}) or (len(rest) == 1 and dims == rest and name not in DEVIATIONS)
    if name == "batch_norm":  # which keeps no statistics, and so takes those of what it sees
        return named(NORMS[name], args, kwargs).get("running_mean") is None
    if name == "group_norm":
        return True
    return name == "instance_norm" and named(NORMS[name], args, kwargs).get("use_input_stats", True)


def is_first_step(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `func` reduces a map (B, C, H, W) over its rows or its columns alone."""
    name, x = getattr(func, "__name__", ""), args[0]
    if name not in OVER_DIMS or not isinstance(x, Tensor) or x.dim() != 4:
        return False
    return 1 not in x.shape[2:] and dims_of(name, args, kwargs) in ({2}, {3})


def along(func: Any, args: Any, kwargs: dict[str, Any]) -> int | None:
    """The dimension, 3 or 2, if `func` takes means of a map (B, C, H, W) along its rows, or its columns, alone.

    >>> import torch
    >>> x = torch.rand(1, 8, 5, 6)
    >>> along(torch.mean, (x, 3), {}), along(torch.nn.functional.adaptive_avg_pool2d, (x, (1, None)), {})
    (3, 2)
    """
    name, x = getattr(func, "__name__", ""), args[0]
    if not isinstance(x, Tensor) or x.dim() != 4 or 1 in x.shape[2:]:
        return None
    if name == "mean" and is_first_step(func, args, kwargs):
        return dims_of(name, args, kwargs).pop()
    if name != "adaptive_avg_pool2d":
        return None
    size = args[1] if len(args) > 1 else kwargs.get("output_size")
    if not isinstance(size, (tuple, list)):
        return None
    high, wide = (x.shape[n] if length is None else length for n, length in zip((2, 3), size, strict=True))
    return {(x.shape[2], 1): 3, (1, x.shape[3]): 2}.get((high, wide))


def is_flat(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `func` reduces, or weighs, (B, C, h*w) over its last dimension, or pools a map in one piece."""
    name, x = getattr(func, "__name__", ""), args[0]
    if not isinstance(x, Tensor):
        return False
    if name in FIXED_POOLS and x.dim() == 4:
        size = args[1] if len(args) > 1 else kwargs.get("kernel_size")
        return (tuple(size) if isinstance(size, (tuple, list)) else (size, size)) == tuple(x.shape[2:])
    if name in _FLAT_POOLS:
        return x.dim() == 3 and _to_one(args, kwargs)
    return x.dim() == 3 and name in (*OVER_DIMS, SOFTMAX) and dims_of(name, args, kwargs) == {2}


def is_transposed(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `func` normalises (B, ..., C, h*w) over its last dimension, as transposed attention does."""
    name, x = getattr(func, "__name__", ""), args[0]
    if name != NORMALISED or not isinstance(x, Tensor) or x.dim() < 3:
        return False
    return dims_of(name, args, kwargs) == {x.dim() - 1}


def _to_one(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an adaptive pool leaves one value of each channel."""
    size = args[1] if len(args) > 1 else kwargs.get("output_size")
    return size == 1 or (isinstance(size, (tuple, list)) and set(size) == {1})


def dims_of(name: str, args: Any, kwargs: dict[str, Any]) -> set[int]:
    """The dimensions that a call reduces, from 0 on; an empty set for all, or for a norm of another power than 2."""
    place = 1
    if name in (*SECOND_POWERS, NORMALISED):
        place, power = 2, kwargs.get("p", kwargs.get("ord", args[1] if len(args) > 1 else 2))
        if power not in (None, "fro", 2):
            return set()
    dims = args[place] if len(args) > place else kwargs.get("dim", kwargs.get("axis"))
    dims = (dims,) if isinstance(dims, int) and not isinstance(dims, bool) else dims
    return {d % args[0].dim() for d in dims} if isinstance(dims, (tuple, list)) else set()


def precise(x: Tensor) -> torch.dtype:
    """What to count and sum pixels of `x` in: float32, or float64 where `x` is that."""
    return torch.promote_types(x.dtype, torch.float32)
