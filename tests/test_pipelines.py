"""Wrapped networks among what else is done to networks: quantised, given other layers, kept by others, misspelt."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from safetensors.torch import load_model, save_model
from support import NETWORKS, by_windows, difference, image, scaled
from torch import nn
from torch.nn.utils import parametrizations
from toys import Base, ResidualOutside

import maskguided
from maskguided import ArgumentError
from maskguided.calibration.curve import Budget
from maskguided.finetune import Recipe


class Added(nn.Module):
    """A layer with something beside it, as LoRA has it."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.beside = layer, nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False)

    def forward(self, x):
        return self.layer(x) + self.beside(x)


@pytest.mark.parametrize("name", ["edsr", "rcan"])
def test_layers_of_another_kind_may_take_a_place_after_wrapping(name):
    model = scaled(NETWORKS[name]())
    fast, x = maskguided.wrap(model, keep=1).eval(), image(1, 3, 21, 30)
    before = fast(x)
    for layer in ("conv_last", "conv_after_body"):
        if hasattr(model, layer):
            setattr(model, layer, scaled(Added(getattr(model, layer))))
    assert not torch.equal(fast(x), before)
    assert difference(fast(x), model(x)) < 1e-5
    assert difference(by_windows(fast, x), model(x)) < 1e-5


class OfLayers(Base):
    """Its body is single convolutions with something between, as SRVGGNetCompact's."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8)) for _ in range(5)]
        self.blocks = nn.ModuleList(layer for pair in layers for layer in pair)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.finish(x)


@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_layers_are_of_the_class_that_they_were(change):
    model = scaled(OfLayers())
    plain = maskguided.split(model).blocks
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            change(module)
    fast, x = maskguided.wrap(model, keep=1).eval(), image(1, 3, 21, 30)
    assert fast.split.blocks == plain
    model.eval()
    assert difference(by_windows(fast, x), model(x)) < 1e-5


class WithMore(ResidualOutside):
    """Keeps what is no tensor in its state dict, as quantised layers do."""

    def get_extra_state(self):
        return {"made by": "a tool"}

    def set_extra_state(self, state):
        pass


def test_what_is_no_tensor_in_a_state_dict_is_left_where_it_is(tmp_path):
    model, x = scaled(WithMore()), image(1, 3, 21, 30)
    fast = maskguided.wrap(model, 2, keep=0.4).eval()
    with torch.no_grad():
        fast.linear.weight.add_(0.1)
    fast.scorer = "linear"
    maskguided.save(fast, tmp_path / "fast.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = maskguided.load(tmp_path / "fast.safetensors", model)
    assert torch.equal(again.eval()(x), fast(x))


@pytest.mark.parametrize("settings", [{}, {"merge": "image", "coarse_tail": "light"}, {"skip": "1x1"}], ids=str)
def test_safetensors_keeps_a_wrap_as_any_module(settings, tmp_path):
    fast, other = (maskguided.wrap(scaled(ResidualOutside()), 2, **settings) for _ in range(2))
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.add_(0.01)
    save_model(fast, str(tmp_path / "whole.safetensors"))
    load_model(other, str(tmp_path / "whole.safetensors"))
    x = image(1, 3, 21, 30)
    assert torch.equal(other.eval()(x), fast.eval()(x))


@pytest.mark.parametrize("around", [lambda fast: torch.compile(fast, backend="eager"), nn.DataParallel])
def test_what_is_around_a_wrap_is_told_apart_from_it(around, tmp_path):
    whole = around(maskguided.wrap(scaled(ResidualOutside()), 2))
    for use in (
        lambda: maskguided.save(whole, tmp_path / "a.safetensors"),
        lambda: maskguided.calibrate(whole, [image(1, 3, 32, 32)]),
    ):
        with pytest.raises(ArgumentError, match="is around a wrapped network: give that one"):
            use()


def test_numbers_given_as_text_are_shown_as_text():
    with pytest.raises(ArgumentError, match=r"max_cost='0\.6'"):
        Budget(cost="0.6")
    with pytest.raises(ArgumentError, match="rate='1e-4'"):
        Recipe(rate="1e-4")


def test_what_is_misspelt_is_told():
    fast = maskguided.wrap(scaled(ResidualOutside()), 2)
    with pytest.warns(maskguided.MaskGuidedWarning, match=r"fast\.kep is not known; did you mean 'keep'\?"):
        fast.kep = 0.3
    assert (fast.kep, fast.keep) == (0.3, 0.5)
    fast.note = "anything else is the user's"
    fast.keep = 0.3
    with pytest.raises(ArgumentError, match="did you mean 'pan'"):
        maskguided.wrap(fast.unwrap(), adapter="PAN")


def test_another_thread_may_run_a_network_that_is_split():
    model, x = scaled(ResidualOutside()), image(1, 3, 12, 14)
    expected, wrong, stop = model(x), list[str](), threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    wrong.extend(["another image"] * (not torch.equal(model(x), expected)))
            except Exception as error:  # of a hook that is not this thread's
                wrong.append(repr(error))

    other = threading.Thread(target=run)
    other.start()
    try:
        blocks = [maskguided.split(model).blocks for _ in range(3)]
    finally:
        stop.set()
        other.join()
    assert blocks == [tuple(f"blocks.{number}" for number in range(5))] * 3
    assert wrong == []
