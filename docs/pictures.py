"""Draw the picture of docs/idea.md: python docs/pictures.py

What is shown is computed, not painted: the chosen patches, the windows and the images of the starter network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle

import maskguided
from maskguided.imaging.images import read_image
from maskguided.networks import load_network
from maskguided.patches import gather, scatter

HERE = Path(__file__).parent


def show(axis: Any, image: torch.Tensor, title: str) -> None:
    axis.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.axis("off")


def outline(axis: Any, top: float, left: float, size: tuple[float, float], **style: Any) -> None:
    axis.add_patch(Rectangle((left - 0.5, top - 0.5), size[1], size[0], fill=False, **style))


def montage(windows: torch.Tensor, cols: int) -> torch.Tensor:
    """Windows side by side with a white gap."""
    padded = torch.nn.functional.pad(windows, (2, 2, 2, 2), value=1.0)
    rows = [torch.cat(list(row), dim=2) for row in padded.split(cols)]
    return torch.cat([torch.nn.functional.pad(r, (0, rows[0].shape[2] - r.shape[2]), value=1.0) for r in rows], dim=1)


@torch.inference_mode()
def main() -> None:
    lr = torch.from_numpy(read_image(HERE.parent / "examples" / "astronaut.png")).permute(2, 0, 1)[None] / 255
    fast = maskguided.wrap(load_network().model, keep=0.25, patch_size=16, halo=4, merge="image").eval()
    found, grid, scale = fast.explain(lr), fast.grid(*lr.shape[2:]), fast.scale

    figure, axes = plt.subplots(1, 4, figsize=(16, 4.9), constrained_layout=True)
    show(axes[0], lr[0], "1  LR image: 16 of 64 patches chosen (solid),\neach with its halo (dashed): the windows")
    tops, lefts = grid.corners(found.index[0])
    for number, top, left in zip(found.index[0].tolist(), tops.tolist(), lefts.tolist(), strict=True):
        row, col = divmod(number, grid.cols)
        outline(axes[0], top, left, grid.window, edgecolor="white", linestyle="--", linewidth=0.8)
        outline(axes[0], row * 16, col * 16, (16, 16), edgecolor="cyan", linewidth=2)

    windows = gather(found.refined, found.index, grid)
    show(axes[1], montage(windows, 4), "2  gathered into one batch; blocks n+1..N run\non these 16 windows only")
    height, width = (side * scale for side in grid.window)
    for i, (number, top, left) in enumerate(zip(found.index[0].tolist(), tops.tolist(), lefts.tolist(), strict=True)):
        row, col = divmod(number, grid.cols)
        y, x = i // 4 * (height + 4) + 2, i % 4 * (width + 4) + 2
        outline(
            axes[1], y + (row * 16 - top) * scale, x + (col * 16 - left) * scale, (64, 64),
            edgecolor="cyan", linewidth=2,
        )  # fmt: skip

    grey = 0.75 * torch.ones_like(found.refined)
    patches = scatter(windows, found.index, grid, onto=grey)
    show(axes[2], patches[0], "3  scattered back: the patch of each window,\nits halo thrown away")
    show(axes[3], found.refined[0], "4  the rest comes from the coarse result\n(blocks 1..n and the coarse tail)")
    figure.savefig(HERE / "images" / "idea.png", dpi=80)
    print(f"wrote {HERE / 'images' / 'idea.png'}")


if __name__ == "__main__":
    main()
