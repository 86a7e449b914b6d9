"""Which statistics should global operations see in refined windows? RCAN and an IMDN, trained by train.py.

    python -m benchmarks.global_ops --lr Set14/LRx4 --hr Set14/HR

For each network and setting: PSNR-Y lost against the dense network with statistics of each window alone
("window"), of all refined windows of an image ("image"), of a dense run of the blocks ("dense": what no fast
network can know) and of a run on the features shrunk to a quarter ("shrunk"); and at keep=1 how close
"window" and "image" come to the dense network's own image.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import maskguided
from maskguided.bench import quality
from maskguided.guided import MaskGuided
from maskguided.imaging.pairs import Pair, read_pairs
from maskguided.parts import State
from maskguided.windows.global_ops import GlobalOps

from .quality import mean_psnr
from .small_networks import SCALE, network

WEIGHTS = Path(__file__).parent / "weights"


class Collect(GlobalOps):
    """Keeps what each global operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        self.values.append(func(x, *args, **kwargs))
        return self.values[-1]


class Replay(GlobalOps):
    """Gives what was collected, for each of the k windows of an image."""

    def __init__(self, values: list[Tensor], k: int) -> None:
        super().__init__()
        self.values, self.k = list(values), k

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        return self.values.pop(0).repeat_interleave(self.k, dim=0)


def use_statistics(fast: MaskGuided, x: Tensor, shrink: int) -> None:
    """Let `fast` take its statistics from a run of the blocks on all of `x`, its features shrunk by this factor."""
    state = fast.split.prefix(x)
    if shrink > 1:
        state = {name: F.interpolate(value, scale_factor=1 / shrink, mode="area") for name, value in state.items()}
    with Collect() as collected:
        fast.split.body(state)

    body = fast.split.body

    def replayed(windows: State) -> State:
        with Replay(collected.values, windows[fast.split.features].shape[0] // x.shape[0]):
            return body(windows)

    fast.split.body = replayed  # type: ignore[method-assign, assignment]


def by_windows(net: nn.Module, x: Tensor, way: str, shrink: int = 0, **settings: Any) -> Tensor:
    """The image with the patches refined, each window alone but for its statistics, whatever keep is."""
    fast = maskguided.wrap(net, exchange=False, global_ops="image" if way == "image" else "window", **settings).eval()
    if shrink:
        use_statistics(fast, x, shrink)
    base = fast.run_base(x)
    return fast.refine(base, fast.choose(base))


def loss(net: nn.Module, pairs: list[Pair], way: str, dense: float, **settings: Any) -> float:
    """PSNR lost against dense, in dB."""
    total = 0.0
    for pair in pairs:
        image = by_windows(net, pair.lr, way, {"dense": 1, "shrunk": 4}.get(way, 0), **settings)
        total += quality(image, pair, SCALE)
    return total / len(pairs) - dense


def closeness(net: nn.Module, pairs: list[Pair], way: str, halo: int) -> float:
    """PSNR in dB of keep=1 to the dense image, on all channels, unrounded."""
    made = ((by_windows(net, p.lr, way, keep=1, patch_size=16, halo=halo), net(p.lr.clone())) for p in pairs)
    errors = [float((ours - dense).square().mean()) for ours, dense in made]
    return sum(-10 * math.log10(error) for error in errors) / len(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=Path, required=True)
    parser.add_argument("--hr", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    pairs = read_pairs(args.lr, args.hr, torch.device("cpu"), torch.float32, channels_last=True)
    for name in ("rcan", "imdn"):
        net = network(WEIGHTS / f"{name}.safetensors", name)
        dense = mean_psnr(net, pairs, SCALE)
        print(f"\n{name}: dense {dense:.2f} dB\n\n| patch | halo | keep | window | image | dense | shrunk |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for patch, halo in ((16, 2), (16, 4), (8, 2)):
            for keep in (0.25, 0.5, 1.0):
                ways = ("window", "image", "dense", "shrunk")
                losses = (loss(net, pairs, w, dense, keep=keep, patch_size=patch, halo=halo) for w in ways)
                print(f"| {patch} | {halo} | {keep:g} | " + " | ".join(f"{value:+.3f}" for value in losses) + " |")
        for halo in (2, 8):
            near = {way: round(closeness(net, pairs, way, halo), 1) for way in ("window", "image")}
            print(f"\nkeep=1, patch 16, halo {halo}, dB to the dense image: {near}")


if __name__ == "__main__":
    main()
