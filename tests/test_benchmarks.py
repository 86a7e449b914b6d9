"""The benchmarks on tiny images: that each runs to its end and counts what it says. No test asks how fast it is."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from skimage import data
from support import difference, image, need_basicsr, scaled

import maskguided
from maskguided.adapters.pan_net import PAN
from maskguided.imaging.images import write_image
from maskguided.networks import load_network

sys.path.append(str(Path(__file__).parents[1]))
from benchmarks import engine, global_ops, memory, onnx, overhead, peers, quality, small_networks, wrap_time
from benchmarks.challenge import Entry

SIZE = (24, 32)
EDSR = ("--network", "edsr", "--weights", global_ops.WEIGHTS / "edsr.safetensors")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two HR images, 96 x 112, and the LR images of them."""
    need_basicsr("basicsr.utils.matlab_functions")
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("astronaut", "chelsea"):
        hr = getattr(data, name)()[:96, 100:212]
        for kind, pixels in (("hr", hr), ("lr", quality.reduce(hr, 4))):
            (folder / kind).mkdir(exist_ok=True)
            write_image(folder / kind / f"{name}.png", pixels)
    return folder


def command(monkeypatch, capsys, module: str, *args: object) -> list[list[str]]:
    """`python -m benchmarks.MODULE ARGS`: the rows of the table that it prints, without its head."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, args)])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    importlib.import_module(f"benchmarks.{module}").main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line][1:]


@pytest.mark.parametrize("merge", ["features", "image"])
def test_engine_compares_the_wrapped_network_with_its_own_parts(merge):
    model = scaled(PAN(features=8, up_features=8, blocks=4))
    rows = list(engine.measure("small", model, merge, (0.25, 0.5), SIZE, engine.Way(rounds=1)))
    assert [(row["network"], row["size"], row["merge"], row["keep"]) for row in rows] == [
        ("small", "24x32", merge, 0.25), ("small", "24x32", merge, 0.5),
    ]  # fmt: skip
    fast = maskguided.wrap(model, merge=merge, keep=0.5)
    assert rows[1]["MACs/dense"] == fast.cost(*SIZE).ratio
    assert all(row["efficiency"] > 0 and row["time/dense"] > 0 for row in rows)


def test_all_tables_of_one_command_are_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(engine, "network", lambda name: scaled(PAN(features=8, up_features=8, blocks=4)))
    from benchmarks import __main__ as command

    monkeypatch.setattr(command.engine, "measure", lambda name, model, merge, keeps, size, way: [
        {"network": name, "merge": merge or "auto", "size": f"{size[0]}x{size[1]}", "keep": keep,
         "time/dense": keep, "MACs/dense": keep} for keep in keeps
    ])  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["benchmarks", "engine", "sizes", "--out", str(tmp_path), "--networks", "pan"])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    command.main()
    rows = json.loads((tmp_path / "sizes.json").read_text())["rows"]
    assert [row["size"] for row in rows[::3]] == ["64x64", "128x128", "256x256", "512x512", "1024x1024"]
    assert (tmp_path / "engine.md").read_text().count("| pan |") == 2
    assert (tmp_path / "sizes.png").stat().st_size > 1000


def test_memory_counts_the_tensors_that_are_alive_at_once():
    one = 4 * 2**20
    peak = memory.peak(lambda: [torch.ones(one // 4).add(1) for _ in range(3)])  # each time two of them, and those made
    assert 4 * 4 <= peak <= 4 * 4 + 0.1


@pytest.mark.parametrize("merge", ["features", "image"])
@pytest.mark.parametrize("name", ["pan", "edsr"])
def test_a_wrapped_forward_needs_no_more_memory_than_the_dense_one(name, merge):
    if name == "edsr":  # basicsr's own
        need_basicsr("basicsr.archs.edsr_arch")
    (row,) = memory.forwards(name, merge, [0.25], (64, 64))
    assert 0.5 < row["ratio"] <= 1


@pytest.mark.parametrize("merge", ["features", "image"])
def test_memory_is_compared_with_the_dense_forward(monkeypatch, merge):
    monkeypatch.setattr(memory, "network", lambda name: scaled(PAN(features=8, up_features=8, blocks=4)))
    (row,) = memory.forwards("pan", merge, (0.25,), (64, 64))
    assert 0.3 < row["ratio"] < 3
    assert row["dense, MiB"] >= 1


def test_a_large_image_is_upscaled_in_a_process_of_its_own():
    rows = list(memory.large("pan", 0.25, (24, 32)))
    assert [row["written as"] for row in rows] == [".png", ".tif"]
    assert all(row["peak RSS of the process, MiB"] > 50 for row in rows)


def test_onnx_files_of_each_wrap_are_compared_with_the_dense_one(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx, "network", lambda name: scaled(PAN(features=8, up_features=8, blocks=4)))
    rows = list(onnx.measure("pan", (0.25,), SIZE, 1, 1))
    assert [(row["merge"], row["coarse tail"]) for row in rows] == [("features", ""), *[("image", "light")] * 2]
    assert all(float(row["difference from torch"]) < 1e-4 for row in rows)


def test_overhead_is_beside_the_same_image_made_by_hand(monkeypatch):
    monkeypatch.setattr(overhead, "SIDE", 32)
    model = scaled(PAN(features=8, up_features=8, blocks=4))
    fast = maskguided.wrap(model, keep=overhead.KEEP, exchange=False).eval()
    x = image(1, 3, 32, 32)
    assert difference(overhead.by_hand(fast)(x), fast(x)) < 1e-5
    assert difference(fast(x), model(x)) > 1e-2


def test_wrapping_is_beside_a_forward():
    (row,) = wrap_time.measure("small", scaled(PAN(features=8, up_features=8, blocks=4)), side=32)
    assert row["wrap/dense"] == row["wrap, s"] / row["dense, s"]
    assert row["wrap, s"] > row["dense, s"]


def test_quality_compares_what_ranks_the_patches(monkeypatch, capsys, weights, pairs, tmp_path):
    fast = maskguided.wrap(load_network(weights).model, merge="image", coarse_tail="light")
    maskguided.calibrate(fast, [image(1, 3, *SIZE)], max_cost=0.95)
    maskguided.save(fast, tmp_path / "head.safetensors")
    given = ("--weights", weights, "--head", tmp_path / "head.safetensors", "--keep", "0.5", "--rounds", 1)
    rows = command(monkeypatch, capsys, "quality", *given, "--hr", pairs / "hr", "--lr", pairs / "lr")
    assert [row[:2] + row[4:5] for row in rows] == [
        ["keep 0.5", "0.500", "linear"], ["keep 0.5", "0.500", "error map"], ["keep 0.5", "0.500", "random"],
    ]  # fmt: skip
    again = command(monkeypatch, capsys, "quality", *given[:-2], "--hr", pairs / "hr")  # which reduces HR itself
    assert [row[5] for row in again] == [row[5] for row in rows]


def test_cuts_compares_one_cut_with_several_at_equal_macs(monkeypatch, capsys, pairs):
    given = (*EDSR, "--single", "4", "--several", "2,4", "--onward", "0.5", "--macs", "0.85")
    rows = command(monkeypatch, capsys, "cuts", *given, "--hr", pairs / "hr", "--lr", pairs / "lr")
    assert [row[:3] for row in rows] == [["4", "", "0.85"], ["(2, 4)", "(0.5,)", "0.85"]]
    assert all(0 < float(row[3]) <= 1 and float(row[4]) < 1 for row in rows)


def test_merge_compares_where_patches_go_back_at_equal_macs(monkeypatch, capsys, pairs):
    given = (*EDSR, "--images", pairs / "lr", "--hr", pairs / "hr", "--lr", pairs / "lr")
    rows = command(monkeypatch, capsys, "merge", *given, "--macs", "0.85", "--splits", "2", "--windows", "8+0,8+2a")
    assert [row[:3] for row in rows] == [[m, "2 of 8", w] for m in ("features", "image") for w in ("8+0", "8+2a")]
    assert all(math.isfinite(float(cell)) for row in rows for cell in row[4:])


def test_global_ops_with_the_statistics_of_a_dense_run_are_the_dense_network(pairs):
    need_basicsr("basicsr.archs.rcan_arch")
    net = small_networks.network(global_ops.WEIGHTS / "imdn.safetensors", "imdn")
    x = image(1, 3, *SIZE)
    made = {way: global_ops.by_windows(net, x, way, shrink, keep=1, patch_size=8, halo=8)
            for way, shrink in (("window", 0), ("image", 0), ("dense", 1), ("shrunk", 2))}  # fmt: skip
    apart = {way: difference(one, net(x)) for way, one in made.items()}
    assert max(apart["dense"], apart["image"]) < 2e-4 < min(apart["shrunk"], apart["window"])


def test_a_network_that_others_trained_is_calibrated_and_compared(weights, pairs):
    from benchmarks import trained

    read = quality.read(pairs / "hr", pairs / "lr", 4, None)
    entry = Entry("7 PAN", load_network(weights).model, 255)
    cells = [cell.strip() for cell in trained.row(entry, read, read, 0.95, 1).strip("|").split("|")]
    assert cells[0] == "7 PAN"
    assert float(cells[5]) <= 0.951
    assert len(cells) == 9


def test_training_resumes_and_writes_weights_that_load(monkeypatch, capsys, pairs, tmp_path):
    given = ("--network", "edsr", "--hr", pairs / "hr", "--work", tmp_path, "--batch", 1, "--size", 16)
    written = tmp_path / "edsr.safetensors"
    with torch.enable_grad():
        command(monkeypatch, capsys, "train", *given, "--iterations", 2)
        first = written.read_bytes()
        written.unlink()
        command(monkeypatch, capsys, "train", *given, "--iterations", 2)  # from its checkpoint, which is at the end
    assert written.read_bytes() == first
    assert torch.load(tmp_path / "edsr.checkpoint.pt", weights_only=True)["step"] == 2
    assert small_networks.network(written, "edsr")(image(1, 3, *SIZE)).shape == (1, 3, 96, 128)


def test_a_checkout_that_is_none_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"no exps/rfdn/RFDNMGA\.py there"):
        peers.published(tmp_path)
