"""A forward is one graph: no breaks for torch.compile, and no value that the host waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support import NETWORKS, difference, image, scaled
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from toys import ResidualOutside, conv
from waiting import waits_for

import maskguided
from maskguided.gain import fresh_estimate
from maskguided.patches import Chosen, Grid
from maskguided.windows.per_image import PerImage
from maskguided.windows.readings import Reading

SETTINGS = [
    {"merge": "features"},
    {"merge": "features", "skip": "3x3"},
    {"merge": "image", "scorer": "head"},
    {"merge": "image", "scorer": "linear", "coarse_tail": "light", "context": "linear"},
    {"merge": "image", "scorer": "coarse", "exchange": False, "halo": 2},
]


class Waits(TorchDispatchMode):
    """Counts operations that bring a value to the host, or whose result's shape depends on one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if waits_for(func, args):
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def wrapped(name: str, settings: dict[str, object]) -> maskguided.MaskGuided:
    return maskguided.wrap(NETWORKS[name](), keep=0.4, patch_size=8, **settings).eval()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ["pan-small-x3", "edsr-original", "rcan"])
def test_the_host_waits_for_nothing(name, settings):
    fast, x = wrapped(name, settings), image(2, 3, 23, 29)
    with Waits() as waits:
        fast(x)
    assert waits.names == []
    with Waits() as waits:
        x[x > 0.5].sum().item()
    assert waits.names == ["index", "_local_scalar_dense"], "the counter must count"


def test_the_host_waits_once_where_images_decide():
    fast, x = wrapped("pan-small-x3", {}), image(2, 3, 23, 29)
    fast.estimate = fresh_estimate(fast.split.feature_channels, x)
    fast.min_gain_db = 1.0
    with Waits() as waits:
        fast(x)
    assert waits.names == ["_local_scalar_dense"]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("name", "settings"), [("pan-small-x3", SETTINGS[2]), ("edsr-original", SETTINGS[1])])
def test_the_graph_does_not_break(name, settings):
    found = torch._dynamo.explain(wrapped(name, settings))(image(1, 3, 23, 29))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


class PadsByHand(ResidualOutside):
    def __init__(self) -> None:
        super().__init__()
        reflected = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.blocks = nn.ModuleList([reflected, nn.Sequential(nn.ReplicationPad2d(1), nn.Conv2d(8, 8, 3)), conv(8, 8)])


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_windows_see_their_neighbours_where_the_network_pads_by_hand():
    fast, x = maskguided.wrap(scaled(PadsByHand()), 1, keep=0.4).eval(), image(1, 3, 21, 29)
    assert fast.exchange
    with torch.no_grad():
        assert difference(torch.compile(fast, backend="eager", fullgraph=True)(x), fast(x)) < 1e-5


class Breaking(ResidualOutside):
    """Something between the convolutions of its blocks that no graph can hold."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = conv(8, 8), conv(8, 8)

        def forward(self, x):
            y = F.relu(self.conv1(x))
            torch._dynamo.graph_break()
            return x + self.conv2(y)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(5))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("of_blocks", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_frames_of_their_own_see_which_windows_were_just_cut(of_blocks, gradients):
    """As where a graph breaks within a block, or blocks are compiled alone: torch guards no identity of arguments."""
    for model in (scaled(Breaking()), scaled(ResidualOutside())):
        fast, x = maskguided.wrap(model, 2, keep=0.4).eval(), image(1, 3, 23, 29)
        with torch.set_grad_enabled(gradients):
            expected = fast(x).detach()
            if of_blocks:
                for name in fast.split.blocks:
                    model.get_submodule(name).compile(backend="eager")
            compiled = fast if of_blocks else torch.compile(fast, backend="eager")
            for _ in range(2):
                assert difference(compiled(x).detach(), expected) < 1e-5


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("total", [lambda y: y.flatten(2).mean(2), lambda y: y.mean(3).mean(2)])
def test_a_mean_over_all_windows_is_in_the_graph_at_any_size(total):
    def means(x):
        every = Chosen(torch.arange(6).expand(len(x), -1), Grid(x.shape[2], x.shape[3], 8))
        with PerImage(every, reading=Reading(flat=True)):
            return total(every.gather(x))

    graph = torch.compile(means, backend="eager", fullgraph=True, dynamic=True)
    for size in ((13, 21), (15, 19)):
        x = image(2, 3, *size)
        assert difference(graph(x), x.mean((2, 3)).repeat_interleave(6, dim=0)) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_gpu_never_waits(settings):
    fast, x = wrapped("pan-small-x3", settings).cuda(), image(1, 3, 23, 29).cuda()
    fast(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("fresh_compiler")
def test_images_of_any_size_share_a_graph():
    def moved(x):
        chosen = Chosen(torch.arange(4).flip(0).expand(len(x), -1), Grid(x.shape[2], x.shape[3], 8, 1))
        return chosen.scatter(chosen.gather(x) + 1, onto=chosen.scatter(chosen.gather(x), onto=2 * x))

    graphs = []
    compiled = torch.compile(
        moved, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True, dynamic=True
    )
    for size in ((13, 21), (47, 30), (22, 61)):
        x = image(2, 3, *size)
        assert torch.equal(compiled(x), moved(x))
    assert len(graphs) == 1


_FIRST = """
import torch
from torch.nn import functional as F
import maskguided
from maskguided.adapters.pan_net import PAN

torch.manual_seed(0)
net = PAN(features=8, up_features=8, blocks=4)
tails = dict(merge="image", coarse_tail="light", coarse_on="unrefined")  # a light tail pads by hand
fast = maskguided.wrap(net, 2, keep=0.3, **tails).eval()
torch.nn.init.normal_(fast.coarse_tail.conv.weight, std=0.1)
network = (lambda x: fast(F.pad(x, (1, 1, 1, 1)))) if before else fast
x = torch.rand(2, 3, 20, 26)
with torch.no_grad():
    compiled = torch.compile(network, fullgraph=True, backend="eager")(x)
    print(float((compiled - network(x)).abs().max()))
"""


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("before", [False, True])
def test_padding_is_seen_by_a_process_that_compiles_first(before):
    """What torch.compile looks into it remembers: also of a padding before the windows."""
    done = subprocess.run([sys.executable, "-c", f"before = {before}{_FIRST}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-6
