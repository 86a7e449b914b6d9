"""Laws 1 to 3 on random networks that nobody has looked at, and what their generator promises."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, Phase, currently_in_test_context, event, given, settings
from random_blocks import KINDS
from random_networks import OPTIONS, Plan, build, plans
from support import by_windows, difference, image

import maskguided
from maskguided import MaskGuided

EXAMPLES = 200 if settings.default.max_examples >= 1000 else 25
"""A network takes seconds to split and measure: fewer than other properties get, in either profile."""
MOST = 40
"""LR pixels of radius above which law 2 is left out: its windows would take too long."""
ONLY_WHERE = {
    "window": lambda plan: plan.layout == "tokens",
    "grouped": lambda plan: plan.held == "groups",
    "depth": lambda plan: plan.held != "groups",
    "skip_by_size": lambda plan: plan.image_skip is not None,
    "skip_after_crop": lambda plan: plan.image_skip is not None and plan.pad is not None,
    "pad_mode": lambda plan: plan.pad is not None,
}
"""Choices that mean something in some plans only."""


@given(plan=plans())
@settings(max_examples=EXAMPLES)
def test_random_networks_obey_the_laws(plan):
    obeys_the_laws(plan)


def test_a_run_whose_blocks_can_be_left_out_comes_first():
    """Here the second convolution of the stem is like those that end the groups, and nothing can stand in for it."""
    plan = Plan(
        kind="channels-last", width=8, grouped=(2, 2), stem="two-convs", held="groups", depth=4, scale=2, seed=46
    )  # fmt: skip
    assert maskguided.split(build(plan)).facts.blocks == tuple(f"body.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1))
    obeys_the_laws(plan)


def obeys_the_laws(plan: Plan) -> None:
    """Assert it all; on its own, so that a plan that failed can be pasted into a call."""
    model = build(plan)
    x = image(2, plan.channels[0], *plan.size(23, 29), seed=plan.seed)
    whole = plan.image_of(model(x.clone()))
    parts = split_unchanged(model)
    assert torch.equal(parts.tail(parts.body(parts.prefix(x))), whole), "law 1"
    assert torch.equal(plan.image_of(model(x.clone())), whole), "splitting changed what the network returns"
    if plan.expected_blocks is not None:
        assert len(parts.facts.blocks) == plan.expected_blocks
    law_2(plan, model, parts, "features", parts.facts.body_radius)
    law_2(plan, model, parts, "image", parts.facts.radius)
    multiple = parts.facts.multiple_of
    fast = MaskGuided(parts, keep=0, patch_size=-(-6 // multiple) * multiple, halo=0, merge="features").eval()
    assert torch.equal(fast(x), parts.tail(parts.skip(parts.prefix(x)))), "law 3"
    if plan.channels[0] == plan.channels[1] and plan.scale > 1:
        law_2_with_a_light_tail(parts, x)


def law_2_with_a_light_tail(parts: maskguided.Split, x: torch.Tensor) -> None:
    """All windows refined are body and light tail on the whole map."""
    fast = MaskGuided(parts, refine_tail="light").eval()
    weight = fast.refine_tail.conv.weight
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) / weight[0].numel() ** 0.5)
    base = fast.run_base(x)
    whole = fast.split.rest(base.state)[:, :, : x.shape[2] * fast.scale, : x.shape[3] * fast.scale]
    assert not fast.exchange or difference(fast.refine(base, base.every), whole) < 1e-4, "law 2, light tail"


def split_unchanged(model: torch.nn.Module) -> maskguided.Split:
    """The automatic split; nothing of the network changes by it."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    parts = maskguided.split(model)
    assert all(module.training for module in model.modules())
    model.eval()
    now = model.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in before)
    return parts


def law_2(plan: Plan, model: torch.nn.Module, parts: maskguided.Split, merge: str, radius: int | None) -> None:
    """All windows refined, with as much halo as the radius asks for, are the network."""
    if plan.is_local:
        assert radius is not None, "nothing in this network looks at the whole map"
    if plan.is_global:
        assert radius is None
    if currently_in_test_context():
        event("law 2: " + ("no radius" if radius is None else "checked" if radius <= MOST else "too large a radius"))
    if radius is None or radius > MOST:
        return
    multiple = parts.facts.multiple_of
    patch, halo = (-(-length // multiple) * multiple for length in (6, radius))
    # A strip longer than a window: on a smaller image every window would be the whole of it.
    sides = plan.size(19, 2 * (patch + halo) + 7)
    x = image(2, plan.channels[0], *(sides if plan.seed % 2 else sides[::-1]), seed=plan.seed)
    fast = MaskGuided(parts, keep=1, patch_size=patch, halo=halo, merge=merge).eval()
    assert difference(by_windows(fast, x), plan.image_of(model(x.clone()))) < 1e-5, f"law 2, merge={merge!r}"


def drawn(count: int) -> list[Plan]:
    """The same plans each time."""
    found: list[Plan] = []

    @given(plan=plans())
    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def draw(plan):
        found.append(plan)

    draw()
    return found


@pytest.fixture(scope="module")
def some() -> list[Plan]:
    return drawn(300)


def test_the_generator_covers_every_choice(some):
    for name, options in OPTIONS.items():
        seen = {getattr(plan, name) for plan in some if ONLY_WHERE.get(name, lambda _: True)(plan)}
        assert seen == set(options), name
    assert {plan.other for plan in some} == {None, *(kind for kind in OPTIONS["kind"] if KINDS[kind].simple)}
    assert {plan.multiple_of for plan in some} >= {1, 2, 4}
    known = [plan for plan in some if plan.expected_blocks is not None]
    assert len(known) > len(some) / 2
    assert any(plan.expected_blocks == plan.grouped[0] for plan in known if plan.grouped)
    assert any(plan.expected_blocks == plan.depth for plan in known if plan.grouped)


def test_every_network_runs_and_hides_nothing(some):
    for plan in some:
        model, x = build(plan), image(2, plan.channels[0], *plan.size(23, 29))
        output, original = model(x), x.clone()
        assert torch.equal(x, original), plan
        final = plan.image_of(output)
        assert final.shape == (2, plan.channels[1], *(plan.scale * side for side in x.shape[2:])), plan
        assert final.std() > 0.02, plan
        assert final.abs().max() < 20, plan


def test_the_final_image_is_the_largest(some):
    """Among equally large ones it is the last of a list, the first of a tuple or dict."""
    for plan in (plan for plan in some[::3] if plan.output != "tensor"):
        output = build(plan)(image(1, plan.channels[0], *plan.size(23, 29)))
        images = list(output.values()) if isinstance(output, dict) else list(output)
        largest = max(i.shape[2] * i.shape[3] for i in images)
        candidates = [i for i in images if i.shape[2] * i.shape[3] == largest]
        assert plan.image_of(output) is candidates[-1 if isinstance(output, list) else 0], plan


def test_every_layer_matters(some):
    for plan in some[::8]:
        model, x = build(plan), image(1, plan.channels[0], *plan.size(23, 29))
        whole = plan.image_of(model(x))
        for name, parameter in model.named_parameters():
            if name.startswith("early."):  # what makes the other image of two
                continue
            kept = parameter.clone()
            parameter.mul_(1.2).add_(0.05)
            assert difference(plan.image_of(model(x)), whole) > 1e-6, (name, plan)
            parameter.copy_(kept)


def test_a_plan_rebuilds_its_network(some):
    for plan in some[:20]:
        again = eval(repr(plan))
        assert again == plan
        one, other = build(plan).state_dict(), build(again).state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)
        copy.deepcopy(build(plan))
