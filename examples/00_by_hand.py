"""The idea by hand, with what `MaskGuided.forward` is made of: prefix, score, gather, body, scatter, tail.

python examples/00_by_hand.py
"""

from pathlib import Path

import torch

import maskguided
from maskguided.head import high_frequency
from maskguided.imaging.images import read_image, to_tensor
from maskguided.networks import load_network
from maskguided.patches import Grid, gather, scatter, select

model = load_network().model  # the small PAN that ships with maskguided
lr = to_tensor(read_image(Path(__file__).with_name("astronaut.png")))[None]  # (1, 3, 128, 128), 0 to 1

split = maskguided.split(model, split_at=4)
grid = Grid(*lr.shape[2:], patch_size=8, halo=2)

with torch.inference_mode():
    state = split.prefix(lr)  # the first four blocks, on the whole image: maps by name
    index = select(high_frequency(lr, grid.patch_size), grid.k(keep=0.25))  # (1, k): the patches with most detail
    windows = {name: gather(state[name], index, grid) for name in split.reads}  # (k, C, 12, 12) each
    refined = split.body(windows)  # the other blocks, on these windows alone
    coarse = split.skip(state)  # what stands elsewhere: those blocks left out
    merged = {name: scatter(refined[name], index, grid, onto=coarse[name]) for name in split.writes}
    sr = split.tail({**coarse, **merged})

    fast = maskguided.wrap(model, split_at=4, keep=0.25, patch_size=8, halo=2, exchange=False).eval()
    print(f"{tuple(lr.shape)} -> {tuple(sr.shape)}, {index.shape[1]} of {grid.count} patches refined")
    print(f"largest difference to maskguided.wrap: {float((sr - fast(lr)).abs().max()):.1e}")
    assert torch.equal(sr, fast(lr))
