"""What a BasicSR run was trained for is in its files, and a run or a test that goes on from them is held against it."""

from __future__ import annotations

from basicsr_runs import main, models, run, said, small, write


def test_a_run_is_not_resumed_at_another_cut(work, capfd):
    options = small("train_edsr", split_at=2)
    run("train", options)
    options["network_g"]["split_at"] = 3
    options["train"]["total_iter"] = 4
    assert main("basicsr", "train", "-opt", write(options, "x.yml"), "--auto_resume") == 2
    assert "made with split_at=2; this network has split_at=3" in " ".join(capfd.readouterr().err.split())
    assert not (models(options["name"]) / "net_g_4.pth").exists()


def test_a_run_is_resumed_under_its_own_name_and_stage(work, capfd):
    options = small("train_pan")
    run("train", options)
    options["train"]["stage"] = "head"
    assert main("basicsr", "train", "-opt", write(options, "x.yml"), "--auto_resume") == 2
    assert "stage: head: the run that is resumed trained something else" in " ".join(capfd.readouterr().err.split())
    options["path"]["resume_state"] = f"experiments/{options['name']}/training_states/2.state"
    options["name"] = "another"
    assert main("basicsr", "train", "-opt", write(options, "x.yml")) == 2
    assert "there is no experiments/another; use the name" in " ".join(capfd.readouterr().err.split())


def test_what_a_resumed_run_does_otherwise_is_said(work, log, capfd):
    """Stages all and joint train the same weights, so that the optimizer's state fits both."""
    options = small("train_edsr")
    options["train"]["stage"] = "all"
    run("train", options)
    options["train"]["stage"] = "joint"
    assert main("basicsr", "train", "-opt", write(options, "x.yml"), "--auto_resume") == 2
    assert "the run that is resumed trained something else (stage all)" in " ".join(capfd.readouterr().err.split())
    options["train"].update(stage="all", total_iter=4)
    options["network_g"]["keep"] = 0.9
    run("train", options, "--auto_resume")
    assert said(log, "The run goes on with another keep: 0.9 (it was 0.25)")


def test_a_file_that_was_moved_is_still_for_its_own_cut(work, capfd):
    run("train", small("train_edsr"))
    (models("MaskGuided_EDSR_x4") / "net_g_latest.pth").rename("moved.pth")
    options = small("test_edsr", split_at=1)
    options["path"]["pretrain_network_g"] = "moved.pth"
    assert main("basicsr", "test", "-opt", write(options, "x.yml")) == 2
    assert "moved.pth: made with split_at=2; this network has split_at=1" in " ".join(capfd.readouterr().err.split())


def test_a_base_and_a_head_that_no_file_holds_are_told_of(work, log):
    run("train", small("train_edsr"))
    options = small("test_edsr")
    options["path"]["pretrain_network_g"] = str(models("MaskGuided_EDSR_x4") / "net_g_latest_maskguided.safetensors")
    run("test", options)
    assert said(log, "The base starts from random weights")
    assert not said(log, "an untrained one chooses")
    log.clear()
    options["path"]["pretrain_network_g"] = "edsr.pth"
    run("test", options)
    assert said(log, "scorer: head, but no head is in edsr.pth: an untrained one chooses the patches")
    assert not said(log, "random weights")
