"""What several tests of training start from."""

from __future__ import annotations

from typing import Any

import torch
from support import scaled

import maskguided
from maskguided import MaskGuided
from maskguided.adapters.pan_net import PAN
from maskguided.finetune import Recipe

QUICK = Recipe(steps=6, batch=2, crop=16, warmup=1)


def wrapped(**settings: Any) -> MaskGuided:
    torch.manual_seed(0)
    model = scaled(PAN(features=8, up_features=8, blocks=4, scale=2))
    return maskguided.wrap(
        model, 2, **{"merge": "image", "coarse_tail": "deep", "patch_size": 8, "halo": 1, **settings}
    )
