"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017).

Two layouts, recognised by their parts: basicsr's (conv_first, body, conv_after_body, upsample, conv_last)
and the original EDSR-PyTorch (sub_mean, head, body with a conv at its end, tail, add_mean). RCAN has the
same two with groups as blocks, and shares this file's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskguided.adapter import Adapter, lacks, register
from maskguided.errors import ArgumentError
from maskguided.integrations.basicsr_plugin import import_basicsr
from maskguided.parts import State
from maskguided.probing.modules import first_weight
from maskguided.probing.untouched import untouched
from maskguided.weights import count_blocks, load_into

from .edsr_net import EDSR

_BASICSR = ("conv_first", "body", "conv_after_body", "upsample", "conv_last", "img_range", "mean")
_ORIGINAL = ("sub_mean", "head", "body", "tail", "add_mean")

_USUAL: dict[str, tuple[Any, ...]] = {
    "res_scale": (1.0, 0.1),
    "img_range": (255.0, 1.0),
    "mean": (torch.zeros(1, 3, 1, 1),),
}
"""What networks are trained with that is not among their weights."""
_TRUE, _TRUER = 30.0, 1.0
"""dB: an image so near to its LR image is that of a trained network; and so much nearer is no accident."""


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
        if hasattr(model, "rgb_range"):
            return "it brings its input to another range itself (rgb_range)"
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
        net, state = self.net, dict(state)  # its own: what is taken out is freed where nobody else holds it
        deep = self._deep(state)
        if hasattr(net, "conv_after_body"):
            image: Tensor = net.conv_last(net.upsample(deep))
            image = image / net.img_range + net.mean.type_as(first_weight(net))  # autocast or not, as the input is
            return image
        original: Tensor = net.add_mean(net.tail(deep))
        return original

    def halfway(self, state: State) -> Tensor:
        net, x = self.net, self._deep(dict(state))
        first = net.upsample if hasattr(net, "upsample") else net.tail[0]
        layers = list(first if isinstance(first, nn.Sequential) else net.tail)
        shuffles = [number for number, layer in enumerate(layers) if isinstance(layer, nn.PixelShuffle)]
        if not shuffles:
            return super().halfway(state)
        for layer in layers[: shuffles[-1] - 1]:  # to the convolution that widens for it
            x = layer(x)
        return x

    def _deep(self, state: State) -> Tensor:
        """What the upsampling starts from. Takes out of `state` what it uses."""
        last = self.net.conv_after_body if hasattr(self.net, "conv_after_body") else self.net.body[-1]
        deep: Tensor = last(state.pop("features")) + state.pop("shallow")
        return deep


@register("edsr")
class EDSRAdapter(MeanShiftedAdapter):
    """Residual blocks without normalisation: conv - ReLU - conv, times res_scale, plus the input."""

    @classmethod
    def missing_in_block(cls, block: nn.Module) -> str | None:
        return lacks(block, "res_scale") or (lacks(block, "conv1", "conv2") and lacks(block, "body.2"))

    @classmethod
    def recognises(cls, weights: Mapping[str, Tensor]) -> bool:
        basicsr = {"body.0.conv1.weight", "conv_after_body.weight", "upsample.0.weight"}
        original = {"sub_mean.weight", "head.0.weight", "body.0.body.2.weight", "add_mean.weight"}
        return basicsr <= weights.keys() or original <= weights.keys()

    @classmethod
    def build(cls, weights: Mapping[str, Tensor], scale: int | None = None) -> nn.Module:
        """Weights of basicsr's EDSR (needs basicsr) or of the original layout, for images in 0..1 either way.

        res_scale, which is not among them, is 0.1 for 256 features and more, else 1, as in all published models, unless
        `as_trained` finds another.
        """
        if "sub_mean.weight" in weights:
            return as_trained(load_into(_original(weights, scale), weights))
        settings = basicsr_settings(weights, scale)
        model: nn.Module = import_basicsr("basicsr.archs.edsr_arch").EDSR(
            num_block=count_blocks(weights, "body"), res_scale=_res_scale(settings["num_feat"]), **settings
        )
        return as_trained(load_into(model, weights))


def basicsr_settings(weights: Mapping[str, Tensor], scale: int | None) -> dict[str, int]:
    """Constructor arguments that basicsr's EDSR and RCAN share, read off the shapes."""
    features, channels = weights["conv_first.weight"].shape[:2]
    return {
        "num_in_ch": channels,
        "num_out_ch": weights["conv_last.weight"].shape[0],
        "num_feat": features,
        "upscale": _agreed(_shuffled_scale(weights, "upsample.", features), scale),
    }


def as_trained(model: nn.Module) -> nn.Module:
    """EDSR or RCAN with the `res_scale`, `img_range` and `mean` that it was trained with, which no file holds.

    Tried are those that it has, and the usual ones, on a smooth random image: with the wrong ones a trained network's
    image, reduced, is less like the LR image. They stay as they are where no others are clearly better.
    """
    noise = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), device="cpu")
    lr = F.interpolate(noise, size=(16, 16), mode="bicubic").clamp(0, 1)
    if next(model.parameters()).shape[1] != lr.shape[1]:
        return model
    owners = {name: [part for part in model.modules() if name in vars(part)] for name in _USUAL}
    given = {name: vars(parts[0])[name] for name, parts in owners.items() if parts}

    def assign(values: tuple[Any, ...]) -> None:
        for name, value in zip(given, values, strict=True):
            for part in owners[name]:
                setattr(part, name, value)

    def likeness(values: tuple[Any, ...]) -> float:
        assign(values)
        error = F.adaptive_avg_pool2d(model(lr), (16, 16)).sub(lr).square().mean()
        return -10 * float(error.log10().nan_to_num(torch.inf))

    tried = dict.fromkeys(product(*([given[name], *_USUAL[name]] for name in given)))  # each but once
    with untouched(model):
        found = {values: likeness(values) for values in tried}
    best = max(found, key=found.__getitem__)
    if found[best] > max(_TRUE, found[tuple(given.values())] + _TRUER):
        assign(best)
    return model


def _original(weights: Mapping[str, Tensor], scale: int | None) -> EDSR:
    features, channels = weights["head.0.weight"].shape[:2]
    light = "tail.0.weight" in weights
    found = _shuffled_scale(weights, "tail.0.", channels if light else features)
    return EDSR(
        channels,
        features,
        count_blocks(weights, "body") - 1,
        _agreed(found, scale),
        res_scale=_res_scale(features),
        # The mean of 0..255 images is about 114, that of 0..1 images below 1.
        value_range=255 if float(weights["sub_mean.bias"].abs().max()) > 1 else 1,
        light_tail=light,
    )


def _shuffled_scale(weights: Mapping[str, Tensor], prefix: str, channels: int) -> int:
    """The product of the PixelShuffle factors, from how much the convolutions under `prefix` widen."""
    scale = 1
    for name, weight in weights.items():
        if name.startswith(prefix) and weight.dim() == 4:
            scale *= round((weight.shape[0] // channels) ** 0.5)
    return scale


def _agreed(found: int, scale: int | None) -> int:
    if scale not in (None, found):
        raise ArgumentError(f"these weights are of a x{found} network, not x{scale}; leave scale out (--scale)")
    return found


def _res_scale(features: int) -> float:
    return 0.1 if features >= 256 else 1.0
