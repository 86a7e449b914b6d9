"""What makes the host wait for a GPU."""

from __future__ import annotations

from typing import Any

import torch

_READS = (
    "_local_scalar_dense", "item", "equal", "is_nonzero", "masked_select", "nonzero",
    "unique2", "_unique2", "unique_dim",
)  # fmt: skip
_INDEXES = ("index", "index_put", "index_put_", "_index_put_impl_")


def waits_for(func: Any, args: Any) -> bool:
    """Whether an operation of aten brings a value to the host, or has a result whose shape depends on one."""
    name = func.overloadpacket.__name__
    return name in _READS or (name in _INDEXES and any(i is not None and i.dtype == torch.bool for i in args[1]))
