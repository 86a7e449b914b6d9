"""Where to merge, and on which windows, each calibrated for the same share of the dense MACs: PSNR-Y below dense.

    python -m benchmarks.merge --weights NET.pth --images FOLDER --hr Set14/HR --lr Set14/LRx4 --macs 0.6,0.7,0.8
    python -m benchmarks.merge ... --merges image --windows 8+0,16+1,16+2a

Nothing is trained: score, context and (merge="image") a light coarse tail are fitted in closed form on --images (LR).
Windows are patch+halo, and exchange borders; with an a they are alone. Beside the fitted score stands the input's, and
PSNR-Y to the dense network's images: of a network that was not trained for PSNR the one that tells.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch

import maskguided
from maskguided.error_map import dense_image
from maskguided.errors import ArgumentError
from maskguided.imaging.images import as_pixels
from maskguided.imaging.pairs import read_pairs

from .quality import mean_psnr, read
from .small_networks import NETWORKS, network


def windows(text: str) -> dict[str, Any]:
    """The settings that "16+2a" stands for; the defaults for an empty text."""
    if not text:
        return {}
    patch, halo = text.rstrip("a").split("+")
    return {"patch_size": int(patch), "halo": int(halo), "exchange": not text.endswith("a")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--network", choices=list(NETWORKS), help="one of ours, where the weights are of that")
    parser.add_argument("--images", type=Path, required=True, help="LR images to calibrate on")
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--lr", type=Path)
    parser.add_argument("--last", type=int)
    parser.add_argument("--splits", help="default: a quarter and half of the depth")
    parser.add_argument("--merges", default="features,image")
    parser.add_argument("--windows", default="", help="as 8+0,16+2a; default: what wrap chooses")
    parser.add_argument("--macs", default="0.6,0.7,0.8")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = network(args.weights, args.network)
    known = [pair.lr[..., :96, :96] for pair in read_pairs(args.images, None, torch.device("cpu"), torch.float32, True)]
    whole = maskguided.wrap(net)
    blocks, pairs = len(whole.split.blocks), read(args.hr, args.lr, whole.scale, args.last)
    splits = [int(n) for n in args.splits.split(",")] if args.splits else sorted({max(1, blocks // 4), blocks // 2})
    dense = mean_psnr(net, pairs, whole.scale)
    like_dense = [dataclasses.replace(pair, hr=as_pixels(dense_image(whole, pair.lr))) for pair in pairs]
    print("PSNR-Y below dense, uint8, border = scale, patches chosen by the linear score and by the input:\n")
    print("| merge | split | windows | MACs | keep | dB, linear | dB, input | like dense |\n|" + " --- |" * 8)
    ways = itertools.product(map(float, args.macs.split(",")), args.merges.split(","), splits, args.windows.split(","))
    for share, merge, place, text in ways:
        tail = "light" if merge == "image" else None
        fast = maskguided.wrap(net, place, merge=merge, coarse_tail=tail, **windows(text)).eval()
        try:
            maskguided.calibrate(fast, known, max_cost=share)
        except ArgumentError:
            continue  # its base alone costs more
        row = f"| {merge} | {place} of {blocks} | {text or 'default'} | {share} | {fast.keep:.2f} |"
        for scorer in ("linear", "input"):
            fast.scorer = scorer
            row += f" {mean_psnr(fast, pairs, fast.scale) - dense:+.3f} |"
        fast.scorer = "linear"
        print(f"{row} {mean_psnr(fast, like_dense, fast.scale):.2f} |", flush=True)


if __name__ == "__main__":
    main()
