"""Training that is killed, goes on from a checkpoint, or runs in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import QUICK, wrapped

import maskguided
from maskguided import CheckpointError, MaskGuidedWarning, finetune
from maskguided.finetune import Recipe

pytest.importorskip("timm", reason="training needs timm and accelerate: pip install 'maskguided[train]'")
pytest.importorskip("accelerate", reason="training needs timm and accelerate: pip install 'maskguided[train]'")


PATH = str(Path(__file__).parent)


def test_a_killed_run_goes_on_to_the_same_result(photos, tmp_path):
    straight, killed = wrapped(), wrapped()
    recipe = Recipe(steps=9, batch=2, crop=16, warmup=2)
    finetune.fit(straight, photos, "coarse", recipe)

    class Killed(Exception):
        pass

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 8:
            raise Killed

    with pytest.raises(Killed):
        finetune.fit(killed, photos, "coarse", recipe, checkpoint=tmp_path / "run.pt", every=3, watch=kill)
    again = wrapped()  # another process would start from the network alone
    seen: list[int] = []
    finetune.fit(
        again, photos, "coarse", recipe, checkpoint=tmp_path / "run.pt", watch=lambda step, *_: seen.append(step)
    )
    assert seen == [7, 8, 9]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


KILLED = """
import sys, time, torch
from training_runs import wrapped
from maskguided import finetune
torch.set_num_threads(int(sys.argv[3]))
recipe = finetune.Recipe(steps=40, batch=2, crop=16, warmup=2)
finetune.fit(wrapped(), sys.argv[1], "coarse", recipe, checkpoint=sys.argv[2], every=1,
             watch=lambda *_: (print(flush=True), time.sleep(0.2)))
"""


def test_sigkill_at_any_moment_loses_nothing_but_time(photos, tmp_path):
    """Checkpoints are written all the time here, so that the kill may well fall into the writing of one."""
    (tmp_path / "run.py").write_text(KILLED)
    env = {**os.environ, "PYTHONPATH": PATH, "CUDA_VISIBLE_DEVICES": ""}
    given = (photos, tmp_path / "killed.pt", torch.get_num_threads())
    killed = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", *map(str, given)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    for _ in range(5):
        killed.stdout.readline()
    killed.kill()
    assert killed.wait(60) == -9
    left = torch.load(tmp_path / "killed.pt", weights_only=True)["step"]
    assert 4 <= left < 40
    recipe = Recipe(steps=40, batch=2, crop=16, warmup=2)
    for name in ("killed.pt", "straight.pt"):
        finetune.fit(wrapped(), photos, "coarse", recipe, checkpoint=tmp_path / name, every=1)
    one, other = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("killed", "straight"))
    assert one["step"] == other["step"] == 40
    assert all(torch.equal(a, b) for a, b in zip(one["average"], other["average"], strict=True))


def test_a_checkpoint_of_another_keep_or_of_other_parts_is_refused(photos, tmp_path):
    finetune.fit(wrapped(keep=0.25), photos, "head", QUICK, checkpoint=tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=r"another run, with {'keep': 0.25}"):
        finetune.fit(wrapped(keep=0.5), photos, "head", QUICK, checkpoint=tmp_path / "run.pt")
    other = wrapped(keep=0.25)
    with torch.no_grad():
        for parameter in (*other.head.parameters(), *other.linear.parameters()):
            parameter.add_(1)  # the one is trained, nobody asks for the other
    assert finetune.fit(other, photos, "head", QUICK, checkpoint=tmp_path / "run.pt") == []
    with torch.no_grad():
        next(other.coarse_tail.parameters()).add_(0.01)
    other.scorer = "input"
    with pytest.raises(CheckpointError, match=r"another run, with {'other weights that stay \(--head\)': '\w{16}'}"):
        finetune.fit(other, photos, "head", QUICK, checkpoint=tmp_path / "run.pt")


def test_a_checkpoint_of_another_run_is_refused(photos, tmp_path):
    finetune.fit(wrapped(), photos, "coarse", QUICK, checkpoint=tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match="another run"):
        finetune.fit(wrapped(), photos, "head", QUICK, checkpoint=tmp_path / "run.pt")
    other = wrapped()
    with torch.no_grad():
        other.unwrap().conv_first.bias += 1
    with pytest.raises(CheckpointError, match=r"another run, with {'network': '[0-9a-f]{16}'}"):
        finetune.fit(other, photos, "coarse", QUICK, checkpoint=tmp_path / "run.pt")
    another = maskguided.wrap(wrapped().unwrap(), 3, merge="image", coarse_tail="deep", patch_size=8)
    with pytest.raises(CheckpointError, match=r"another run, with {'split_at': \[2\]}"):
        finetune.fit(another, photos, "coarse", QUICK, checkpoint=tmp_path / "run.pt")
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        finetune.fit(wrapped(), photos, "coarse", QUICK, checkpoint=tmp_path / "bad.pt")


PROCESSES = """
import accelerate, sys, torch
from training_runs import wrapped
from maskguided import finetune
torch.set_num_threads(1)
finetune.fit(wrapped(), sys.argv[1], "coarse", finetune.Recipe(steps=20, batch=4, crop=16, warmup=2),
             checkpoint=sys.argv[2], every=20)
assert accelerate.PartialState().num_processes == 2
torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter, which aborts
"""


def test_two_processes_are_as_good_as_one(photos, tmp_path):
    (tmp_path / "run.py").write_text(PROCESSES)
    env = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, tmp_path / "run.py", photos, tmp_path / "two.pt"],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    recipe = Recipe(steps=20, batch=4, crop=16, warmup=2)
    finetune.fit(wrapped(), photos, "coarse", recipe, checkpoint=tmp_path / "one.pt", every=20)
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True)["parameters"] for count in ("one", "two"))
    assert max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) < 1e-5


def test_other_images_or_windows_than_a_checkpoint_saw_are_named(photos, tmp_path):
    """Other images, or another halo, were taken without a word; a stage that was done then saw none of them."""
    kept = tmp_path / "a.checkpoint"
    finetune.fit(wrapped(), photos, "coarse", QUICK, checkpoint=kept)
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in photos.iterdir():
        (moved / path.name).symlink_to(path)
    assert finetune.fit(wrapped(), moved, "coarse", QUICK, checkpoint=kept) == []
    with pytest.warns(MaskGuidedWarning, match=r"its 6 steps saw other images \(3, \w+, here 1, ") as warned:
        finetune.fit(wrapped(), photos / "coffee.png", "coarse", QUICK, checkpoint=kept)
    assert [warning.filename for warning in warned] == [__file__], "of whoever calls, not of what decorates fit"
    with pytest.raises(CheckpointError, match=r"of another run, with \{'halo': 1\}"):
        finetune.fit(wrapped(halo=2), photos, "coarse", QUICK, checkpoint=kept)
    with pytest.raises(CheckpointError, match=r"of another run, with \{'coarse_on': 'all'\}"):
        finetune.fit(wrapped(coarse_on="unrefined"), photos, "coarse", QUICK, checkpoint=kept)
    content = torch.load(kept, weights_only=True)
    del content["run"]["halo"], content["run"]["exchange"], content["images"]  # as an older version wrote it
    torch.save(content, kept)
    assert finetune.fit(wrapped(), photos, "coarse", QUICK, checkpoint=kept) == []
