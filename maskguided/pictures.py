"""Pictures for people: what a wrapped network saw and chose on an image, the curve of a calibration, and what `bench`
measured."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .base import Explanation
from .bench import Row
from .calibration.curve import Calibration, Point
from .error_map import luma
from .errors import ArgumentError
from .files import write_whole
from .guided import MaskGuided
from .imaging.images import Image, as_pixels
from .infer import overlay
from .optional import optional
from .patches import per_pixel

PICTURES = (".png", ".pdf", ".svg")
_TALLEST = 12.0
"""Inches of a panel: a picture of a tall, narrow image would be more than memory holds."""
_OFFSET: dict[str, Any] = {"textcoords": "offset points"}


def explain_picture(fast: MaskGuided, x: Tensor, path: str | Path) -> Explanation:
    """Write LR, coarse, error map, score, mask and refined of one image side by side.

    Args:
        fast: a wrapped network for images in 0..1.
        x: (1, C, H, W), C being 1 or 3.
        path: .png, .pdf or .svg; an existing file is replaced whole.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    found = fast.explain(x)
    refined_mask = per_pixel(found.mask[0], fast.patch_size, (x.shape[2], x.shape[3])).cpu().numpy()
    error = luma(found.refined.float() - found.coarse.float()).abs()[0, 0].cpu().numpy()
    shown = _shown(x)
    setting = f"keep={fast.keep:g}" if fast.min_gain_db is None else f"min_gain_db={fast.min_gain_db:g}"
    panels: list[tuple[str, Any, str | None]] = [
        (f"LR {x.shape[3]}x{x.shape[2]}", shown, None),
        ("coarse (keep=0)", _shown(found.coarse), None),
        ("refined - coarse, |Y|", error, "magma"),
        (f"score ({fast.scorer})", found.score[0].cpu().numpy(), "viridis"),
        (f"refined patches: {int(found.mask.sum())} of {found.mask[0].numel()}", overlay(shown, refined_mask), None),
        (f"refined ({setting})", _shown(found.refined), None),
    ]
    height = min(4.2 * x.shape[2] / x.shape[3], _TALLEST) + 0.5
    figure = _figure(figsize=(12.6, 2 * height))
    for axis, (title, picture, colours) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        axis.imshow(picture, cmap=colours, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    _save(figure, Path(path))
    return found


def curve_picture(found: Calibration, path: str | Path) -> None:
    """Write the curve of a calibration: dB below dense against the share of dense, in MACs and, where the budget was
    one, in time; the choice is marked.
    """
    figure = _figure(figsize=(6, 4))
    axis = figure.subplots()
    points = found.curve
    costs: dict[str, Callable[[Point], float]] = {"MACs": lambda p: p.macs}
    if found.chosen.time is not None:
        costs["time"] = lambda p: p.time or 0.0
    for name, cost in costs.items():  # the budget's comes last
        axis.plot([100 * cost(p) for p in points], [-p.drop for p in points], marker="o", markersize=3, label=name)
    for point in points:
        axis.annotate(f"{point.keep:g}", (100 * cost(point), -point.drop), fontsize=7, xytext=(3, -9), **_OFFSET)
    axis.plot([100 * cost(found.chosen)], [-found.chosen.drop], marker="*", markersize=14, color="tab:red")
    axis.legend(fontsize=8)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_xlabel("% of the dense network")
    axis.set_ylabel("PSNR-Y to the dense network, dB" + (" (estimated)" if found.estimated else ""))
    axis.set_title(
        f"split {found.split_at}, merge {found.merge}, patch {found.patch_size}, halo {found.halo}; numbers: keep",
        fontsize=9,
    )
    _save(figure, Path(path))


def bench_picture(rows: Sequence[Row], path: str | Path) -> None:
    """Write what `bench` measured: quality against the share of the dense network's time and MACs, a line for each
    setting, its keeps along it.

    Quality is PSNR-Y below the dense network, or likeness to its images where there are no HR images.
    """
    known = rows[0].psnr is not None
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.macs_ratio):
        how = ", each image its own keep" if row.min_gain_db is not None else ""
        name = f"{row.merge}, split {row.split_at}, patch {row.patch_size}, halo {row.halo}{how}"
        if known or row.fidelity is not None:  # an image that is the dense network's is like it without bound
            lines.setdefault(name, []).append(row)
    figure = _figure(figsize=(7, 4.5))
    axis = figure.subplots()
    for name, points in lines.items():
        quality = [(row.to_dense if known else row.fidelity) or 0.0 for row in points]
        (line,) = axis.plot(
            [100 * row.time_ratio for row in points], quality, "o-", markersize=4, label=f"{name}: time"
        )
        axis.plot([100 * row.macs_ratio for row in points], quality, "--", color=line.get_color(), label="MACs")
        for row, height in zip(points, quality, strict=True):
            axis.annotate(f"{row.keep:.2g}", (100 * row.time_ratio, height), fontsize=7, xytext=(4, -8), **_OFFSET)
    axis.axvline(100, color="grey", linewidth=0.8)
    if known:
        axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_xlabel("% of the dense network")
    axis.set_ylabel("PSNR-Y to the dense network's, dB" if known else "PSNR-Y to the dense network's images, dB")
    axis.set_title("numbers: share of the patches that is refined (keep)", fontsize=9)
    axis.legend(fontsize=7)
    _save(figure, Path(path))


def _shown(x: Tensor) -> Image:
    """(1, C, H, W) -> (H, W, 3) uint8."""
    pixels = as_pixels(x)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def drawing() -> Any:
    """matplotlib.figure; to be asked for before work whose result is drawn.

    Raises:
        MissingDependency: it is not installed.
    """
    return optional("matplotlib.figure", "drawing", "maskguided[train]")


def _figure(**settings: Any) -> Any:
    """A figure of its own: the caller's matplotlib keeps its backend and its state."""
    return drawing().Figure(layout="constrained", **settings)


def _save(figure: Any, path: Path) -> None:
    if path.suffix.lower() not in PICTURES:
        raise ArgumentError(f"{path}: a picture ends in {', '.join(PICTURES)}")
    whole = io.BytesIO()  # on a full disk a PDF fails in many ways
    figure.savefig(whole, format=path.suffix[1:].lower(), dpi=130)
    write_whole(path, lambda beside: beside.write_bytes(whole.getbuffer()))
