"""A part of docs/networks.md, made anew: architectures of basicsr and spandrel that nobody here has adapted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import need_basicsr, need_spandrel

sys.path.append(str(Path(__file__).parents[1]))
from benchmarks.architectures import ARCHITECTURES
from benchmarks.networks import row

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
# The quick ones; together they round up inside, make masks, return tuples, concatenate, attend in windows.
SMALL = [
    *("basicsr/EDSR x4", "basicsr/RCAN x4", "basicsr/MSRResNet x4", "basicsr/RRDBNet x2", "basicsr/SRVGGNetCompact x4"),
    *("basicsr/SwinIR light x2", "basicsr/ECBSR x2", "basicsr/RIDNet x1"),
    *("spandrel/Compact x2", "spandrel/SPAN x4", "spandrel/SAFMN x4", "spandrel/PLKSR tiny x2", "spandrel/MoSR x4"),
    *("spandrel/RCAN unshuffle x2", "spandrel/MoESR x4", "spandrel/ESRGAN unshuffle x2"),
    *("spandrel/ATD light x2", "spandrel/OmniSR x2", "spandrel/SwinIR light x2"),
    *("spandrel/Swin2SR light x2", "spandrel/DITN x2", "spandrel/FDAT direct x2", "spandrel/RealPLKSR x4"),
]


@pytest.mark.parametrize("name", SMALL)
def test_it_is_split_and_obeys_the_laws(name):
    need_basicsr("basicsr.archs") if name.startswith("basicsr") else need_spandrel("spandrel")
    found = row(BY_NAME[name])
    assert not found.reason
    one, two, three = found.laws
    assert one == three == "exact"
    assert two in ("exact", "holds", "global", "radius")
    assert found.exchange in ("exact", "holds", "multiples", "no")
    assert found.exchange != "multiples" or found.multiple_of > 1
    assert found.macs < 1.3
