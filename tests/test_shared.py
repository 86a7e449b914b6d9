"""Official weights and the test sets: published figures, and the laws on every image."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from support import by_windows, difference, need_basicsr, need_shared, official_pan
from typer.testing import CliRunner

import maskguided
from maskguided import MaskGuided, split
from maskguided.cli import app
from maskguided.imaging.images import read_image, write_image
from maskguided.metrics import psnr, ssim
from maskguided.weights import load_into, read


def pairs(name: str, scale: int) -> list[tuple[torch.Tensor, np.ndarray]]:
    folder = need_shared() / "data" / name
    found = []
    for path in sorted((folder / "HR").iterdir()):
        lr, hr = read_image(folder / f"LRx{scale}" / path.name), read_image(path)
        lr, hr = (np.dstack([i] * 3) if i.ndim == 2 else i for i in (lr, hr))
        found.append((torch.from_numpy(lr).permute(2, 0, 1)[None] / 255, hr))
    return found


@functools.cache
def dense(scale: int, name: str) -> list[torch.Tensor]:
    model = official_pan(scale)
    with torch.inference_mode():
        return [model(x) for x, _ in pairs(name, scale)]


def to_image(x: torch.Tensor) -> np.ndarray:
    return (x[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("name", "scale", "published"), [("Set5", 4, 32.13), ("Set14", 4, 28.61), ("Set5", 2, 38.00), ("Set5", 3, 34.40)]
)
def test_published_psnr(name, scale, published):
    """PSNR on Y of BT.601, uint8-rounded, border = scale."""
    need_shared()
    found = []
    for (_, hr), out in zip(pairs(name, scale), dense(scale, name), strict=True):
        image = to_image(out)
        found.append(psnr(image, hr[: image.shape[0], : image.shape[1]], crop=scale))
    assert round(float(np.mean(found)), 2) == published


@pytest.mark.parametrize("name", ["Set5", "Set14"])
@pytest.mark.parametrize("merge", ["features", "image"])
def test_laws_1_and_2_on_every_image(name, merge):
    need_shared()
    parts = split(official_pan(4), 12)
    halo = parts.facts.body_radius if merge == "features" else parts.facts.radius
    fast = MaskGuided(parts, keep=1, patch_size=32, halo=halo, merge=merge).eval()
    for (x, _), whole in zip(pairs(name, 4), dense(4, name), strict=True):
        assert torch.equal(parts.tail(parts.body(parts.prefix(x))), whole)
        assert difference(by_windows(fast, x), whole) < 1e-5


def lost(fast: MaskGuided, name: str, refined: list[tuple[int, int, int]] | None = None) -> float:
    """Mean dB below the dense PAN; of each image, height, width and how many patches were refined go to `refined`."""
    found = []
    with torch.inference_mode():
        for (x, hr), whole in zip(pairs(name, 4), dense(4, name), strict=True):
            restored, index = fast.restore(x)
            if refined is not None:
                refined.append((*x.shape[2:], index.shape[1]))
            ours, theirs = to_image(restored), to_image(whole)
            hr = hr[: ours.shape[0], : ours.shape[1]]
            found.append(psnr(theirs, hr, 4) - psnr(ours, hr, 4))
    return float(np.mean(found))


def test_training_free_quality_on_set14():
    """merge="features", n=8, patch 8, halo 2, keep 0.5, high-frequency score: at most 0.20 dB under dense."""
    need_shared()
    fast = MaskGuided(split(official_pan(4), 8), keep=0.5, patch_size=8, halo=2).eval()
    assert 0 < lost(fast, "Set14") <= 0.20


def test_trained_parts_do_on_set14_what_the_tables_say():
    """docs/results.md: keep 0.4 costs 0.605 of the MACs and 0.094 dB."""
    need_shared()
    head = Path(__file__).parents[1] / "benchmarks" / "weights" / "pan_guided.safetensors"
    fast = maskguided.load(head, official_pan(4)).eval()
    assert (fast.keep, fast.scorer, fast.merge) == (0.4, "head", "image")
    assert fast.cost(128, 128).ratio < 0.61
    assert 0.09 < lost(fast, "Set14") < 0.099


def test_images_that_decide_lose_less_for_as_many_patches():
    """docs/results.md: of 0.36 of the patches 0.084 dB where images decide; more where all get as many."""
    need_shared()
    head = Path(__file__).parents[1] / "benchmarks" / "weights" / "pan_guided.safetensors"
    fast = maskguided.load(head, official_pan(4), min_gain_db=0.22).eval()
    refined = patches = 0
    with torch.inference_mode():
        for x, _ in pairs("Set14", 4):
            refined += fast.restore(x)[1].shape[1]
            patches += fast.grid(*x.shape[2:]).count
    assert 0.35 < refined / patches < 0.37
    own = lost(fast, "Set14")
    fast.keep = refined / patches
    assert 0.07 < own < 0.088 < 0.105 < lost(fast, "Set14")


def test_a_light_refine_tail_meets_on_set14_what_the_tables_say():
    """docs/results.md: 0.83 of the patches, where images decide, cost 0.591 of the MACs and 0.045 dB."""
    need_shared()
    head = Path(__file__).parents[1] / "benchmarks" / "weights" / "pan_light.safetensors"
    fast = maskguided.load(head, official_pan(4), min_gain_db=0.05).eval()
    assert fast.refine_tail is not None
    found: list[tuple[int, int, int]] = []
    assert 0.04 < lost(fast, "Set14", found) < 0.05
    patches = [fast.grid(height, width).count for height, width, _ in found]
    assert 0.82 < sum(k for *_, k in found) / sum(patches) < 0.835
    spent = sum(fast.macs_at(*size, keep=k / count) for (*size, k), count in zip(found, patches, strict=True))
    assert spent / sum(fast.dense_macs(*size) for *size, _ in found) < 0.6


def test_real_esrgan_anime_video_splits():
    module = need_basicsr("basicsr.archs.srvgg_arch")
    weights = read(need_shared() / "weights" / "realesr-animevideov3.pth")
    assert weights.key == "params"
    model = load_into(module.SRVGGNetCompact(num_feat=64, num_conv=16, upscale=4), weights.tensors)
    parts = split(model)
    assert len(parts.blocks) == 16
    x = pairs("Set5", 4)[1][0]
    whole = model(x)
    assert torch.equal(parts.tail(parts.body(parts.prefix(x))), whole)
    fast = MaskGuided(parts, keep=1, patch_size=16, halo=parts.facts.radius, merge="image").eval()
    assert difference(by_windows(fast, x), whole) < 1e-5


def test_a_network_whose_blocks_cannot_be_left_out_as_they_are_is_told_of_before_it_upscales(tmp_path):
    pytest.importorskip("spandrel")
    weights, photo = need_shared() / "weights", tmp_path / "photo.png"
    write_image(photo, read_image(need_shared() / "data" / "Set5" / "LRx4" / "butterfly.png")[:40, :40])
    for name, more, told, refined in (
        ("realesr-animevideov3.pth", [], True, "100% refined"),
        ("realesr-animevideov3.pth", ["--keep", "0.48"], True, "48% refined"),
        ("realesr-animevideov3.pth", ["--keep", "1"], False, "100% refined"),
        ("PANx4_DF2K.pth", [], False, "52% refined"),
    ):
        args = ["upscale", "-i", str(photo), "-w", str(weights / name), "-o", str(tmp_path), "--overwrite", *more]
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 0, result.output
        assert ("worse than bicubic" in result.output) == told
        assert refined in result.output


def test_metrics_are_those_of_basicsr():
    metrics = need_basicsr("basicsr.metrics")
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (40, 51, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 9, a.shape), 0, 255).astype(np.uint8)
    bgr = {"img": a[..., ::-1], "img2": b[..., ::-1]}
    for crop in (0, 4):
        theirs = {"crop_border": crop, "test_y_channel": True}
        # basicsr rounds through float32 on its way to Y.
        assert abs(psnr(a, b, crop) - metrics.calculate_psnr(**bgr, **theirs)) < 1e-5
        assert abs(ssim(a, b, crop) - metrics.calculate_ssim(**bgr, **theirs)) < 1e-6


def test_the_test_sets_are_whole():
    folder = need_shared() / "data"
    assert [len(list(Path(folder / name / "HR").iterdir())) for name in ("Set5", "Set14")] == [5, 14]
