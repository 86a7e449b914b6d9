"""Wrap a network, turn the one knob, see what it costs and what was chosen.

    python examples/01_wrap.py [PANx4_DF2K.pth]

With the official PAN x4 weights, or with the small starter network that ships with maskguided.
"""

import sys
from pathlib import Path

import torch

import maskguided
from maskguided.imaging.images import read_image, to_tensor
from maskguided.networks import load_network

weights = sys.argv[1] if len(sys.argv) > 1 else None
model = load_network(weights).model

lr = to_tensor(read_image(Path(__file__).with_name("astronaut.png")))[None]  # (1, 3, 128, 128), 0 to 1

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
