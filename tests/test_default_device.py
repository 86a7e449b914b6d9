"""torch.set_default_device says where a user's own tensors are made; ours are made where the network is."""

from __future__ import annotations

import pytest
import torch
from support import image, scaled
from toys import Chain

import maskguided
from maskguided.adapters.pan_net import PAN


@pytest.mark.parametrize("adapter", ["pan", "automatic"])
@pytest.mark.parametrize("tails", [{}, {"merge": "image", "coarse_tail": "residual", "refine_tail": "light"}])
def test_all_is_the_same_whatever_the_default_device_is(adapter, tails, tmp_path):
    net, x = scaled(PAN(features=8, up_features=8, blocks=4)), image(1, 3, 40, 44)
    pairs = [(x, image(1, 3, 160, 176, seed=n)) for n in range(2)]

    def everything():
        torch.manual_seed(0)
        fast = maskguided.wrap(net, 2, adapter=adapter, keep=0.5, **tails).eval()
        made = [fast(x), fast.explain(x).refined, maskguided.load(saved(fast), net).eval()(x)]
        maskguided.calibrate(fast, pairs, max_cost=0.99, per_image=True)
        made += [fast(x), maskguided.load(saved(fast), net).eval()(x), maskguided.infer.run_tiled(fast, x, 32, 8)]
        return str(fast.cost(40, 44)), str(maskguided.inspect(net, 2, adapter=adapter)), made

    def saved(fast):
        maskguided.save(fast, tmp_path / "a.safetensors")
        return tmp_path / "a.safetensors"

    usual = everything()
    with torch.device("meta"):  # on which nothing can be computed: what is made there fails, or is of no value
        elsewhere = everything()
    assert elsewhere[:2] == usual[:2]
    assert all(torch.equal(a, b) for a, b in zip(elsewhere[2], usual[2], strict=True))


def test_so_it_is_for_a_network_split_automatically_in_tiles_and_windows_alone():
    net, x = scaled(Chain()), image(1, 3, 40, 44)
    usual = maskguided.wrap(net, 2, exchange=False, keep=0.5).eval()(x)
    with torch.device("meta"):
        assert torch.equal(maskguided.wrap(net, 2, exchange=False, keep=0.5).eval()(x), usual)
