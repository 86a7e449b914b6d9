"""Run a network for what it does, not for what comes of it: in a tenth of the time.

Which functions a forward calls, at what sizes, on what a pixel depends: none of it hangs on the sums over channels that
take nearly all of a forward's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_CENTRE = 0.3
"""Extra weight of a kernel's centre, so that detail outlasts many layers; the rest reaches its edge."""

_LITTLE = 2_000_000
"""Multiply-adds: a layer of fewer takes no longer as it is."""

_NORMS = ("layer_norm", "rms_norm", "group_norm")

Result = TypeVar("Result")


def thinly(look: Callable[[], Result]) -> Result:
    """`look` within `Thin`, or as it is where that raises: a covariance of channels all alike has no inverse."""
    try:
        with Thin():
            return look()
    except Exception:  # whatever a foreign network raises
        return look()


class Thin(TorchFunctionMode):
    """Within it, large conv2d and linear layers compute all their channels from one, the mean of those they are given.

    A value depends on the same pixels as before, NaN spreads as before, shapes are the same; other weights of the same
    shape give other values. These stay small (asinh), whatever the network multiplies.

    Args:
        every: small ones, too, so that windows and the map that they are of are treated alike.
    """

    def __init__(self, *, every: bool = False) -> None:
        super().__init__()
        self._little = 0 if every else _LITTLE
        self.norms = False
        """Whether one over the channels was called, of which a mean over these leaves nothing."""
        self.rolls = False
        """Whether a map was rolled."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        self.norms |= name in _NORMS
        self.rolls |= name == "roll"
        return _THIN[name](self._little, *args, **kwargs) if name in _THIN else func(*args, **kwargs)


def _conv2d(
    little: int, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    if weight.numel() * input.shape[-2] * input.shape[-1] < little:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    high, wide = weight.shape[2:]
    kernel = weight.new_full((groups, 1, high, wide), (1 - _CENTRE) / (high * wide))
    kernel[:, :, high // 2, wide // 2] += _CENTRE
    means = input.reshape(*input.shape[:-3], groups, -1, *input.shape[-2:]).mean(-3)  # (..., groups, H, W)
    made = F.conv2d(means, kernel, None, stride, padding, dilation, groups).asinh()
    each = made.unsqueeze(-3).expand(*made.shape[:-2], len(weight) // groups, -1, -1)
    factor, more = _of_channels(weight, bias)
    return (each.flatten(-4, -3) * factor[:, None, None] + more[:, None, None]).to(made.dtype)


def _linear(little: int, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.dim() == 1 or weight.numel() * input.shape[:-1].numel() < little:
        return F.linear(input, weight, bias)
    factor, more = _of_channels(weight, bias)
    made = F.linear(input.mean(-1, keepdim=True), weight.new_ones(1, 1)).asinh()
    return (made * factor + more).to(made.dtype).contiguous()


def _of_channels(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """A factor for each channel that is made, 1 in the mean, and something to add, which a norm does not undo."""
    each = weight.flatten(1)
    # Weights that come of the image (dynamic convolutions) may hold NaN anywhere; to read all of the others takes time.
    telling = each[:, 0] if isinstance(weight, nn.Parameter) else each.mean(1)
    telling = torch.tanh(telling * each.shape[1] ** 0.5)
    more = torch.linspace(-1, 1, len(each), device=telling.device).to(telling)
    return 1 + (telling - telling.nanmean()) / 2, more if bias is None else more + bias


_THIN = {"conv2d": _conv2d, "linear": _linear}
