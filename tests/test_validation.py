"""Validation: what a stage in training is measured on, and that the best of its weights are what it keeps."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_runs import QUICK, wrapped

from maskguided import ArgumentError, CheckpointError, MaskGuided, finetune, metrics
from maskguided.finetune import Validation
from maskguided.imaging.images import as_pixels, list_images, read_image, to_tensor, write_image

pytest.importorskip("timm", reason="training needs timm and accelerate: pip install 'maskguided[train]'")
pytest.importorskip("accelerate", reason="training needs timm and accelerate: pip install 'maskguided[train]'")


def mean_psnr(network, folders) -> float:
    hr, lr = (list_images(folder) for folder in folders)
    with torch.no_grad():
        images = [as_pixels(network(to_tensor(read_image(path))[None])) for path in lr]
    return float(np.mean([metrics.psnr(a, read_image(b), crop=2) for a, b in zip(images, hr, strict=True)]))


def trained(fast: MaskGuided) -> list[torch.Tensor]:
    return [p.detach().clone() for p in fast.parameters() if p.requires_grad]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("stage", ["coarse", "head", "all"])
def test_it_measures_what_the_stage_would_leave(photos, folders, stage):
    fast, validation = wrapped(keep=0.4), Validation(*folders)
    dense = mean_psnr(copy.deepcopy(fast.unwrap()).eval(), folders)
    start = copy.deepcopy(fast).eval()
    start.scorer = "head" if stage == "head" else start.scorer
    finetune.fit(fast, photos, stage, QUICK, lr=None, every=2, validation=validation)
    assert [point.step for point in validation.points] == [0, 2, 4, 6]
    assert [point.dense for point in validation.points] == pytest.approx([dense] * 4, abs=1e-4)
    assert validation.points[0].psnr == pytest.approx(mean_psnr(start, folders), abs=1e-4)
    best = max(validation.points, key=lambda point: point.psnr)
    assert mean_psnr(fast, folders) == pytest.approx(best.psnr, abs=1e-4)


def test_weights_that_get_worse_are_not_kept(photos, folders):
    fast = wrapped(keep=0.0)
    before = copy.deepcopy(fast.coarse_tail.state_dict())
    ruinous = replace(QUICK, rate=10.0)
    finetune.fit(fast, photos, "coarse", ruinous, every=2, validation=(validation := Validation(*folders)))
    assert validation.points[0].psnr > validation.points[-1].psnr + 3
    assert all(torch.equal(value, before[name]) for name, value in fast.coarse_tail.state_dict().items())


def test_it_measures_the_average_of_the_weights(photos, folders):
    recipe, reached = replace(QUICK, rate=0.05, ema=0.9), []
    for validation in (Validation(*folders), None):
        fast = wrapped(keep=0.0)
        finetune.fit(fast, photos, "coarse", recipe, every=6, validation=validation)
        reached.append(mean_psnr(fast, folders) if validation is None else validation.points[-1].psnr)
    assert reached[0] == pytest.approx(reached[1], abs=1e-4)
    finetune.fit(last := wrapped(keep=0.0), photos, "coarse", replace(recipe, ema=0.0))
    assert abs(mean_psnr(last, folders) - reached[0]) > 0.01


def test_looking_changes_nothing_of_the_run(photos, folders):
    watched, alone = wrapped(), wrapped()
    seen = finetune.fit(watched, photos, "coarse", QUICK, every=1, validation=Validation(*folders))
    assert seen == finetune.fit(alone, photos, "coarse", QUICK)


def test_a_killed_run_keeps_the_same_best(photos, folders, tmp_path):
    recipe = replace(QUICK, rate=0.05)

    def run(name: str, stop: int | None = None) -> MaskGuided:
        def watch(step: int, steps: int, loss: float) -> None:
            if step == stop:
                raise KeyboardInterrupt

        fast = wrapped(keep=0.0)
        settings = {"checkpoint": tmp_path / name, "every": 2, "validation": Validation(*folders)}
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                finetune.fit(fast, photos, "coarse", recipe, watch=watch, **settings)
            fast = wrapped(keep=0.0)
        finetune.fit(fast, photos, "coarse", recipe, **settings)
        return fast

    assert equal(trained(run("whole")), trained(run("killed", stop=5)))
    write_image(folders[0] / "1.png", read_image(folders[0] / "1.png")[::-1].copy())
    write_image(folders[1] / "1.png", read_image(folders[1] / "1.png")[::-1].copy())
    with pytest.raises(CheckpointError, match=r"of another run, with \{.validation."):
        run("whole")


def test_lr_is_made_where_there_is_none(photos, folders):
    from maskguided.training.samples import reduce

    fast, validation = wrapped(), Validation(folders[0])
    pair = validation.begin(fast).pairs[1]
    hr = read_image(folders[0] / "1.png")
    assert torch.equal(pair.lr[0], to_tensor(reduce(hr, 2)))
    assert np.array_equal(pair.hr, hr)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"hr": 5}, "hr=5"),
        ({"lr": "hr"}, "the HR image of 0 is 60x70; at x2 it should be 120x140"),
        ({"hr": "wide"}, "PSNR is measured on images of 8 bits a sample"),
    ],
)
def test_images_that_cannot_be_compared_are_refused_before_a_step(photos, folders, tmp_path, wrong, text):
    for number in range(3):
        write_image(tmp_path / "wide" / f"{number}.png", np.zeros((60, 70, 3), np.uint16))
    places = {"hr": folders[0], "lr": folders[1], **wrong}
    places = {name: tmp_path / place if isinstance(place, str) else place for name, place in places.items()}
    fast = wrapped()
    before = copy.deepcopy(fast.state_dict())
    with pytest.raises(ArgumentError, match=text):
        finetune.fit(fast, photos, "coarse", QUICK, validation=Validation(**places))
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
