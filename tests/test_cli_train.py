"""The commands that calibrate, train and explain: from photographs to a head that upscale takes, and wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage import data
from support import need_basicsr, scaled
from typer.testing import CliRunner

from maskguided.adapters.pan_net import PAN
from maskguided.cli import app
from maskguided.commands.calibrate import _cut
from maskguided.errors import MaskGuidedError
from maskguided.imaging.images import read_image, to_tensor, write_image
from maskguided.imaging.pairs import Pair
from maskguided.weights import read

WRAP = ["--split-at", "2", "--merge", "image", "--coarse-tail", "deep", "--patch-size", "8", "--halo", "1"]
LIGHT = ["-w", "{}/pan.pth", "--merge", "image", "--coarse-tail", "light", "--refine-tail", "light"]


def run(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments), "--threads", "1"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    torch.save({"params": scaled(PAN(features=8, up_features=8, blocks=4), gain=0.5).state_dict()}, path / "pan.pth")
    for name in ("astronaut", "coffee"):
        picture = getattr(data, name)()
        write_image(path / "hr" / f"{name}.png", picture[:160, :160])
        write_image(path / "lr" / f"{name}.png", picture[:160:4, :160:4].copy())
    return path


def test_from_photographs_to_a_head_that_upscale_takes(folder):
    need_basicsr("basicsr.utils.matlab_functions")
    pytest.importorskip("timm")
    pytest.importorskip("accelerate")
    first, second = folder / "first.safetensors", folder / "second.safetensors"
    weights = ["-w", folder / "pan.pth"]
    done = run(
        "calibrate", "-i", folder / "lr", "--hr", folder / "hr", *weights, "-o", first, *WRAP,
        "--max-cost", 0.8, "--plot", folder / "curve.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "of the dense MACs" in done.output
    assert "fitting the coarse tail\n" in done.stderr, "a log has lines where a terminal has a bar"
    assert read_image(folder / "curve.png").ndim == 3
    done = run(
        "finetune", "--hr", folder / "hr", *weights, "--head", first, "-o", second, "--stage", "coarse,head",
        "--steps", 2, "--batch", 2, "--crop", 16, "--every", 1, "--device", "cpu",
        "--val-hr", folder / "hr", "--val-lr", folder / "lr",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stderr.count("coarse: step 1, validation ") == done.stderr.count("head: step 2, validation ") == 1
    assert [line.partition(", loss")[0] for line in done.stderr.splitlines() if "loss" in line] == [
        f"{stage}: step {step} of 2" for stage in ("coarse", "head") for step in (1, 2)
    ]
    assert not list(folder.glob("*.checkpoint"))
    shown = run("upscale", "-i", folder / "lr", "-o", folder / "sr", *weights, "--head", second, "--device", "cpu")
    assert shown.exit_code == 0, shown.output
    assert read_image(folder / "sr" / "coffee_out.png").shape == (160, 160, 3)


def test_the_same_command_starts_from_the_same_new_parts(folder):
    """Else one that was killed would go on with a head of another coarse tail than it began with."""
    need_basicsr("basicsr.utils.matlab_functions")
    pytest.importorskip("timm")
    pytest.importorskip("accelerate")
    files = [folder / "once.safetensors", folder / "twice.safetensors"]
    for file in files:
        done = run(
            "finetune", "--hr", folder / "hr", "-w", folder / "pan.pth", "-o", file, *WRAP, "--stage", "head",
            "--steps", 1, "--batch", 2, "--crop", 16, "--device", "cpu", "--keep", 0.3,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert json.loads(read(file).metadata["settings"])["keep"] == 0.3
    once, twice = (read(file).tensors for file in files)
    assert any(name.startswith("coarse_tail.branch") for name in once)
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_settings_that_are_given_are_kept_and_no_others_tried(folder):
    files = [folder / "kept.safetensors", folder / "again.safetensors"]
    for file in files:
        done = run(
            "calibrate", "-i", folder / "lr", "-w", folder / "pan.pth", "-o", file,
            "--patch-size", 24, "--coarse-tail", "deep", "--max-cost", 0.9,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "--coarse-tail, --patch-size as given, so nothing is tried: split_at=2, half" in done.stderr
    once, twice = map(read, files)
    settings = json.loads(once.metadata["settings"])
    assert [settings[name] for name in ("patch_size", "coarse_tail", "split_at")] == [24, "deep", 2]
    assert once.metadata == twice.metadata
    assert all(torch.equal(once.tensors[name], twice.tensors[name]) for name in once.tensors), "also the mask head"


def test_large_images_are_cut_to_their_middle():
    lr, hr = np.random.default_rng(0).integers(0, 256, (2, 400, 480, 3), np.uint8)
    given = to_tensor(lr[:100, :120])[None]
    low, high = _cut(Pair("a", given, hr), 50, 4)
    assert torch.equal(low, given[:, :, 25:75, 35:85])
    assert torch.equal(high, to_tensor(hr[100:300, 140:340])[None])
    assert torch.equal(_cut(Pair("a", given, None), 110, 4), given[:, :, :, 5:115])


def test_images_decide_on_the_command_line(folder):
    head, weights = folder / "decides.safetensors", ["-w", folder / "pan.pth"]
    done = run(
        "calibrate", "-i", folder / "lr", "--hr", folder / "hr", *weights, "-o", head, *WRAP, "--max-cost", 0.8,
        "--per-image", "--plot", folder / "decides.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "on average" in done.output
    common = ["upscale", "-i", folder / "lr" / "coffee.png", *weights, "--head", head, "--device", "cpu", "--overwrite"]
    shown = {least: run(*common, "-o", folder / "decided.png", "--min-gain", least).output for least in (0, 1e9)}
    assert "100% refined" in shown[0]
    assert " 0% refined" in shown[1e9]
    assert "20% refined" in run(*common, "-o", folder / "decided.png", "--keep", 0.2).output
    both = run(*common, "-o", folder / "decided.png", "--keep", 0.2, "--min-gain", 1)
    assert "give one" in str(both.exception)
    fresh = run("upscale", "-i", folder / "lr", *weights, "-o", folder / "fresh", "--min-gain", 1, "--device", "cpu")
    assert "per_image=True" in str(fresh.exception)


def test_explain_draws_six_panels(folder):
    pytest.importorskip("matplotlib")
    done = run(
        "explain", "-i", folder / "lr" / "coffee.png", "-o", folder / "why.png", "-w", folder / "pan.pth", *WRAP,
        "--keep", 0.2,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "5 of 25 patches refined" in done.output
    picture = read_image(folder / "why.png")
    assert picture.shape[0] > 400
    assert len({tuple(pixel) for pixel in picture[::7, ::7, :3].reshape(-1, 3)}) > 200


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["calibrate", "-i", "{}/lr", "-o", "{}/x.pth"], "ends in .safetensors"),
        (["calibrate", "-i", "{}/none", "-o", "{}/x.safetensors"], "no such file"),
        (
            ["calibrate", "-i", "{}/lr", "-o", "{}/x.safetensors", "--split-at", "many"],
            "use a number of blocks, several as",
        ),
        (["calibrate", "-i", "{}/lr", "-o", "{}/x.safetensors", "--plot", "{}/x.bmp"], ".png, .pdf or .svg"),
        (["finetune", "--hr", "{}/hr", "-o", "{}/x.safetensors", "--stage", "heads"], "use one of coarse, refine"),
        (
            ["finetune", "--hr", "{}/hr", "-o", "{}/x.safetensors", *LIGHT, "--stage", "coarse,head"],
            "calibrate, or train",
        ),
        (["finetune", "--hr", "{}/none", "-o", "{}/x.safetensors"], "no such file"),
        (["finetune", "--hr", "{}/hr", "-o", "{}/x.safetensors", "--head-loss", "l3"], "use 'rank', 'l1'"),
        (["finetune", "--hr", "{}/hr", "-o", "{}/x.safetensors", "--val-lr", "{}/lr"], "without --val-hr"),
        (["explain", "-i", "{}/lr", "-o", "{}/x.png"], "is a folder"),
        (["explain", "-i", "{}/lr/coffee.png", "-o", "{}/pan.pth"], ".png, .pdf or .svg"),
    ],
)
def test_wrong_input_is_one_sentence_and_no_file(folder, arguments, text):
    if arguments[0] == "finetune":
        pytest.importorskip("accelerate")
    done = run(*(argument.format(folder) for argument in arguments), "-w", folder / "pan.pth")
    assert isinstance(done.exception, MaskGuidedError), done.output
    assert text in str(done.exception)
    assert not list(folder.glob("x.*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("calibrate", "-i", "a.png", "-w", "net.safetensors", "-o", "net.safetensors"),
        ("calibrate", "-i", ".", "-w", "net.safetensors", "-o", "b.safetensors", "--plot", "a.png"),
        ("calibrate", "-i", "a.png", "--head", "net.safetensors", "-o", "net.safetensors"),
        ("finetune", "--hr", ".", "--head", "net.safetensors", "-o", "net.safetensors"),
        ("explain", "-i", "a.png", "-o", "a.png", "-w", "net.safetensors"),
        ("finetune", "--hr", ".", "-w", "net.safetensors", "-o", "../x/net.safetensors"),
    ],
)
def test_no_result_replaces_what_it_is_made_from(folder, tmp_path, monkeypatch, arguments):
    """With --overwrite a network's only weights, or a photograph, were gone."""
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    save_file(torch.load(folder / "pan.pth")["params"], "net.safetensors")
    write_image("a.png", data.astronaut()[:32, :32])
    before = Path("net.safetensors").read_bytes(), Path("a.png").read_bytes()
    done = run(*arguments, "--overwrite")
    assert isinstance(done.exception, MaskGuidedError)
    assert "would replace a file that it is made from" in str(done.exception)
    assert (Path("net.safetensors").read_bytes(), Path("a.png").read_bytes()) == before


COMMAND = """
import sys, torch
from maskguided.cli import app
app(sys.argv[1:], standalone_mode=False)
assert not torch.distributed.is_initialized(), "the processes are still joined"
"""


def test_two_processes_save_once_and_leave_their_group(folder, tmp_path):
    """Several stages share a group; one process alone saves, and removes the checkpoints after that."""
    need_basicsr("basicsr.utils.matlab_functions")
    pytest.importorskip("timm")
    pytest.importorskip("accelerate")
    (tmp_path / "run.py").write_text(COMMAND)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [
            *launch, tmp_path / "run.py", "finetune", "--hr", folder / "hr", "-w", folder / "pan.pth", "-o",
            tmp_path / "net.safetensors", *WRAP, "--stage", "coarse,head", "--steps", "2", "--batch", "2",
            "--crop", "16", "--every", "2", "--device", "cpu", "--threads", "1",
        ],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved to") == 1
    assert done.stdout.count("trainable params") == 2
    assert done.stderr.count("step 2 of 2") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"run.py", "net.safetensors"}
