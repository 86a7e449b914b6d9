"""What several tests need: data, networks with weights that hide nothing, comparisons."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from skimage import data
from torch import Tensor, nn
from typer.testing import CliRunner

from maskguided.adapters.pan_net import PAN
from maskguided.cli import app
from maskguided.errors import MissingDependency
from maskguided.integrations.basicsr_plugin import import_basicsr
from maskguided.integrations.spandrel_bridge import import_spandrel
from maskguided.patches import Grid

SHARED = Path(os.environ.get("MASKGUIDED_SHARED", Path(__file__).parents[2] / "shared"))
PHOTO = data.astronaut()[:96:2, 60:180:2]  # 48 x 60
IN_CI = os.environ.get("CI") == "true"


def need_shared() -> Path:
    """The folder with test images and weights; skips where there is none, fails in CI."""
    if not (SHARED / "data").is_dir():
        message = f"no test data at {SHARED}; set MASKGUIDED_SHARED"
        pytest.fail(message) if IN_CI else pytest.skip(message)
    return SHARED


def need_basicsr(module: str) -> object:
    """A basicsr module; skips where basicsr is not installed, fails in CI."""
    try:
        return import_basicsr(module)
    except MissingDependency as error:
        pytest.fail(str(error)) if IN_CI else pytest.skip(str(error))


def need_spandrel(module: str = "spandrel") -> Any:
    """A spandrel module; skips where spandrel is not installed, fails in CI."""
    try:
        import_spandrel()
    except MissingDependency as error:
        pytest.fail(str(error)) if IN_CI else pytest.skip(str(error))
    return importlib.import_module(module)


def run(*args: object, code: int = 0) -> Any:
    """A command of maskguided, which ends with this exit code."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"{result.output} {result.exception!r}"
    return result


def by_windows(fast: Any, x: Tensor) -> Tensor:
    """All patches of `x` refined as windows, where `fast(x)` may run the network as it is."""
    with torch.no_grad():
        base = fast.run_base(x)
        return fast.refine(base, base.every)


def scaled(model: nn.Module, gain: float = 0.8, seed: int = 0) -> nn.Module:
    """Seeded weights under which every layer matters: no layer is near zero, nothing explodes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / fan_in**0.5)
            else:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def chosen(grid: Grid, batch: int, k: int, seed: int) -> Tensor:
    """(batch, k): patches of each image, by chance."""
    return torch.rand(batch, grid.count, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :k]


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the range where that exceeds 1."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / max(1.0, float(b.abs().max())))


def official_pan(scale: int) -> nn.Module:
    from maskguided.networks import load_network

    return load_network(need_shared() / "weights" / f"PANx{scale}_DF2K.pth", "pan", scale).model


class OriginalEDSR(nn.Module):
    """The EDSR-PyTorch layout: sub_mean, head, body with a conv at its end, tail, add_mean."""

    class Block(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            conv = lambda: nn.Conv2d(features, features, 3, padding=1)  # noqa: E731
            self.body, self.res_scale = nn.Sequential(conv(), nn.ReLU(True), conv()), 0.5

        def forward(self, x: Tensor) -> Tensor:
            res = self.body(x).mul(self.res_scale)
            res += x
            return res

    def __init__(self, features: int = 16, blocks: int = 4, scale: int = 2) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(nn.Conv2d(3, features, 3, padding=1))
        last = nn.Conv2d(features, features, 3, padding=1)
        self.body = nn.Sequential(*(self.Block(features) for _ in range(blocks)), last)
        up = nn.Conv2d(features, 3 * scale**2, 3, padding=1)
        self.tail = nn.Sequential(up, nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        res = self.body(x)
        res += x
        return self.add_mean(self.tail(res))


def _basicsr(module: str, name: str, **settings: object) -> nn.Module:
    return getattr(need_basicsr(f"basicsr.archs.{module}"), name)(**settings)


def _edsr(blocks: int, features: int) -> nn.Module:
    return _basicsr("edsr_arch", "EDSR", num_in_ch=3, num_out_ch=3, num_feat=features, num_block=blocks, res_scale=0.5)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "pan": lambda: scaled(PAN()),
    "pan-small-x3": lambda: scaled(PAN(features=8, up_features=8, blocks=5, scale=3)),
    "edsr": lambda: scaled(_edsr(16, 64)),
    "edsr-large": lambda: scaled(_edsr(32, 96)),
    "edsr-original": lambda: scaled(OriginalEDSR()),
    "rcan": lambda: scaled(
        _basicsr("rcan_arch", "RCAN", num_in_ch=3, num_out_ch=3, num_group=10, num_block=2), gain=0.6
    ),
    "msrresnet": lambda: scaled(_basicsr("srresnet_arch", "MSRResNet"), gain=0.6),
    "rrdbnet": lambda: scaled(
        _basicsr("rrdbnet_arch", "RRDBNet", num_in_ch=3, num_out_ch=3, num_block=23, num_grow_ch=16)
    ),
    "rrdbnet-x2": lambda: scaled(_basicsr("rrdbnet_arch", "RRDBNet", num_in_ch=3, num_out_ch=3, scale=2, num_block=4)),
    "srvgg": lambda: scaled(_basicsr("srvgg_arch", "SRVGGNetCompact"), gain=1.2),
}
WITH_ADAPTER = ("pan", "pan-small-x3", "edsr", "edsr-large", "edsr-original", "rcan")
GLOBAL = ("rcan",)
"""Networks with a global operation in the refine part: law 2 does not hold for them."""
