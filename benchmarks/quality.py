"""What a wrapped network loses and costs: PSNR-Y below its dense network against MACs, for one or several keeps.

    python -m benchmarks.quality --weights NET.pth --head FILE.safetensors --hr SunHays80/HR --last 20 --keep 0.3,0.4
    python -m benchmarks.quality --weights NET.pth --head FILE.safetensors --hr Set14/HR --lr Set14/LRx4 --keep 0.3

Without --lr, LR is basicsr's bicubic of HR. Everything runs through the real window path, halo counted. Beside each
scorer stand the choice by the error map (refined against coarse, what no fast network can know) and a random one.
With --min-gain 0.3,0.2 each image decides how many patches it needs, if calibrate --per-image has made the file.
With --rounds 3 the scorer's way is timed beside the dense network, A B A B: leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import maskguided
from maskguided import MaskGuided, bench
from maskguided.error_map import dense_image, patch_error
from maskguided.imaging.images import list_images, to_tensor
from maskguided.imaging.pairs import Pair, read_channels, read_pairs
from maskguided.patches import select
from maskguided.probing.probe import image_of
from maskguided.timing import Ratio, alternate, at, ratio
from maskguided.training.samples import reduce

from .small_networks import NETWORKS, network


def read(hr: Path, lr: Path | None, scale: int, last: int | None, first: int | None = None) -> list[Pair]:
    if lr is not None:
        return read_pairs(lr, hr, torch.device("cpu"), torch.float32, True)
    pairs = []
    for path in list_images(hr)[-(last or 0) :][:first]:
        image = read_channels(path)
        height, width = (side - side % scale for side in image.shape[:2])
        image = image[:height, :width]
        reduced = to_tensor(reduce(image, scale))[None].contiguous(memory_format=torch.channels_last)
        pairs.append(Pair(path.stem, reduced, image))
    return pairs


class Found(NamedTuple):
    """What a setting does to an image."""

    share: float
    """Of its patches that are refined."""
    drops: dict[str, float]
    """dB to the dense network, by what ranks the patches."""


@torch.inference_mode()
def losses(fast: MaskGuided, pair: Pair, settings: list[bench.Setpoint]) -> list[Found]:
    """For each setting, the drop by the scorer's ranking and by others, of as many patches."""
    dense = bench.quality(dense_image(fast, pair.lr), pair, fast.scale)
    base = fast.run_base(pair.lr)
    error = patch_error(fast, base, fast.refine(base, base.every), fast.coarse_image(base))
    random = torch.rand(error.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for setting in settings:
        setattr(fast, *setting)
        index = fast.choose(base)
        k = index.shape[1]
        ways = {fast.scorer: index, "error map": select(error, k), "random": select(random, k)}
        drops = {
            name: bench.quality(fast.refine(base, index), pair, fast.scale) - dense for name, index in ways.items()
        }
        found.append(Found(k / base.grid.count, drops))
    return found


@torch.inference_mode()
def mean_psnr(network: bench.Network, pairs: list[Pair], scale: int) -> float:
    """PSNR-Y of a network, mean over images that have HR images."""
    return statistics.mean(bench.quality(image_of(network(pair.lr.clone())), pair, scale) for pair in pairs)


def times(fast: MaskGuided, pairs: list[Pair], settings: list[bench.Setpoint], rounds: int) -> list[Ratio]:
    """Of each setting the time for all images as a share of the dense network's, median over the rounds and spread."""
    runs: dict[bench.Setpoint | None, Callable[[Tensor], object]] = {None: fast.unwrap()}
    runs.update({setting: at(fast, *setting) for setting in settings})
    seconds = alternate(runs, [pair.lr for pair in pairs], rounds)
    return [ratio(seconds[setting], seconds[None]) for setting in settings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, help="one of ours; default: what the weights are")
    parser.add_argument("--head", type=Path, required=True)
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--lr", type=Path)
    parser.add_argument("--last", type=int, help="only so many images, the last by name: those held out of training")
    parser.add_argument("--keep", default="0.25,0.5")
    parser.add_argument("--min-gain", default="", help="dB, one or several as 0.3,0.2")
    parser.add_argument("--scorer")
    parser.add_argument("--coarse-on")
    parser.add_argument("--patch-size", type=int)
    parser.add_argument("--halo", type=int)
    parser.add_argument("--exchange", action=argparse.BooleanOptionalAction)
    parser.add_argument("--rounds", type=int, default=0, help="of timing; default: time is not measured")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = ("scorer", "coarse_on", "patch_size", "halo", "exchange")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    fast = maskguided.load(args.head, network(args.weights, args.network), **changes)
    fast = fast.to(memory_format=torch.channels_last).eval()
    pairs = read(args.hr, args.lr, fast.scale, args.last)
    settings = [("keep", float(keep)) for keep in args.keep.split(",") if keep]
    settings += [("min_gain_db", float(least)) for least in args.min_gain.split(",") if least]
    found = [losses(fast, pair, settings) for pair in pairs]
    print(f"{len(pairs)} images; split {fast.split.split_at}, {fast.merge}, patch {fast.patch_size}, halo {fast.halo}")
    timed = times(fast, pairs, settings, args.rounds) if args.rounds else []
    dense_macs = sum(fast.dense_macs(*pair.lr.shape[2:]) for pair in pairs)
    print("| setting | patches | MACs | time (spread) | score | dB to dense (Y, uint8, border = scale) | worst |")
    print("|" + " --- |" * 7)
    for number, setting in enumerate(settings):
        of_images = [one[number] for one in found]
        shares = [one.share for one in of_images]
        setattr(fast, *setting)
        spent, share = bench.total_macs(fast, pairs, shares) / dense_macs, bench.mean_share(shares, pairs)
        for name in of_images[0].drops:
            time = "{:.3f} ({:.0%})".format(*timed[number]) if name == fast.scorer and timed else ""
            drops = [one.drops[name] for one in of_images]
            ends = f"{name} | {statistics.mean(drops):+.3f} | {min(drops):+.3f} |"
            print(f"| {setting[0]} {setting[1]:g} | {share:.3f} | {spent:.3f} | {time} | {ends}")


if __name__ == "__main__":
    main()
