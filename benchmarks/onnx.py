"""The same comparison in onnxruntime: the dense network's file against the wrapped one's."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import maskguided
from maskguided.export import onnx_session

from .engine import network
from .report import Row, alternate, middle_and_spread


@torch.no_grad()
def measure(name: str, keeps: Sequence[float], size: tuple[int, int], rounds: int, threads: int) -> Iterator[Row]:
    """A row for each keep; both files are made from the same network, wrapped with its defaults."""
    model = network(name).eval()
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    fast = maskguided.wrap(model).eval()
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (x,), dense, dynamo=True, verbose=False, external_data=False)
        runs = {"dense": _session(dense, x, threads)}
        differences = {}
        for keep in keeps:
            fast.keep = keep
            path = Path(folder) / f"{keep}.onnx"
            differences[keep] = maskguided.export(fast, path, x)
            runs[f"{keep}"] = _session(path, x, threads)
        seconds = alternate(runs, rounds)
    for keep in keeps:
        fast.keep = keep
        ratios = [a / b for a, b in zip(seconds[f"{keep}"], seconds["dense"], strict=True)]
        middle, spread = middle_and_spread(ratios)
        yield {
            "network": name, "size": f"{size[0]}x{size[1]}", "merge": fast.merge, "keep": keep,
            "MACs/dense": fast.cost(*size).ratio, "time/dense": middle, "spread": spread,
            "difference from torch": f"{differences[keep]:.0e}",
        }  # fmt: skip


def _session(path: Path, x: torch.Tensor, threads: int) -> Callable[[], object]:
    session = onnx_session(path, threads)
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, given)
