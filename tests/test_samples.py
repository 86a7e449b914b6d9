"""Training crops: which is number i depends on nothing else, and LR is LR of the whole image."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from maskguided import ArgumentError, MaskGuidedWarning
from maskguided.errors import ImageError
from maskguided.imaging.images import read_image, write_image
from maskguided.training.samples import Batches, Crops, _Images, reduce


def test_crops_depend_on_their_number_alone(photos):
    crops = Crops([photos], scale=2, size=16)
    again = Crops([photos], scale=2, size=16)
    low, high = crops[5]
    assert (low.shape, high.shape) == ((3, 16, 16), (3, 32, 32))
    assert torch.equal(again[5][1], high)
    assert not torch.equal(crops[6][1], high)
    assert not torch.equal(Crops([photos], scale=2, size=16, seed=1)[5][1], high)


def test_a_crop_of_the_reduced_image_is_the_reduced_image_there(photos, tmp_path):
    """LR made on the fly is LR made of the whole image: the same crops come from a folder of it."""
    lr = tmp_path / "lr"
    for path in photos.iterdir():
        write_image(lr / path.name, reduce(read_image(path), 4))
    made, read = Crops([photos], scale=4, size=16), Crops([photos], scale=4, size=16, lr=lr)
    for number in range(20):
        a, b = made[number], read[number]
        assert torch.equal(a[1], b[1])
        assert float((a[0] - b[0]).abs().max()) < 1.5 / 255


def test_a_damaged_file_among_photographs_is_left_out_and_told_of_once(photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "zz.png").write_bytes(b"nothing")
    crops = Crops([folder], scale=2, size=16)
    with pytest.warns(MaskGuidedWarning, match=r"zz\.png: no image .*; it is left out") as told:
        shapes = {crops[number][0].shape for number in range(40)}
    assert (shapes, len(told)) == ({(3, 16, 16)}, 1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"nothing")
    with pytest.warns(MaskGuidedWarning), pytest.raises(ImageError, match="use a smaller crop, or other images"):
        Crops([tmp_path / "bad"], scale=2, size=16)[0]


def test_batches_share_the_same_numbers():
    whole = [list(b) for b in Batches(4, 1, 3)]
    shares = [[list(b) for b in Batches(4, 1, 3, rank, 2)] for rank in (0, 1)]
    assert whole == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == whole
    with pytest.raises(ArgumentError, match="multiple of 3"):
        Batches(4, 0, 1, 0, 3)


@pytest.mark.skipif(find_spec("basicsr") is None, reason="needs basicsr")
def test_the_documented_lr_images_keep_the_size_of_grey_and_the_level_of_16_bit_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs/basicsr.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    write_image(Path("downloads/DIV2K_train_HR/grey.png"), np.full((34, 41), 51, np.uint8))
    write_image(Path("downloads/DIV2K_train_HR/deep.png"), np.full((32, 40, 3), 51 * 257, np.uint16))
    exec(snippet, {})
    assert read_image("datasets/DIV2K/HR/grey.png").shape[:2] == (32, 40)
    for name in ("grey", "deep"):
        lr = read_image(f"datasets/DIV2K/LRx4/{name}.png")
        assert lr.shape[:2] == (8, 10)
        assert set(lr.ravel()) == {51}


def test_at_scale_1_there_must_be_lr_images(photos):
    with pytest.raises(ArgumentError, match=r"at scale 1 .* give the folder of degraded images"):
        Crops([photos], scale=1, size=8)
    assert Crops([photos], scale=1, size=8, lr=photos)[0][0].shape == (3, 8, 8)


def test_images_are_kept_up_to_so_many_bytes(photos):
    paths = sorted(photos.iterdir())[:3]
    size = read_image(paths[0]).nbytes
    assert all(read_image(path).nbytes == size for path in paths)
    images = _Images(2 * size)
    first = images.read(paths[0], False)
    assert images.read(paths[0], False) is first
    for path in paths[1:]:
        images.read(path, False)
    assert ([path for path, _ in images.kept], images.size) == (paths[1:], 2 * size)
    small = _Images(1)
    assert [small.read(path, False).nbytes for path in paths] == [size] * 3
    assert list(small.kept) == [(paths[2], False)]


def test_images_are_read_anew_by_the_next_run(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, np.full((16, 16, 3), 200, np.uint8))
    assert Crops([tmp_path], scale=1, size=8, lr=tmp_path)[0][1].mean() == pytest.approx(200 / 255)
    write_image(path, np.full((16, 16, 3), 50, np.uint8))
    assert Crops([tmp_path], scale=1, size=8, lr=tmp_path)[0][1].mean() == pytest.approx(50 / 255)
