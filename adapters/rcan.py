"""RCAN (Zhang et al., "Image Super-Resolution Using Very Deep Residual Channel Attention Networks", ECCV 2018).

basicsr's layout and the original one. Its channel attention pools over the whole map: on windows it sees the mean of
all that are refined (windows/per_image.py), which is the image's where all are.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from maskguided.adapter import lacks, register
from maskguided.integrations.basicsr_plugin import import_basicsr
from maskguided.weights import count_blocks, load_into

from .edsr import MeanShiftedAdapter, as_trained, basicsr_settings


@register("rcan")
class RCANAdapter(MeanShiftedAdapter):
    """Residual groups of channel-attention blocks; a block of the body is a whole group."""

    supports_half = False  # activations leave float16's range; bfloat16 works

    @classmethod
    def missing_in_block(cls, block: nn.Module) -> str | None:
        return lacks(block, "residual_group") and lacks(block, "body.0.body.3.conv_du")

    @classmethod
    def recognises(cls, weights: Mapping[str, Tensor]) -> bool:
        return {"body.0.residual_group.0.rcab.0.weight", "conv_after_body.weight"} <= weights.keys()

    @classmethod
    def build(cls, weights: Mapping[str, Tensor], scale: int | None = None) -> nn.Module:
        """Weights of basicsr's RCAN; needs basicsr."""
        squeeze = weights["body.0.residual_group.0.rcab.3.attention.1.weight"].shape
        model: nn.Module = import_basicsr("basicsr.archs.rcan_arch").RCAN(
            num_group=count_blocks(weights, "body"),
            num_block=count_blocks(weights, "body.0.residual_group"),
            squeeze_factor=squeeze[1] // squeeze[0],
            **basicsr_settings(weights, scale),
        )
        return as_trained(load_into(model, weights))
