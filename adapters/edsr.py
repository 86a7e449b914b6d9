"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017).

Two layouts, recognised by their parts: basicsr's (conv_first, body, conv_after_body, upsample, conv_last)
and the original EDSR-PyTorch (sub_mean, head, body with a conv at its end, tail, add_mean). RCAN has the
same two with groups as blocks, and shares this file's code.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from maskguided.adapter import Adapter, lacks, register
from maskguided.errors import ArgumentError
from maskguided.integrations.basicsr_plugin import import_basicsr
from maskguided.split import State
from maskguided.weights import count_blocks, load_into

_BASICSR = ("conv_first", "body", "conv_after_body", "upsample", "conv_last", "img_range", "mean")
_ORIGINAL = ("sub_mean", "head", "body", "tail", "add_mean")


class MeanShiftedAdapter(Adapter):
    """The frame that EDSR and RCAN share, in both layouts."""

    supports_half = True

    @classmethod
    def missing(cls, model: nn.Module) -> str | None:
        basicsr, original = lacks(model, *_BASICSR), lacks(model, *_ORIGINAL)
        if basicsr and original:
            return f"for basicsr's layout {basicsr}; for the original one {original}"
        if not isinstance(model.body, nn.Sequential) or len(model.body) < 2:
            return "its body is no Sequential of blocks"
        return cls.missing_in_block(model.body[0])

    @classmethod
    def missing_in_block(cls, block: nn.Module) -> str | None:
        """What the first block lacks to be this architecture's; None if nothing."""
        raise NotImplementedError

    def stem(self, x: Tensor) -> State:
        net = self.net
        if hasattr(net, "conv_first"):
            shallow = net.conv_first((x - net.mean.type_as(x)) * net.img_range)
        else:
            shallow = net.head(net.sub_mean(x))
        return {"features": shallow, "shallow": shallow}

    def body_blocks(self) -> list[nn.Module]:
        body = list(self.net.body)
        return body if hasattr(self.net, "conv_after_body") else body[:-1]

    def tail(self, state: State) -> Tensor:
        net = self.net
        if hasattr(net, "conv_after_body"):
            deep = net.conv_after_body(state["features"]) + state["shallow"]
            image: Tensor = net.conv_last(net.upsample(deep))
            image = image / net.img_range + net.mean.type_as(image)
            return image
        original: Tensor = net.add_mean(net.tail(net.body[-1](state["features"]) + state["shallow"]))
        return original


@register("edsr")
class EDSRAdapter(MeanShiftedAdapter):
    """Residual blocks without normalisation: conv - ReLU - conv, times res_scale, plus the input."""

    @classmethod
    def missing_in_block(cls, block: nn.Module) -> str | None:
        return lacks(block, "res_scale") or (lacks(block, "conv1", "conv2") and lacks(block, "body.2"))

    @classmethod
    def build(cls, weights: Mapping[str, Tensor], scale: int | None = None) -> nn.Module:
        """Weights of basicsr's EDSR; needs basicsr."""
        settings = basicsr_settings(cls.name, weights)
        model: nn.Module = import_basicsr("basicsr.archs.edsr_arch").EDSR(
            num_block=count_blocks(weights, "body"), **settings
        )
        return load_into(model, weights)


def basicsr_settings(name: str, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Constructor arguments that basicsr's EDSR and RCAN share, read off the shapes."""
    if "conv_after_body.weight" not in weights:
        raise ArgumentError(
            f"--model {name}: these weights are not of basicsr's layout (no conv_after_body.weight); "
            "for the original layout, make the network in Python and wrap it"
        )
    features, channels = weights["conv_first.weight"].shape[:2]
    widening = [w.shape[0] // features for key, w in weights.items() if key.startswith("upsample.") and w.dim() == 4]
    scale = 1
    for factor in widening:
        scale *= round(factor**0.5)
    return {
        "num_in_ch": channels,
        "num_out_ch": weights["conv_last.weight"].shape[0],
        "num_feat": features,
        "upscale": scale,
    }
