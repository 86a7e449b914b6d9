"""What torch functions that look beyond a pixel are called with, by the names of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

Sides = tuple[int, int, int, int]
"""Pixels added at the left, right, top and bottom, as torch.nn.functional.pad takes them."""

ORDER: dict[str, tuple[str, ...]] = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv3d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose2d": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "pad": ("input", "pad", "mode", "value"),
    "interpolate": ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias"),
    "im2col": ("input", "kernel_size", "dilation", "padding", "stride"),
    "roll": ("input", "shifts", "dims"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "adaptive_max_pool2d": ("input", "output_size", "return_indices"),
    "adaptive_avg_pool2d": ("input", "output_size"),
}
"""Their arguments in order."""
_TRANSPOSED = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}


def named(order: Sequence[str], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names; `order`: those of its positional ones.

    >>> named(ORDER["roll"], ("x", 1), {"dims": 2})
    {'input': 'x', 'shifts': 1, 'dims': 2}
    """
    return {**dict(zip(order, args, strict=False)), **kwargs}


def pair(value: Any) -> tuple[int, int]:
    """(rows, columns), of one number for both or of two."""
    first, second = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return first, second


def sides_of(given: dict[str, Any]) -> Sides:
    """What a conv2d pads."""
    padding = given.get("padding", 0)
    kernel = given["weight"].shape[2:]
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        total = [step * (side - 1) for step, side in zip(pair(given.get("dilation", 1)), kernel, strict=True)]
        return (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    rows, cols = pair(padding)
    return (cols, cols, rows, rows)


def flat_sides_of(given: dict[str, Any]) -> tuple[int, Sides] | None:
    """How many bands, and pixels, a conv3d pads; None where it pads more on one side than on the other.

    >>> flat_sides_of({"weight": Tensor(8, 8, 3, 3, 5), "padding": (1, 1, 2)})
    (1, (2, 2, 1, 1))
    """
    padding, kernel = given.get("padding", 0), given["weight"].shape[2:]
    if padding == "same":
        dilation = given.get("dilation", 1)
        steps = dilation if isinstance(dilation, (tuple, list)) else [dilation] * 3
        total = [step * (side - 1) for step, side in zip(steps, kernel, strict=True)]
        if any(length % 2 for length in total):
            return None
        padding = [length // 2 for length in total]
    if isinstance(padding, str):
        padding = 0
    bands, rows, cols = padding if isinstance(padding, (tuple, list)) else [padding] * 3
    return bands, (cols, cols, rows, rows)


def reach_of(given: dict[str, Any]) -> tuple[int, int] | None:
    """How many rows and columns a conv_transpose2d looks beyond its own; None where it enlarges otherwise than by its
    stride.

    >>> reach_of({"weight": Tensor(8, 8, 4, 4), "stride": 2, "padding": 1})
    (1, 1)
    """
    settings = (pair(given.get(name, usual)) for name, usual in _TRANSPOSED.items())
    reach = []
    for side, step, padding, more, dilation in zip(given["weight"].shape[2:], *settings, strict=True):
        last = dilation * (side - 1)  # of the pixels that one becomes
        if last + 1 + more != step + 2 * padding:
            return None
        reach.append(max((last - padding) // step, (step - 1 + padding) // step))
    return reach[0], reach[1]


def factor_of(x: Tensor, given: dict[str, Any]) -> int | None:
    """By which whole number an interpolation enlarges `x`; None where it does otherwise."""
    if given.get("size") is not None:
        sizes = zip(pair(given["size"]), x.shape[2:], strict=True)
        factors = {size / old for size, old in sizes}
    elif given.get("scale_factor") is not None:
        scale = given["scale_factor"]
        factors = set(scale) if isinstance(scale, (tuple, list)) else {scale}
    else:
        return None
    factor = factors.pop()
    return int(factor) if not factors and factor == int(factor) and factor >= 1 else None


def steps_of(given: dict[str, Any]) -> Steps:
    """How a conv2d, or a pool, goes over its input."""
    is_pool = "kernel_size" in given
    kernel = pair(given["kernel_size"] if is_pool else given["weight"].shape[2:])
    stride = pair(given.get("stride") or (kernel if is_pool else 1))
    padding = (given.get("padding") or 0) if is_pool else sides_of(given)[::-2]
    return Steps(kernel, stride, pair(padding), pair(given.get("dilation") or 1))


class Steps(NamedTuple):
    """Pixels along rows and columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def fit(self, x: Tensor) -> bool:
        """Whether the output has one pixel for each stride of `x`, none missing at its end."""
        return all(
            ((length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1) * stride == length
            for length, kernel, stride, padding, dilation in zip(x.shape[2:], *self, strict=True)
        )
