"""Engine efficiency: how much of the time of a wrapped network is the work that it is there to do.

    python benchmarks/engine.py [--networks pan,edsr,rcan] [--size 256] [--keep 0.25,0.5] [--markdown FILE]

efficiency = (prefix + coarse + keep x refine, each run densely on the whole image) / (measured total)

For merge="features", refine is the body and coarse the network's tail; for merge="image", refine is body and
tail and coarse the copied tail. The halo's own work, gathering, scattering and scoring count against us. The
column "MACs" is the same quotient of multiply-adds: what the halo alone leaves. All parts run in turn in each
round; medians over the rounds. Weights are seeded: they do not change the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import maskguided
from maskguided import MaskGuided
from maskguided.adapters.pan_net import PAN
from maskguided.bench import machine
from maskguided.integrations.basicsr_plugin import import_basicsr


def network(name: str) -> nn.Module:
    """PAN x4, EDSR-baseline x4 (16 x 64) or RCAN x4 (10 groups of 16 blocks), seeded."""
    torch.manual_seed(0)
    if name == "pan":
        pan: nn.Module = PAN()
        return pan
    if name not in ("edsr", "rcan"):
        raise SystemExit(f"--networks {name}: use pan, edsr, rcan")
    module, cls = {"edsr": ("edsr_arch", "EDSR"), "rcan": ("rcan_arch", "RCAN")}[name]
    model: nn.Module = getattr(import_basicsr(f"basicsr.archs.{module}"), cls)(num_in_ch=3, num_out_ch=3)
    return model


def times(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                found[name].append(time.perf_counter() - start)
    return found


@torch.inference_mode()
def measure(
    model: nn.Module, merge: maskguided.settings.Merge, keeps: list[float], x: torch.Tensor, args: argparse.Namespace
) -> list[list[str]]:
    """A row of the table for each keep."""
    split = maskguided.split(model, args.split_at or "auto")
    fast = MaskGuided(split, merge=merge, patch_size=args.patch_size, halo=args.halo).eval()
    fast = fast.to(memory_format=torch.channels_last)
    state = split.prefix(x)
    coarse, deep = split.skip(state), split.body(state)
    tail = fast.coarse_tail

    def guided(keep: float) -> Callable[[], object]:
        def run() -> object:
            fast.keep = keep
            return fast(x)

        return run

    runs: dict[str, Callable[[], object]] = {
        "dense": lambda: model(x),
        "prefix": lambda: split.prefix(x),
        "coarse": lambda: split.tail(coarse) if tail is None else tail(coarse, x),
        "body": lambda: split.body(state),
        "tail": lambda: split.tail(deep),
    }
    seconds = times(runs | {f"keep {keep}": guided(keep) for keep in keeps}, args.rounds)
    height, width = x.shape[2:]
    rows = []
    for keep in keeps:
        ratios, speed = [], []
        for number, total in enumerate(seconds[f"keep {keep}"]):
            part = {name: values[number] for name, values in seconds.items()}
            refine = part["body"] + (part["tail"] if merge == "image" else 0)
            ratios.append((part["prefix"] + part["coarse"] + keep * refine) / total)
            speed.append(total / part["dense"])
        fast.keep = keep
        cost = fast.cost(height, width)
        k_free = MaskGuided(split, merge=merge, patch_size=fast.patch_size, halo=0, keep=keep).cost(height, width)
        middle = statistics.median(ratios)
        rows.append(
            [
                type(model).__name__, merge, str(split.split_at), f"{fast.patch_size}+2x{fast.halo}", f"{keep:g}",
                f"{middle:.2f}", f"{(max(ratios) - min(ratios)) / middle:.0%}", f"{k_free.guided / cost.guided:.2f}",
                f"{cost.ratio:.2f}", f"{statistics.median(speed):.2f}",
            ]
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="pan,edsr,rcan")
    parser.add_argument("--merge", default="features,image")
    parser.add_argument("--keep", default="0.25,0.5")
    parser.add_argument("--size", type=int, default=256, help="LR pixels a side")
    parser.add_argument("--split-at", type=int, default=0, help="0: half of the depth")
    parser.add_argument("--patch-size", type=int)
    parser.add_argument("--halo", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = torch.rand(1, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
    header = ["network", "merge", "split", "window", "keep", "efficiency", "spread", "MACs", "MACs/dense", "time/dense"]
    lines = [header, ["---"] * len(header)]
    print(f"LR {args.size}x{args.size}, {machine(args.threads)}, fp32, channels_last, {args.rounds} rounds\n")
    for row in lines:
        print(f"| {' | '.join(row)} |", flush=True)
    for name in args.networks.split(","):
        model = network(name).eval().to(memory_format=torch.channels_last)
        for merge in args.merge.split(","):
            for row in measure(model, merge, [float(k) for k in args.keep.split(",")], x, args):
                print(f"| {' | '.join(row)} |", flush=True)
                lines.append(row)
    if args.markdown:
        args.markdown.write_text("\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n")


if __name__ == "__main__":
    main()
