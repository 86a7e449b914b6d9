"""The same comparison in onnxruntime: the dense network's file against the wrapped one's."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import maskguided
from maskguided.export import onnx_session

from .engine import network, window
from .report import Row, alternate, middle_and_spread

WRAPS: tuple[dict[str, Any], ...] = (
    {},
    {"merge": "image", "coarse_tail": "light"},
    {"merge": "image", "coarse_tail": "light", "exchange": False},
)
"""wrap's defaults, and what `calibrate` makes of a network with a heavy tail."""


@torch.no_grad()
def measure(name: str, keeps: Sequence[float], size: tuple[int, int], rounds: int, threads: int) -> Iterator[Row]:
    """A row for each wrap and keep; all files are made from the same network."""
    model = network(name).eval()
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (x,), dense, dynamo=True, verbose=False, external_data=False)
        runs, rows = {"dense": _session(dense, x, threads)}, {}
        wraps = [maskguided.wrap(model, **settings).eval() for settings in WRAPS]
        for number, (fast, keep) in enumerate(itertools.product(wraps, keeps)):
            fast.keep = keep
            path = Path(folder) / f"{number}.onnx"
            difference = maskguided.export(fast, path, x)
            runs[path.name] = _session(path, x, threads)
            rows[path.name] = _row(name, fast, size) | {"difference from torch": f"{difference:.0e}"}
        seconds = alternate(runs, rounds)
    for key, row in rows.items():
        middle, spread = middle_and_spread([a / b for a, b in zip(seconds[key], seconds["dense"], strict=True)])
        yield row | {"time/dense": middle, "spread": spread}


def _row(name: str, fast: maskguided.MaskGuided, size: tuple[int, int]) -> Row:
    return {
        "network": name,
        "size": f"{size[0]}x{size[1]}",
        "merge": fast.merge,
        "coarse tail": fast.coarse_tail_kind if fast.merge == "image" else "",
        "window": window(fast),
        "keep": fast.keep,
        "MACs/dense": fast.cost(*size).ratio,
    }


def _session(path: Path, x: torch.Tensor, threads: int) -> Callable[[], object]:
    session = onnx_session(path, threads)
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, given)
