"""What all commands have in common, and what they say of wrong input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from skimage import data
from support import PHOTO, run, scaled

import maskguided
from maskguided import ArgumentError, cli
from maskguided.adapters.pan_net import PAN
from maskguided.cli import app
from maskguided.commands import console, options
from maskguided.imaging.images import read_image, write_image
from maskguided.infer import upscale

HEAD = Path(__file__).parents[1] / "benchmarks" / "weights" / "edsr_baseline_guided.safetensors"


def test_inspect_and_bench_print_what_they_found(weights, tmp_path):
    assert "body: 4 x SCPA" in run("inspect", "--model", "pan", "--weights", weights, "--split-at", 3).output
    lr, hr = tmp_path / "lr", tmp_path / "hr"
    write_image(lr / "a.png", PHOTO)
    write_image(hr / "a.png", data.astronaut()[:192, :240])
    result = run(
        "bench", "-i", lr, "--hr", hr, "--model", "pan", "--weights", weights, "--split-at", "1,2", "--keep", "0,1",
        "--merge", "features,image", "--rounds", 1, "--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md",
    )  # fmt: skip
    assert "Y, uint8, border = scale" in result.output
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len(rows) == 8
    for row in rows:
        assert (row["macs_ratio"] < 1) == (row["keep"] == 0 and row["merge"] == "features") or row["merge"] == "image"
        assert row["time_ratio"] > 0
        assert (row["psnr"] != row["dense_psnr"]) or row["keep"] == 1
    assert (tmp_path / "r.md").read_text().count("\n| ") == 10


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["upscale", "-i", "nowhere.png", "-o", "out"], "nowhere.png: no such file or folder"),
        (["upscale", "-i", "", "-o", "{tmp}/o"], "-i '': is a variable"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--keep", "2"], "keep=2.0"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--split-at", "99"], "use 1 to"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--split-at", "x"], "--split-at x"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--model", "esrgan", "--weights", "w"], "known: pan, edsr, rcan"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--model", "pan"], "needs --weights"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--weights", "w.pth"], "w.pth: no such file"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--model", "pan", "--weights", "{png}"], "not a readable"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "-w", "w.pth", "--device", "cuda:77"], "cuda:77: not usable here"),
        (["finetune", "--hr", "x", "-o", "{tmp}/o.safetensors", "-w", "w.pth", "--device", "gpu"], "gpu: not usable"),
        (["explain", "-i", "{png}", "-o", "{tmp}/o.png", "--device", "cuda:77"], "not usable here"),
        (["upscale", "-i", "{tmp}/a:train:b.png", "-o", "{tmp}/o"], "a:train:b.png"),
        (["explain", "-i", "{png}", "-o", "{tmp}/o.png", "--device", "meta"], "--device meta: not usable here"),
        (["calibrate", "-i", "{png}", "-o", "{tmp}/o.safetensors", "--device", "gpu"], "--device gpu: not usable here"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--dtype", "int8"], "fp32, fp16, bf16"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--ext", "gif"], "--ext gif"),
        (["upscale", "-i", "{tmp}", "-o", "{tmp}/o.png"], "name a folder"),
        (["upscale", "-i", "{tmp}", "-o", "{tmp}/o", "--ext", "png"], "2 images would all be written to"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o/b.png", "--ext", "jpg"], "--ext jpg with --output"),
        (["upscale", "-i", "{png}", "--split-at", "4", "--merge", "features", "--coarse-tail", "light"], "no other"),
        (["upscale", "-i", "{png}", "-o", "{tmp}/o", "--model", "foo"], "no adapter is called 'foo'; known: pan, edsr"),
        (["upscale", "-i", "{png}", "--head", "{head}"], "(the starter network, for want of --weights)"),
        (["explain", "{png}", "-i", "other.png", "-o", "{tmp}/o.png"], "two images; give one"),
        (["inspect", "a.pth", "-w", "b.pth"], "two weight files; give one"),
        (["inspect", "--model", "pan"], "needs --weights"),
        (["bench", "-i", "{png}", "--keep", "a"], "'a' is not valid"),
        (["bench", "-i", "{png}", "--keep", "0.2,2"], "keep=2.0"),
        (["bench", "-i", "{png}", "--json", "{tmp}/r.txt"], "ends in .json"),
        (["bench", "-i", "{png}", "--json", "{tmp}/there/a.json"], "exists already; add --overwrite"),
        (["bench", "-i", "{png}", "--markdown", "{png}/t.md"], "its folder cannot be made"),
        (["bench", "-i", "{png}", "--merge", "both"], "'both' is not valid"),
        (["bench", "-i", "{png}", "--halo", "1.5"], "'1.5' is not valid there; use auto, or whole numbers"),
        (["bench", "-i", "{png}", "--hr", "{tmp}/nowhere"], "no such file or folder"),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(args, text, tmp_path, monkeypatch, capsys):
    write_image(tmp_path / "a.png", PHOTO)
    write_image(tmp_path / "a.jpg", PHOTO)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.json").touch()
    args = [a.format(png=tmp_path / "a.png", tmp=tmp_path, head=HEAD) for a in args]
    monkeypatch.setattr(sys, "argv", ["maskguided", *args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("where", ["--output=~/made/", "~/made/"])
def test_a_home_folder_that_the_shell_left_alone_is_found(where, tmp_path, monkeypatch):
    """A folder called ~ was made beside the image."""
    write_image(tmp_path / "a.png", PHOTO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    output = [where] if "=" in where else ["--output", where]
    monkeypatch.setattr(sys, "argv", ["maskguided", "upscale", "a.png", *output])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code in (0, None)
    assert [path.name for path in (tmp_path / "home" / "made").iterdir()] == ["a_out.png"]
    assert not (tmp_path / "~").exists()


def test_a_process_ends_with_the_same_sentence_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "maskguided", "upscale", "-i", "nowhere.png", "-o", "o"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: nowhere.png: no such file or folder\n")


def test_of_a_damaged_image_we_alone_tell(tmp_path):
    write_image(tmp_path / "a.png", data.astronaut()[:64, :64].copy())
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    command = [sys.executable, "-m", "maskguided", "upscale", "-i", "a.png", "-o", "o", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("failed: a.png: no image that can be read")
    assert "WARN" not in done.stderr


def test_commands_take_the_settings_of_a_wrap(tmp_path):
    small = data.astronaut()[::8, ::8].copy()
    write_image(tmp_path / "small.png", small)
    given = ("--split-at", "4", "--merge", "image", "--coarse-on", "unrefined", "--patch-size", "4", "--keep", "0.3")
    run("upscale", "-i", tmp_path / "small.png", "--device", "cpu", *given)
    settings = {"merge": "image", "coarse_on": "unrefined", "patch_size": 4, "keep": 0.3}
    fast = maskguided.wrap(maskguided.starter().unwrap(), 4, **settings).eval()
    found = read_image(tmp_path / "small_out.png").astype(int)
    assert np.abs(found - upscale(fast, small).image).max() <= 1
    fast.coarse_on = "all"
    assert np.abs(found - upscale(fast, small).image).max() > 1
    refused = run("upscale", "-i", tmp_path / "small.png", "--overwrite", "--split-at", "4,8", "--onward", "x", code=1)
    assert "use shares from 0 to 1" in str(refused.exception)
    idle = ("--overwrite", "--split-at", "4", "--coarse-on", "unrefined")
    refused = run("upscale", "-i", tmp_path / "small.png", *idle, code=1)
    assert "add --merge image" in str(refused.exception)
    commands = typer.main.get_command(app).commands
    for name in ("upscale", "calibrate", "finetune", "explain", "export"):
        taken = {parameter.name for parameter in commands[name].params}
        assert {"onward", "merge", "coarse_tail", "coarse_on", "patch_size", "halo", "exchange"} <= taken


def test_of_several_processes_each_takes_its_own_gpu(monkeypatch):
    """torchrun's: else each would hold memory of the first one."""
    monkeypatch.setenv("LOCAL_RANK", "77")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ArgumentError, match="cuda:77: not usable"):
        options.pick_device("auto")
    assert options.pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("command", ["bench", "calibrate"])
def test_hr_images_of_another_size_are_refused_by_name(command, tmp_path):
    for folder in ("lr", "hr"):
        write_image(tmp_path / folder / "photo.png", PHOTO)
    args = [command, "-i", tmp_path / "lr", "--hr", tmp_path / "hr"]
    args += ["-o", tmp_path / "a.safetensors"] if command == "calibrate" else []
    high, wide = PHOTO.shape[:2]
    expected = f"the HR image of photo is {high}x{wide}; at x4 it should be {4 * high}x{4 * wide}"
    assert expected in str(run(*args, code=1).exception)


def test_every_command_takes_grey_images_to_a_network_of_one_channel(tmp_path):
    from safetensors.torch import save_file

    net = scaled(PAN(channels=1, features=8, up_features=8, blocks=4, scale=2), gain=0.5)
    save_file(net.state_dict(), tmp_path / "grey.safetensors")
    write_image(tmp_path / "a.png", PHOTO)  # in colour
    same = ("-i", tmp_path / "a.png", "--weights", tmp_path / "grey.safetensors", "--scale", 2)
    run("bench", *same, "--rounds", 1, "--keep", 0.5)
    run("calibrate", *same, "--split-at", 2, "-o", tmp_path / "h.safetensors")
    run("explain", *same, "-o", tmp_path / "e.png")
    run("export", *same, "-o", tmp_path / "e.pt2", "--size", "24x24")


@pytest.mark.parametrize("command", ["upscale", "calibrate", "bench"])
def test_a_folder_in_which_nothing_can_be_written_is_said_before_the_work(command, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", PHOTO)

    def refuse(**_):
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr("maskguided.commands.options.tempfile.TemporaryFile", refuse)
    output = ["--json", tmp_path / "o" / "a.json"] if command == "bench" else ["-o", tmp_path / "o" / "a.safetensors"]
    output = ["-o", tmp_path / "o"] if command == "upscale" else output
    result = run(command, "-i", tmp_path / "a.png", *output, code=1)
    assert "no file can be written there (Permission denied)" in str(result.exception)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_that_a_network_is_looked_at(weights, monkeypatch, terminal):
    shown = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=shown, force_terminal=terminal))
    assert run("inspect", "--model", "pan", "--weights", weights).exit_code == 0
    assert ("looking at the network" in shown.getvalue()) == terminal
