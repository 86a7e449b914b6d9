"""What `calibrate` makes of networks that others have trained: PSNR-Y, MACs and time beside the dense network.

    git clone https://github.com/ofsoundof/NTIRE2022_ESR
    python -m benchmarks.trained NTIRE2022_ESR --only 0 4 18 --fit-on BSDS200/HR --hr Set14/HR --lr Set14/LRx4

Each entry of the challenge is calibrated for a budget of MACs on a few images, and nothing is trained. Its code is run;
its weights are read as tensors alone, so those that come with pickled code are left out. Without --lr, LR is basicsr's
bicubic of HR. With --rounds 3 it is timed beside the dense network, A B A B: leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn

import maskguided
from maskguided import bench
from maskguided.imaging.images import to_tensor
from maskguided.imaging.pairs import Pair

from .challenge import Entry, entries
from .quality import losses, read, times


class Ranged(nn.Module):
    """A network for images in 0..255, for such in 0..1."""

    def __init__(self, model: nn.Module, data_range: float) -> None:
        super().__init__()
        self.model, self.data_range = model, data_range

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.model(x * self.data_range)
        return image / self.data_range


def row(entry: Entry, known: list[Pair], pairs: list[Pair], max_cost: float, rounds: int) -> str:
    """The line of a network, calibrated on the images of `known` and compared on those of `pairs`."""
    model = entry.model if entry.data_range == 1 else Ranged(entry.model, entry.data_range)
    fast = maskguided.wrap(model.requires_grad_(False)).to(memory_format=torch.channels_last)
    images = [(pair.lr, to_tensor(pair.hr)[None]) for pair in known if pair.hr is not None]
    maskguided.calibrate(fast, images, max_cost=max_cost, split_at="auto")
    at = ("keep", fast.keep)
    dense = statistics.mean(bench.quality(model(pair.lr), pair, fast.scale) for pair in pairs)
    drops = [losses(fast, pair, [at])[0].drops[fast.scorer] for pair in pairs]
    time = "{:.3f} ({:.0%})".format(*times(fast, pairs, [at], rounds)[0]) if rounds else ""
    costs = [fast.cost(*pair.lr.shape[2:]) for pair in pairs]
    macs = sum(cost.guided for cost in costs) / sum(cost.dense for cost in costs)
    thousands = sum(p.numel() for p in model.parameters()) / 1e3
    cut = f"{fast.split.split_at} of {len(fast.split.blocks)}, {fast.merge}, patch {fast.patch_size}"
    cut += "" if fast.exchange else f", halo {fast.halo}"
    found = f"{thousands:.0f} K | {dense:.2f} | {cut} | {fast.keep:.2f} | {macs:.3f} | {time}"
    return f"| {entry.name} | {found} | {statistics.mean(drops):+.3f} | {min(drops):+.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkout of the challenge's code and weights")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of entries; default: all")
    parser.add_argument("--fit-on", type=Path, required=True, help="HR images to calibrate on")
    parser.add_argument("--first", type=int, default=8, help="so many of them")
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--lr", type=Path)
    parser.add_argument("--last", type=int, help="only so many images, the last by name")
    parser.add_argument("--max-cost", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=0, help="of timing; default: time is not measured")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    numbers, build = entries(args.folder, trained=True)
    known = read(args.fit_on, None, 4, None, args.first)
    pairs = read(args.hr, args.lr, 4, args.last)
    print("| network | parameters | dense | cut | keep | MACs | time (spread) | dB to dense | worst |")
    print("|" + " --- |" * 9)
    for number in args.only or numbers:
        try:
            entry = build(number)
        except Exception as error:  # whatever a foreign network raises
            print(f"| {number} | {type(error).__name__}: {str(error).splitlines()[0]} |", flush=True)
            continue
        print(row(entry, known, pairs, args.max_cost, args.rounds), flush=True)


if __name__ == "__main__":
    main()
