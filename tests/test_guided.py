"""The wrapped network as a module: settings, scores, dtypes, memory formats, compile, cost."""

from __future__ import annotations

import sys
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import NETWORKS, OriginalEDSR, by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F

import maskguided
from maskguided import ArgumentError, MaskGuided
from maskguided.adapters.pan_net import PAN
from maskguided.gain import GainEstimate
from maskguided.head import LinearScore, MaskHead, high_frequency, pool


def pan(**settings: object) -> MaskGuided:
    model = scaled(PAN(features=8, up_features=8, blocks=4, scale=2))
    return maskguided.wrap(model, 2, **{"patch_size": 6, **settings}).eval()


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.floats(0, 1), st.sampled_from(["features", "image"])
)
def test_any_size_batch_and_keep_gives_exactly_scale_times_the_input(height, width, batch, keep, merge):
    fast = WRAPPED[merge]
    fast.keep = keep
    out = fast(image(batch, 3, height, width))
    assert out.shape == (batch, 3, 2 * height, 2 * width)
    assert bool(torch.isfinite(out).all())


WRAPPED = {merge: pan(merge=merge) for merge in ("features", "image")}


@pytest.mark.parametrize("merge", ["features", "image"])
def test_a_batch_is_its_images(merge):
    fast, x = pan(merge=merge, keep=0.3), torch.cat([image(1, 3, 20, 26, seed=s) for s in range(3)])
    assert difference(fast(x), torch.cat([fast(one[None]) for one in x])) < 1e-6


@pytest.mark.parametrize("merge", ["features", "image"])
def test_explain_is_what_forward_does(merge):
    fast, x = pan(merge=merge, keep=0.3), image(2, 3, 20, 27)
    with torch.enable_grad():
        found = fast.explain(x)
    assert not found.refined.requires_grad
    assert torch.equal(found.refined, fast(x))
    assert found.index.shape == (2, 6)
    assert found.mask.sum((1, 2)).tolist() == [6, 6]
    assert torch.equal(found.mask.flatten(1).nonzero()[:, 1].view(2, -1), found.index.sort(1).values)
    assert float(found.score.flatten(1).gather(1, found.index).min()) >= float(found.score[~found.mask].min())
    fast.keep = 0
    assert torch.equal(found.coarse, fast(x))


def test_only_chosen_patches_differ_from_the_coarse_image():
    fast, x = pan(merge="image", keep=0.3), image(1, 3, 24, 24)
    found = fast.explain(x)
    changed = (found.refined != found.coarse).any(1)
    expected = found.mask.repeat_interleave(12, 1).repeat_interleave(12, 2)
    assert not bool((changed & ~expected).any())
    assert float((changed & expected).sum()) > 0.9 * float(expected.sum())


def test_a_score_of_ones_own_decides():
    fast, x = pan(merge="image", keep=0.07), image(1, 3, 24, 24)
    score = torch.zeros(1, 4, 4)
    score[0, 2, 1] = 1
    assert fast.explain(x, score=score).index.tolist() == [[9]]
    with pytest.raises(ArgumentError, match=r"\(1, 3, 4\); expected \(1, 4, 4\)"):
        fast(x, score=torch.zeros(1, 3, 4))


def test_more_is_refined_where_the_image_has_detail():
    fast = pan(keep=0.25)
    x = torch.full((1, 3, 24, 24), 0.5)
    x[:, :, 12:, 12:] = image(1, 3, 12, 12)
    for scorer in ("input", "coarse"):
        fast.scorer = scorer
        assert sorted(fast.explain(x).index[0].tolist()) == [10, 11, 14, 15]


@pytest.mark.parametrize("merge", ["features", "image"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(merge, dtype):
    fast, x = pan(merge=merge, keep=0.5, scorer="head"), image(1, 3, 20, 26)
    single = fast(x)
    fast = fast.to(dtype)
    out = fast(x.to(dtype))
    assert out.dtype == dtype
    assert fast.explain(x.to(dtype)).score.dtype == torch.float32
    if dtype != torch.float64:
        fast.keep = 0
        single = pan(merge=merge, keep=0)(x)
        assert difference(fast(x.to(dtype)).float(), single) < 0.05
    else:
        assert difference(out.float(), single) < 1e-5
    assert fast.split.facts.radius == pan().split.facts.radius


@pytest.mark.parametrize("merge", ["features", "image"])
def test_autocast(merge):
    fast, x = pan(merge=merge, keep=0.5), image(1, 3, 20, 26)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fast(x)
    assert difference(out.float(), fast(x)) < 0.05


def test_scores_are_as_fine_under_autocast():
    """In bfloat16 many patches would have one score, and be chosen by their position."""
    torch.manual_seed(0)
    seen, linear, estimate, head = torch.rand(1, 3, 20, 20), LinearScore(), GainEstimate(5), MaskHead(8)
    logs = torch.rand(1, 8, 20, 20)
    for parameter in (*linear.parameters(), *estimate.parameters()):
        parameter.data.copy_(torch.rand(parameter.shape))
    estimate.seen[0] = 0
    usual = linear(seen), head(logs, 4), *estimate(logs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = linear(seen), head(logs, 4), *estimate(logs)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(usual, within, strict=True))


@pytest.mark.parametrize("merge", ["features", "image"])
def test_channels_last_in_channels_last_out(merge):
    fast, x = pan(merge=merge, keep=0.5), image(1, 3, 20, 26)
    plain = fast(x)
    fast = fast.to(memory_format=torch.channels_last)
    out = fast(x.contiguous(memory_format=torch.channels_last))
    assert difference(out, plain) < 1e-5
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("merge", ["features", "image"])
@pytest.mark.parametrize(
    "model", [PAN(features=8, up_features=8, blocks=2), OriginalEDSR(blocks=2)], ids=["pan", "automatic"]
)
def test_compiles_to_one_graph(merge, model):
    adapter = "automatic" if isinstance(model, OriginalEDSR) else None
    fast = maskguided.wrap(scaled(model), keep=0.5, patch_size=6, merge=merge, adapter=adapter).eval()
    x = image(1, 3, 20, 26)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    assert difference(compiled(x), fast(x)) < 1e-6
    assert compiled(image(1, 3, 31, 17)).shape[2:] == fast(image(1, 3, 31, 17)).shape[2:]


@pytest.mark.parametrize("merge", ["features", "image"])
def test_gradients_reach_every_part(merge):
    fast, x = pan(merge=merge, keep=0.5), image(1, 3, 20, 26)
    with torch.enable_grad():
        fast(x).square().sum().backward()
    parts = [fast.model.conv_first, *fast.model.SCPA_trunk, fast.model.conv_last]
    parts += [fast.coarse_tail] if fast.coarse_tail is not None else []
    for part in parts:
        assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in part.parameters())


def test_wrapped_under_inference_mode_it_can_still_be_trained():
    model = scaled(OriginalEDSR())
    with torch.inference_mode():
        fast = maskguided.wrap(model, merge="image", adapter="automatic")
        fast(image(1, 3, 9, 9))
    with torch.enable_grad():
        fast(image(1, 3, 9, 9)).sum().backward()
    assert all(p.grad is not None for p in fast.coarse_tail.parameters())


def test_cost_follows_the_arithmetic():
    model = PAN(features=8, up_features=8, blocks=4, scale=2)
    fast = maskguided.wrap(model, 3, patch_size=8, halo=1, keep=0.5)
    cost = fast.cost(32, 32)
    block = 4 * 8 * 2 + 4 * 4 * 9 * 3 + 4 * 4 + 8 * 8
    assert cost.dense - cost.coarse == 32 * 32 * block
    assert cost.guided - cost.coarse == 8 * 10 * 10 * block
    assert (cost.k, cost.patches) == (8, 16)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.added == sum(p.numel() for part in (fast.head, fast.linear) for p in part.parameters())
    assert cost.ratio == cost.guided / cost.dense
    assert "8 of 16 patches" in str(cost)


def test_asking_for_costs_leaves_settings_to_whoever_runs_it_meanwhile():
    fast, seen = pan(keep=0.5), []

    def meanwhile(*_):
        seen.append(fast.keep)
        fast.keep = 0.75

    fast.model.SCPA_trunk[0].register_forward_hook(meanwhile)
    cost = fast.cost(20, 26)
    assert seen == [0.5, *[0.75] * (len(seen) - 1)]
    assert (cost.keep, fast.keep) == (0.5, 0.75)
    assert cost.coarse < cost.guided


def test_an_input_of_a_size_the_network_cannot_take_is_padded_and_cropped():
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
            self.body = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))

        def forward(self, x):
            return F.pixel_shuffle(self.last(self.body(self.first(F.pixel_unshuffle(x, 2)))), 2)

    fast = maskguided.wrap(scaled(Halves()), keep=1, patch_size=8, halo=10)
    assert fast.split.multiple_of == 2
    x = image(1, 3, 21, 33)
    padded = F.pad(x, (0, 1, 0, 1), mode="replicate")
    assert difference(by_windows(fast, x), fast.model(padded)[:, :, :21, :33]) < 1e-5
    with pytest.raises(ArgumentError, match="halo=3: this network works on multiples of 2 LR pixels; use 2 or 4"):
        maskguided.wrap(fast.model, halo=3)
    with pytest.raises(ArgumentError, match=r"halo=1: this network works on multiples of 2 LR pixels; use 2$"):
        maskguided.wrap(fast.model, halo=1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"keep": 1.5}, "keep=1.5"),
        ({"keep": -0.1}, "use 0 to 1"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"halo": -1}, "halo=-1"),
        ({"halo": 1.5}, "whole number"),
        ({"merge": "both"}, "'features', 'image'"),
        ({"scorer": "best"}, "'input', 'coarse', 'linear', 'head'"),
        ({"merge": "image", "coarse_tail": "none"}, "'copy', 'light'"),
        ({"head": {"channels": 3}}, "channels=3"),
        ({"adapter": "edsr"}, "does not know this PAN"),
        ({"adapter": "swinir"}, "known: pan, edsr, rcan"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(ArgumentError) as raised:
        pan(**settings)
    assert text in str(raised.value)


def test_inputs_of_another_shape():
    with pytest.raises(ArgumentError, match=r"\(1, 1, 8, 8\); this network takes \(B, 3, H, W\)"):
        pan()(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ArgumentError, match=r"takes \(B, 3, H, W\)"):
        pan()(torch.zeros(3, 8, 8))


def test_a_light_coarse_tail_begins_as_the_bilinear_input():
    fast, x = pan(merge="image", coarse_tail="light", keep=0), image(1, 3, 20, 26)
    assert difference(fast(x), F.interpolate(x, scale_factor=2, mode="bilinear")) < 1e-6
    assert fast.cost(32, 32).coarse < pan(merge="image", keep=0).cost(32, 32).coarse


def test_the_state_dict_holds_every_weight_once():
    fast = pan(merge="image")
    assert {name.partition(".")[0] for name in fast.state_dict()} == {"model", "head", "linear", "coarse_tail"}
    tail = {name.split("model.", 1)[1] for name in fast.state_dict() if name.startswith("coarse_tail")}
    assert tail == {n for n in fast.model.state_dict() if not n.startswith(("conv_first", "SCPA_trunk"))}


def test_registry_refuses_a_name_twice():
    with pytest.raises(ArgumentError, match="'pan' is registered already"):
        maskguided.register("pan")(maskguided.Adapter)


def test_head_is_the_papers_arithmetic():
    """conv - ReLU - conv, softmax, second channel, mean per patch, then a 5x5 kernel of its own per position."""
    head = scaled(MaskHead(4, hidden=3), gain=2.0)
    x = image(1, 4, 10, 12)
    logits = head.classify(F.relu(head.squeeze(x)))
    pooled = F.avg_pool2d(logits.softmax(1)[:, 1:], 2)
    kernels = head.kernels(pooled)[0]
    padded = F.pad(pooled, (2, 2, 2, 2))[0, 0]
    expected = torch.empty(5, 6)
    for row in range(5):
        for col in range(6):
            expected[row, col] = (kernels[:, row, col].view(5, 5) * padded[row : row + 5, col : col + 5]).sum()
    assert difference(head(x, patch=2)[0], expected) < 1e-5
    assert float(expected.std()) > 1e-3


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dynamic", [True, False])
def test_head_options_and_size(channels, dynamic):
    head = MaskHead(64, channels=channels, dynamic=dynamic)
    assert head(image(2, 64, 13, 9), patch=4).shape == (2, 4, 3)
    assert sum(p.numel() for p in head.parameters()) < 0.01 * 1_517_571  # EDSR 16x64
    fresh = MaskHead(8, channels=channels, dynamic=dynamic)
    same = MaskHead(8, channels=channels, dynamic=False)
    same.load_state_dict({k: v for k, v in fresh.state_dict().items() if not k.startswith("kernels")})
    x = image(1, 8, 12, 12)
    assert torch.equal(fresh(x, 4), same(x, 4)), "an untrained dynamic convolution passes the map through"


def test_pooling_leaves_what_lies_beyond_the_border_out():
    assert pool(torch.ones(1, 1, 5, 7), 4).tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]


def test_high_frequency_of_a_plain_gradient_is_small_and_of_an_edge_large():
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    edge = (ramp > 0.5).float()
    inner = lambda x: float(high_frequency(x, 4)[0, 1:-1, 1:-1].max())  # noqa: E731
    assert inner(ramp) < 1e-6 < 0.01 < inner(edge)


def test_trainable_parameters_are_counted(capsys):
    fast = pan()
    fast.model.requires_grad_(False)
    fast.print_trainable_parameters()
    head = sum(p.numel() for p in fast.head.parameters())
    assert f"trainable params: {head:,} ||" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("merge", ["features", "image"])
def test_gpu_gives_the_same_and_never_waits(merge):
    fast, x = pan(merge=merge, keep=0.5), image(2, 3, 40, 52)
    expected = fast(x)
    fast, x = fast.cuda(), x.cuda()
    fast(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = fast(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert difference(out.cpu(), expected) < 1e-3
    assert fast.half()(x.half()).dtype == torch.float16


def test_an_adapter_of_another_package_is_found_by_its_entry_point(monkeypatch):
    """The group maskguided.adapters: the module it names registers the adapter when a network is looked up."""
    from importlib.metadata import EntryPoint

    from maskguided import adapter

    class Mine(OriginalEDSR):
        pass

    def load(entry):
        from maskguided.adapters.edsr import EDSRAdapter

        class MineAdapter(EDSRAdapter):
            @classmethod
            def missing(cls, model):
                return None if isinstance(model, Mine) else "it is not Mine"

        maskguided.register("mine")(MineAdapter)

    adapter.adapters()
    monkeypatch.setattr(adapter, "_registry", dict(adapter._registry))
    monkeypatch.setattr(adapter, "_loaded", False)
    monkeypatch.setattr(adapter, "entry_points", lambda group: [EntryPoint("mine", "mine", group)])
    monkeypatch.setattr(EntryPoint, "load", load)
    assert adapter.named("mine").name == "mine"
    assert maskguided.split(Mine(), adapter="mine").name == "mine"
    with pytest.raises(ArgumentError, match="it is not Mine"):
        maskguided.split(OriginalEDSR(), adapter="mine")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before 3.11 a caller holds its arguments through a call")
@pytest.mark.parametrize("merge", ["features", "image"])
@pytest.mark.parametrize("adapter", [None, "automatic"])
@pytest.mark.parametrize("name", ["pan-small-x3", "edsr-original"])
def test_nothing_of_the_cut_is_held_while_the_tail_enlarges(name, adapter, merge):
    """So that a wrapped forward needs no more memory than the dense one (benchmarks/memory.py)."""
    fast = maskguided.wrap(NETWORKS[name](), adapter=adapter, keep=0.25, patch_size=8, merge=merge).eval()
    held, alive = [], []
    prefix = fast.split.prefix

    def watched(x):
        state = prefix(x)
        held.extend(weakref.ref(value) for value in state.values() if value.data_ptr() != x.data_ptr())
        return state

    fast.split.prefix = watched
    within = fast.model if merge == "features" else fast.coarse_tail
    last = next(module for name, module in within.named_modules() if name.endswith(("conv_last", "tail.1")))
    last.register_forward_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in held)))
    x = image(1, 3, 24, 32)
    with torch.no_grad():
        base = fast.run_base(x)
        fast.refine(base, fast.choose(base))
        del base
        held.clear()
        fast(x)
    assert alive[0] > 0, "the counter must count"
    assert alive[1] == 0


def test_data_parallel_is_refused_for_a_replica_would_hold_the_first_gpus_network():
    fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4), 2)
    with pytest.raises(ArgumentError, match="DistributedDataParallel"):
        fast._replicate_for_data_parallel()
