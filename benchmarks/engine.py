"""Engine efficiency: how much of the time of a wrapped network is the work that it is there to do.

efficiency = (prefix + coarse + keep x refine, each run densely on the whole image) / (measured total)

For merge="features", refine is the body and coarse the network's tail; for merge="image", refine is body and
tail and coarse the copied tail. Halo, exchange of borders, gathering, scattering and scoring count against us. "MACs
efficiency" is the same quotient of multiply-adds. All parts run in turn in each round; medians over the rounds.
Weights are seeded: they do not change the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import maskguided
from maskguided import MaskGuided
from maskguided.adapters.pan_net import PAN
from maskguided.integrations.basicsr_plugin import import_basicsr
from maskguided.parts import Merge
from maskguided.timing import alternate, at, ratio

from .report import Row

NETWORKS = ("pan", "edsr", "edsr-l", "rcan", "rrdbnet", "msrresnet", "srvgg", "swinir")

_SWINIR_LIGHT: dict[str, Any] = {
    "window_size": 8, "embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "mlp_ratio": 2,
    "upscale": 4, "upsampler": "pixelshuffledirect",
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How everything is run, dense and wrapped alike."""

    rounds: int = 3
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    patch_size: int | None = None
    halo: int | None = None
    exchange: bool | None = None
    """Of these three, None is what wrap chooses."""

    def ready(self, model: nn.Module) -> nn.Module:
        """`model` in eval mode, channels_last, where and as it is to run."""
        return model.eval().to(self.device, self.dtype).to(memory_format=torch.channels_last)

    def image(self, height: int, width: int) -> Tensor:
        """A random image."""
        x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        return x.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)

    def called(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, compiled where that is asked for."""
        return torch.compile(function) if self.compiled else function


def network(name: str) -> nn.Module:
    """PAN, EDSR-baseline (16 x 64), EDSR-L (32 x 256), RCAN (10 x 16 x 64), or one that is split automatically.

    Those are RRDBNet (23), MSRResNet (16 x 64), SRVGGNetCompact (32 x 64), light SwinIR (4 x 6 x 60). All x4, seeded.
    """
    torch.manual_seed(0)
    if name == "pan":
        pan: nn.Module = PAN()
        return pan
    known: dict[str, tuple[str, str, dict[str, Any]]] = {
        "edsr": ("edsr_arch", "EDSR", {}),
        "edsr-l": ("edsr_arch", "EDSR", {"num_feat": 256, "num_block": 32, "res_scale": 0.1}),
        "rcan": ("rcan_arch", "RCAN", {}),
        "rrdbnet": ("rrdbnet_arch", "RRDBNet", {}),
        "msrresnet": ("srresnet_arch", "MSRResNet", {}),
        "srvgg": ("srvgg_arch", "SRVGGNetCompact", {"num_conv": 32}),
        "swinir": ("swinir_arch", "SwinIR", _SWINIR_LIGHT),
    }
    module, cls, settings = known[name]
    model: nn.Module = getattr(import_basicsr(f"basicsr.archs.{module}"), cls)(num_in_ch=3, num_out_ch=3, **settings)
    return model


@torch.inference_mode()
def measure(
    name: str, model: nn.Module, merge: Merge | None, keeps: Sequence[float], size: tuple[int, int], way: Way
) -> Iterator[Row]:
    """A row for each keep; `name` is what the rows call the network."""
    model, x = way.ready(model), way.image(*size)
    split = maskguided.split(model, "auto")
    fast = MaskGuided(split, merge=merge, patch_size=way.patch_size, halo=way.halo, exchange=way.exchange)
    way.ready(fast)
    state = split.prefix(x)
    coarse, deep = split.skip(state), split.body(state)
    tail = fast.coarse_tail

    guided = way.called(fast)
    dense, prefix, body, whole_tail = [way.called(part) for part in (model, split.prefix, split.body, split.tail)]
    runs: dict[str | float, Callable[[Tensor], object]] = {
        "dense": dense,
        "prefix": prefix,
        "coarse": lambda x: whole_tail(coarse) if tail is None else tail(dict(coarse), x),
        "body": lambda _: body(state),
        "tail": lambda _: whole_tail(deep),
        **{keep: at(fast, "keep", keep, guided) for keep in keeps},
    }
    seconds = {key: np.array(found) for key, found in alternate(runs, [x], way.rounds).items()}
    refine = seconds["body"] + (seconds["tail"] if fast.merge == "image" else 0)
    for keep in keeps:
        efficiency, spread = ratio(seconds["prefix"] + seconds["coarse"] + keep * refine, seconds[keep])
        yield _row(name, fast, keep, size) | {
            "efficiency": efficiency, "spread": spread, "time/dense": ratio(seconds[keep], seconds["dense"]).middle,
        }  # fmt: skip


def window(fast: MaskGuided) -> str:
    """What a table calls the windows of a wrapped network."""
    return f"{fast.patch_size}+2x{fast.halo}" + ("" if fast.exchange else " alone")


def _row(name: str, fast: MaskGuided, keep: float, size: tuple[int, int]) -> Row:
    fast.keep = keep
    cost = fast.cost(*size)
    alone = MaskGuided(fast.split, merge=fast.merge, patch_size=fast.patch_size, halo=0, keep=keep).cost(*size)
    return {
        "network": name,
        "size": f"{size[0]}x{size[1]}",
        "merge": fast.merge,
        "split": fast.split.split_at,
        "window": window(fast),
        "keep": keep,
        "MACs efficiency": alone.guided / cost.guided,
        "MACs/dense": cost.ratio,
    }
