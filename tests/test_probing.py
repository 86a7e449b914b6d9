"""What is found out about a network by running it, whatever surrounds the call."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support import by_windows, difference, image, scaled
from test_places import Ends
from torch import nn
from torch.nn import functional as F
from toys import Base

import maskguided
from maskguided import CannotSplit
from maskguided.adapters.pan_net import PAN


def network() -> nn.Module:
    blocks = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
    return scaled(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.Conv2d(8, 3, 3, padding=1)))


class OfGrey(nn.Module):
    """A network for grey images that others give their colours to: one by one, or as their mean."""

    def __init__(self, one_by_one: bool, colours_back: bool = True):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, 1, 1), *(nn.Conv2d(6, 6, 3, 1, 1) for _ in range(4)))
        self.last = nn.Conv2d(6, 1, 3, 1, 1)
        self.one_by_one, self.colours_back = one_by_one, colours_back

    def forward(self, x):
        if self.one_by_one:
            return self.last(self.body(x.reshape(-1, 1, *x.shape[2:]))).reshape(x.shape)
        y = self.last(self.body(x.mean(1, keepdim=True)))
        return x + y if self.colours_back else y


class ColoursTogether(nn.Module):
    """Its first convolution sees each colour alone, the others all of them: no grey image will do."""

    def __init__(self):
        super().__init__()
        self.each, self.join = nn.Conv2d(1, 6, 3, 1, 1), nn.Conv2d(18, 6, 1)
        self.body, self.last = nn.Sequential(*(nn.Conv2d(6, 6, 3, 1, 1) for _ in range(4))), nn.Conv2d(6, 3, 3, 1, 1)

    def forward(self, x):
        each = self.each(x.reshape(-1, 1, *x.shape[2:])).view(len(x), 18, *x.shape[2:])
        return self.last(self.body(self.join(each)))


def test_a_network_whose_first_convolution_sees_each_colour_alone_may_take_all_three():
    net, x = scaled(ColoursTogether()), image(1, 3, 19, 24)
    fast = maskguided.wrap(net, keep=1)
    assert fast.split.facts.in_channels == 3
    assert difference(by_windows(fast, x), net(x)) < 1e-5


@pytest.mark.parametrize(("one_by_one", "back", "channels"), [(True, True, 1), (False, True, 3), (False, False, 1)])
def test_a_network_of_grey_that_makes_colours_of_their_mean_takes_colours(one_by_one, back, channels):
    net = scaled(OfGrey(one_by_one, back))
    fast, x = maskguided.wrap(net, keep=1, merge="image"), image(1, channels, 19, 24)
    assert fast.split.facts.in_channels == channels
    assert difference(by_windows(fast, x), net(x)) < 1e-5


def test_networks_made_in_inference_mode_are_wrapped_and_those_read_there_are_usual_ones():
    with torch.inference_mode():
        net, starter = network(), maskguided.starter()
    fast, x = maskguided.wrap(net, keep=1), image(1, 3, 19, 24)
    assert difference(by_windows(fast, x), net(x)) < 1e-5
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(parameter.is_inference() for parameter in starter.parameters())


def test_an_adapter_knows_its_network_in_inference_mode_too():
    net = PAN(features=8, up_features=8, blocks=4)
    with torch.inference_mode():
        assert maskguided.split(net, 2).name == "pan"
        assert maskguided.inspect(PAN(features=8, up_features=8, blocks=4)).adapter == "pan"


def test_looking_at_a_network_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    net = network()
    torch.manual_seed(3)
    maskguided.inspect(net)
    assert torch.equal(torch.rand(1), expected)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.of = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.of(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)


def test_multihead_attention_counts_among_the_macs():
    net = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), *(Attention() for _ in range(4)), nn.Conv2d(16, 3, 3, 1, 1)).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    cost = maskguided.wrap(net, 2).cost(16, 16)
    assert torch.backends.mha.get_fastpath_enabled() == before
    pixels = 16 * 16
    block = pixels * 16 * (3 * 16 + 16) + 2 * pixels * pixels * 16
    assert cost.dense == 2 * pixels * 16 * 3 * 9 + 4 * block
    assert cost.dense - cost.coarse == 2 * block


_PRECISION = """
import torch
import maskguided
from maskguided.adapters.pan_net import PAN

backends = torch.backends
new = hasattr(backends, "fp32_precision")

def now():
    found = [backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision] if new else []
    for old in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
        try:
            found.append(old())
        except RuntimeError:  # of torch, where new names and old ones were used
            found.append(None)
    return found

class Watched(PAN):
    seen = set()

    def forward(self, x):
        self.seen.add(tuple(now()))
        return super().forward(x)

exec({statement!r})
before = now()
fast = maskguided.wrap(Watched(features=8, up_features=8, blocks=4))
assert fast.split.facts.radius == {radius}, "NaN spreads there, too"
assert now() == before, (before, now())
coarse = {{"tf32", "bf16", "high", "medium", True}}
assert coarse & set(before) or "ieee" in {statement!r}, before
assert Watched.seen and not any(coarse & set(seen) for seen in Watched.seen), Watched.seen
"""


@pytest.mark.parametrize(
    "statement",
    [
        "",  # cuDNN's default
        "torch.set_float32_matmul_precision('medium')",
        "backends.cudnn.allow_tf32 = False; torch.set_float32_matmul_precision('high')",
        "backends.fp32_precision = 'tf32'",
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.fp32_precision = 'ieee'",
    ],
)
def test_parts_are_compared_in_full_precision_whatever_is_allowed(statement):
    if "fp32_precision" in statement and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("before torch 2.9")
    radius = maskguided.split(PAN(features=8, up_features=8, blocks=4)).facts.radius
    assert radius is not None
    code = _PRECISION.format(statement=statement, radius=radius)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Frozen(PAN):
    """Its train() returns nothing, as where people freeze the statistics of BatchNorm."""

    def train(self, mode=True):
        super().train(mode)


def test_a_train_that_returns_nothing_is_none_of_our_business():
    net, x = Frozen(features=8, up_features=8, blocks=4), image(1, 3, 20, 24)
    net.eval()
    assert difference(maskguided.wrap(net, keep=1)(x), net(x)) < 1e-5
    assert "4 x" in str(maskguided.inspect(net))


def test_the_last_answer_of_a_network_that_does_not_run_has_its_kind():
    class Missing(nn.Sequential):
        def forward(self, x):
            raise KeyError("mine")

    with pytest.raises(CannotSplit, match="last answer: KeyError: 'mine'"):
        maskguided.wrap(Missing(nn.Conv2d(3, 3, 3)))


def test_a_live_value_of_no_known_size_is_called_so():
    class Halved(nn.Sequential):
        """With half the size, rounded down, of the first map as a second one."""

        def forward(self, x):
            first, *blocks, last = self
            x = first(x)
            half = F.avg_pool2d(x, 2)
            for block in blocks:
                x = block(x)
            return last(x + F.interpolate(half, size=x.shape[2:]))

    net = Halved(*(nn.Conv2d(8 if i else 3, 8 if i < 5 else 3, 3, padding=1) for i in range(6)))
    with pytest.raises(CannotSplit, match=r"avg_pool2d whose shape follows from the image's by no formula"):
        maskguided.wrap(scaled(net))


class OfPhotographs(nn.Module):
    """What it adds grows with detail as no photograph has it: of white noise it makes infinity, as trained networks
    may (SAFMN of 2025)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x):
        detail = (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).square().amax((1, 2, 3), keepdim=True)
        return self.net(x) * torch.exp(400 * detail)


def test_a_network_that_white_noise_drives_to_infinity_is_looked_at_with_less_contrast():
    net = OfPhotographs()
    assert not bool(net(image(1, 3, 33, 40)).isfinite().all())
    fast = maskguided.wrap(net)
    assert (fast.exchange, fast.split.probe.contrast) == (True, 0.25)
    x = 0.5 + 0.2 * (image(2, 3, 33, 40) - 0.5)
    assert difference(by_windows(fast, x), net(x)) < 1e-5


class Reflecting(nn.Module):
    """Fills its image up to a multiple by reflection, as many do, and pools: neither goes on less than it needs."""

    def __init__(self, multiple: int, pool: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), *(nn.Conv2d(6, 6, 3, 1, 1) for _ in range(4)))
        self.last, self.multiple, self.pool = nn.Conv2d(6, 12, 3, 1, 1), multiple, pool

    def forward(self, x):
        high, wide = x.shape[2:]
        y = F.pad(x, (0, -wide % self.multiple, 0, -high % self.multiple), mode="reflect")
        y = self.body(y) + F.max_pool2d(x, self.pool).mean((1, 2, 3), keepdim=True)
        return F.pixel_shuffle(self.last(y), 2)[:, :, : 2 * high, : 2 * wide]


@pytest.mark.parametrize(("multiple", "pool", "smallest"), [(1, 1, 1), (8, 1, 5), (1, 7, 7), (8, 7, 7), (64, 1, 33)])
@pytest.mark.parametrize("merge", ["features", "image"])
def test_of_an_image_smaller_than_the_network_takes_more_is_made(multiple, pool, smallest, merge):
    net = scaled(Reflecting(multiple, pool))
    fast = maskguided.wrap(net, merge=merge, keep=1)
    assert fast.split.probe.smallest == smallest
    for height, width in ((1, 1), (3, 40), (smallest, smallest), (50, 4)):
        x = image(2, 3, height, width)
        enough = F.pad(x, (0, max(0, smallest - width), 0, max(0, smallest - height)), mode="replicate")
        fast.keep = 1
        dense = net(enough)[:, :, : 2 * height, : 2 * width]
        assert difference(fast(x), dense) < 1e-5
        assert merge == "image" or difference(by_windows(fast, x), dense) < 1e-5
        fast.keep = 0.5
        assert fast(x).shape == (2, 3, 2 * height, 2 * width)
        assert fast.cost(height, width).k == fast.explain(x).index.shape[1]


def test_weights_that_are_weak_as_yet_hide_nothing_of_what_windows_cannot_do():
    """As basicsr initialises its networks: a tenth of what passes noise on."""

    class Residual(nn.Module):
        mode = "zeros"

        def __init__(self):
            super().__init__()
            modes = (self.mode, "zeros", "zeros")
            self.convs = nn.Sequential(*(nn.Conv2d(12, 12, 3, padding=1, padding_mode=mode) for mode in modes))

        def forward(self, x):
            return x + 0.1 * self.convs(x)

    class Around(Residual):
        mode = "circular"

    assert maskguided.wrap(scaled(Ends(Residual), gain=0.14), 2).exchange
    assert not maskguided.wrap(scaled(Ends(Around), gain=0.14), 2).exchange


class ReflectedFar(Base):
    """Looks at the image continued by reflection, which takes images of more than so many pixels a side."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, x):
        around = F.pad(x, (self.reach,) * 4, mode="reflect")[:, :, : x.shape[2], : x.shape[3]]
        y = self.first(x + 0.5 * around)
        for block in self.blocks:
            y = block(y)
        return self.finish(y)


@pytest.mark.parametrize("reach", [48, 49, 63, 64, 96, 150])
def test_a_least_size_is_not_taken_for_a_multiple(reach):
    model = scaled(ReflectedFar(reach))
    fast = maskguided.wrap(model, 2, keep=1)
    assert fast.split.probe.multiple_of == 1
    assert fast.split.probe.smallest == reach + 1
    for size in ((reach + 1, reach + 2), (2 * reach + 1, reach + 40)):
        x = image(1, 3, *size)
        assert difference(fast(x), model(x)) < 1e-5
        assert difference(by_windows(fast, x), model(x)) < 1e-5
