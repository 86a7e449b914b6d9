"""Train one of the small x4 networks of small_networks.py, from HR photographs alone.

    python -m benchmarks.train --network NAME --hr FOLDER [--hr FOLDER] --work DIR [--iterations 12000]

LR images are basicsr's MATLAB-like bicubic. L1 loss, AdamW, one-cycle learning rate, an average of the
weights (EMA). A checkpoint is written every 200 steps; the same command resumes from it and, at the end,
writes DIR/NAME.safetensors (half precision). --start FILE goes on from trained weights, with other crops for
another --seed. "starter" is the network that ships with the package.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from maskguided.imaging.pairs import read_channels
from maskguided.integrations.basicsr_plugin import import_basicsr
from maskguided.weights import load_into, read

from .small_networks import NETWORKS, SCALE


def read_pairs(folders: list[Path], cache: Path) -> list[tuple[Tensor, Tensor]]:
    """(LR, HR) uint8 tensors (3, H, W) of every image; HR cropped to a multiple of the scale."""
    if cache.exists():
        pairs: list[tuple[Tensor, Tensor]] = torch.load(cache, weights_only=True)
        return pairs
    imresize = import_basicsr("basicsr.utils.matlab_functions").imresize
    pairs = []
    for path in sorted(p for folder in folders for p in folder.iterdir()):
        image = read_channels(path)
        height, width = (size - size % SCALE for size in image.shape[:2])
        hr = torch.from_numpy(image[:height, :width].copy()).permute(2, 0, 1)
        lr = imresize(hr.float() / 255, 1 / SCALE)
        pairs.append(((lr.clamp(0, 1) * 255).round().byte(), hr.contiguous()))
    torch.save(pairs, cache)
    return pairs


def crops(pairs: list[tuple[Tensor, Tensor]], batch: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch of random LR crops (size x size) with their HR, flipped and turned at random, in 0..1."""
    lrs, hrs = [], []
    for number in rng.integers(len(pairs), size=batch):
        lr, hr = pairs[number]
        top, left = (int(rng.integers(side - size + 1)) for side in lr.shape[1:])
        lr = lr[:, top : top + size, left : left + size]
        hr = hr[:, top * SCALE : (top + size) * SCALE, left * SCALE : (left + size) * SCALE]
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        lr, hr = (torch.rot90(x.flip(2) if flip else x, turns, (1, 2)) for x in (lr, hr))
        lrs.append(lr)
        hrs.append(hr)
    return torch.stack(lrs).float() / 255, torch.stack(hrs).float() / 255


def average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def write(payload: dict[str, object], path: Path) -> None:
    beside = path.with_suffix(".tmp")
    torch.save(payload, beside)
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), required=True)
    parser.add_argument("--hr", type=Path, action="append", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    pairs = [pair for pair in read_pairs(args.hr, args.work / "pairs.pt") if min(pair[0].shape[1:]) >= args.size]

    model = NETWORKS[args.network]().to(memory_format=torch.channels_last)
    if args.start:
        load_into(model, read(args.start).tensors)
    ema = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, total_steps=args.iterations, pct_start=0.05)
    checkpoint, start = args.work / f"{args.network}.checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for part, name in ((model, "model"), (ema, "ema"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(saved[name])
        start = saved["step"]

    running, shown, since = 0.0, start, time.time()
    for step in range(start, args.iterations):
        lr, hr = crops(pairs, args.batch, args.size, np.random.default_rng((args.seed, step)))
        loss = F.l1_loss(model(lr.contiguous(memory_format=torch.channels_last)), hr)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average(ema, model, min(0.999, (1 + step) / (10 + step)))
        running += loss.item()
        if (step + 1) % 200 == 0 or step + 1 == args.iterations:
            steps = step + 1 - shown
            print(
                f"step {step + 1}: L1 {running / steps:.5f}, {(time.time() - since) / steps:.2f} s a step", flush=True
            )
            running, shown, since = 0.0, step + 1, time.time()
            state = {"model": model.state_dict(), "ema": ema.state_dict(), "step": step + 1}
            write({**state, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, checkpoint)
    half = {name: value.half().contiguous() for name, value in ema.state_dict().items()}
    save_file(half, args.work / f"{args.network}.safetensors")


if __name__ == "__main__":
    main()
