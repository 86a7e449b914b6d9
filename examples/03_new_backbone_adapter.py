"""A network that cannot be split automatically, and the adapter that splits it; 02 is one that needs none.

python examples/03_new_backbone_adapter.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import maskguided
from maskguided import Adapter, register
from maskguided.adapter import lacks


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.relu(self.wide(x)))


class ExitingSR(nn.Module):
    """In the manner of APE (Wang et al., ECCV 2022): a regressor says what the next block would gain.

    Below `threshold` the whole image leaves by the exit; at 0 none does.
    """

    def __init__(self, width: int = 24, blocks: int = 6, scale: int = 2, threshold: float = 0.4) -> None:
        super().__init__()
        self.scale, self.threshold = scale, threshold
        self.head = nn.Conv2d(12, width, 3, padding=1)
        self.units = nn.ModuleList(Residual(width) for _ in range(blocks))
        self.regressor = nn.Linear(width, 1)
        self.fuse = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.Conv2d(width, 3 * (2 * scale) ** 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = features = self.head(F.pixel_unshuffle(x, 2))
        for unit in self.units:
            gain = self.regressor(features.mean(dim=(2, 3))).sigmoid()
            if gain.max() < self.threshold:
                break
            features = unit(features)
        residual = F.pixel_shuffle(self.up(self.fuse(features) + shallow), 2 * self.scale)
        return residual + F.interpolate(x, scale_factor=float(self.scale), mode="bilinear")


torch.manual_seed(0)
model = ExitingSR().eval()
print(maskguided.inspect(model))  # cannot be split: ... its forward reads pixel values


@register("exiting")
class ExitingAdapter(Adapter):
    """All blocks, no exit: where to go deep is what the mask decides."""

    @classmethod
    def missing(cls, model: nn.Module) -> str | None:
        absent = lacks(model, "head", "units", "regressor", "threshold", "fuse", "up")
        return absent or ("its exit is open: set threshold to 0" if model.threshold > 0 else None)

    def stem(self, x: Tensor) -> dict[str, Tensor]:
        shallow = self.net.head(F.pixel_unshuffle(x, 2))
        return {"features": shallow, "shallow": shallow, "input": x}

    def body_blocks(self) -> list[nn.Module]:
        return list(self.net.units)

    def tail(self, state: dict[str, Tensor]) -> Tensor:
        deep = self.net.fuse(state["features"]) + state["shallow"]
        residual = F.pixel_shuffle(self.net.up(deep), 2 * self.scale)
        return residual + F.interpolate(state["input"], scale_factor=float(self.scale), mode="bilinear")


model.threshold = 0
print(maskguided.inspect(model))

fast = maskguided.wrap(model, split_at=3, keep=0.25).eval()
x = torch.rand(2, 3, 97, 121)
with torch.inference_mode():
    print(fast(x).shape, fast.cost(97, 121), sep="\n")

    x = torch.rand(2, 3, 96, 120)  # ExitingSR itself takes even sizes alone
    parts = fast.split
    law_1 = float((parts.tail(parts.body(parts.prefix(x))) - model(x)).abs().max())
    base = fast.run_base(x)
    refined = float((fast.refine(base, base.every) - model(x)).abs().max())
print(f"the parts together: largest difference to the network {law_1:.1e}")
print(f"all patches refined: largest difference to the dense image {refined:.1e}")
assert law_1 == 0
assert refined < 1e-5
