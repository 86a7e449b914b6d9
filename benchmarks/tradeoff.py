"""What the trained networks of this repository lose for the time that they save: a table, and a picture.

    python -m benchmarks.tradeoff --pan PANx4_DF2K.pth --set14 Set14 --photographs SunHays80/HR [--rounds 2]

Set14 is a folder with HR and LRx4; of the photographs the last 20 by name are taken, which no training has seen. Each
image runs through the dense network and all settings in turn, in channels_last, fp32, one thread: leave the machine
alone meanwhile (20 minutes). PSNR on Y, uint8-rounded, border = scale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskguided import bench
from maskguided.imaging.pairs import Pair
from maskguided.pictures import drawing

from .quality import read
from .report import Row, Table
from .small_networks import network

SCALE = 4
HERE = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Curve:
    """A network with trained parts, and how much of it is refined."""

    name: str
    head: Path
    weights: Path | None = None
    """None: those of PAN, which are not in this repository."""
    network: str | None = None
    """One of ours, where the weights do not tell."""
    keeps: tuple[float, ...] = ()
    min_gains: tuple[float, ...] = ()


CURVES = (
    Curve(
        "EDSR-baseline", HERE / "edsr_baseline_guided.safetensors", HERE / "edsr_baseline.safetensors", "edsr_baseline",
        keeps=(0, 0.1, 0.2, 0.3, 0.45),
    ),
    Curve("PAN", HERE / "pan_guided.safetensors", min_gains=(0.5, 0.3, 0.2, 0.15, 0.1)),
    Curve("PAN, light refine tail", HERE / "pan_light.safetensors", min_gains=(0.4, 0.25, 0.17, 0.1, 0.05)),
)  # fmt: skip


def measure(curve: Curve, pan: Path, images: dict[str, list[Pair]], rounds: int) -> Iterator[Row]:
    """A row for each setting of a curve, on each set of images."""
    model = network(curve.weights or pan, curve.network)
    setting = bench.Setting(
        "features", "auto", None, None, keeps=curve.keeps, head=curve.head, min_gains=curve.min_gains
    )
    for name, pairs in images.items():
        print(f"{curve.name}, {name}: some minutes", file=sys.stderr)
        for row in bench.measure(model, pairs, [setting], rounds):
            assert row.to_dense is not None
            assert row.dense_psnr is not None
            found: Row = {"network": curve.name, "images": name, "patches": row.keep, "MACs": row.macs_ratio}
            found |= {"time": row.time_ratio, "spread": "" if row.spread is None else f"{row.spread:.0%}"}
            yield found | {"dB to dense": row.to_dense, "dense dB": row.dense_psnr}


def draw(rows: list[Row], path: Path) -> None:
    """dB to dense against the share of its time, a panel for each set of images; the dense network is top right."""
    sets = list(dict.fromkeys(str(row["images"]) for row in rows))
    figure = drawing().Figure(figsize=(4.6 * len(sets), 3.4), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False, sharey=True)
    for images, axis in zip(sets, axes[0], strict=True):
        for name in dict.fromkeys(row["network"] for row in rows):
            points: Any = [row for row in rows if (row["network"], row["images"]) == (name, images)]
            points.sort(key=lambda row: row["time"])
            axis.plot([100 * row["time"] for row in points], [row["dB to dense"] for row in points], "o-", label=name)
        axis.plot([100], [0], "k*", markersize=11, label="the network as it is")
        axis.set(title=images, xlabel="% of the dense network's time", xlim=(10, 103), ylim=(-0.18, 0.01))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("PSNR-Y to the dense network's, dB")
    axes[0][0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pan", type=Path, required=True, help="PAN's official x4 weights")
    parser.add_argument("--set14", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    images = {
        "20 held-out photographs": read(args.photographs, None, SCALE, last=20),
        "Set14": read(args.set14 / "HR", args.set14 / "LRx4", SCALE, None),
    }
    table = Table("tradeoff", f"channels_last, fp32, {args.rounds} rounds", args.threads)
    for curve in CURVES:
        table.add(measure(curve, args.pan, images, args.rounds))
    table.write(args.out)
    draw(table.rows, args.out / "tradeoff.png")


if __name__ == "__main__":
    main()
