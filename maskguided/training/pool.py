"""A pool of crops for training: what a stage keeps frozen is computed once per crop, not once per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from ..patches import memory_format_of
from .samples import Batches, Crops, Unseen
from .stages import StageInput

Prepare = Callable[[Tensor, Tensor], StageInput]
CropPair = tuple[Tensor, Tensor]


def batches(crops: Crops, numbers: Batches, prepare: Prepare, workers: int) -> Iterator[StageInput]:
    """What `prepare` makes of each batch of crops; with a pool, kept in memory for the next time it is drawn."""
    if not numbers.pool:
        for low, high in DataLoader(crops, batch_sampler=numbers, num_workers=workers):
            yield prepare(low, high)
        return
    loader = DataLoader(crops, batch_sampler=Unseen(numbers), num_workers=workers, collate_fn=_collate)
    kept: dict[int, dict[str, Tensor]] = {}
    shared: dict[str, Tensor] = {}
    for batch, new, pair in zip(numbers, Unseen(numbers), loader, strict=True):
        if pair is not None:
            given = prepare(*pair)
            shared = given.shared
            for place, number in enumerate(new):
                kept[number] = {name: value[place].clone() for name, value in given.crops.items()}
        yield StageInput({name: _stacked([kept[number][name] for number in batch]) for name in kept[batch[0]]}, shared)


def _collate(pairs: list[CropPair]) -> CropPair | None:
    collated: CropPair | None = default_collate(pairs) if pairs else None
    return collated


def _stacked(values: list[Tensor]) -> Tensor:
    stacked = torch.stack(values)
    return stacked.contiguous(memory_format=memory_format_of(values[0][None])) if stacked.dim() == 4 else stacked
