"""What refined windows see beyond their borders is guessed for the convolutions that they run, and for no others."""

from __future__ import annotations

import pytest
import torch
from support import image, scaled
from torch import nn
from toys import Chain, conv

import maskguided
from maskguided.windows.borders import Borders


class GateOfThree(nn.Module):
    """Attention among channels, whose gate is a padded convolution of the pooled map."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.first, self.gate, self.second = conv(c, c), conv(c, c), conv(c, c)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return x + self.second(y * torch.sigmoid(self.gate(self.pool(y))))


class Gated(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GateOfThree() for _ in range(4))


@pytest.mark.parametrize("size", [(48, 48), (48, 40)])
def test_a_pooled_map_is_no_window_of_a_square_image_either(size, monkeypatch):
    fast = maskguided.wrap(scaled(Gated()), 2, keep=0.4).eval()
    assert fast.exchange
    maskguided.calibrate(fast, [image(3, *size, seed=seed) for seed in range(2)])
    assert len(fast.context.maps) == 3  # the first convolution sees what is known of the map; gates see no map
    numbers, beyond = [], Borders._beyond

    def noted(self, ring, pixels, numbered):
        if numbered:
            numbers.append(self.calls)
        return beyond(self, ring, pixels, numbered)

    monkeypatch.setattr(Borders, "_beyond", noted)
    fast(image(1, 3, *size, seed=5))
    assert max(numbers) < 3
