"""One cut against several at equal MACs: PSNR-Y below the dense network, untrained, merge="features".

    python -m benchmarks.cuts --weights NET.pth --hr Set14/HR --lr Set14/LRx4 --single 4,8 --several 4,8,12

At each of --macs (shares of the dense MACs of an LR image of 128x128) stands the keep that costs so much, for each
single cut and for all of them together with each of --onward. Patches are ranked by the high frequency of the input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import maskguided
from maskguided import MaskGuided
from maskguided.imaging.pairs import Pair
from maskguided.parts import Cuts

from .quality import mean_psnr, read
from .small_networks import NETWORKS, network


def keep_for(fast: MaskGuided, share: float) -> float | None:
    """The largest keep, in hundredths, that costs no more than `share` of the dense MACs of an LR image of 128x128;
    None where none does, or all patches cost less."""
    counted = []
    for keep in (0.25, 0.75):
        fast.keep = keep
        counted.append(fast.cost(128, 128).ratio)
    each = 2 * (counted[1] - counted[0])
    keep = int((share - counted[0] + 0.25 * each) / each * 100) / 100
    return keep if 0 <= keep <= 1 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--network", choices=list(NETWORKS), help="one of ours, where the weights are of that")
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--lr", type=Path)
    parser.add_argument("--last", type=int)
    parser.add_argument("--single", default="4,8")
    parser.add_argument("--several", default="4,8,12")
    parser.add_argument("--onward", default="1/1,0.7/0.4,0.5/0.25", help="as 0.6/0.3,0.4/0.2: each a row")
    parser.add_argument("--macs", default="0.85,0.9,0.95")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = network(args.weights, args.network)
    single: list[tuple[Cuts, tuple[float, ...]]] = [(int(cut), ()) for cut in args.single.split(",")]
    several = tuple(int(cut) for cut in args.several.split(","))
    rows = [*single, *((several, tuple(map(float, way.split("/")))) for way in args.onward.split(","))]
    pairs: list[Pair] = []
    dense: float | None = None
    print("| cuts | onward | MACs | keep | dB to dense (Y, uint8, border = scale) |\n| --- | --- | --- | --- | --- |")
    for share in map(float, args.macs.split(",")):
        for cuts, onward in rows:
            fast = maskguided.wrap(net, cuts, onward=onward).eval()
            pairs = pairs or read(args.hr, args.lr, fast.scale, args.last)
            dense = mean_psnr(net, pairs, fast.scale) if dense is None else dense
            keep = keep_for(fast, share)
            if keep is not None:
                fast.keep = keep
                drop = mean_psnr(fast, pairs, fast.scale) - dense
                print(f"| {cuts} | {onward or ''} | {share} | {keep} | {drop:+.3f} |", flush=True)


if __name__ == "__main__":
    main()
