"""Which patches need the refine part: the mask head of the paper, and scores that need no training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ArgumentError
from .optional import not_cast
from .values import is_whole

BLURS = (3, 5, 9)  # LR pixels
ROOT = 1 / 3


class MaskHead(nn.Module):
    """The mask-prediction (MP) module of MGA (Hu et al., ECCV 2022, section 3.2 and figure 3).

    conv3x3 - ReLU - conv3x3 to 2 channels, softmax over them (1: well restored, 2: under-restored; the
    second is used), average pooling to one value a patch, then a dynamic convolution: a 1x1 convolution
    predicts a 5x5 kernel at each position of the pooled map, and that kernel is applied to the map there.

    Everything is computed in float32 whatever the features' dtype and autocast say: the scores are ranked,
    and a half-precision score has too few values for that.

    Args:
        in_channels: channels of the features at the cut.
        hidden: channels between the two convolutions.
        channels: 2 as in the paper, or 1 (a sigmoid instead of the softmax; ablation).
        dynamic: whether the dynamic convolution is there (ablation).

    >>> MaskHead(in_channels=8)(torch.rand(2, 8, 20, 33), patch=8).shape
    torch.Size([2, 3, 5])
    """

    kernel = 5

    def __init__(self, in_channels: int, *, hidden: int = 16, channels: int = 2, dynamic: bool = True) -> None:
        super().__init__()
        if channels not in (1, 2):
            raise ArgumentError(f"MaskHead: channels={channels}; use 2 (the paper) or 1")
        if not is_whole(hidden, 1):
            raise ArgumentError(f"MaskHead: hidden={hidden!r}; use a whole number, 1 or more")
        self.settings = {"hidden": int(hidden), "channels": int(channels), "dynamic": bool(dynamic)}
        self.squeeze = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.classify = nn.Conv2d(hidden, channels, 3, padding=1)
        self.kernels = nn.Conv2d(1, self.kernel**2, 1) if dynamic else None
        if self.kernels is not None:
            # An untrained dynamic convolution passes the pooled map through.
            nn.init.zeros_(self.kernels.weight)
            nn.init.zeros_(self.kernels.bias)  # type: ignore[arg-type]
            with torch.no_grad():
                self.kernels.bias[self.kernel**2 // 2] = 1  # type: ignore[index]

    def forward(self, features: Tensor, patch: int) -> Tensor:
        """Features (B, C, H, W) -> score (B, ceil(H / patch), ceil(W / patch)), float32."""
        with not_cast(features):
            logits = _float_conv(self.classify, F.relu(_float_conv(self.squeeze, features)))
            under_restored = logits.softmax(1)[:, 1:] if logits.shape[1] == 2 else logits.sigmoid()
            pooled = pool(under_restored, patch)
            if self.kernels is not None:
                neighbours = F.unfold(pooled, self.kernel, padding=self.kernel // 2)
                kernels = _float_conv(self.kernels, pooled).flatten(2)
                pooled = (neighbours * kernels).sum(1).view_as(pooled)
            return pooled.squeeze(1)


class LinearScore(nn.Module):
    """A score in closed form: a linear predictor of a patch's error from energies of the LR image (see `energies`).

    Both are taken to their cube roots. Squared errors of patches spread over many orders of magnitude: a regression of
    the errors themselves knows only the few largest, and ranks the others worse than the input alone does
    (docs/benchmarks.md). `calibrate` fits the weights; before that only the finest detail of the input counts, as in
    scorer="input". Energies of the coarse image would be worth less than the time that they take (docs/benchmarks.md).
    """

    def __init__(self) -> None:
        super().__init__()
        first = torch.eye(len(BLURS))[0].clone()  # no view, of which safetensors saves none
        self.weight = nn.Parameter(first, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_buffer("root", torch.tensor(ROOT))
        self.root: Tensor

    def compressed(self, squares: Tensor) -> Tensor:
        """Cube roots of energies or squared errors: what the regression works on."""
        return squares.pow(self.root.to(squares))

    def forward(self, energies: Tensor) -> Tensor:
        """Energies (B, terms, rows, cols) -> score (B, rows, cols), float32."""
        seen = self.compressed(energies)
        with not_cast(energies):
            return torch.einsum("btij,t->bij", seen, self.weight.float()) + self.bias.float()


def energies(x: Tensor, patch: int) -> Tensor:
    """What LinearScore looks at: mean squares over each patch of the detail that blurs of 3x3, 5x5 and 9x9 remove.

    Args:
        x: (B, C, H, W), the LR image, any range.
        patch: side of a patch in LR pixels.

    Returns:
        (B, 3, rows, cols), float32.
    """
    grey = x.float().mean(1, keepdim=True)
    return torch.cat([pool(_detail(grey, size).square(), patch) for size in BLURS], 1)


def pool(x: Tensor, patch: int) -> Tensor:
    """Mean over each patch, narrower ones at the border: (B, C, H, W) -> (B, C, ceil(H / patch), ceil(W / patch))."""
    return F.avg_pool2d(x, patch, ceil_mode=True, count_include_pad=False)


def high_frequency(image: Tensor, patch: int) -> Tensor:
    """A score without training: mean square over each patch of the detail that a 3x3 blur removes.

    Args:
        image: (B, C, H, W), LR or HR, any range.
        patch: patch size in pixels of `image`.

    Returns:
        (B, rows, cols), float32.

    >>> flat, edge = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    >>> edge[..., 2:] = 1
    >>> high_frequency(torch.cat([flat, edge], dim=3), patch=4)[0, 0].tolist()[0]
    0.0
    """
    return pool(_detail(image.float().mean(1, keepdim=True)).square(), patch).squeeze(1)


def _detail(x: Tensor, size: int = 3) -> Tensor:
    """What a blur of size x size takes away."""
    edge = size // 2
    wide = F.pad(x, (edge, edge, edge, edge), mode="replicate")
    return x - F.avg_pool2d(F.avg_pool2d(wide, (size, 1), stride=1), (1, size), stride=1)


def _float_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    bias = None if conv.bias is None else conv.bias.float()
    return F.conv2d(x.float(), conv.weight.float(), bias, padding=conv.padding)
