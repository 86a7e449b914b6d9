"""Peak memory of a forward, and of upscaling a large image: each in a process of its own, above what loading takes."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

import maskguided
from maskguided import infer
from maskguided.images import write_image

from .engine import Way, network
from .report import Row

MIB = 1024  # ru_maxrss counts KiB


def forwards(name: str, merge: str, keeps: Sequence[float], size: tuple[int, int]) -> Iterator[Row]:
    """Peak of a wrapped forward at each keep beside the dense one's."""
    dense, _ = _child("dense", name, merge, 0.0, size)
    for keep in keeps:
        peak, _ = _child("wrapped", name, merge, keep, size)
        yield {
            "network": name, "size": f"{size[0]}x{size[1]}", "merge": merge, "keep": keep,
            "dense, MiB": round(dense), "wrapped, MiB": round(peak), "ratio": peak / dense,
        }  # fmt: skip


def large(name: str, keep: float, size: tuple[int, int]) -> Iterator[Row]:
    """Resident memory of upscaling an image of that size, default tiles, written as PNG."""
    peak, seconds = _child("upscale", name, "features", keep, size)
    yield {
        "network": name, "size": f"{size[0]}x{size[1]}", "keep": keep, "seconds": round(seconds),
        "peak RSS of the process, MiB": round(peak),
    }  # fmt: skip


def _child(what: str, name: str, merge: str, keep: float, size: tuple[int, int]) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.memory", what, name, merge, str(keep), *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["mib"], found["seconds"]


@torch.inference_mode()
def _forward(what: str, name: str, merge: str, keep: float, size: tuple[int, int]) -> float:
    """MiB that a forward takes at its peak, above the process before it."""
    way = Way()
    model, x = way.ready(network(name)), way.image(*size)
    run = model if what == "dense" else way.ready(maskguided.wrap(model, merge=merge, keep=keep))
    run(way.image(32, 32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(x)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MIB


def _upscale(name: str, keep: float, size: tuple[int, int]) -> float:
    """MiB of the whole process at its peak."""
    fast = Way().ready(maskguided.wrap(network(name), keep=keep))
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder) / "large.png", infer.upscale(fast, photo).image)  # type: ignore[arg-type]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("dense", "wrapped", "upscale"))
    parser.add_argument("name")
    parser.add_argument("merge")
    parser.add_argument("keep", type=float)
    parser.add_argument("size", type=int, nargs=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    size = (args.size[0], args.size[1])
    if args.what == "upscale":
        mib = _upscale(args.name, args.keep, size)
    else:
        mib = _forward(args.what, args.name, args.merge, args.keep, size)
    print(json.dumps({"mib": mib, "seconds": time.perf_counter() - start}))
