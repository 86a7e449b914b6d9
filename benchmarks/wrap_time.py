"""How long it takes to wrap large networks, as they are published, beside one forward of 128x128 LR pixels.

    python -m benchmarks.wrap_time [--only HAT DAT] [--threads 2] [--out benchmarks/results]

Adapters where there are any, all settings as they are by default; random weights. A network is wrapped once: the
figures are seconds, not ratios of several rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import maskguided
from maskguided.timing import alternate

from .architectures import make_basicsr, make_spandrel
from .engine import network
from .report import Row, Table

_RCAN: dict[str, Any] = {"num_in_ch": 3, "num_out_ch": 3, "num_group": 10, "num_block": 20}
_SIX: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 180,
    "num_heads": [6] * 6,
    "upscale": 4,
    "upsampler": "pixelshuffle",
}
_SWIN: dict[str, Any] = {**_SIX, "depths": [6] * 6, "mlp_ratio": 2}
_HAT: dict[str, Any] = {**_SWIN, "window_size": 16, "compress_ratio": 3, "squeeze_factor": 30, "overlap_ratio": 0.5}
_DAT: dict[str, Any] = {**_SIX, "depth": [6] * 6, "split_size": [8, 32], "expansion_factor": 4}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "SRVGGNetCompact": partial(network, "srvgg"),
    "RealPLKSR": partial(make_spandrel, "PLKSR.RealPLKSR.RealPLKSR", {"upscaling_factor": 4}),
    "EDSR": partial(network, "edsr-l"),
    "RCAN": partial(make_basicsr, "rcan_arch", "RCAN", _RCAN),
    "RRDBNet": partial(network, "rrdbnet"),
    "SwinIR": partial(make_spandrel, "SwinIR.SwinIR.SwinIR", {**_SWIN, "window_size": 8}),
    "HAT": partial(make_spandrel, "HAT.HAT.HAT", _HAT),
    "DAT": partial(make_spandrel, "DAT.DAT.DAT", _DAT),
}


@torch.inference_mode()
def measure(name: str, model: nn.Module, side: int = 128) -> Iterator[Row]:
    """A row; `name` is what it calls the network."""
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    maskguided.wrap(model)
    wrap = time.perf_counter() - start
    dense = alternate({"dense": model}, [x], rounds=1)["dense"][0]
    yield {"network": name, "wrap, s": wrap, "dense, s": dense, "wrap/dense": wrap / dense}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = Table("wrap_time", "Wrapping, beside one forward of 128x128", args.threads)
    for name in args.only:
        torch.manual_seed(0)
        table.add(measure(name, NETWORKS[name]().eval()))
    table.write(args.out)


if __name__ == "__main__":
    main()
