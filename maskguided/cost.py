"""Count multiply-adds without computing: the forward runs on tensors that have a shape and no data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from .probing.untouched import untouched

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """MACs of one image, parameters, and patches, as `MaskGuided.cost` reports them."""

    height: int
    width: int
    keep: float
    dense: int
    """MACs of the network as it was."""
    coarse: int
    """MACs at keep=0."""
    guided: int
    """MACs at this keep, halo counted."""
    parameters: int
    """Of the network."""
    added: int
    """Parameters of what wrapping added: head, score, tails, context, skip, estimate."""
    k: int
    patches: int

    @property
    def ratio(self) -> float:
        """Guided over dense."""
        return self.guided / self.dense

    def __str__(self) -> str:
        def line(name: str, macs: int) -> str:
            return f"{name:<14}{macs / 1e9:10.2f} G MACs  {macs / self.dense:6.1%}"

        return "\n".join(
            (
                f"LR {self.height}x{self.width}, {self.parameters:,} parameters + {self.added:,} added",
                line("dense", self.dense),
                line("coarse", self.coarse),
                line(f"keep={self.keep:g}", self.guided) + f"  ({self.k} of {self.patches} patches)",
            )
        )


class Bounded(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Within it tensors have a shape and no data; after `most` steps it raises: a loop over pixels has no end there."""

    def __init__(self, most: int) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.left = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("a loop over pixels, as of a scan in Python, has no end at this size")
        return super().__torch_dispatch__(func, types, args, kwargs or {})


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Within it floating-point operations are counted, those of attention by its matrix products: before torch 2.15 the
    kernel that a CPU has for it is not known to the counter."""
    from torch.utils.flop_counter import FlopCounterMode  # a quarter of a second, where nothing may ever be counted

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def macs(forward: Callable[[Tensor], object], shape: tuple[int, ...], like: Tensor, model: nn.Module) -> int:
    """Multiply-adds of `forward` on an input of `shape`, with the dtype and device of `like`.

    Convolutions and matrix products count, as in torch.utils.flop_counter (which counts two per multiply-add).
    Tensors without data are enough for most forwards; one that reads values, or sets weights, is run on noise.

    Args:
        model: what `forward` runs; it is left as it was.

    >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    >>> macs(conv, (1, 3, 10, 10), torch.zeros(1), conv) == 10 * 10 * 3 * 8 * 9
    True
    """
    counted = macs_without_data(forward, shape, like, model)
    if counted is not None:
        return counted
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(like)
    with untouched(model), counting() as counter:
        forward(noise)
    return int(counter.get_total_flops()) // 2


def macs_without_data(
    forward: Callable[[Tensor], object], shape: tuple[int, ...], like: Tensor, model: nn.Module, most: int = sys.maxsize
) -> int | None:
    """As `macs`; None where `forward` needs the values of pixels, or fails, or takes more than `most` steps."""
    try:
        with untouched(model), Bounded(most), counting() as counter:
            forward(torch.empty(shape, dtype=like.dtype, device=like.device))
    except Exception:  # whatever a foreign network raises
        return None
    return int(counter.get_total_flops()) // 2
