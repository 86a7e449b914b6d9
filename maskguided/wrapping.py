"""From a network to a wrapped one: `wrap`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .errors import ArgumentError
from .guided import MaskGuided
from .parts import Cuts
from .probing.modules import network_within, refuse_wrapped
from .splitting import split
from .values import arguments_of, check_keys


@torch.inference_mode(False)  # what is added must stay trainable wherever it is made
def wrap(
    model: nn.Module,
    split_at: Cuts = "auto",
    *,
    adapter: str | None = None,
    body: str | Sequence[str] | None = None,
    cut: str | None = None,
    check: bool = True,
    **settings: Any,
) -> MaskGuided:
    """Make `model` restore globally and refine locally. The model is held, not changed.

    Load its weights first: a coarse tail may be a copy of its tail.

    Args:
        model: a super-resolution network: (B, C, H, W) in, (B, C', s*H, s*W) out.
        split_at: how many of its blocks run on the whole image; "auto": half. Several numbers, as (4, 8, 12): after
            each of them some of the refined patches leave (see `onward`).
        adapter: name of the adapter to use, "automatic" for none; default: the first that knows the network.
        body: names of the blocks, see `maskguided.split`.
        cut: name of the last block that runs on the whole image, instead of `split_at`.
        check: whether to compare the parts with the network.
        settings: keep, patch_size, halo, merge, scorer, coarse_tail, head ...; see MaskGuided.

    Raises:
        CannotSplit: the network could not be split; the text says where and what to do.
        ArgumentError: a setting is out of its range.

    >>> from maskguided.adapters.pan_net import PAN
    >>> fast = wrap(PAN(features=8, up_features=8, blocks=4), split_at=2, keep=0.25)
    >>> fast(torch.rand(1, 3, 33, 47)).shape
    torch.Size([1, 3, 132, 188])
    """
    refuse_wrapped(model)
    check_keys("wrap", settings, [*arguments_of(wrap)[1:], *arguments_of(MaskGuided)[1:]])
    fast = MaskGuided(split(model, split_at, adapter=adapter, body=body, cut=cut, check=check), **settings)
    fast._given = (fast.given, model)
    return fast


def check_wrapped(fast: object) -> None:
    """Refuse a network that is to be wrapped first."""
    if not isinstance(fast, MaskGuided) and isinstance(network_within(fast), MaskGuided):  # type: ignore[arg-type]
        raise ArgumentError(
            f"{type(fast).__name__} is around a wrapped network: give that one, `._orig_mod` of what torch.compile "
            "makes, or `.module` of DataParallel"
        )
    if not isinstance(fast, MaskGuided):
        raise ArgumentError(f"{type(fast).__name__} is no wrapped network: give what maskguided.wrap makes of it")
