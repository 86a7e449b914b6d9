"""The command that measures, and the pairs of images that it reads."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from skimage import data
from support import PHOTO, image, run, scaled
from test_calibrate import wrapped
from test_modes import ByLayers

import maskguided
from maskguided import ArgumentError, MaskGuidedWarning, bench, commands, metrics, pictures
from maskguided.commands.bench import _table as bench_table
from maskguided.errors import ImageError
from maskguided.gain import fresh_estimate
from maskguided.imaging.images import read_image, resize, write_image
from maskguided.imaging.pairs import Pair, check_sizes, read_pairs
from maskguided.networks import Loaded
from maskguided.probing.probe import probe_network


def test_bench_takes_a_saved_head_with_its_settings(weights, tmp_path):
    saved = maskguided.from_file(weights, 3, patch_size=8, halo=1, merge="image", coarse_tail="light")
    maskguided.save(saved, tmp_path / "head.safetensors")
    write_image(tmp_path / "a.png", PHOTO)
    arguments = ["bench", "-i", tmp_path / "a.png", "--weights", weights, "--head", tmp_path / "head.safetensors"]
    run(*arguments, "--rounds", 1, "--keep", "0.25", "--json", tmp_path / "new" / "r.json")
    (row,) = json.loads((tmp_path / "new" / "r.json").read_text())["rows"]
    assert (row["merge"], row["split_at"], row["patch_size"], row["halo"]) == ("image", 3, 8, 1)
    saved.keep = 0.25
    assert row["macs_ratio"] == pytest.approx(saved.cost(*PHOTO.shape[:2]).ratio)
    refused = run(*arguments, "--merge", "image", code=1)
    assert "give either it or them" in str(refused.exception)


def test_bench_without_options_measures_the_starter_as_it_is_used(tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    run("bench", "-i", tmp_path / "a.png", "--rounds", 1, "--json", tmp_path / "r.json")
    coarse, own = json.loads((tmp_path / "r.json").read_text())["rows"]
    starter = maskguided.starter()
    assert (coarse["keep"], own["keep"], own["merge"]) == (0, starter.keep, starter.merge)
    assert own["macs_ratio"] == pytest.approx(starter.cost(*PHOTO.shape[:2]).ratio)


def test_a_network_that_does_not_run_channels_last_is_measured_as_it_runs(monkeypatch, tmp_path):
    write_image(tmp_path / "a.png", PHOTO[:24, :24])
    loaded = Loaded(scaled(ByLayers()), "HAN", "spandrel")
    monkeypatch.setattr(commands.bench, "load_network", lambda *_: loaded)
    arguments = ["bench", "-i", tmp_path / "a.png", "--weights", "any.pth", "--keep", 1, "--rounds", 1]
    assert ", contiguous, 1 round" in run(*arguments).output
    assert run(*arguments, "--channels-last", code=1).exception


@pytest.mark.parametrize(("taken", "rounds"), [(1e-4, 15), (0.25, 6), (10.0, 3)])
def test_what_takes_a_moment_is_run_more_often(monkeypatch, taken, rounds):
    """An image of 3072 pixels; `taken` is what one of 1536 takes."""
    monkeypatch.setattr(commands.bench, "alternate", lambda runs, inputs, count: {"dense": [taken] * count})
    net = scaled(ByLayers())
    pairs = [Pair("a", image(1, 3, 64, 48), None)]
    assert commands.bench._rounds(net, probe_network(net), pairs) == rounds


def test_a_network_that_keeps_a_mask_can_be_split_after_it_was_timed():
    class Keeps(ByLayers):
        def forward(self, x):
            if not hasattr(self, "mask") or self.mask.shape[2:] != x.shape[2:]:
                self.mask = torch.ones_like(x[:, :1])
            self.mask.mul_(1)
            return super().forward(x * self.mask)

    net = scaled(Keeps())
    assert commands.bench._rounds(net, probe_network(net), [Pair("a", image(1, 3, 64, 48), None)]) >= 3
    assert not hasattr(net, "mask")


def test_one_round_has_no_spread(weights, tmp_path):
    write_image(tmp_path / "a.png", data.astronaut()[:24, :24].copy())
    files = ["--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md"]
    run("bench", "-i", tmp_path / "a.png", "--rounds", 1, *files)
    assert {row["spread"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]} == {None}
    assert ", 1 round; dense" in (tmp_path / "r.md").read_text()
    assert all(line.split(" | ")[7] == "-" for line in (tmp_path / "r.md").read_text().splitlines()[4:])


def test_bench_tells_how_like_the_dense_images_are_without_hr(weights, tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    files = ["--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md"]
    run("bench", "-i", tmp_path / "a.png", "--weights", weights, "--rounds", 1, "--keep", "0.25,1", *files)
    some, every = json.loads((tmp_path / "r.json").read_text())["rows"]
    fast, x = maskguided.from_file(weights, keep=0.25), torch.from_numpy(PHOTO).permute(2, 0, 1)[None] / 255
    ours, dense = (
        (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy() for image in (fast(x), fast.unwrap()(x))
    )
    assert some["fidelity"] == pytest.approx(
        metrics.psnr(ours, dense, crop=4), abs=0.1
    )  # some pixels round the other way
    assert (every["fidelity"], every["psnr"]) == (None, None)
    heads, _, first, last = (tmp_path / "r.md").read_text().splitlines()[2:]
    assert "like dense" in heads
    assert "PSNR" not in heads
    assert f"| {some['fidelity']:.2f} |" in first
    assert "| same |" in last


def _row(merge, keep, time, macs, psnr=None, fidelity=40.0, least=None):
    dense = None if psnr is None else 30.0
    return bench.Row(merge, 4, 8, 0, keep, least, macs, time, None, psnr, dense, 1.0, fidelity)


@pytest.mark.parametrize("known", [True, False])
def test_the_picture_of_a_bench_has_a_line_for_each_setting(known, monkeypatch, tmp_path):
    """Time and MACs, in % of dense, against dB to it, or likeness where there are no HR images."""
    pytest.importorskip("matplotlib")
    rows = [
        _row("image", 0.5, 0.8, 0.7, 29.9 if known else None, 45.0),
        _row("image", 0.0, 0.3, 0.2, 29.5 if known else None, 41.0),
        _row("image", 0.3, 0.6, 0.5, 29.8 if known else None, 44.0, least=0.2),
        _row("features", 1.0, 1.0, 1.0, 30.0 if known else None, None),
    ]
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    pictures.bench_picture(rows, tmp_path / "b.png")
    (axis,) = figures[0].axes
    drawn = {line.get_label(): line.get_xydata().round(4).tolist() for line in axis.lines}
    own = "image, split 4, patch 8, halo 0: time"
    assert drawn[own] == ([[30, -0.5], [80, -0.1]] if known else [[30, 41], [80, 45]])
    macs = [line.get_xydata()[:, 0].tolist() for line in axis.lines if line.get_label() == "MACs"]
    assert macs[0] == [20, 70]
    assert "image, split 4, patch 8, halo 0, each image its own keep: time" in drawn
    assert ("features, split 4, patch 8, halo 0: time" in drawn) == known, "likeness has no bound there"
    assert [text.get_text() for text in axis.texts][:2] == ["0", "0.5"]


def test_bench_draws_and_cuts_no_digits_off(weights, tmp_path):
    """Neither in a file, whatever the terminal, nor on one of 80 columns."""
    pytest.importorskip("matplotlib")
    write_image(tmp_path / "a.png", PHOTO)
    arguments = ["bench", "-i", tmp_path / "a.png", "--weights", weights, "--rounds", 1, "--keep", "0.25,0.5"]
    done = run(*arguments, "--plot", tmp_path / "new" / "b.png")
    assert "0.25" in done.output
    assert "…" not in done.output
    assert read_image(tmp_path / "new" / "b.png").shape[0] > 400
    assert "exists already" in str(run(*arguments, "--plot", tmp_path / "new" / "b.png", code=1).exception)
    own = run(*arguments, "--plot", tmp_path / "a.png", "--overwrite", code=1)
    assert "would replace a file that it is made from" in str(own.exception)
    widest = [_row("features", 0.123, 1.234, 1.234, 31.45, 40.98, least=0.15)] * 2
    terminal = Console(width=80, file=io.StringIO())
    terminal.print(bench_table(widest))
    assert "…" not in terminal.file.getvalue()
    assert "1.234 1.234" in terminal.file.getvalue()


def test_bench_lets_each_image_decide(tmp_path):
    """As the file says without options; MACs are those of what each image refines."""
    lr, hr = tmp_path / "lr", tmp_path / "hr"
    for name, picture in (("flat", np.full_like(data.astronaut(), 90)), ("rich", data.astronaut())):
        large = picture[100:260, 200:440]
        write_image(hr / f"{name}.png", large)
        write_image(lr / f"{name}.png", large.reshape(40, 4, 60, 4, 3).mean((1, 3)).round().astype(np.uint8))
    fast = maskguided.wrap(maskguided.starter().unwrap(), 4)
    maskguided.calibrate(
        fast,
        [torch.from_numpy(data.astronaut()[:80, :80].copy()).permute(2, 0, 1)[None] / 255],
        per_image=True,
        max_cost=0.9,
    )
    maskguided.save(fast, tmp_path / "own.safetensors")
    args = ("bench", "-i", lr, "--hr", hr, "--model", "starter", "--head", tmp_path / "own.safetensors", "--rounds", 1)
    run(*args, "--json", tmp_path / "r.json")
    coarse, own = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert (coarse["keep"], own["min_gain_db"]) == (0, fast.min_gain_db)
    exported = ["export", *args[5:9], "--size", "24x24", "-o", tmp_path / "own.pt2"]
    assert "own.safetensors: each image decides there how many" in str(run(*exported, code=1).exception)
    assert "gain" in run(*args, "--min-gain", "1e9,0", "--json", tmp_path / "s.json").output
    none, all_of_it = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert (none["keep"], none["psnr"]) == (0, coarse["psnr"])
    assert none["macs_ratio"] == pytest.approx(coarse["macs_ratio"], rel=0.02)
    assert (all_of_it["keep"], all_of_it["psnr"]) == (1, pytest.approx(all_of_it["dense_psnr"]))
    assert coarse["psnr"] <= own["psnr"] <= all_of_it["psnr"]


def test_images_that_refine_nothing_or_all_by_themselves_are_counted_with_their_choosing():
    fast, pair = wrapped(scorer="head"), bench.Pair("a", image(1, 3, 40, 48), None)
    fast.estimate = fresh_estimate(fast.split.feature_channels, pair.lr)
    fixed = [bench.total_macs(fast, [pair], [keep]) for keep in (0.0, 1.0)]
    assert fixed == [fast.macs_at(40, 48, keep=keep) for keep in (0, 1)]
    fast.min_gain_db = 1.0
    decided = [bench.total_macs(fast, [pair], [share]) for share in (0.0, 1.0)]
    assert decided == [fast.macs_at(40, 48, min_gain_db=least) for least in (math.inf, 0.0)]
    assert decided[0] > fixed[0], "the head has chosen"
    assert decided[1] > fixed[1] == fast.dense_macs(40, 48), "and then the network runs as it is"


def test_large_images_count_for_more_in_the_mean_share():
    small, large = (bench.Pair("a", image(1, 3, side, side), None) for side in (10, 30))
    assert bench.mean_share([1.0, 0.5], [small, large]) == pytest.approx(0.55)


def test_bench_says_what_is_wrong_before_it_runs_anything(weights, tmp_path):
    write_image(tmp_path / "a.png", PHOTO)
    pairs = read_pairs(tmp_path / "a.png", None, torch.device("cpu"), torch.float32, False)
    model = maskguided.from_file(weights).unwrap()
    good, wrong = bench.Setting("features", 1, 8, 0, (0.5,)), bench.Setting("features", 9, 8, 0, (0.5,))
    done = []
    with pytest.raises(ArgumentError, match="split_at=9"):
        bench.measure(model, pairs, [good, wrong], 1, lambda: done.append(1))
    assert not done


def test_a_network_of_even_sizes_is_measured_on_images_of_odd_ones():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.PixelUnshuffle(2),
        *(torch.nn.Conv2d(12, 12, 3, padding=1) for _ in range(4)),
        torch.nn.PixelShuffle(2),
    ).eval()
    pair = bench.Pair("odd", torch.rand(1, 3, 33, 47), np.zeros((33, 47, 3), np.uint8))
    setting, done = bench.Setting("features", "auto", None, None, (1.0,)), []
    (row,) = bench.measure(net, [pair], [setting], 1, lambda: done.append(1))
    assert row.psnr == pytest.approx(row.dense_psnr)
    assert len(done) == bench.steps([pair], [setting], 1) == 2


def test_a_table_names_what_it_ran_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {torch.device(device).index}")
    assert "GPU" not in bench.machine(2)
    assert "GPU 1, 2 thread(s)" in bench.machine(2, "cuda:1")


def test_names_of_div2k_are_paired(tmp_path):
    write_image(tmp_path / "lr" / "0801x4.png", PHOTO)
    write_image(tmp_path / "hr" / "0801.png", resize(PHOTO, 4 * PHOTO.shape[0], 4 * PHOTO.shape[1]))
    (pair,) = read_pairs(tmp_path / "lr", tmp_path / "hr", torch.device("cpu"), torch.float32, False)
    assert pair.lr.shape[2] * 4 == pair.hr.shape[0]


def test_one_hr_image_is_for_one_lr_image(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "lr" / f"{name}.png", PHOTO)
    write_image(tmp_path / "hr.png", resize(PHOTO, 4 * PHOTO.shape[0], 4 * PHOTO.shape[1]))
    with pytest.raises(ArgumentError, match=r"hr\.png is one image, and .*lr holds 2"):
        read_pairs(tmp_path / "lr", tmp_path / "hr.png", torch.device("cpu"), torch.float32, False)


def test_several_images_and_folders_are_one_set_each_image_once(tmp_path):
    given = torch.device("cpu"), torch.float32, False
    for name in ("one/a", "two/b", "two/c"):
        write_image(tmp_path / f"{name}.png", PHOTO)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    names = ("two", "broken.png", "one/a.png", "two/c.png")
    with pytest.warns(MaskGuidedWarning, match=r"broken\.png: no image .*it is left out"):
        pairs = read_pairs([tmp_path / name for name in names], None, *given)
    assert [pair.name for pair in pairs] == ["b", "c", "a"]


def test_what_a_shell_makes_of_a_star_is_measured_together(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", PHOTO)
    both = tmp_path / "a.png", tmp_path / "b.png"
    assert "2 images of a.png and 1 more, PAN" in run("bench", "-i", *both, "--rounds", 1, "--keep", 0).output
    run("calibrate", "-i", *both, "-o", tmp_path / "h.safetensors", "--split-at", 2, "--side", 16, "--max-cost", 0.9)
    refused = run("bench", code=1)
    assert "bench what? Give an image or a folder" in str(refused.exception)


def test_a_file_of_a_folder_that_is_no_image_is_left_out_and_told_of(tmp_path):
    given = torch.device("cpu"), torch.float32, False
    write_image(tmp_path / "b.png", PHOTO)
    for name in ("a.txt", "c.png"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.warns(MaskGuidedWarning, match="it is left out") as told:
        pairs = read_pairs(tmp_path, None, *given)
    assert ([pair.name for pair in pairs], len(told)) == (["b"], 2)
    with pytest.raises(ImageError, match=r"a\.txt: no image"):
        read_pairs(tmp_path / "a.txt", None, *given)
    (tmp_path / "b.png").unlink()
    with pytest.warns(MaskGuidedWarning), pytest.raises(ImageError, match=r"c\.png: no image"):
        read_pairs(tmp_path, None, *given)


def test_of_a_folder_what_is_too_small_to_be_compared_is_left_out(weights, tmp_path):
    for name, side in (("a", 24), ("b", 1), ("c", 30)):
        write_image(tmp_path / "in" / f"{name}.png", data.astronaut()[:side, :side].copy())
    with pytest.warns(MaskGuidedWarning, match=r"b\.png: an image of 1x1 LR pixels; .* it is left out"):
        pairs = read_pairs(tmp_path / "in", None, torch.device("cpu"), torch.float32, True)
    assert [pair.name for pair in pairs] == ["a", "c"]
    (pair,) = read_pairs(tmp_path / "in" / "b.png", None, torch.device("cpu"), torch.float32, True)
    with pytest.raises(ArgumentError, match="b: an image of 1x1 LR pixels"):
        check_sizes([pair], 4)
