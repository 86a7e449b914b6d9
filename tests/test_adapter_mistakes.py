"""What an adapter's author does wrong is said in words: by the adapter's name, and by what to mend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import by_windows, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from toys import Base, conv

import maskguided
from maskguided import adapter as registry
from maskguided.adapter import Adapter, lacks
from maskguided.errors import ArgumentError, CannotSplit


class Concat(Base):
    """In the manner of IMDN: the tail takes what all blocks gave."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv(8, 8) for _ in range(4)])
        self.fuse = nn.Conv2d(32, 8, 1)

    def forward(self, x):
        outs, y = [], self.first(x)
        for block in self.blocks:
            y = y + block(y)
            outs.append(y)
        return self.finish(self.fuse(torch.cat(outs, 1)))


class ConcatAdapter(Adapter):
    name = "concat"

    def __init__(self, model, split_at, probe):
        super().__init__(model, split_at, probe)
        self.writes = ("features", *(f"out{i}" for i in range(self.split_at, len(self.blocks))))

    @classmethod
    def missing(cls, model):
        return lacks(model, "blocks", "fuse")

    def stem(self, x):
        return {"features": self.net.first(x)}

    def body_blocks(self):
        return list(self.net.blocks)

    def run(self, state, start, end):
        for i in range(start, end):
            features = state["features"] + self.net.blocks[i](state["features"])
            state = {**state, "features": features, f"out{i}": features}
        return state

    def prefix(self, x):
        return self.run(self.stem(x), 0, self.split_at)

    def body(self, state):
        return self.run(state, self.split_at, len(self.blocks))

    def skip(self, state):
        return {**dict.fromkeys(self.writes, state["features"]), **state}

    def tail(self, state):
        outs = [state[f"out{i}"] for i in range(len(self.net.blocks))]
        return self.net.finish(self.net.fuse(torch.cat(outs, 1)))


def known_as(monkeypatch, adapter: type[Adapter]) -> None:
    registry.adapters()
    monkeypatch.setitem(registry._registry, adapter.name, adapter)


@pytest.mark.parametrize("merge", ["features", "image"])
def test_a_prefix_may_make_live_values_of_its_own(monkeypatch, merge):
    known_as(monkeypatch, ConcatAdapter)
    network, x = scaled(Concat()).eval(), image(1, 3, 21, 29)
    fast = maskguided.wrap(network, 2, adapter="concat", merge=merge, keep=1).eval()
    assert set(fast.split.kinds) == {"features", "out0", "out1"}
    assert (fast.split.facts.body_radius, fast.split.facts.radius) == (2, 3)
    with torch.inference_mode():
        base = fast.run_base(x)
        assert difference(fast.refine(base, base.every), network(x)) < 1e-5
        fast.keep = 0
        parts = fast.split
        assert difference(fast(x), parts.tail(parts.skip(parts.prefix(x)))) < 1e-6


def no_stand_in(self, state):
    return dict(state)


def leaves_its_mean(self, x):
    self.tail = lambda state: ConcatAdapter.tail(self, state) + x.mean()
    return {"features": self.net.first(x)}


MISTAKES = {
    "the image in place": (
        lambda self, x: {"features": self.net.first(x.neg_())},
        "stem",
        "its stem changes the image",
    ),
    "a value in self": (leaves_its_mean, "stem", "it reads what the stem has left in the adapter"),
    "padding that is not named": (
        lambda self, x: {"features": self.net.first(nn.functional.pad(x, (0, 3, 0, 3)))},
        "stem",
        r"'features', \(1, 8, 20, 22\), of an image of 17x19; .* say multiple_of",
    ),
    "a write that is not named": (lambda self: ("features",), "writes", "makes 'out2', which its `writes`"),
    "a write that is not made": (lambda self: ("features", "out2", "out3", "sum"), "writes", "'sum', which its body"),
    "a read that is not named": (lambda self: (), "reads", "takes 'features', which its `reads`"),
    "a read that is not made": (lambda self: ("features", "sum"), "reads", "'sum', which its prefix"),
    "no stand-in": (no_stand_in, "skip", "'out2', for which its skip"),
    "a vector": (lambda self, x: {"features": self.net.first(x), "mean": x.mean((2, 3))}, "stem", r"'mean', \(1, 3\)"),
    "a tuple": (lambda self, x: (self.net.first(x), x), "stem", "its stem makes tuple"),
    "no features": (lambda self, x: {"deep": self.net.first(x)}, "stem", r"its stem makes \['deep'\]"),
    "other blocks": (lambda self: [nn.Sequential(b) for b in self.net.blocks], "body_blocks", "that is no module of"),
    "a live value forgotten": (lambda self, state: state["shallow"], "tail", "KeyError: 'shallow'"),
    "a tuple for the image": (
        lambda self, state: (ConcatAdapter.tail(self, state),),
        "tail",
        "its tail makes tuple;",
    ),
    "no image": (lambda self, state: None, "tail", "its tail makes NoneType; it takes one image"),
    "no blocks": (lambda self: [], "body_blocks", "its body_blocks gives 0 blocks of this Concat; a cut needs 2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said(monkeypatch, mistake):
    made, place, words = MISTAKES[mistake]

    class Wrong(ConcatAdapter):
        name = "wrong"

        def __init__(self, model, split_at, probe):
            Adapter.__init__(self, model, split_at, probe)

        writes = property(lambda self: ("features", *(f"out{i}" for i in range(self.split_at, len(self.blocks)))))

    setattr(Wrong, place, property(made) if place in ("reads", "writes") else made)
    known_as(monkeypatch, Wrong)
    network = scaled(Concat()).eval()
    with pytest.raises(CannotSplit, match=f"adapter 'wrong'.*{words}"):
        maskguided.split(network, 2, adapter="wrong")
    assert not isinstance(maskguided.split(network, 2), Wrong)  # not named, it gives way


def test_an_adapter_that_fails_on_looking_stands_before_no_other(monkeypatch):
    class Failing(ConcatAdapter):
        name = "failing"

        @classmethod
        def missing(cls, model):
            return model.fuse.nothing_of_this_name

    known_as(monkeypatch, Failing)
    found, missed = registry.recognise(scaled(Concat()))
    assert found is None
    assert "AttributeError" in missed["failing"]
    with pytest.raises(ArgumentError, match="adapter 'failing' does not know this Concat: its missing raises Attr"):
        maskguided.split(scaled(Concat()), 2, adapter="failing")


@pytest.mark.parametrize("answer", [True, False])
def test_an_adapter_that_answers_yes_or_no_is_told_what_missing_returns(monkeypatch, answer):
    class Terse(ConcatAdapter):
        name = "terse"

        @classmethod
        def missing(cls, model):
            return answer

    known_as(monkeypatch, Terse)
    text = f"its missing returns {answer}; it takes None for a network that it knows"
    assert text in registry.recognise(scaled(Concat()))[1]["terse"]
    with pytest.raises(ArgumentError, match=f"adapter 'terse' does not know this Concat: {text}"):
        maskguided.split(scaled(Concat()), 2, adapter="terse")


class ActsInPlace(Base):
    """Blocks, or the tail, begin with an activation that changes what it is given."""

    def __init__(self, block: bool) -> None:
        super().__init__()
        act = nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList(nn.Sequential(*[act] * block, conv(8, 8)) for _ in range(4))
        self.act = nn.Identity() if block else act

    def forward(self, x):
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y)
        return self.finish(self.act(y))


class ActsInPlaceAdapter(Adapter):
    name = "acts"

    @classmethod
    def missing(cls, model):
        return lacks(model, "blocks", "act")

    def stem(self, x):
        return {"features": self.net.first(x)}

    def body_blocks(self):
        return list(self.net.blocks)

    def run_blocks(self, state, blocks):
        y = state["features"]
        for block in blocks:
            y = y + block(y)
        return {**state, "features": y}

    def tail(self, state):
        return self.net.finish(self.net.act(state["features"]))


@pytest.mark.parametrize("part", ["body", "tail"])
def test_a_part_that_changes_what_it_is_given_is_refused(part, monkeypatch):
    """Windows are cut from what is there afterwards: all refined, the image was another one, and nothing told."""
    monkeypatch.setitem(registry._registry, "acts", ActsInPlaceAdapter)
    model, x = scaled(ActsInPlace(part == "body")), image(1, 3, 40, 48)
    with pytest.raises(CannotSplit, match=rf"its {part} changes 'features' in place; let it take a copy"):
        maskguided.wrap(model, 2, adapter="acts")
    fast = maskguided.wrap(model, 2)
    assert not isinstance(fast.split, Adapter)
    with torch.no_grad():
        every = fast.run_base(x)
        assert difference(fast.refine(every, every.every), model(x)) < 1e-5


class Sum(Base):
    """The tail takes the sum of what all blocks gave."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv(8, 8) for _ in range(5)])

    def forward(self, x):
        y = self.first(x)
        total = torch.zeros_like(y)
        for block in self.blocks:
            y = y + block(y)
            total = total + y
        return self.finish(total)


class SumAdapter(Adapter):
    name = "sum"
    reads = writes = ("features", "total")

    @classmethod
    def missing(cls, model):
        return lacks(model, "blocks", "first", "finish")

    def stem(self, x):
        y = self.net.first(x)
        return {"features": y, "total": torch.zeros_like(y)}

    def body_blocks(self):
        return list(self.net.blocks)

    def run_blocks(self, state, blocks):
        y, total = state["features"], state["total"]
        for block in blocks:
            y = y + block(y)
            total = total + y
        return {"features": y, "total": total}

    def skip_blocks(self, state, blocks):
        return {**state, "total": state["total"] + len(blocks) * state["features"]}

    def tail(self, state):
        return self.net.finish(state["total"])


def test_blocks_that_an_adapter_runs_and_skips_may_be_cut_several_times(monkeypatch):
    known_as(monkeypatch, SumAdapter)
    network, x = scaled(Sum()).eval(), image(1, 3, 24, 32)
    fast = maskguided.wrap(network, (1, 2, 4), adapter="sum", patch_size=8, keep=1).eval()
    with torch.inference_mode():
        assert difference(by_windows(fast, x), network(x)) < 1e-5
        fast.onward = (1, 0)
        once = maskguided.split(network, 4, adapter="sum")
        assert difference(fast(x), once.tail(once.skip(once.prefix(x)))) < 1e-5
        fast.keep = 0
        once = maskguided.split(network, 1, adapter="sum")
        assert difference(fast(x), once.tail(once.skip(once.prefix(x)))) < 1e-5


@pytest.mark.parametrize(("part", "hook"), [("body", "run_blocks"), ("skip", "skip_blocks")])
def test_a_body_or_skip_of_its_own_is_cut_once(part, hook, monkeypatch):
    right = getattr(SumAdapter, hook)

    class Own(SumAdapter):
        name = "own"

        def prefix(self, x):
            return SumAdapter.run_blocks(self, self.stem(x), self.body_blocks()[: self.split_at])

    setattr(Own, part, lambda self, state: right(self, state, self.body_blocks()[self.split_at :]))
    setattr(Own, hook, lambda self, state, blocks: dict(state))
    known_as(monkeypatch, Own)
    network = scaled(Sum()).eval()
    assert maskguided.split(network, 1, adapter="own").cuts == (1,)
    with pytest.raises(CannotSplit, match=rf"cut after blocks 1, 3, its parts do not make the '\w+' of its {part}"):
        maskguided.wrap(network, (1, 3), adapter="own")
    assert not isinstance(maskguided.wrap(network, (1, 3)).split, Adapter)


class FourByFour(nn.Module):
    """Looks at the map in cells of 4x4, as attention in windows does; pads what does not fit, within itself."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(8 * 16, 8 * 16, 1, groups=8)

    def forward(self, x):
        height, width = x.shape[2:]
        cells = nn.functional.pixel_unshuffle(nn.functional.pad(x, (0, -width % 4, 0, -height % 4)), 4)
        return x + nn.functional.pixel_shuffle(self.mix(cells), 4)[:, :, :height, :width]


class Cells(Base):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([FourByFour() for _ in range(4)])

    def forward(self, x):
        y = self.first(x)
        for block in self.blocks:
            y = block(y)
        return self.finish(y)


class CellsAdapter(Adapter):
    name = "cells"

    @classmethod
    def missing(cls, model):
        return lacks(model, "blocks", "first", "finish")

    def stem(self, x):
        return {"features": self.net.first(x)}

    def body_blocks(self):
        return list(self.net.blocks)

    def tail(self, state):
        return self.net.finish(state["features"])


def test_a_multiple_that_an_adapter_does_not_name_is_told(monkeypatch):
    """Windows that do not keep to the blocks' cells give another image, and nothing says so."""
    known_as(monkeypatch, CellsAdapter)
    network = scaled(Cells()).eval()
    with pytest.raises(CannotSplit, match=r"multiples of 4 LR pixels.* replace\(probe, multiple_of=4\)"):
        maskguided.split(network, adapter="cells")

    def named(self, model, split_at, probe):
        Adapter.__init__(self, model, split_at, replace(probe, multiple_of=4))

    monkeypatch.setattr(CellsAdapter, "__init__", named)
    fast, x = maskguided.wrap(network, adapter="cells", keep=1).eval(), image(1, 3, 24, 32)
    assert fast.split.multiple_of == 4
    assert difference(by_windows(fast, x), network(x)) < 1e-5


class WeightsAdapter(ConcatAdapter):
    """Its tail takes the weights of a module that it does not call."""

    name = "weights"

    def tail(self, state):
        outs = torch.cat([state[f"out{i}"] for i in range(len(self.net.blocks))], 1)
        return self.net.finish(F.conv2d(outs, self.net.fuse.weight, self.net.fuse.bias))


def test_a_copied_tail_has_all_that_it_takes(monkeypatch):
    known_as(monkeypatch, WeightsAdapter)
    network, x = scaled(Concat()).eval(), image(1, 3, 21, 29)
    fast = maskguided.wrap(network, 2, adapter="weights", merge="image", keep=0).eval()
    parts = fast.split
    with torch.no_grad():
        assert difference(fast(x), parts.tail(parts.skip(parts.prefix(x)))) < 1e-6
