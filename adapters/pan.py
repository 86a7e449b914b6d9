"""PAN (Zhao et al., "Efficient Image Super-Resolution Using Pixel Attention", ECCV 2020 workshops).

Knows our own PAN (pan_net.py) and the official class: both have the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from maskguided.adapter import Adapter, lacks, register
from maskguided.errors import ArgumentError
from maskguided.parts import State
from maskguided.weights import count_blocks, load_into

from .pan_net import PAN

_Step = tuple[nn.Module, nn.Module, nn.Module]


@register("pan")
class PANAdapter(Adapter):
    """conv_first - SCPA_trunk - trunk_conv, global skip, one or two upsampling steps, bilinear input added."""

    supports_half = True

    @classmethod
    def missing(cls, model: nn.Module) -> str | None:
        return lacks(model, "conv_first", "SCPA_trunk", "trunk_conv", "upconv1", "att1", "HRconv1", "conv_last")

    @classmethod
    def recognises(cls, weights: Mapping[str, Tensor]) -> bool:
        return {"conv_first.weight", "SCPA_trunk.0.conv1_a.weight", "att1.conv.weight"} <= weights.keys()

    @classmethod
    def build(cls, weights: Mapping[str, Tensor], scale: int | None = None) -> nn.Module:
        """Official weights or ours. x2 and x3 files have the same names and shapes: they need `scale`."""
        features, channels = weights["conv_first.weight"].shape[:2]
        up_features = weights["upconv1.weight"].shape[0]
        fitting = (4,) if "upconv2.weight" in weights else (2, 3)
        if scale is None and len(fitting) > 1:
            raise ArgumentError(
                "weights of a PAN that is x2 or x3, which they do not tell: give scale=2 or scale=3 (--scale)"
            )
        scale = scale or fitting[0]
        if scale not in fitting:
            raise ArgumentError(f"weights of a PAN that is {' or '.join(f'x{s}' for s in fitting)}, not x{scale}")
        model = PAN(channels, features, up_features, count_blocks(weights, "SCPA_trunk"), scale)
        return load_into(model, weights)

    def stem(self, x: Tensor) -> State:
        shallow = self.net.conv_first(x)
        return {"features": shallow, "shallow": shallow, "input": x}

    def body_blocks(self) -> list[nn.Module]:
        return list(self.net.SCPA_trunk)

    def tail(self, state: State) -> Tensor:
        state = dict(state)  # its own: what is taken out is freed where nobody else holds it
        last = self._up_to_last(state)
        residual: Tensor = self.net.conv_last(self._upsampled(state, *last))
        bilinear = F.interpolate(state["input"], scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        return residual + bilinear

    def halfway(self, state: State) -> Tensor:
        state = dict(state)
        self._up_to_last(state)
        return state["deep"]

    def _up_to_last(self, state: State) -> _Step:
        """Layers of the last upsampling step. What it takes is "deep" in `state` afterwards, and what was used is out
        of it: a variable of a caller would hold it while that step works on maps four times as large."""
        net = self.net
        state["deep"] = state.pop("shallow") + net.trunk_conv(state.pop("features"))
        steps = [(net.upconv1, net.att1, net.HRconv1)]
        if hasattr(net, "upconv2"):
            steps.append((net.upconv2, net.att2, net.HRconv2))
        for step in steps[:-1]:
            state["deep"] = self._upsampled(state, *step)
        return steps[-1]

    def _upsampled(self, state: State, upconv: nn.Module, attention: nn.Module, conv: nn.Module) -> Tensor:
        factor = 2.0 if hasattr(self.net, "upconv2") else float(self.scale)
        x: Tensor = upconv(F.interpolate(state.pop("deep"), scale_factor=factor, mode="nearest"))
        return F.leaky_relu(conv(F.leaky_relu(attention(x), 0.2)), 0.2)
