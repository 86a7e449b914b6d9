"""PAN (Zhao et al., "Efficient Image Super-Resolution Using Pixel Attention", ECCV 2020 workshops).

Knows our own PAN (pan_net.py) and the official class: both have the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from maskguided.adapter import Adapter, lacks, register
from maskguided.split import State
from maskguided.weights import count_blocks, load_into

from .pan_net import PAN


@register("pan")
class PANAdapter(Adapter):
    """conv_first - SCPA_trunk - trunk_conv, global skip, one or two upsampling steps, bilinear input added."""

    supports_half = True

    @classmethod
    def missing(cls, model: nn.Module) -> str | None:
        return lacks(model, "conv_first", "SCPA_trunk", "trunk_conv", "upconv1", "att1", "HRconv1", "conv_last")

    @classmethod
    def build(cls, weights: Mapping[str, Tensor], scale: int | None = None) -> nn.Module:
        """Official weights or ours. x2 and x3 files have the same names and shapes: x3 needs `scale=3`."""
        if scale is None:
            scale = 4 if "upconv2.weight" in weights else 2
        features, channels = weights["conv_first.weight"].shape[:2]
        model = PAN(channels, features, weights["upconv1.weight"].shape[0], count_blocks(weights, "SCPA_trunk"), scale)
        return load_into(model, weights)

    def stem(self, x: Tensor) -> State:
        shallow = self.net.conv_first(x)
        return {"features": shallow, "shallow": shallow, "input": x}

    def body_blocks(self) -> list[nn.Module]:
        return list(self.net.SCPA_trunk)

    def tail(self, state: State) -> Tensor:
        net = self.net
        x = state["shallow"] + net.trunk_conv(state["features"])
        two_steps = hasattr(net, "upconv2")
        x = self._step(x, net.upconv1, net.att1, net.HRconv1, 2 if two_steps else self.scale)
        if two_steps:
            x = self._step(x, net.upconv2, net.att2, net.HRconv2, 2)
        residual: Tensor = net.conv_last(x)
        bilinear = F.interpolate(state["input"], scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        return residual + bilinear

    @staticmethod
    def _step(x: Tensor, upconv: nn.Module, attention: nn.Module, conv: nn.Module, factor: int) -> Tensor:
        x = upconv(F.interpolate(x, scale_factor=float(factor), mode="nearest"))
        return F.leaky_relu(conv(F.leaky_relu(attention(x), 0.2)), 0.2)
