"""Weight files and saved wrappers: what is read, what is refused, and that nothing is half-written."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import PHOTO, by_windows, difference, image, need_shared, official_pan, scaled
from torch import nn

import maskguided
from maskguided import ArgumentError, CheckpointError, pictures
from maskguided.adapters.pan_net import PAN
from maskguided.checkpoint import fingerprint
from maskguided.export import export
from maskguided.files import torch_save_whole, write_whole
from maskguided.imaging.images import read_image, write_image
from maskguided.networks import load_network
from maskguided.training.stages import train_only
from maskguided.weights import load_into, read

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def small_pan(seed: int = 0) -> nn.Module:
    return scaled(PAN(features=8, up_features=8, blocks=4), seed=seed)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (STATE, None),
        ({"params": STATE}, "params"),
        ({"params": {"a.weight": torch.zeros(1)}, "params_ema": STATE}, "params_ema"),
        ({"params-ema": STATE, "params": {"b": torch.zeros(1)}}, "params-ema"),
        ({"model_state_dict": STATE, "epoch": 3}, "model_state_dict"),
        ({"state_dict": {f"module.{k}": v for k, v in STATE.items()}}, "state_dict"),
        ({"state_dict": {"params": STATE}}, "params"),
        ({"model": STATE}, "model"),
        ({"net": STATE}, "net"),
        ({f"_orig_mod.module.{k}": v for k, v in STATE.items()}, None),
        ({f"netG.{k}": v for k, v in STATE.items()}, None),
    ],
)
def test_every_nesting_and_prefix_is_read(content, key, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    found = read(tmp_path / "w.pth")
    assert found.key == key
    assert found.tensors.keys() == STATE.keys()
    assert all(torch.equal(found.tensors[k], v) for k, v in STATE.items())


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_code_in_a_weight_file_never_runs(tmp_path, capsys):
    torch.save({"params": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="not a readable"):
            read(tmp_path / name)
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_weight_file_is_said_to_be_none(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    with pytest.raises(CheckpointError, match="no such file"):
        read(path)
    if suffix == ".pth":
        torch.save({0: torch.zeros(2), 1: torch.zeros(3)}, path)
        with pytest.raises(CheckpointError, match=r"no weights found in it \(it holds 0, 1\)"):
            read(path)
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="not a readable"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a readable"):
        read(path)


def test_what_stands_for_weights_and_what_has_another_name_is_told(tmp_path):
    path = tmp_path / "w.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull brings them"):
        read(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"let its name end in \.safetensors"):
        read(path)


def test_a_file_without_tensors_lists_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="it holds epoch, optimizer"):
        read(tmp_path / "w.pth")


def test_weights_of_another_network_are_named():
    with pytest.raises(CheckpointError, match="missing") as raised:
        load_into(small_pan(), {"conv_first.weight": torch.zeros(1), "x": torch.zeros(1)})
    for part in ("conv_first.weight is (1,), not (8, 3, 3, 3)", "and 4", "more"):
        assert part in str(raised.value) or "missing" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "keys"), [("pan", STATE), ("edsr", {"conv_after_body.weight": torch.zeros(4, 4, 3, 3)}), ("rcan", STATE)]
)
def test_the_wrong_file_for_a_model_name(name, keys, tmp_path):
    torch.save(keys, tmp_path / "w.pth")
    with pytest.raises(maskguided.MaskGuidedError, match=r"no weights of a network|no .* in it"):
        load_network(tmp_path / "w.pth", name)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "result.png"
    target.write_bytes(b"old")

    def fail(beside):
        beside.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(target, fail)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.png"]


@pytest.mark.parametrize("is_beside", [True, False])
def test_an_error_of_the_file_beside_is_said_of_the_target_and_one_of_another_file_of_that(is_beside, tmp_path):
    target, other = tmp_path / "a.txt", tmp_path / "none" / "x"

    def fail(beside):
        (beside if is_beside else other).open("x")

    with pytest.raises(OSError, match=r"\[Errno") as raised:
        write_whole(target, fail)
    assert raised.value.filename == str(target if is_beside else other)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".safetensors", ".pdf", ".pt2"])
def test_a_full_disk_is_said_of_the_file_itself(suffix, tmp_path):
    resource = pytest.importorskip("resource")
    target, before = tmp_path / f"result{suffix}", resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4).eval(), 2)
    write = {
        ".safetensors": lambda: maskguided.save(fast, target),
        ".pdf": lambda: pictures.explain_picture(fast, torch.rand(1, 3, 16, 16), target),
        ".pt2": lambda: export(fast, target, torch.rand(1, 3, 16, 16)),
    }.get(suffix, lambda: write_image(target, noise))
    if suffix == ".pdf":
        pytest.importorskip("matplotlib")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # no file may be longer
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="too large") as raised:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.filename == str(target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_run_that_is_told_to_stop_leaves_no_half_file(name, tmp_path):
    code = f"""
import os, pathlib, signal, time
from maskguided import cli, files
def slow(beside):
    beside.write_bytes(b"half")
    os.kill(os.getpid(), signal.{name})
    time.sleep(60)
signal.signal(signal.{name}, signal.SIG_DFL)  # nohup has it ignored
cli.app = lambda: files.write_whole(pathlib.Path({str(tmp_path / "a.png")!r}), slow)
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + getattr(signal, name), "")
    assert not list(tmp_path.iterdir())


def test_a_name_as_long_as_a_file_may_have_is_written(tmp_path):
    write_image(tmp_path / f"{'a' * 251}.png", PHOTO)
    assert np.array_equal(read_image(tmp_path / f"{'a' * 251}.png"), PHOTO)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda path: maskguided.from_file(None),
        lambda path: maskguided.from_file(5),
        lambda path: maskguided.load(None, small_pan()),
        lambda path: maskguided.load(b"a.safetensors", small_pan()),
        lambda path: maskguided.save(maskguided.wrap(small_pan()), 5),
    ],
)
def test_what_is_no_path_is_an_argument_error(wrong, tmp_path):
    with pytest.raises(ArgumentError, match="use the path of a file or folder"):
        wrong(tmp_path)


def test_saved_files_are_small_and_hold_no_base_weights(tmp_path):
    fast = maskguided.wrap(small_pan())
    maskguided.save(fast, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors")
    assert {name.partition(".")[0] for name in found.tensors} == {"head", "linear"}
    assert '"split_at": 2' in found.metadata["settings"]
    assert (tmp_path / "a.safetensors").stat().st_size < 12_000


@pytest.mark.parametrize("training", [True, False])
def test_weights_are_loaded_into_a_network_in_whatever_mode(training):
    net = small_pan(1).train(training)
    assert load_into(net, small_pan().state_dict()) is net
    assert fingerprint(net.state_dict()) == fingerprint(small_pan().state_dict())
    assert {module.training for module in net.modules()} == {training}


def test_a_fingerprint_is_that_of_the_weights_in_whatever_order():
    state = small_pan().state_dict()
    assert fingerprint(dict(reversed(state.items()))) == fingerprint(state) != fingerprint(small_pan(1).state_dict())


def test_loading_onto_another_network_is_refused_and_other_weights_are_a_warning(tmp_path):
    path = tmp_path / "a.safetensors"
    maskguided.save(maskguided.wrap(small_pan()), path)
    with pytest.warns(UserWarning, match="other weights"):
        maskguided.load(path, small_pan(seed=1))
    with pytest.warns(UserWarning, match="other weights; fine if you .* or rounded it to half precision"):
        maskguided.load(path, small_pan().half())
    with pytest.raises(CheckpointError, match="blocks=4; this one has blocks=6"):
        maskguided.load(path, PAN(features=8, up_features=8, blocks=6))
    with pytest.raises(CheckpointError, match="scale=4; this one has scale=2"):
        maskguided.load(path, PAN(features=8, up_features=8, blocks=4, scale=2))
    with (
        pytest.raises(CheckpointError, match=r"this wrapped PAN: head\.squeeze"),
        pytest.warns(UserWarning, match="other weights"),
    ):
        maskguided.load(path, PAN(features=12, up_features=8, blocks=4))
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        maskguided.save(maskguided.wrap(small_pan()), tmp_path / "a.pth")
    from safetensors.torch import save_file

    save_file(STATE, path)
    with pytest.raises(CheckpointError, match=r"no file that maskguided\.save wrote"):
        maskguided.load(path, small_pan())


class Plain(nn.Module):
    def __init__(self, blocks: int, last: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(blocks))
        self.last = nn.Conv2d(8, 12, last, padding=last // 2)

    def forward(self, x):
        y = self.stem(x)
        for block in self.body:
            y = y + block(y)
        return nn.functional.pixel_shuffle(self.last(y), 2)


def test_a_deeper_network_than_a_file_is_for_is_refused_where_its_body_was_found_too(tmp_path):
    path = tmp_path / "a.safetensors"
    maskguided.save(maskguided.wrap(Plain(4)), path)
    with pytest.raises(
        CheckpointError, match=r"a Plain of 4 blocks \(body.0 to body.3\); this one goes on with body.4"
    ):
        maskguided.load(path, Plain(6))
    with pytest.warns(UserWarning, match="with other weights in other layers; fine if it is the same network in anot"):
        maskguided.load(path, Plain(4, last=5))
    with pytest.warns(UserWarning, match="with other weights; fine if you have fine-tuned it since"):
        maskguided.load(path, Plain(4))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_official_pan_weights_fit(scale):
    need_shared()
    model = official_pan(scale)
    assert model(image(1, 3, 8, 9)).shape == (1, 3, 8 * scale, 9 * scale)
    if scale == 4:
        assert sum(p.numel() for p in model.parameters()) == 272_419


@pytest.mark.parametrize("change", [{"settings": None}, {"base": None}, {"settings": "{"}, {"base": "{}"}])
def test_a_file_without_its_settings_is_said_to_be_damaged(change, tmp_path):
    path, net = tmp_path / "pan.safetensors", small_pan()
    maskguided.save(maskguided.wrap(net, 1), path)
    content = read(path)
    header = {name: value for name, value in {**content.metadata, **change}.items() if value is not None}
    save_file(content.tensors, path, metadata=header)
    with pytest.raises(CheckpointError, match=r"pan\.safetensors: damaged"):
        maskguided.load(path, net)


def test_a_file_of_a_training_that_diverged_is_no_head(tmp_path):
    """Its images were black, and nothing said so."""
    path, net = tmp_path / "pan.safetensors", small_pan()
    maskguided.save(maskguided.wrap(net, 1, merge="image"), path)
    content = read(path)
    name = next(name for name in content.tensors if name.startswith("coarse_tail"))
    content.tensors[name].view(-1)[0] = torch.nan
    save_file(content.tensors, path, metadata=content.metadata)
    with pytest.raises(CheckpointError, match=f"NaN or infinity in {name}"):
        maskguided.load(path, net)


def saved_with(path, net, split_at=2, **settings):
    """A file of a wrapped `net`, these settings written over."""
    maskguided.save(maskguided.wrap(net, split_at), path)
    content = read(path)
    changed = json.dumps({**json.loads(content.metadata["settings"]), **settings})
    save_file(content.tensors, path, metadata={**content.metadata, "settings": changed})


@pytest.mark.parametrize(("adapter", "cuts"), [(None, 5), (None, (2, 5)), ("automatic", 5)])
def test_a_file_of_a_deeper_network_is_said_to_be_of_one(adapter, cuts, tmp_path):
    path = tmp_path / "deep.safetensors"
    maskguided.save(maskguided.wrap(PAN(features=8, up_features=8, blocks=6), cuts, adapter=adapter), path)
    with pytest.raises(CheckpointError, match=r"deep\.safetensors: made for a PAN of 6 blocks"):
        maskguided.load(path, small_pan())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"keep": 3}, "keep=3: .* use 0 to 1"),
        ({"colour": 1}, "'colour' is not known"),
        ({"adapter": "mine"}, "no adapter is called 'mine'"),
        ({"min_gain_db": 0.3}, "min_gain_db=0.3: nothing estimates"),
    ],
)
def test_a_setting_that_a_file_has_wrong_is_the_files_fault(settings, text, tmp_path):
    path, net = tmp_path / "pan.safetensors", small_pan()
    saved_with(path, net, **settings)
    with pytest.raises(CheckpointError, match=rf"pan\.safetensors: made for a PAN of 4 blocks.*{text}"):
        maskguided.load(path, net)


def test_a_change_that_is_out_of_range_is_not_the_files_fault(tmp_path):
    path, net = tmp_path / "pan.safetensors", small_pan()
    saved_with(path, net, keep=3)
    assert maskguided.load(path, net, keep=0.5).keep == 0.5
    saved_with(path, net)
    for change in ({"keep": 3}, {"patch_size": 0}, {"min_gain_db": 0.3}):
        with pytest.raises(ArgumentError, match=f"^{next(iter(change))}="):
            maskguided.load(path, net, **change)


def test_a_torch_file_that_cannot_be_written_is_an_oserror_of_that_file(tmp_path):
    """On a full disk a checkpoint of training ended in torch's RuntimeError about its zip file."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"a\.checkpoint") as raised:
            torch_save_whole(tmp_path / "a.checkpoint", {"weights": torch.ones(10000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(tmp_path / "a.checkpoint")
    assert not list(tmp_path.iterdir())
    torch_save_whole(tmp_path / "a.checkpoint", {"weights": torch.ones(10)})
    assert torch.equal(torch.load(tmp_path / "a.checkpoint", weights_only=True)["weights"], torch.ones(10))


@pytest.mark.parametrize(
    "around", [partial(torch.compile, backend="eager"), nn.DataParallel], ids=["compiled", "parallel"]
)
@pytest.mark.parametrize("coarse_tail", ["copy", "deep"])
def test_a_head_fits_a_network_whatever_is_put_around_it(around, coarse_tail, tmp_path):
    net, x = scaled(PAN(features=8, up_features=8, blocks=4)), image(1, 3, 20, 24)
    fast = maskguided.wrap(around(net), 2, merge="image", coarse_tail=coarse_tail, keep=0.5).eval()
    assert fast.unwrap()._modules.keys() <= {"_orig_mod", "module"}
    train_only(fast, "refine")
    with torch.no_grad():
        fast.model.upconv1.weight.mul_(1.1)
    maskguided.save(fast, tmp_path / "a.safetensors")
    for network in (net, around(net)):
        again = maskguided.load(tmp_path / "a.safetensors", network).eval()
        assert again.unwrap() is network
        assert torch.equal(again(x), fast(x))
    assert difference(by_windows(maskguided.wrap(net, 2), x), net(x)) < 1e-5
