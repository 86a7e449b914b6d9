"""All tables of docs/benchmarks.md that need no trained weights, in one command, from the repository's root:

    python -m benchmarks [engine sizes memory large onnx] [--out benchmarks/results] [--threads 1] [--rounds 3]

engine   how much of the time is useful work, at 256x256 (see engine.py); on a GPU, 720p too
sizes    time and MACs against dense, by image size and keep; with a picture
memory   peak memory of a forward against the dense one
large    memory and time of upscaling a 4000x3000 image
onnx     the wrapped network in onnxruntime against the dense one

Each table is written as Markdown and JSON. The dense network runs in the same run, memory format, threads, dtype and
with the same torch.compile. What a trained network loses and saves is measured by `maskguided bench --head`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from maskguided.pictures import drawing

from . import engine, memory, onnx
from .engine import Way
from .report import Table

KEEPS = (0.25, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--networks", default="pan,edsr,rcan", help=f"of {', '.join(engine.NETWORKS)}")
    parser.add_argument("--merge", default="auto", help="auto (wrap's choice), features, image; several with commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--patch-size", type=int)
    parser.add_argument("--halo", type=int)
    args = parser.parse_args()
    unknown = set(args.networks.split(",")) - set(engine.NETWORKS)
    if unknown:
        parser.error(f"--networks {','.join(sorted(unknown))}: use {', '.join(engine.NETWORKS)}")
    torch.set_num_threads(args.threads)
    for name in args.tables or TABLES:
        TABLES[name](args).write(args.out)


def _way(args: argparse.Namespace) -> Way:
    return Way(args.rounds, args.device, getattr(torch, args.dtype), args.compile, args.patch_size, args.halo)


def _how(args: argparse.Namespace) -> str:
    compiled = ", torch.compile" if args.compile else ""
    return f"{args.device}, {args.dtype}, channels_last{compiled}, {args.rounds} rounds"


def _engine(args: argparse.Namespace) -> Table:
    table = Table("engine", f"Engine efficiency; {_how(args)}", args.threads, args.device)
    for size in [(256, 256)] + [(720, 1280)] * (args.device != "cpu"):
        for name in args.networks.split(","):
            for merge in args.merge.split(","):
                merged = None if merge == "auto" else merge
                table.add(engine.measure(name, engine.network(name), merged, KEEPS, size, _way(args)))
    return table


def _sizes(args: argparse.Namespace) -> Table:
    table = Table("sizes", f"Time and MACs against dense; {_how(args)}", args.threads, args.device)
    for name in [name for name in args.networks.split(",") if name in ("pan", "edsr")]:
        for side in (64, 128, 256, 512, 1024):
            table.add(engine.measure(name, engine.network(name), None, (0.1, 0.25, 0.5), (side, side), _way(args)))
    _plot(table, args.out)
    return table


def _memory(args: argparse.Namespace) -> Table:
    table = Table("memory", "Peak of the tensors of a forward, CPU, float32", 1)
    for name in args.networks.split(","):
        for merge in ("features", "image"):
            table.add(memory.forwards(name, merge, KEEPS, (256, 256)))
    return table


def _large(args: argparse.Namespace) -> Table:
    table = Table("large", "Upscaling a large image as `maskguided upscale` does, CPU, float32", 1)
    table.add(memory.large("pan", 0.25, (3000, 4000)))
    return table


def _onnx(args: argparse.Namespace) -> Table:
    table = Table("onnx", f"onnxruntime, float32, {args.rounds} rounds", args.threads)
    for name in args.networks.split(","):
        table.add(onnx.measure(name, KEEPS, (128, 128), args.rounds, args.threads))
    return table


def _plot(table: Table, folder: Path) -> None:
    """Time against dense, by size, a line for each keep."""
    names = list(dict.fromkeys(row["network"] for row in table.rows))
    figure = drawing().Figure(figsize=(4.5 * len(names), 3.5), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)
    for name, axis in zip(names, axes[0], strict=True):
        for keep in dict.fromkeys(row["keep"] for row in table.rows):
            rows = [row for row in table.rows if (row["network"], row["keep"]) == (name, keep)]
            sides = [int(str(row["size"]).split("x")[0]) for row in rows]
            (line,) = axis.plot(sides, [row["time/dense"] for row in rows], "o-", label=f"keep {keep}, time")
            axis.plot(sides, [row["MACs/dense"] for row in rows], "--", color=line.get_color(), label="MACs")
        axis.set(title=name, xlabel="LR side, pixels", xscale="log", ylabel="share of dense")
        axis.set_xticks(sides, list(map(str, sides)))
        axis.minorticks_off()
        axis.axhline(1, color="grey", linewidth=0.5)
        axis.legend(fontsize=7)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "sizes.png", dpi=120)


TABLES: dict[str, Callable[[argparse.Namespace], Table]] = {
    "engine": _engine,
    "sizes": _sizes,
    "memory": _memory,
    "large": _large,
    "onnx": _onnx,
}

if __name__ == "__main__":
    main()
