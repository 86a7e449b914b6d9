"""How many patches an image needs: an estimate of what refining each of them brings, in dB of the whole image.

One `keep` for all images wastes work on those whose detail the refine part cannot improve, and is short of it on those
it could improve. PSNR is the logarithm of an image's error, so a patch brings the more the more of that error it takes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import BaseOutput
from .head import BLURS, energies, pool
from .optional import not_cast

LEAST = 1e-7
"""Added to energies before their logarithm: 70 dB below the range of 0..1."""
_DB = 10 / math.log(10)
_ROUNDING = 1 / 12 / 255**2
"""The squared error of rounding to 8 bits, which remains whatever is refined."""


class GainEstimate(nn.Module):
    """For each patch, the squared error that refining takes away, and the one that remains, in closed form.

    The logarithm of each is linear in the logarithms of the patch's energies (detail of the LR image, each channel of
    the features at the cut) and in their means over 3x3 patches. `calibrate` fits the weights; energies are clamped to
    the range that it has seen.

    Args:
        channels: of the features at the cut.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, len(BLURS) + channels), requires_grad=False)
        self.around = nn.Parameter(torch.zeros_like(self.weight), requires_grad=False)
        """Weights of the means over the patches around."""
        self.bias = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.seen = nn.Parameter(torch.zeros(2, self.weight.shape[1]), requires_grad=False)  # least and most
        self.whole = nn.Parameter(torch.ones(()), requires_grad=False)
        """Share of the patches above which the whole network costs less than their windows."""

    def forward(self, logs: Tensor) -> tuple[Tensor, Tensor]:
        """What `log_energies` gives -> gain and remaining error, (B, rows, cols) each, mean squares on Y, float32."""
        least, most = self.seen.float()[:, None, :, None, None]
        clamped = logs.clamp(least, most)
        with not_cast(logs):
            predicted = torch.einsum("btij,ot->boij", clamped, self.weight.float())
            predicted = predicted + torch.einsum("btij,ot->boij", around(clamped), self.around.float())
        gain, error = (predicted + self.bias.float().view(1, 2, 1, 1)).exp().unbind(1)
        return gain, error + _ROUNDING


def fresh_estimate(channels: int, like: Tensor) -> GainEstimate:
    """One of zeros, where `like` is and in its dtype."""
    with torch.device("cpu"):  # whatever torch's default is
        return GainEstimate(channels).to(like)


def log_energies(base: BaseOutput, features: str, patch: int) -> Tensor:
    """Logarithms of mean squares over each patch: (B, terms, rows, cols), float32.

    Args:
        base: of an LR image in 0..1.
        features: name of the live value (B, F, r*H, r*W) that is looked at.
        patch: side of a patch in LR pixels.
    """
    own = base.state[features].float().square()
    means = energies(base.x_on_grid, patch), pool(own, patch * own.shape[-1] // base.grid.width)
    return (torch.cat(means, 1) + LEAST).log()


def around(x: Tensor) -> Tensor:
    """Mean over each patch and its neighbours within the image, (B, terms, rows, cols), of the same shape."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def slopes(index: Tensor, gain: Tensor, error: Tensor) -> Tensor:
    """What each patch brings when patches are refined in this order: the slope of PSNR against keep, dB.

    Args:
        index: (B, k), the order.
        gain: (B, rows, cols), what refining takes from the mean squared error of each patch.
        error: (B, rows, cols), what remains of it when all are refined.

    Returns:
        (B, k): dB of the image's PSNR per unit of keep, patch by patch.

    >>> gain, error = torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[0.5, 0.5]]])
    >>> [round(slope * math.log(10) / 10, 4) for slope in slopes(torch.tensor([[0, 1]]), gain, error)[0].tolist()]
    [1.2, 1.0]
    """
    ordered = gain.flatten(1).gather(1, index)
    before = gain.sum((1, 2))[:, None] - (ordered.cumsum(1) - ordered)  # not taken yet
    return _DB * gain[0].numel() * ordered / (error.sum((1, 2))[:, None] + before)
