"""The same comparison in onnxruntime: the dense network's file against the wrapped one's."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import maskguided
from maskguided.export import onnx_session
from maskguided.timing import alternate, ratio

from .engine import network, window
from .report import Row

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
        runs, rows = {"dense": _session(dense, threads)}, {}
        wraps = [maskguided.wrap(model, **settings).eval() for settings in WRAPS]
        for number, (fast, keep) in enumerate(itertools.product(wraps, keeps)):
            fast.keep = keep
            path = Path(folder) / f"{number}.onnx"
            difference = maskguided.export(fast, path, x)
            runs[path.name] = _session(path, threads)
            rows[path.name] = _row(name, fast, size) | {"difference from torch": f"{difference:.0e}"}
        seconds = alternate(runs, [x.numpy()], rounds)
    for key, row in rows.items():
        middle, spread = ratio(seconds[key], seconds["dense"])
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


def _session(path: Path, threads: int) -> Callable[[np.ndarray[Any, Any]], object]:
    session = onnx_session(path, threads)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})
