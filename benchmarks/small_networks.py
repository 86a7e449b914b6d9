"""The small x4 networks that benchmarks train for themselves, where no trained weights of the kind are to be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from maskguided.adapters.pan_net import PAN
from maskguided.integrations.basicsr_plugin import import_basicsr
from maskguided.networks import load_network
from maskguided.weights import load_into, read

SCALE = 4
STARTER = {"features": 32, "up_features": 12, "blocks": 12, "scale": SCALE}


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class ContrastAttention(nn.Module):
    """Each channel is weighted by its mean plus its standard deviation over the map: a global operation."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(features, features // 4, 1), nn.ReLU(), nn.Conv2d(features // 4, features, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        contrast = x.mean((2, 3), keepdim=True) + x.std((2, 3), keepdim=True)
        weighted: Tensor = x * self.weigh(contrast)
        return weighted


class DistillationBlock(nn.Module):
    """After each convolution a quarter of the channels is put aside; all quarters together are the output."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.kept = features // 4
        rest = features - self.kept
        self.steps = nn.ModuleList([conv(features, features), conv(rest, features), conv(rest, features)])
        self.last = conv(rest, self.kept)
        self.act = nn.LeakyReLU(0.05)
        self.attention = ContrastAttention(4 * self.kept)
        self.fuse = conv(4 * self.kept, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        aside, rest = [], x
        for step in self.steps:
            out = self.act(step(rest))
            aside.append(out[:, : self.kept])
            rest = out[:, self.kept :]
        aside.append(self.last(rest))
        fused: Tensor = self.fuse(self.attention(torch.cat(aside, dim=1)))
        return fused + x


class IMDN(nn.Module):
    """Information multi-distillation network (Hui et al., ACM MM 2019), written anew: 6 blocks, all outputs fused."""

    def __init__(self, features: int = 32, blocks: int = 6) -> None:
        super().__init__()
        self.first = conv(3, features)
        self.blocks = nn.ModuleList(DistillationBlock(features) for _ in range(blocks))
        self.fuse = nn.Sequential(conv(features * blocks, features, 1), nn.LeakyReLU(0.05), conv(features, features))
        self.up = nn.Sequential(conv(features, 3 * SCALE**2), nn.PixelShuffle(SCALE))

    def forward(self, x: Tensor) -> Tensor:
        first = out = self.first(x)
        outputs = []
        for block in self.blocks:
            out = block(out)
            outputs.append(out)
        image: Tensor = self.up(self.fuse(torch.cat(outputs, dim=1)) + first)
        return image


def edsr(features: int = 32, blocks: int = 8) -> nn.Module:
    """EDSR; as its paper's baseline with 16 blocks of 64 features."""
    made: nn.Module = import_basicsr("basicsr.archs.edsr_arch").EDSR(
        3, 3, num_feat=features, num_block=blocks, upscale=SCALE, img_range=1.0, rgb_mean=(0.0, 0.0, 0.0)
    )
    return made


def rcan() -> nn.Module:
    """RCAN with 3 groups of 4 blocks of 32 features."""
    made: nn.Module = import_basicsr("basicsr.archs.rcan_arch").RCAN(
        3, 3, num_feat=32, num_group=3, num_block=4, squeeze_factor=8, upscale=SCALE, rgb_mean=(0.0, 0.0, 0.0)
    )
    return made


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "starter": lambda: PAN(**STARTER),
    "edsr": edsr,
    "edsr_baseline": lambda: edsr(64, 16),
    "rcan": rcan,
    "imdn": IMDN,
}


def network(weights: Path, name: str | None = None) -> nn.Module:
    """The network of a weight file, channels_last; `name`: one of ours."""
    if name is None:
        net = load_network(weights).model
    else:
        net = load_into(NETWORKS[name](), {key: value.float() for key, value in read(weights).tensors.items()}).eval()
    return net.to(memory_format=torch.channels_last)
