"""Images of every kind through a network, whole and in tiles."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from skimage import data
from support import PHOTO, scaled

import maskguided
from maskguided import ArgumentError, ImageError
from maskguided.adapters.pan_net import PAN
from maskguided.imaging.images import resize
from maskguided.infer import overlay, run_tiled, upscale


@pytest.fixture(scope="module")
def fast() -> maskguided.MaskGuided:
    model = scaled(PAN(features=8, up_features=8, blocks=4, scale=2), gain=0.5)
    return maskguided.wrap(model, patch_size=8, keep=0.5).eval()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["grey", "colour", "alpha"])
@pytest.mark.parametrize("alpha", ["model", "bicubic"])
def test_the_result_is_of_the_kind_of_the_input(fast, dtype, kind, alpha):
    pixels = PHOTO.astype(dtype) * (257 if dtype == np.uint16 else 1)
    pixels = {
        "grey": pixels[..., 1],
        "colour": pixels,
        "alpha": np.dstack([pixels, pixels[..., 0]]),
    }[kind]
    done = upscale(fast, pixels, alpha=alpha)
    assert done.image.dtype == dtype
    assert done.image.shape == (96, 120, *pixels.shape[2:])
    assert done.mask.shape == (48, 60)
    assert 0.4 < done.mask.mean() < 0.6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_with_alpha_stays_grey(fast, dtype, tmp_path):
    grey = PHOTO[..., 1].astype(dtype) * (257 if dtype == np.uint16 else 1)
    done = upscale(fast, np.dstack([grey, grey, grey, PHOTO[..., 0].astype(dtype)])).image
    assert np.array_equal(done[..., 0], upscale(fast, grey).image)
    assert np.array_equal(done[..., :1].repeat(3, 2), done[..., :3])
    assert done.shape[2] == 4
    colour = upscale(fast, np.dstack([grey] * 3)).image
    assert np.array_equal(upscale(fast, grey).image, colour.mean(2).round())


def test_16_bits_agree_with_8_to_a_level(fast):
    eight, sixteen = upscale(fast, PHOTO).image, upscale(fast, PHOTO.astype(np.uint16) * 257).image
    assert np.abs(eight.astype(int) - sixteen / 257).max() <= 1


def test_bicubic_alpha_is_bicubic_and_colour_does_not_depend_on_it(fast):
    rgba = np.dstack([PHOTO, PHOTO[..., 0]])
    done = upscale(fast, rgba, alpha="bicubic").image
    assert np.array_equal(done[..., 3], resize(PHOTO[..., 0], 96, 120))
    assert np.array_equal(done[..., :3], upscale(fast, PHOTO).image)


def test_a_wrong_way_for_alpha_is_refused_also_of_images_without_it(fast):
    for pixels in (PHOTO, None):
        with pytest.raises(ArgumentError, match="alpha='nearest'"):
            upscale(fast, pixels, alpha="nearest")


def test_a_network_for_one_channel_takes_colour_channel_by_channel():
    fast = maskguided.wrap(scaled(PAN(channels=1, features=8, up_features=8, blocks=4, scale=2), gain=0.5), keep=1)
    colour = upscale(fast, PHOTO).image
    assert colour.shape == (96, 120, 3)
    for channel in range(3):
        assert np.array_equal(colour[..., channel], upscale(fast, np.ascontiguousarray(PHOTO[..., channel])).image)


def test_the_mask_of_channels_one_by_one_is_that_of_all():
    net = scaled(PAN(channels=1, features=8, up_features=8, blocks=4, scale=2), gain=0.5)
    few = maskguided.wrap(net, patch_size=8, keep=0.25).eval()
    colour, noise = np.zeros((16, 16, 3), np.uint8), np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    colour[:8, :8, 0], colour[8:, 8:, 1], colour[:8, 8:, 2] = noise, noise, noise
    assert upscale(few, colour).mask[::8, ::8].tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("tile", [16, 25, 48, 500])
def test_tiles_leave_no_seam_when_the_pad_covers_the_receptive_field(tile):
    model = scaled(PAN(features=8, up_features=8, blocks=4, scale=2), gain=0.5)
    radius = maskguided.split(model, 1).facts.radius
    fast = maskguided.wrap(model, 1, keep=1, halo=radius, patch_size=8).eval()
    pad = radius + 6  # the whole network's, with its stem and first block
    calls: list[tuple[int, int]] = []
    whole = upscale(fast, PHOTO.astype(np.uint16) * 257).image
    tiled = upscale(
        fast, PHOTO.astype(np.uint16) * 257, tile=tile, tile_pad=pad, on_tile=lambda *c: calls.append(c)
    ).image
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert calls[-1][0] == calls[-1][1] == (-(-48 // tile)) * (-(-60 // tile))
    if tile < 30:
        torn = upscale(fast, PHOTO.astype(np.uint16) * 257, tile=tile, tile_pad=0).image
        assert np.abs(whole.astype(int) - torn).max() > 100


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("scorer", ["input", "linear"])
def test_keep_holds_over_all_tiles_where_the_input_alone_ranks_the_patches(fast, scorer, keep):
    """What is worth refining lies on the left; within each tile, as a head chooses, as much of the right is taken."""
    rng = np.random.default_rng(0)
    photo = np.dstack([rng.integers(0, 256, (64, 128)), *[np.full((64, 128), 90)] * 2]).astype(np.uint8)
    photo[:, 64:] = 128 + (photo[:, 64:] > 128)  # noise of one grey level
    fast.keep, fast.scorer = keep, scorer
    whole = upscale(fast, photo, tile=0).mask
    by_tiles = upscale(fast, photo, tile=32, tile_pad=0).mask
    assert by_tiles[:, :64].mean() == min(1, 2 * keep)
    assert by_tiles[:, 64:].mean() == pytest.approx(max(0, 2 * keep - 1), abs=0.1)
    assert (whole != by_tiles).mean() <= 0.15
    fast.scorer = "head"
    try:
        alone = upscale(fast, photo, tile=32, tile_pad=0).mask
    finally:
        fast.scorer = "input"
    assert (alone.reshape(2, 32, 4, 32).mean((1, 3)) == keep).all()


@pytest.mark.parametrize("scorer", ["input", "linear"])
def test_tiles_refine_what_the_whole_would(fast, scorer):
    """Borders of tiles count by what lies beyond them."""
    photo = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    fast.keep, fast.scorer = 0.25, scorer
    try:
        whole, tiled = (upscale(fast, photo, tile=side, tile_pad=8).mask for side in (0, 32))
    finally:
        fast.scorer = "input"
    assert whole.mean() == 0.25
    assert np.array_equal(tiled, whole)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("tile", [32, 33])
def test_tiles_are_the_whole_where_neither_image_nor_tiles_are_whole_patches(channels, tile):
    """Colours that go one by one through a grey network choose each their own patches."""
    photo = data.astronaut()[100:170, 100:190]
    fast = maskguided.wrap(scaled(PAN(channels, 8, 8, 4, scale=2), gain=0.5), patch_size=8, keep=0.4).eval()
    whole, tiled = (upscale(fast, photo, tile=side, tile_pad=24) for side in (0, tile))
    assert np.array_equal(tiled.mask, whole.mask)
    assert np.abs(tiled.image.astype(int) - whole.image).max() <= 1
    assert 0 < whole.mask.mean() < 1


@pytest.mark.parametrize("tile", [0, 128])
def test_keep_holds_over_the_image_where_memory_was_short_for_the_whole(fast, monkeypatch, tile):
    photo = np.full((128, 128, 3), 128, np.uint8)
    photo[:64, :64] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    fast.keep, finish, failed = 0.25, fast.finish, []

    class Held:
        """Stands for what a failed tile has computed."""

    def short_at_first(*args):
        held = Held()
        if not failed:
            failed.append(weakref.ref(held))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return finish(*args)

    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(failed[0]() is None))
    monkeypatch.setattr(fast, "finish", short_at_first)
    mask = upscale(fast, photo, tile=tile).mask
    assert mask[:64, :64].all()
    assert mask.mean() == 0.25
    assert emptied == [True], "the cache is emptied when nothing holds what failed"


def test_a_share_that_rounds_to_all_patches_is_all_in_tiles_too(fast):
    fast.keep = 0.999
    assert upscale(fast, np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8), tile=32).mask.all()


def test_a_flat_image_in_tiles_is_not_refined(fast):
    fast.keep = 0.5
    assert not upscale(fast, np.full((64, 64), 7, np.uint8), tile=32).mask.any()


def test_shapes_that_are_no_image(fast):
    for shape in [(4, 4, 2), (4,), (1, 3, 4, 4)]:
        with pytest.raises(ImageError, match="must be"):
            upscale(fast, np.zeros(shape, np.uint8))
    with pytest.raises(ArgumentError, match="tile=-1"):
        upscale(fast, PHOTO, tile=-1)


def test_the_overlay_tints_the_mask_and_nothing_else():
    mask = np.zeros((48, 60), bool)
    mask[8:16, 8:24] = True
    shown = overlay(PHOTO, mask)
    assert np.array_equal(shown[~mask], PHOTO[~mask])
    assert (shown[mask] != PHOTO[mask]).any(1).mean() > 0.95


def test_short_of_memory_a_tile_is_done_in_four_and_what_was_done_stays(fast, monkeypatch):
    fast.keep, photo = 1, np.tile(PHOTO, (2, 2, 1))
    whole = upscale(fast, photo, tile=0).image
    restore, sizes, steps = fast.restore, [], []

    def short_at_first(x, *args):
        sizes.append(tuple(x.shape[2:]))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return restore(x, *args)

    monkeypatch.setattr(fast, "restore", short_at_first)
    done = upscale(fast, photo, tile=0, tile_pad=fast.split.facts.radius + 8, on_tile=lambda *at: steps.append(at))
    assert np.abs(done.image.astype(int) - whole.astype(int)).max() <= 1
    assert done.mask.all()
    assert sizes[0] == photo.shape[:2]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for text in ("can't allocate memory: 1 TB", "MPS backend out of memory (MPS allocated: 1 TB)"):
        monkeypatch.setattr(fast, "restore", lambda x, text=text: (_ for _ in ()).throw(RuntimeError(text)))
        with pytest.raises(ArgumentError, match="out of memory even with tiles"):
            upscale(fast, PHOTO)
    monkeypatch.setattr(fast, "restore", lambda x: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        upscale(fast, PHOTO)


@pytest.mark.parametrize("text", ["MPS backend out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_short_of_memory_in_a_block_the_windows_are_not_to_blame(text, fast):
    """They were tried on their own, with the memory as full as it was, and told to be smaller."""
    fast.keep, failed, photo = 0.5, [], np.tile(PHOTO, (4, 4, 1))

    def short_at_first(*_):
        if len(failed) < 2:
            failed.append(text)
            raise RuntimeError(text)

    handle = fast.split.model.get_submodule(fast.split.blocks[-1]).register_forward_pre_hook(short_at_first)
    with handle:
        assert upscale(fast, photo, tile=0).image.shape[:2] == tuple(side * fast.scale for side in photo.shape[:2])
    assert len(failed) == 2


def test_large_images_are_cut_into_tiles_by_themselves(fast, monkeypatch):
    from maskguided import infer

    monkeypatch.setattr(infer, "_LARGEST_WHOLE", 30 * 30)
    monkeypatch.setattr(infer, "_TILE", 24)
    steps = []
    upscale(fast, PHOTO, on_tile=lambda *at: steps.append(at))
    assert len(steps) == -(-PHOTO.shape[0] // 24) * -(-PHOTO.shape[1] // 24)
    steps.clear()
    upscale(fast, PHOTO, tile=0, on_tile=lambda *at: steps.append(at))
    assert steps == [(1, 1)]


@pytest.mark.parametrize(("tile", "pad"), [(32, 17), (40, 16)])
def test_tiles_of_a_network_with_strides_start_where_its_cells_do(tile, pad):
    """One pixel off, PixelUnshuffle sees another image; neither tiles nor the last one, moved inward, may be."""

    class Unshuffled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(12, 8, 3, padding=1)
            self.body = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))
            self.up = torch.nn.Conv2d(8, 48, 3, padding=1)

        def forward(self, x):
            x = self.stem(torch.nn.functional.pixel_unshuffle(x, 2))
            return torch.nn.functional.pixel_shuffle(self.up(x + self.body(x)), 4)

    fast = maskguided.wrap(scaled(Unshuffled(), gain=0.5), 2, keep=1).eval()
    assert fast.split.multiple_of == 2
    x = torch.rand(1, 3, 91, 107, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert (run_tiled(fast, x, tile, pad) - fast(x)).abs().max() < 1e-5


def test_what_is_no_wrap_and_no_whole_tile(fast):
    with pytest.raises(ArgumentError, match="is no wrapped network"):
        upscale(fast.unwrap(), PHOTO)
    for wrong in ({"tile": "a"}, {"tile": 32.5}, {"tile_pad": None}, {"tile": -1}):
        with pytest.raises(ArgumentError, match="whole numbers"):
            upscale(fast, PHOTO, **wrong)


def test_an_array_of_another_kind_is_no_image(fast):
    for image in (PHOTO / 255, PHOTO.astype(np.int64), PHOTO > 99, torch.from_numpy(PHOTO.copy()), PHOTO.tolist()):
        with pytest.raises(ImageError, match="it must be a NumPy array of uint8 or uint16"):
            upscale(fast, image)


def test_the_overlay_of_a_large_image_is_made_in_little_memory():
    import tracemalloc

    image = np.zeros((1000, 1000, 3), np.uint8)
    tracemalloc.start()
    shown = overlay(image, np.ones((250, 250), bool))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * image.nbytes
    assert (shown == [89, 28, 0]).all()
    grey = overlay(np.full((4, 4), 65535, np.uint16), np.zeros((1, 1), bool))
    assert grey.shape == (4, 4, 3)
    assert (grey == 255).all()
