"""Others' implementations in the same run: how much of their time is useful work, as engine.py measures ours.

    python -m benchmarks.peers --mga FOLDER [--size 256] [--keep 0.25,0.5] [--threads 1] [--rounds 3]

FOLDER is a checkout of the code published with MGA (github.com/huxiaotaostasy/MGA-scheme). Its RFDN runs as it is
written there, patches of 4 in windows of 6, the number of patches set by keep. The same network's base, RFDN with 4
blocks, is also split by maskguided, once with those windows and once with its defaults. Weights are random: they do
not change the time. Efficiencies can be compared; times are each network's own.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskguided.timing import alternate, ratio

from .engine import Way, measure
from .report import Row, Table

PATCH = 4  # of the published code, in LR pixels


class Rfdn(nn.Module):
    """The base of the published RFDN as a network: LR image -> HR image."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, 4*H, 4*W)."""
        image: Tensor = self.base(x)[0]
        return image


def published(folder: Path) -> Any:
    """The RFDNMGA of the checkout, seeded."""
    if not (folder / "exps" / "rfdn" / "RFDNMGA.py").is_file():
        raise SystemExit(f"--mga {folder}: no exps/rfdn/RFDNMGA.py there; give a checkout of MGA-scheme")
    sys.path.insert(0, str(folder))
    torch.manual_seed(0)
    return importlib.import_module("exps.rfdn.RFDNMGA").RFDNMGA().eval()


@torch.inference_mode()
def measure_published(net: Any, keeps: Sequence[float], size: tuple[int, int], way: Way) -> Iterator[Row]:
    """A row for each keep."""
    net, x = way.ready(net), way.image(*size)
    _, features = net.base(x)
    patches = (size[0] // PATCH) * (size[1] // PATCH)

    def refine_all(_: Tensor) -> Tensor:
        """The refine part on the whole map: its work without windows."""
        part = net.refine
        first = part.B1(features)
        together = part.c(torch.cat([first, part.B2(first)], dim=1))
        deep = part.conv2(part.lrelu(part.conv1(part.LR_conv(together) + features)))
        image: Tensor = part.upsampler(deep)
        return image

    def at(keep: float) -> Callable[[Tensor], object]:
        def run(x: Tensor) -> object:
            net.mask.k = round(keep * patches)
            return net(x)

        return run

    runs: dict[str | float, Callable[[Tensor], object]] = {"base": net.base, "refine": refine_all}
    runs.update({keep: at(keep) for keep in keeps})
    seconds = {key: np.array(found) for key, found in alternate(runs, [x], way.rounds).items()}
    for keep in keeps:
        efficiency, spread = ratio(seconds["base"] + keep * seconds["refine"], seconds[keep])
        yield {
            "network": "RFDN of MGA, as published", "size": f"{size[0]}x{size[1]}", "window": f"{PATCH}+2x1 alone",
            "keep": keep, "efficiency": efficiency, "spread": spread,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mga", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--keep", default="0.25,0.5")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keeps, size = [float(keep) for keep in args.keep.split(",")], (args.size, args.size)
    table = Table("peers", f"Engine efficiency; cpu, float32, channels_last, {args.rounds} rounds", args.threads)
    net = published(args.mga)
    table.add(measure_published(net, keeps, size, Way(args.rounds)))
    for way in (Way(args.rounds, patch_size=PATCH, halo=1, exchange=False), Way(args.rounds)):
        rows = measure("RFDN, maskguided", Rfdn(net.base), None, keeps, size, way)
        columns = ("network", "size", "window", "keep", "efficiency", "spread")
        table.add({column: row[column] for column in columns} for row in rows)
    table.write(args.out)


if __name__ == "__main__":
    main()
