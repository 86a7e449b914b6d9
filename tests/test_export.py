"""ONNX and torch.export files against the network, on a real image; and the command that writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_blocks import Swin
from support import NETWORKS, difference, need_basicsr, need_shared, official_pan, scaled
from torch import nn
from torch.nn import functional as F
from toys import Chain, conv
from typer.testing import CliRunner

import maskguided
from maskguided import ArgumentError, ExportError, MissingDependency, cli
from maskguided.export import onnx_session
from maskguided.imaging.images import read_image, write_image

skimage = pytest.importorskip("skimage")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def photo(height: int, width: int) -> torch.Tensor:
    from skimage import data

    astronaut = torch.from_numpy(data.astronaut()[60 : 60 + height, 150 : 150 + width]).permute(2, 0, 1)[None]
    return astronaut.contiguous() / 255


class Fused(Chain):
    """Makes one convolution of two in every forward, by `.data`, as SPAN does."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow, self.one = conv(8, 8), nn.Conv2d(8, 8, 1), conv(8, 8)

        def forward(self, x):
            self.both = self.wide.weight.data + F.pad(self.narrow.weight.data, (1, 1, 1, 1))
            self.one.weight.data = self.both
            return x + F.relu(self.one(x))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Pair() for _ in range(4))


def network(name: str) -> torch.nn.Module:
    if name == "pan":
        return NETWORKS["pan-small-x3"]()
    if name == "swin":
        return scaled(Swin())
    if name == "fused":
        return scaled(Fused())
    colours = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16}
    if name == "edsr":
        return scaled(need_basicsr("basicsr.archs.edsr_arch").EDSR(**colours, num_block=4))
    return scaled(need_basicsr("basicsr.archs.rcan_arch").RCAN(**colours, num_group=4, num_block=1), gain=0.6)


@pytest.mark.parametrize(
    ("name", "merge", "scorer", "suffix"),
    [
        ("pan", "image", "head", ".onnx"),
        ("edsr", "image", "input", ".onnx"),
        ("rcan", "features", "input", ".onnx"),
        ("swin", "features", "input", ".onnx"),
        ("fused", "features", "input", ".onnx"),
        ("fused", "image", "input", ".pt2"),
        ("pan", "features", "linear", ".pt2"),
        ("rcan", "image", "head", ".pt2"),
    ],
)
def test_a_file_does_what_the_network_does(name, merge, scorer, suffix, tmp_path):
    fast = maskguided.wrap(network(name), merge=merge, scorer=scorer, keep=0.3, patch_size=8).eval()
    x, path = photo(37, 46), tmp_path / f"net{suffix}"
    assert maskguided.export(fast, path, x) < 1e-5 * max(1.0, float(fast(x).abs().max()))
    other = photo(137, 46)[:, :, 100:]  # other patches are chosen there
    chosen = [fast.explain(value).mask for value in (x, other)]
    assert not torch.equal(*chosen)
    if suffix == ".onnx":
        session = onnx_session(path, threads=1)
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: other.numpy()})[0])
    else:
        found = torch.export.load(path).module()(other)
    assert difference(found, fast(other)) < 1e-5


def test_a_trained_network_and_its_context(tmp_path):
    fast = maskguided.wrap(official_pan(4), split_at=4, merge="image", coarse_tail="light", patch_size=8, keep=0.4)
    lr = read_image(need_shared() / "data/Set14/LRx4/zebra.png")[:96, :96]
    x = torch.from_numpy(np.ascontiguousarray(lr)).permute(2, 0, 1)[None] / 255
    maskguided.calibrate(fast, [x])
    assert fast.context is not None
    assert maskguided.export(fast.eval(), tmp_path / "pan.onnx", x) < 1e-4


def test_official_weights_on_a_photograph(tmp_path):
    """Whose features are so large that onnxruntime's rounding shows (1.2e-4 on some CPUs)."""
    fast = maskguided.wrap(official_pan(4)).eval()
    x = photo(128, 128)
    assert maskguided.export(fast, tmp_path / "pan.onnx", x) < 1e-3
    session = onnx_session(tmp_path / "pan.onnx", threads=1)
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    assert difference(found, fast.unwrap()(x)) > 1e-2, "or nothing was left out"


def test_a_wrong_file_is_not_written(tmp_path, monkeypatch):
    import sys

    module = sys.modules["maskguided.export"]
    path = tmp_path / "net.pt2"
    path.write_bytes(b"what was there")
    fast = maskguided.wrap(NETWORKS["pan-small-x3"](), patch_size=8)
    monkeypatch.setattr(module, "_run_pt2", lambda path, example: fast(example) + 0.01)
    with pytest.raises(ExportError, match=r"another image than the network, by 0\.01"):
        maskguided.export(fast, path, photo(20, 20))
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ArgumentError, match=r"ends in \.onnx or \.pt2"):
        maskguided.export(fast, tmp_path / "net.pth", photo(20, 20))


def test_a_network_in_training_stays_so(tmp_path):
    fast = maskguided.wrap(NETWORKS["edsr-original"]().train(), patch_size=8)
    fast.model.head.eval()
    before = [module.training for module in fast.modules()]
    maskguided.export(fast, tmp_path / "net.pt2", photo(20, 20))
    assert [module.training for module in fast.modules()] == before
    assert {True, False} == set(before)


def test_what_onnxruntime_cannot_run_is_said_in_a_sentence(tmp_path):
    fast = maskguided.wrap(NETWORKS["edsr-original"](), patch_size=8).bfloat16()
    with pytest.raises(ExportError, match=r"onnxruntime cannot run this network in torch\.bfloat16: "):
        maskguided.export(fast, tmp_path / "net.onnx", photo(20, 20).bfloat16())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArgumentError, match=r"example of type ndarray; give an image, a tensor"):
        maskguided.export(fast, tmp_path / "net.onnx", photo(20, 20).numpy())


def test_an_old_torch_is_told_of_before_the_work(tmp_path, monkeypatch):
    fast = maskguided.wrap(scaled(Chain()))
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    with pytest.raises(MissingDependency, match=r"needs torch 2\.6 or newer; this is 2\.5\.1"):
        maskguided.export(fast, tmp_path / "net.onnx", photo(20, 20))


def test_the_command(tmp_path):
    def run(*args):
        return CliRunner().invoke(cli.app, ["export", *map(str, args)])

    write_image(tmp_path / "a.png", (photo(40, 50)[0].permute(1, 2, 0) * 255).byte().numpy())
    done = run("-o", tmp_path / "net.onnx", "-i", tmp_path / "a.png", "--size", "32x40", "--keep", 0.25)
    assert done.exit_code == 0, done.output
    assert "32x40 -> 128x160 at keep=0.25" in done.output
    assert "exists already" in str(run("-o", tmp_path / "net.onnx", "--size", "32x40").exception)
    assert "HEIGHTxWIDTH" in str(run("-o", tmp_path / "b.onnx", "--size", "32").exception)
    assert "is a folder; give one image" in str(run("-o", tmp_path / "b.pt2", "-i", tmp_path).exception)
    assert "is 40x50 only" in str(run("-o", tmp_path / "b.pt2", "-i", tmp_path / "a.png", "--size", "64x64").exception)
    assert "give --size" in str(run("-o", tmp_path / "b.onnx").exception)
