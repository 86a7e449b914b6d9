"""Laws 1 to 3, 5 and 6 of every known network, by adapter where there is one, and automatically."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from support import GLOBAL, NETWORKS, WITH_ADAPTER, by_windows, difference, image

import maskguided
from maskguided import MaskGuided, Split

WAYS = [
    (name, way) for name in NETWORKS for way in ("adapter", "automatic") if way != "adapter" or name in WITH_ADAPTER
]
SMALL = [(name, way) for name, way in WAYS if name not in ("edsr-large", "rrdbnet")]
SIZE = (23, 29)


@functools.cache
def network(name: str) -> torch.nn.Module:
    return NETWORKS[name]()


def late_cut(name: str) -> int | str:
    """Half of the depth; for RRDBNet the last block alone, whose radius is 15 of the 180 for half of them."""
    return 22 if name == "rrdbnet" else "auto"


@functools.cache
def parts(name: str, way: str) -> Split:
    made = maskguided.split(network(name), late_cut(name), adapter=None if way == "adapter" else way)
    assert isinstance(made, maskguided.Adapter) == (way == "adapter")
    return made


def input_of(name: str, way: str) -> torch.Tensor:
    multiple = parts(name, way).multiple_of
    if name == "edsr-large":  # it would take as long as all the others together
        return image(1, 3, 13, 17)
    return image(2, 3, *(side // multiple * multiple for side in SIZE))


@functools.cache
def dense(name: str, way: str) -> torch.Tensor:
    return network(name)(input_of(name, way))


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_law_1_the_parts_are_the_network(name, way):
    made, x = parts(name, way), input_of(name, way)
    whole = dense(name, way)
    assert torch.equal(made.tail(made.body(made.prefix(x))), whole)
    assert float(whole.std()) > 0.02, "weights that make every image flat would hide errors"


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("merge", ["features", "image"])
def test_law_2_all_windows_that_exchange_borders_are_the_network(name, way, merge):
    """At no halo at all, with patches that do not divide the image, global operations included."""
    made, x = parts(name, way), input_of(name, way)
    assert made.exchanges(merge)
    fast = MaskGuided(made, keep=1, patch_size=6, merge=merge).eval()
    assert fast.halo == 0
    whole = dense(name, way)
    assert difference(by_windows(fast, x), whole) < 1e-5
    assert torch.equal(fast(x), whole), "which then need not be cut"
    alone = MaskGuided(made, keep=1, patch_size=6, halo=0, merge=merge, exchange=False).eval()
    assert difference(by_windows(alone, x), whole) > 1e-4, "alone the windows must differ, or they were not cut"


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("merge", ["features", "image"])
def test_law_2_all_windows_with_halo_enough_are_the_network(name, way, merge):
    made, x = parts(name, way), input_of(name, way)
    radius = made.facts.body_radius if merge == "features" else made.facts.radius
    if name in GLOBAL:
        assert radius is None
        return
    multiple = made.multiple_of
    halo = -(-radius // multiple) * multiple
    fast = MaskGuided(made, keep=1, patch_size=8, halo=halo, merge=merge, exchange=False).eval()
    whole = dense(name, way)
    assert difference(by_windows(fast, x), whole) < 1e-5
    assert difference(fast(x), whole) < 1e-5


@pytest.mark.parametrize(("name", "way"), SMALL)
@pytest.mark.parametrize("merge", ["features", "image"])
def test_law_3_keep_0_is_the_coarse_image_and_costs_no_more(name, way, merge):
    made, x = parts(name, way), input_of(name, way)
    fast = MaskGuided(made, keep=0, patch_size=8, merge=merge).eval()
    coarse = made.tail(made.skip(made.prefix(x)))
    assert torch.equal(fast(x), coarse)
    assert difference(coarse, network(name)(x)) > 1e-4, "blocks that change nothing would hide errors"
    cost = fast.cost(24, 24)
    assert cost.guided == cost.coarse < cost.dense
    fast.keep = 0.5
    assert fast.cost(24, 24).guided > cost.coarse


@pytest.mark.parametrize("name", [n for n in WITH_ADAPTER if n != "edsr-large"])
@pytest.mark.parametrize("merge", ["features", "image"])
def test_adapter_and_automatic_split_give_the_same(name, merge):
    x = input_of(name, "adapter")
    by_adapter, by_trace = (
        MaskGuided(parts(name, way), keep=0.4, patch_size=6, halo=2, merge=merge).eval()
        for way in ("adapter", "automatic")
    )
    assert torch.equal(by_adapter(x), by_trace(x))
    one, other = parts(name, "adapter").facts, parts(name, "automatic").facts
    assert (one.blocks, one.body_radius, one.radius, one.scale) == (
        other.blocks,
        other.body_radius,
        other.radius,
        other.scale,
    )


@pytest.mark.parametrize(("name", "way"), SMALL)
def test_law_5_wrapping_changes_nothing(name, way):
    model = copy.deepcopy(network(name)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    fast = maskguided.wrap(model, adapter=None if way == "adapter" else way, halo=2)
    assert fast.split.facts.scale == fast.scale
    assert maskguided.inspect(model).can_split
    for merge in ("features", "image"):
        fast = MaskGuided(fast.split, merge=merge, halo=2)
        fast(input_of(name, way))
        assert fast.unwrap() is model
    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    for was, module in zip(attributes, model.modules(), strict=True):
        now = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        assert now.keys() == was.keys()
        assert all(now[k] is was[k] or isinstance(now[k], (torch.Tensor, bool)) for k in now)


@pytest.mark.parametrize(("name", "way"), SMALL)
def test_law_5_training_what_was_added_leaves_the_network_alone(name, way):
    model = copy.deepcopy(network(name))
    fast = maskguided.wrap(model, adapter=None if way == "adapter" else way, merge="image", patch_size=8)
    before = {key: value.clone() for key, value in fast.state_dict().items()}
    added = [*fast.head.parameters(), *fast.coarse_tail.parameters()]
    assert not {id(p) for p in added} & {id(p) for p in model.parameters()}
    with torch.enable_grad():
        fast.scorer = "head"
        state = fast.split.prefix(input_of(name, way))
        loss = fast.coarse_tail(fast.split.skip(state), input_of(name, way)).square().mean()
        loss = loss + fast.head(state[fast.split.features], 8).square().mean()
        torch.optim.SGD(added, lr=0.1).zero_grad()
        loss.backward()
        torch.optim.SGD(added, lr=0.1).step()
    moved = {key.partition(".")[0] for key, value in fast.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"head", "coarse_tail"}


@pytest.mark.parametrize(("name", "way"), SMALL)
@pytest.mark.parametrize("merge", ["features", "image"])
def test_law_6_saved_and_loaded_is_the_same(name, way, merge, tmp_path):
    head = {"hidden": 4, "channels": 1}
    fast = MaskGuided(parts(name, way), merge=merge, scorer="head", keep=0.3, patch_size=6, head=head).eval()
    for number, parameter in enumerate([*fast.head.parameters(), *(fast.coarse_tail or fast.head).parameters()]):
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    maskguided.save(fast, tmp_path / "added.safetensors")
    again = maskguided.load(tmp_path / "added.safetensors", network(name)).eval()
    assert torch.equal(again(input_of(name, way)), fast(input_of(name, way)))
    assert again.extra_repr() == fast.extra_repr()


def test_law_2_notices_windows_that_are_padded_instead_of_moved_inward(monkeypatch):
    """With zeros beyond the border a refined patch there is wrong at any halo: the law must say so."""
    from maskguided import guided

    def padded_gather(chosen, x):
        index, grid = chosen.index, chosen.grid
        ratio = x.shape[-1] // grid.width
        halo = grid.halo * ratio
        wide = torch.nn.functional.pad(x, (halo, halo, halo, halo))
        inner = guided.Grid(grid.height + 2 * grid.halo, grid.width + 2 * grid.halo, grid.patch_size, 0)
        height, width = grid.window
        tops = (index // grid.cols * grid.patch_size).flatten().tolist()
        lefts = (index % grid.cols * grid.patch_size).flatten().tolist()
        assert inner.height >= height
        k = index.shape[1]
        return torch.stack(
            [
                wide[i // k, :, t * ratio : (t + height) * ratio, le * ratio : (le + width) * ratio]
                for i, (t, le) in enumerate(zip(tops, lefts, strict=True))
            ]
        )

    monkeypatch.setattr("maskguided.patches.Chosen.gather", padded_gather)
    made = parts("pan-small-x3", "automatic")
    x = image(1, 3, 32, 32)
    fast = MaskGuided(made, keep=1, patch_size=8, halo=8, merge="features", exchange=False).eval()
    assert difference(by_windows(fast, x), network("pan-small-x3")(x)) > 1e-5


@pytest.mark.parametrize("name", ["pan", "edsr", "edsr-original", "rcan"])
def test_under_autocast_no_more_is_rounded_than_by_the_network(name):
    """basicsr's EDSR and RCAN add their mean in the dtype of the input."""
    net, x = NETWORKS[name]().eval(), image(1, 3, 12, 14)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = net(x).dtype
        assert {maskguided.wrap(net, keep=keep)(x).dtype for keep in (0, 0.5, 1)} == {expected}
    assert maskguided.wrap(net.half(), keep=0.5)(x.half()).dtype == torch.half
