"""Wrap a network, turn the one knob, see what it costs and what was chosen.

    python examples/01_wrap.py [PANx4_DF2K.pth]

With the official PAN x4 weights, or with the small starter network that ships with maskguided.
"""

import sys

import torch
from skimage import data

import maskguided
from maskguided.networks import load_network

weights = sys.argv[1] if len(sys.argv) > 1 else None
model = load_network(weights).model

photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255  # (1, 3, 512, 512)
lr = torch.nn.functional.interpolate(photo, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)

fast = maskguided.wrap(model).eval()  # cut after half of its blocks

with torch.inference_mode():
    dense = model(lr)
    for keep in (0.0, 0.25, 0.5, 1.0):
        fast.keep = keep
        error = (fast(lr).clamp(0, 1) - dense.clamp(0, 1)).square().mean()
        cost = fast.cost(*lr.shape[2:])
        print(f"keep={keep:<4}  {cost.ratio:6.1%} of the MACs  {-10 * error.log10():.1f} dB from the dense image")

    fast.keep = 0.25
    chosen = fast.explain(lr).mask[0]
    print("the patches refined at keep=0.25:")
    print("\n".join("".join("# " if patch else ". " for patch in row) for row in chosen))

    # The law everything rests on: windows exchange their borders, so refining every patch is the dense network.
    exact = maskguided.wrap(model, fast.split.split_at, keep=1).eval()
    difference = float((exact(lr) - dense).abs().max())
    print(f"all patches, halo {exact.halo}: largest difference to the dense image {difference:.1e}")
    assert difference < 1e-5
    assert fast.unwrap() is model
