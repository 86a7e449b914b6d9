"""The workflow of BasicSR's users: our YAML files for a few steps on small data, from a base that basicsr trained."""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from support import difference, need_basicsr
from torch import nn

import maskguided
from maskguided import cli
from maskguided.images import read_image, write_image
from maskguided.integrations import basicsr_command
from maskguided.networks import load_network
from maskguided.weights import read

EXAMPLES = Path(__file__).parents[1] / "examples" / "basicsr"
SMALL = {
    "edsr": {"num_feat": 8, "num_block": 4},
    "rcan": {"num_feat": 8, "num_group": 4, "num_block": 1, "squeeze_factor": 4},
    "pan": {"features": 8, "up_features": 8, "blocks": 4},
}
TRAINS = {"edsr": "head", "rcan": "head", "pan": "coarse"}
"""What each shipped file trains, and thus what may differ afterwards."""


def options_of(file: str) -> dict[str, Any]:
    need_basicsr("basicsr")
    return importlib.import_module("yaml").safe_load((EXAMPLES / f"{file}.yml").read_text())


def write(options: dict[str, Any], name: str) -> str:
    Path(name).write_text(importlib.import_module("yaml").safe_dump(options))
    return name


def small(file: str, **network: Any) -> dict[str, Any]:
    """A shipped file with everything that makes it long made short; all else is as shipped."""
    options, name = options_of(file), file.partition("_")[2]
    options["num_gpu"] = 0
    for dataset in options["datasets"].values():
        dataset.update(dataroot_gt="HR", dataroot_lq="LR")
    assert SMALL[name].keys() <= options["network_g"]["base"].keys()
    options["network_g"]["base"].update(SMALL[name])
    options["network_g"].update({"split_at": 2, "patch_size": 8, **network})
    if "train" in options:
        options["datasets"]["train"].update(
            gt_size=64, num_worker_per_gpu=0, batch_size_per_gpu=2, dataset_enlarge_ratio=4
        )
        options["network_g"]["base_weights"] = f"{name}.pth"
        options["train"].update(total_iter=3)
        options["val"]["val_freq"] = 2
        options["logger"].update(print_freq=1, save_checkpoint_freq=2)
    return options


def plain(name: str) -> dict[str, Any]:
    """What trains the network itself by basicsr alone."""
    options = small(f"train_{name}")
    options.update(name=f"plain_{name}", model_type="SRModel", network_g=options["network_g"]["base"])
    options["train"]["pixel_opt"] = {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}
    return options


def run(phase: str, options: dict[str, Any], *flags: str) -> None:
    file = write(options, f"{phase}_{options['name']}.yml")
    with torch.enable_grad():
        basicsr_command.run(phase, ["-opt", file, *flags])


def models(name: str) -> Path:
    return Path("experiments", name, "models")


def weights(path: Path | str, key: str = "params") -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)[key]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with small images and the networks that basicsr itself has trained on them."""
    need_basicsr("basicsr")
    folder = tmp_path_factory.mktemp("basicsr")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for number in range(3):
            hr = data.astronaut()[number * 80 :][:80, 60:148]
            write_image(Path(f"HR/{number}.png"), np.ascontiguousarray(hr))
            lr = hr.reshape(20, 4, 22, 4, 3).mean((1, 3))
            write_image(Path(f"LR/{number}.png"), lr.round().astype(np.uint8))
        for name in SMALL:
            run("train", plain(name))
            (models(f"plain_{name}") / "net_g_latest.pth").rename(f"{name}.pth")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def work(trained, tmp_path, monkeypatch) -> Path:
    """A folder of its own that sees the images and the networks of `trained`."""
    for entry in ("HR", "LR", *(f"{name}.pth" for name in SMALL)):
        (tmp_path / entry).symlink_to(trained / entry)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What basicsr's logger says."""
    need_basicsr("basicsr")
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("basicsr"), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def said(log: list[str], text: str) -> list[str]:
    return [line for line in log if text in line]


@pytest.mark.parametrize("name", SMALL)
def test_the_shipped_files_train_wrap_and_test_what_basicsr_trained(name, work, log):
    options = small(f"train_{name}")
    run("train", options)
    (line,) = said(log, "parameters")[-1:]
    assert not said(log, "will not be optimized")
    assert not said(log, "random weights")

    saved, base = weights(models(options["name"]) / "net_g_latest.pth"), weights(f"{name}.pth")
    for key, value in base.items():
        assert torch.equal(saved[f"model.{key}"], value), f"{key} of the base has changed"
    head = models(options["name"]) / "net_g_latest_maskguided.safetensors"
    fast = maskguided.load(head, load_network(f"{name}.pth").model).eval()
    part = {"head": fast.head, "coarse": fast.coarse_tail}[TRAINS[name]]
    count = sum(p.numel() for p in part.parameters())
    assert said(log, f"Stage {TRAINS[name]}: training {count:,} of "), line
    first = read(models(options["name"]) / "net_g_2.pth").tensors
    changed = {key.partition(".")[0] for key, value in saved.items() if not torch.equal(first[key], value)}
    assert changed == {"head" if TRAINS[name] == "head" else "coarse_tail"}

    del log[:]
    run("test", small(f"test_{name}"))
    table = said(log, "dense")[-1].splitlines()
    rows = {row.split()[0]: [float(cell) for cell in row.split()[1:]] for row in table[2:]}
    assert list(rows) == ["refined", "coarse", "dense"]
    assert all(math.isfinite(value) for row in rows.values() for value in row)
    assert len({row[0] for row in rows.values()}) == 3
    for number in range(3):
        shown = read_image(Path("results", options["name"], "visualization", "Set5", f"{number}_{options['name']}.png"))
        x = torch.from_numpy(read_image(Path(f"LR/{number}.png"))).permute(2, 0, 1)[None] / 255
        ours = (fast(x)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).byte().numpy()
        assert np.array_equal(shown, ours)


def test_every_shipped_file_is_run():
    assert {path.stem for path in EXAMPLES.iterdir()} == {f"{p}_{name}" for p in ("train", "test") for name in SMALL}


def test_upscale_takes_the_base_of_basicsr_and_the_head_of_the_run(work):
    options = small("train_edsr")
    options["train"]["total_iter"] = 1
    run("train", options)
    head = models(options["name"]) / "net_g_latest_maskguided.safetensors"
    command = ["upscale", "-i", "LR", "-o", "out", "--weights", "edsr.pth", "--head", str(head), "--keep", "0.5"]
    assert main(*command) is None
    assert read_image(Path("out/0_out.png")).shape == (80, 88, 3)


def test_resume_goes_on_on_the_cpu(work, log):
    options = small("train_edsr")
    options["train"]["ema_decay"] = 0.5
    run("train", options)
    options["train"]["total_iter"] = 4
    del log[:]
    run("train", options, "--auto_resume")
    assert said(log, "Resuming training from epoch: 0, iter: 2.")
    assert said(log, "net_g_2.pth: a whole MaskGuidedSR (params)")
    assert said(log, "net_g_2.pth: a whole MaskGuidedSR (params_ema)")
    state = torch.load(Path("experiments", options["name"], "training_states", "4.state"), weights_only=True)
    assert state["optimizers"][0]["state"][0]["step"] == 4
    path = models(options["name"]) / "net_g_4.pth"
    assert not torch.equal(weights(path)["head.squeeze.weight"], weights(path, "params_ema")["head.squeeze.weight"])


def test_a_stage_that_changes_the_base_saves_it_and_learns_from_the_one_that_was_given(work):
    options = small("train_edsr")
    options["train"]["stage"] = "refine"
    run("train", options)
    found = load_network(models(options["name"]) / "net_g_latest_base.pth").model
    given = load_network("edsr.pth").model
    assert torch.equal(found.body[1].conv1.weight, given.body[1].conv1.weight)
    assert not torch.equal(found.body[2].conv1.weight, given.body[2].conv1.weight)
    run_again = model(options, resume_state="x", pretrain_network_g=str(models(options["name"]) / "net_g_2.pth"))
    teacher = run_again.net_g.unwrap()
    assert torch.equal(teacher.body[2].conv1.weight, given.body[2].conv1.weight)
    assert not torch.equal(run_again.net_g.model.body[2].conv1.weight, given.body[2].conv1.weight)


def model(options: dict[str, Any], **path: Any) -> Any:
    """The model that basicsr would build, on the CPU and without its loop."""
    need_basicsr("basicsr")
    basicsr_command.register()
    options = {**options, "is_train": True, "dist": False, "rank": 0, "num_gpu": 0}
    options["path"] = {**options["path"], **path}
    with torch.enable_grad():
        return importlib.import_module("basicsr.models").build_model(options)


def test_base_whole_and_head_files_are_told_apart(work, log):
    options = small("train_edsr", keep=0.3)
    run("train", options)
    folder = models(options["name"])
    whole, head = folder / "net_g_latest.pth", folder / "net_g_latest_maskguided.safetensors"
    options["network_g"]["base_weights"] = None
    saved, base = weights(whole), weights("edsr.pth")

    for path, kind, same in (
        ("edsr.pth", "a plain EDSR (params)", ("model",)),
        (whole, "a whole MaskGuidedSR (params)", ("model", "head")),
    ):
        del log[:]
        found = model(options, pretrain_network_g=str(path)).net_g.state_dict()
        assert said(log, f"{path}: {kind}")
        assert not said(log, "random weights")
        equal = {key for key, value in found.items() if torch.equal(value, saved[key])}
        assert equal >= {key for key in found if key.partition(".")[0] in same}
        assert ("head.squeeze.weight" in equal) == ("head" in same)
    assert all(torch.equal(saved[f"model.{key}"], value) for key, value in base.items())

    del log[:]
    options["path"]["pretrain_network_base"] = "edsr.pth"  # as base_weights
    found = model(options, pretrain_network_g=str(head)).net_g.state_dict()
    assert said(log, "what maskguided.save wrote")
    assert all(torch.equal(value, saved[key]) for key, value in found.items())


@pytest.mark.parametrize("key", ["params", "params_ema"])
def test_param_key_g_says_which_weights_of_a_file(key, work):
    both = {"params": weights("edsr.pth"), "params_ema": {k: v + 1 for k, v in weights("edsr.pth").items()}}
    torch.save(both, "both.pth")
    net = model(small("train_edsr"), pretrain_network_g="both.pth", param_key_g=key).net_g
    assert all(torch.equal(value, both[key][name]) for name, value in net.model.state_dict().items())


def test_a_coarse_tail_is_the_tail_of_the_base_that_is_loaded(work):
    options = small("train_edsr", merge="image", coarse_tail="copy", base_weights=None)
    options["network_g"]["base_weights"] = None
    net = model(options, pretrain_network_g="edsr.pth").net_g.eval()
    x = torch.rand(1, 3, 16, 16)
    net.keep = 0
    state = net.split.skip(net.split.prefix(x))
    assert difference(net(x), net.split.tail(state)) < 1e-6


def test_files_of_other_networks_are_refused(work):
    options = small("train_edsr")
    torch.save({"layer.weight": torch.zeros(1)}, "own.pth")
    for path, why in (("pan.pth", "these weights are not of this EDSR: missing"), ("own.pth", "none of its weights")):
        with pytest.raises(maskguided.CheckpointError, match=f"{path}: {why}"):
            model(options, pretrain_network_g=path)
    run("train", {**options, "train": {**options["train"], "total_iter": 1}})
    folder = models(options["name"])
    options["network_g"]["split_at"] = 3
    with pytest.raises(maskguided.CheckpointError, match="made with split_at=2; this network has split_at=3"):
        model(options, pretrain_network_g=str(folder / "net_g_latest_maskguided.safetensors"))


def test_the_loss_passes_through_distributed_data_parallel(work):
    options = small("train_edsr")
    built = model(options)
    torch.distributed.init_process_group("gloo", init_method=f"file://{work}/store", rank=0, world_size=1)
    try:
        with torch.enable_grad():
            built.net_g = nn.parallel.DistributedDataParallel(built.net_g, find_unused_parameters=True)
            seen = []
            built.net_g.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
            before = built.net_g.module.head.squeeze.weight.clone()
            built.feed_data({"lq": torch.rand(2, 3, 16, 16), "gt": torch.rand(2, 3, 64, 64)})
            built.optimize_parameters(1)
    finally:
        torch.distributed.destroy_process_group()
    assert seen == [torch.Size([])]
    assert not torch.equal(before, built.net_g.module.head.squeeze.weight)
    assert list(built.get_current_log()) == ["l_head"]


def test_tiles_of_the_test_file_are_used(work, log):
    options = small("test_edsr", scorer="input")
    options["path"] = {"pretrain_network_g": "edsr.pth"}
    whole_tables = []
    for tile in (0, 64, 8):
        del log[:]
        options["name"], options["val"]["tile"], options["val"]["tile_pad"] = f"tile_{tile}", tile, 2
        run("test", options)
        whole_tables.append(said(log, "refined")[-1].splitlines()[2:])
    whole, one, small_tiles = whole_tables
    assert whole[:2] == one
    assert len(one) == 2  # without the dense row
    assert small_tiles != one


def main(*arguments: str) -> int | str | None:
    """Exit code of the console script."""
    before = sys.argv
    sys.argv = ["maskguided", *arguments]
    try:
        with torch.enable_grad():
            cli.main()
    except SystemExit as stop:
        return None if stop.code in (None, 0) else stop.code
    finally:
        sys.argv = before
    return None


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
    "other weights": (lambda o: o["network_g"].update(base_weights="pan.pth"), "pan.pth: these weights are not of"),
    "network": (lambda o: o.update(network_g=o["network_g"]["base"]), "MaskGuidedModel takes {type: MaskGuidedSR"),
    "arch": (lambda o: o["network_g"].update(type="MaskGuided"), "did you mean 'MaskGuidedSR'?"),
    "model_type": (lambda o: o.update(model_type="MaskGuided"), "did you mean 'MaskGuidedModel'?"),
    "stage": (lambda o: o["train"].update(stage="haed"), "stage='haed'; use one of"),
    "no stage": (lambda o: o["train"].pop("stage"), "train: stage is missing"),
    "coarse": (lambda o: o["train"].update(stage="coarse"), "there is no coarse tail to train"),
    "stage_opt": (lambda o: o["train"].update(stage_opt={"distil": 1}), "did you mean 'distill'?"),
    "optimizer": (lambda o: o["train"]["optim_g"].update(type="AdamW"), "type: AdamW: basicsr 1.4.2 does not know it"),
    "its arguments": (lambda o: o["train"]["optim_g"].update(momentum=1), "momentum"),
    "number": (lambda o: o["train"]["optim_g"].update(lr="1e-4"), "lr: '1e-4' is text to YAML; write !!float 1e-4"),
    "num_gpu": (lambda o: o.update(num_gpu=99), "set num_gpu: "),
    "data": (lambda o: o["datasets"]["train"].update(dataroot_lq="LRx4"), "train: dataroot_lq: LRx4: no such"),
    "scale": (lambda o: o.update(scale=2), "scale: 2, but the base of network_g enlarges 4 times"),
    "path": (lambda o: o["path"].update(base_weights="edsr.pth"), "basicsr makes a folder of it"),
    "pretrained": (lambda o: o["path"].update(pretrain_network_g="no.pth"), "pretrain_network_g: no.pth: no such file"),
    "resume": (lambda o: o["path"].update(resume_state="no.state"), "resume_state: no.state: no such file"),
    "lack": (lambda o: o["logger"].pop("print_freq"), "the options lack logger: print_freq"),
    "two bases": (lambda o: o["path"].update(pretrain_network_base="pan.pth"), "mean the same; give one"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_options_are_one_sentence_and_exit_code_2(what, work, capfd):
    change, text = WRONG[what]
    options = small("train_edsr")
    change(options)
    assert main("basicsr", "train", "-opt", write(options, "x.yml")) == 2
    seen = capfd.readouterr().err
    assert text in seen
    assert "Traceback" not in seen


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


def test_without_basicsr_the_sentence_has_the_pip_command(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "basicsr", None)
    monkeypatch.delitem(sys.modules, "basicsr.train", raising=False)
    assert main("basicsr", "train", "-opt", "x.yml") == 2
    assert "pip install --no-build-isolation 'maskguided[basicsr]'" in capfd.readouterr().err.replace("\n", " ")


def test_the_console_script_trains_from_an_installed_basicsr(work):
    """In a process of its own, with workers, a flag of basicsr and nothing of its stand-in left behind."""
    options = small("train_edsr")
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    code = (
        "import sys, maskguided.cli as cli; assert 'basicsr' not in sys.modules\n"
        "try: cli.main()\nexcept SystemExit as stop: assert not stop.code\n"
        "assert 'basicsr' in sys.modules\nassert 'torchvision.transforms.functional_tensor' not in sys.modules"
    )
    flags = ["--debug", "--force_yml", "train:total_iter=2", "name=by_flag"]
    done = subprocess.run(
        [sys.executable, "-c", code, "basicsr", "train", "-opt", write(options, "x.yml"), *flags],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in models("debug_by_flag").iterdir()) == [
        "net_g_latest.pth",
        "net_g_latest_maskguided.safetensors",
    ]
    assert not list(Path(importlib.import_module("basicsr").__file__).parents[1].glob("experiments"))


def test_the_recipe_for_lr_images_of_the_page_runs(work):
    page = (EXAMPLES.parents[1] / "docs" / "basicsr.md").read_text()
    (recipe,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    write_image(Path("downloads/DIV2K_train_HR/a.png"), data.astronaut()[:83, :90])
    exec(recipe, {})
    hr, lr = (read_image(Path(f"datasets/DIV2K/{name}/a.png")) for name in ("HR", "LRx4"))
    assert (hr.shape, lr.shape) == ((80, 88, 3), (20, 22, 3))
    assert abs(float(lr.mean()) - float(hr.mean())) < 1


def test_registering_twice_and_importing_leave_nothing_behind():
    registry = need_basicsr("basicsr.utils.registry")
    basicsr_command.register()
    basicsr_command.register()
    assert {"MaskGuidedSR", "PAN"} <= set(registry.ARCH_REGISTRY.keys())
    assert "MaskGuidedModel" in registry.MODEL_REGISTRY
    assert "torchvision.transforms.functional_tensor" not in sys.modules
