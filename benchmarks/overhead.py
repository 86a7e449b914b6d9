"""What wrapping costs beside the parts: MaskGuided's forward against the same steps written out by hand.

    python -m benchmarks.overhead

256x256 LR, keep 0.25, one thread, channels_last, seeded weights; A B A B within each round, median of the
ratios. Also the split alone: tail(body(prefix(x))) against the network itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import maskguided
from maskguided.head import high_frequency
from maskguided.patches import Grid, gather, scatter, select

from .architectures import ARCHITECTURES, seeded

NETWORKS = ("basicsr/EDSR x4", "basicsr/SRVGGNetCompact x4", "spandrel/SPAN x4", "spandrel/SwinIR light x2")
SIDE, KEEP, ROUNDS = 256, 0.25, 9


def by_hand(fast: maskguided.MaskGuided) -> Callable[[Tensor], Tensor]:
    """The forward of `fast` with merge="features", without anything around it."""
    parts, grid = fast.split, Grid(SIDE, SIDE, fast.patch_size, fast.halo)

    def forward(x: Tensor) -> Tensor:
        state = parts.prefix(x)
        coarse = parts.skip(state)
        index = select(high_frequency(x, grid.patch_size), grid.k(KEEP))
        windows = parts.body({name: gather(state[name], index, grid) for name in parts.reads})
        refined = {name: scatter(windows[name], index, grid, onto=coarse[name]) for name in parts.writes}
        return parts.tail({**coarse, **refined})

    return forward


def ratio(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[float, float, float]:
    """Median of ours / theirs over the rounds, its spread, and the seconds of theirs."""
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS + 1):
        pair = []
        for function in (ours, theirs, ours, theirs):
            started = time.process_time()
            function(x)
            pair.append(time.process_time() - started)
        times.append((pair[0] + pair[2], pair[1] + pair[3]))
    ratios = [a / b for a, b in times[1:]]
    middle = statistics.median(ratios)
    return middle, (max(ratios) - min(ratios)) / middle, statistics.median(b for _, b in times[1:]) / 2


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print("| network | wrapped / by hand | spread | parts / network | spread | seconds by hand |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in NETWORKS:
        architecture = next(a for a in ARCHITECTURES if a.name == name)
        model = seeded(architecture.build(), gain=architecture.gain).to(memory_format=torch.channels_last)
        fast = maskguided.wrap(model, adapter="automatic", keep=KEEP, exchange=False).eval()
        x = torch.rand(1, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        parts = fast.split
        wrapped = ratio(fast, by_hand(fast), x)
        split = ratio(lambda x, parts=parts: parts.tail(parts.body(parts.prefix(x))), model, x)  # type: ignore[misc]
        print(f"| {name} | {wrapped[0]:.3f} | {wrapped[1]:.1%} | {split[0]:.3f} | {split[1]:.1%} | {wrapped[2]:.2f} |")


if __name__ == "__main__":
    main()
