"""What is wrong in BasicSR's YAML files and flags is said in one sentence, with exit code 2."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from basicsr_runs import main, run, small, write

from maskguided import MaskGuidedWarning
from maskguided.imaging.images import write_image

WRONG = {
    "unknown key": (lambda o: o["network_g"].update(kep=0.5), "'kep' is not known; did you mean 'keep'?"),
    "key of the base": (lambda o: o["network_g"]["base"].update(num_blok=3), "base (EDSR): 'num_blok' is not known"),
    "type of the base": (lambda o: o["network_g"]["base"].update(type="EDSRR"), "did you mean 'EDSR'?"),
    "base": (lambda o: (o["network_g"].pop("base"), o["network_g"].pop("base_weights")), "needs a network to wrap"),
    "argument of the base": (lambda o: o["network_g"]["base"].pop("num_in_ch"), "num_in_ch"),
    "key of the head": (lambda o: o["network_g"].update(head={"hiden": 3}), "head: 'hiden' is not known"),
    "value": (lambda o: o["network_g"].update(keep=1.5), "keep=1.5"),
    "split_at": (lambda o: o["network_g"].update(split_at=9), "use 1 to 3"),
    "weights": (lambda o: o["network_g"].update(base_weights="no.pth"), "base_weights: no.pth: no such file"),
    "a folder": (lambda o: o["network_g"].update(base_weights="."), "base_weights: .: a folder; name a file in it"),
    "distill": (lambda o: o["train"].update(stage_opt={"distill": "x"}), "distill='x': the dense image's share"),
    "steps": (lambda o: o["train"].update(total_iter=-3), "train: total_iter: -3: use more than 0"),
    "other weights": (lambda o: o["network_g"].update(base_weights="pan.pth"), "pan.pth: these weights are not of"),
    "network": (lambda o: o.update(network_g=o["network_g"]["base"]), "MaskGuidedModel takes {type: MaskGuidedSR"),
    "arch": (lambda o: o["network_g"].update(type="MaskGuided"), "did you mean 'MaskGuidedSR'?"),
    "model_type": (lambda o: o.update(model_type="MaskGuided"), "did you mean 'MaskGuidedModel'?"),
    "stage": (lambda o: o["train"].update(stage="haed"), "stage='haed'; use one of"),
    "no stage": (lambda o: o["train"].pop("stage"), "train: stage is missing"),
    "coarse": (lambda o: o["train"].update(stage="coarse"), "there is no coarse tail to train"),
    "stage_opt": (lambda o: o["train"].update(stage_opt={"distil": 1}), "did you mean 'distill'?"),
    "stage_opt, a word": (lambda o: o["train"].update(stage_opt="psnr"), "stage_opt: 'psnr': use entries"),
    "size of crops": (lambda o: o["datasets"]["train"].update(gt_size=62), "gt_size: 62: HR pixels; use a multiple of"),
    "print_freq": (lambda o: o["logger"].update(print_freq="often"), "logger: print_freq: 'often' is text"),
    "optimizer": (lambda o: o["train"]["optim_g"].update(type="AdamW"), "type: AdamW: basicsr 1.4.2 does not know it"),
    "scheduler": (lambda o: o["train"]["scheduler"].update(type="Cosine"), "Cosine: basicsr 1.4.2 does not know"),
    "its milestones": (lambda o: o["train"]["scheduler"].update(milestone=[1]), "train: scheduler: "),
    "dataset": (lambda o: o["datasets"]["train"].update(type="PairedImage"), "did you mean 'PairedImageDataset'?"),
    "no paths": (lambda o: o.update(path=None), "path: None: use entries"),
    "no datasets": (lambda o: o.update(datasets=None), "datasets: None: use entries"),
    "its arguments": (lambda o: o["train"]["optim_g"].update(momentum=1), "momentum"),
    "number": (lambda o: o["train"]["optim_g"].update(lr="1e-4"), "lr: '1e-4' is text to YAML; write !!float 1e-4"),
    "num_gpu": (lambda o: o.update(num_gpu=99), "set num_gpu: "),
    "data": (lambda o: o["datasets"]["train"].update(dataroot_lq="LRx4"), "train: dataroot_lq: LRx4: no such"),
    "scale": (lambda o: o.update(scale=2), "scale: 2, but the base of network_g enlarges 4 times"),
    "path": (lambda o: o["path"].update(base_weights="edsr.pth"), "basicsr makes a folder of it"),
    "pretrained": (lambda o: o["path"].update(pretrain_network_g="no.pth"), "pretrain_network_g: no.pth: no such file"),
    "resume": (lambda o: o["path"].update(resume_state="no.state"), "resume_state: no.state: no such file"),
    "lack": (lambda o: o["logger"].pop("print_freq"), "the options lack logger: print_freq"),
    "tile": (lambda o: o["val"].update(tile="all"), "val: tile: 'all' is text"),
    "half a tile": (lambda o: o["val"].update(tile=1.5), "val: tile: 1.5: use a whole number"),
    "batch": (lambda o: o["datasets"]["train"].update(batch_size_per_gpu=16), "use dataset_enlarge_ratio: 6 or more"),
    "batch, listed": (
        lambda o: o["datasets"]["train"].update(meta_info_file="two.txt", batch_size_per_gpu=9),
        "train: 2 images of HR, 4 times each, are less than batch_size_per_gpu: 9",
    ),
    "an empty list": (lambda o: o["datasets"]["train"].update(meta_info_file="none.txt"), "none.txt names no image"),
    "backend": (lambda o: o["datasets"]["train"]["io_backend"].update(type="lmdb"), "io_backend: type: lmdb is for"),
    "crops": (lambda o: o["datasets"]["train"].update(gt_size=96), "is smaller than patch size (24, 24)"),
    "crops, workers": (
        lambda o: o["datasets"]["train"].update(gt_size=96, num_worker_per_gpu=1), "datasets: LQ (20, 22) is smaller"
    ),
    "pairs": (lambda o: o["datasets"]["train"].update(dataroot_gt="more"), "lq and gt datasets have different"),
    "name": (lambda o: o.update(name=2026), "name: 2026: use text, in quotes where it is digits"),
    "seed": (lambda o: o.update(manual_seed="x"), "manual_seed: 'x': use a whole number"),
    "a data set": (lambda o: o["datasets"].update(val="Set5"), "datasets: val: 'Set5': use entries"),
    "folder": (lambda o: o["datasets"]["train"].update(dataroot_gt=5), "datasets: train: dataroot_gt: 5: use text"),
    "base, a word": (lambda o: o["network_g"].update(base="EDSR"), "network_g: base: 'EDSR': use entries"),
    "a phase": (lambda o: o["datasets"].update(valid=o["datasets"].pop("val")), "valid: a training run takes train"),
    "head, a number": (lambda o: o["network_g"].update(head=8), "network_g: head: 8: use entries"),
    "two bases": (lambda o: o["path"].update(pretrain_network_base="pan.pth"), "mean the same; give one"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_options_are_one_sentence_and_exit_code_2(what, work, capfd):
    change, text = WRONG[what]
    options = small("train_edsr")
    change(options)
    write_image(Path("more/0.png"), np.zeros((80, 88, 3), np.uint8))  # one image, where LR has three
    Path("two.txt").write_text("0.png (80,88,3)\n1.png (80,88,3)\n")
    Path("none.txt").touch()
    assert main("basicsr", "train", "-opt", write(options, "x.yml")) == 2
    seen = capfd.readouterr().err
    assert text in seen
    assert "Traceback" not in seen


FOUND_LATE = {
    "metric": (lambda o: o["val"]["metrics"]["psnr"].update(type="calculate_pnsr"), "did you mean 'calculate_psnr'?"),
    "no type of it": (lambda o: o["val"]["metrics"]["psnr"].pop("type"), "val: metrics: psnr: type"),
    "border": (lambda o: o["val"]["metrics"]["ssim"].pop("crop_border"), "lack val: metrics: ssim: crop_border"),
    "border, a word": (lambda o: o["val"]["metrics"]["ssim"].update(crop_border="4"), "use a whole number"),
    "metrics": (lambda o: o["val"].update(metrics=["psnr"]), "val: metrics: ['psnr']: use entries"),
    "never": (lambda o: o["val"].update(val_freq=0), "val: val_freq: 0: use more than 0"),
    "none": (lambda o: o["logger"].update(save_checkpoint_freq=None), "save_checkpoint_freq: None: use a number"),
    "no crops": (lambda o: o["datasets"]["train"].pop("gt_size"), "lack datasets: train: gt_size"),
    "no folder": (lambda o: o["datasets"]["train"].update(dataroot_lq=None), "lack datasets: train: dataroot_lq"),
    "no backend": (lambda o: o["datasets"]["val"].pop("io_backend"), "lack datasets: val: io_backend"),
}  # fmt: skip
"""What basicsr would stumble over in the run, with a traceback; a metric at the first validation."""


EARLY = (
    *("stage", "no stage", "stage_opt", "coarse", "optimizer", "scheduler", "its milestones", "its arguments", "pairs"),
    *("unknown key", "key of the base", "value", "split_at", "other weights"),
)


@pytest.mark.parametrize("what", [*EARLY, *FOUND_LATE])
def test_an_older_run_stays_where_it_is(what, work, capfd):
    options = small("train_edsr")
    change, text = (FOUND_LATE if what in FOUND_LATE else WRONG)[what]
    change(options)
    write_image(Path("more/0.png"), np.zeros((80, 88, 3), np.uint8))
    (older := Path("experiments") / options["name"]).mkdir(parents=True, exist_ok=True)
    assert main("basicsr", "train", "-opt", write(options, "x.yml")) == 2
    assert text in capfd.readouterr().err
    assert older.exists()
    assert not list(older.parent.glob(f"{options['name']}_archived*"))


WRONG_COMMANDS = {
    "no file": (["train"], "-opt FILE is missing"),
    "missing file": (["train", "-opt", "no.yml"], "-opt no.yml: No such file"),
    "broken": (["train", "-opt", "broken.yml"], "broken.yml: not valid YAML"),
    "a list": (["train", "-opt", "list.yml"], "list.yml: a YAML file of options is needed"),
    "launcher": (["train", "-opt", "x.yml", "--launcher", "pytorch"], "--launcher pytorch: "),
    "force_yml": (["train", "-opt", "x.yml", "--force_yml", "trian:total_iter=3"], "KeyError 'trian'"),
    "force_yml value": (["train", "-opt", "x.yml", "--force_yml", "num_gpu=99"], "num_gpu: 99 but "),
    "metrics": (["test", "-opt", "single.yml"], "there is no dataroot_gt to compare with"),
    "val": (["test", "-opt", "no_val.yml"], "the options lack val: save_img"),
}


@pytest.mark.parametrize("what", WRONG_COMMANDS)
def test_wrong_commands_are_one_sentence_and_exit_code_2(what, work, capfd):
    Path("broken.yml").write_text("name: [a\nb")
    Path("list.yml").write_text("- a")
    write(small("train_edsr"), "x.yml")
    test = small("test_edsr")
    test["path"] = {"pretrain_network_g": "edsr.pth"}
    test["datasets"] = {"test_1": {"name": "own", "type": "SingleImageDataset", "dataroot_lq": "LR"}}
    write(test, "single.yml")
    test.pop("val")
    write(test, "no_val.yml")
    arguments, text = WRONG_COMMANDS[what]
    before = list(sys.argv)
    assert main("basicsr", *arguments) == 2
    assert text in capfd.readouterr().err
    assert sys.argv == before


def test_entries_that_are_nearly_known_are_told_of(work):
    options = small("train_edsr")
    options["train"].update(ema_decy=0.9, mine=1)
    options["val"]["tile_padd"] = 4
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run("train", options)
    told = [str(warning.message) for warning in seen if issubclass(warning.category, MaskGuidedWarning)]
    assert told == [
        "train: ema_decy is not known and does nothing; did you mean ema_decay?",
        "val: tile_padd is not known and does nothing; did you mean tile_pad?",
    ]


def test_a_folder_that_hides_basicsr_is_named(monkeypatch, tmp_path, capfd):
    for name in [name for name in sys.modules if name.partition(".")[0] == "basicsr"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "basicsr").mkdir()
    (tmp_path / "basicsr" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert main("basicsr", "train", "-opt", "x.yml") == 2
    del sys.modules["basicsr"]  # not by monkeypatch, which would bring it back
    seen = " ".join(capfd.readouterr().err.split())
    assert f"basicsr.train is not in {tmp_path / 'basicsr'}, which is imported as basicsr: rename that folder" in seen


def test_without_basicsr_the_sentence_has_the_pip_command(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "basicsr", None)
    monkeypatch.delitem(sys.modules, "basicsr.train", raising=False)
    assert main("basicsr", "train", "-opt", "x.yml") == 2
    assert "pip install --no-build-isolation 'maskguided[basicsr]'" in capfd.readouterr().err.replace("\n", " ")
