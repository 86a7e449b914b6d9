"""A network that maskguided has never seen, split without a word about it; 03 is one where that fails.

python examples/02_new_backbone.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import maskguided
from maskguided.patches import per_pixel


class Distill(nn.Module):
    """A block with a gate of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread, self.join = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        content, gate = self.spread(x).chunk(2, dim=1)
        return x + self.join(content * gate.sigmoid())


class Mine(nn.Module):
    """Blocks as attributes, their outputs concatenated, a bilinear skip of the input: nothing standard."""

    def __init__(self, width: int = 24, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.b1, self.b2, self.b3, self.b4 = (Distill(width) for _ in range(4))
        self.fuse = nn.Conv2d(4 * width, width, 1)
        self.up = nn.Conv2d(width, 3 * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        stem = self.stem(x)
        one = self.b1(stem)
        two = self.b2(one)
        three = self.b3(two)
        deep = self.fuse(torch.cat([one, two, three, self.b4(three)], dim=1)) + stem
        skip = F.interpolate(x, size=(self.scale * height, self.scale * width), mode="bilinear")
        return F.pixel_shuffle(self.up(deep), self.scale) + skip


torch.manual_seed(0)
model = Mine().eval()
print(maskguided.inspect(model))

fast = maskguided.wrap(model, split_at=2, keep=0.25).eval()
x = torch.rand(2, 3, 47, 61)
print(fast(x).shape, fast.cost(47, 61), sep="\n")

# Windows alone, each with all that its patch depends on: what is refined is what the network makes of it.
radius = fast.split.facts.radius
alone = maskguided.wrap(model, split_at=2, keep=0.25, merge="image", exchange=False, halo=radius).eval()
found = alone.explain(x)
refined = per_pixel(found.mask, alone.patch_size * alone.scale, (47 * 2, 61 * 2))[:, None]
with torch.no_grad():
    difference = float(((found.refined - model(x)) * refined).abs().max())
print(f"patches refined with a halo of {radius}: largest difference to the dense image {difference:.1e}")
assert difference < 1e-5
