"""Peak memory of a forward, and of a process of its own that upscales a large image."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import maskguided
from maskguided import infer
from maskguided.imaging.images import goes_in_parts, open_large, write_image
from maskguided.parts import Merge

from .engine import Way, network
from .report import Row

MIB = 1024  # ru_maxrss counts KiB


@torch.inference_mode()
def forwards(name: str, merge: Merge, keeps: Sequence[float], size: tuple[int, int]) -> Iterator[Row]:
    """Peak of a wrapped forward at each keep beside the dense one's."""
    way = Way()
    model, x = way.ready(network(name)), way.image(*size)
    fast = maskguided.wrap(model, merge=merge).to(memory_format=torch.channels_last).eval()
    dense = peak(lambda: model(x))
    for keep in keeps:
        fast.keep = keep
        wrapped = peak(lambda: fast(x))
        yield {
            "network": name, "size": f"{size[0]}x{size[1]}", "merge": merge, "keep": keep,
            "dense, MiB": round(dense), "wrapped, MiB": round(wrapped), "ratio": wrapped / dense,
        }  # fmt: skip


def peak(run: Callable[[], object]) -> float:
    """MiB of tensors alive at once within `run`, beyond those before it: what torch's allocator was asked for."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    highest: int = max(itertools.accumulate(change for _, change in changes))
    return highest / 2**20


def large(name: str, keep: float, size: tuple[int, int]) -> Iterator[Row]:
    """Resident memory of upscaling an image of that size, default tiles, written as PNG and, in strips, as TIFF."""
    for suffix in (".png", ".tif"):
        command = [sys.executable, "-m", "benchmarks.memory", name, str(keep), *map(str, size), suffix]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        yield {
            "network": name, "size": f"{size[0]}x{size[1]}", "keep": keep, "written as": suffix,
            "seconds": round(found["seconds"]), "peak RSS of the process, MiB": round(found["mib"]),
        }  # fmt: skip


def _upscale(name: str, keep: float, size: tuple[int, int], suffix: str) -> float:
    """MiB of the whole process at its peak."""
    fast = Way().ready(maskguided.wrap(network(name), keep=keep))
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path, shape = Path(folder) / f"large{suffix}", infer.upscaled_shape(fast, photo)  # type: ignore[arg-type]
        if goes_in_parts(path, shape, photo.dtype):
            with open_large(path, shape, photo.dtype) as file:
                infer.upscale_onto(file, fast, photo, None, 16)  # type: ignore[arg-type]
        else:
            write_image(path, infer.upscale(fast, photo).image)  # type: ignore[arg-type]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("keep", type=float)
    parser.add_argument("size", type=int, nargs=2)
    parser.add_argument("suffix")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    mib = _upscale(args.name, args.keep, (args.size[0], args.size[1]), args.suffix)
    print(json.dumps({"mib": mib, "seconds": time.perf_counter() - start}))
