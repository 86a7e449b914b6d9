"""The workflow of BasicSR's users: our YAML files for a few steps on small data, from a base that basicsr trained."""

from __future__ import annotations

import importlib
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from basicsr_runs import EXAMPLES, SMALL, TRAINS, main, models, run, said, small, weights, write
from skimage import data
from support import difference, image, need_basicsr
from torch import nn

import maskguided
from maskguided.imaging.images import read_image, write_image
from maskguided.integrations import basicsr_command
from maskguided.integrations.basicsr_kinds import check_registered
from maskguided.integrations.basicsr_network import MaskGuidedSR
from maskguided.integrations.basicsr_options import check
from maskguided.networks import load_network
from maskguided.weights import read


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


def test_a_trained_head_is_not_tested_at_another_cut(work, log, capfd):
    """The weights fit there as well, so the table was of a head that nobody had trained for it."""
    options = small("train_edsr")
    options["train"]["total_iter"] = 1
    run("train", options)
    file = write(small("test_edsr", split_at=1), "x.yml")
    assert main("basicsr", "test", "-opt", file) == 2
    assert "made with split_at=2; this network has split_at=1" in " ".join(capfd.readouterr().err.split())
    assert main("basicsr", "test", "-opt", file, "--force_yml", "network_g:scorer=input") is None  # no head is asked


def test_crops_of_one_patch_are_warned_of(work, log):
    options = small("train_edsr", patch_size=16)
    run("train", options)
    assert said(log, "gt_size: 64: stage='head': a crop of 16 LR pixels is one patch of patch_size=16")


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


def test_the_average_of_what_does_not_train_is_what_was_given(work):
    """Each step rounded it a little, so that a second base was written and the head was of that one."""
    options = small("train_edsr")
    options["train"].update(total_iter=1, ema_decay=0.9)
    run("train", options)
    saved = weights(models(options["name"]) / "net_g_latest.pth", "params_ema")
    assert all(torch.equal(saved[f"model.{key}"], value) for key, value in weights("edsr.pth").items())
    assert not (models(options["name"]) / "net_g_latest_base.pth").exists()


def test_images_without_a_pair_are_measured_by_what_needs_none(work):
    options = small("test_edsr")
    data_set = {"phase": "test", "name": "own", "type": "SingleImageDataset", "dataroot_lq": "LR"}
    options.update(dist=False, datasets={"test_1": data_set})
    options["path"] = {"pretrain_network_g": "edsr.pth"}
    with pytest.raises(maskguided.ArgumentError, match="no dataroot_gt to compare with"):
        check(options, "test")
    options["val"]["metrics"] = {"niqe": {"type": "calculate_niqe", "crop_border": 4}}
    check(options, "test")


def test_a_state_that_was_half_written_is_named(work, capfd):
    options = small("train_edsr")
    run("train", options)
    state = Path("experiments", options["name"], "training_states", "2.state")
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    assert main("basicsr", "train", "-opt", write(options, "x.yml"), "--auto_resume") == 2
    seen = " ".join(capfd.readouterr().err.split())
    assert "2.state: no training state that can be read" in seen
    assert "Traceback" not in seen


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


def test_a_base_that_came_by_another_way_than_base_weights_has_a_file_of_its_own(work):
    """Else `upscale --weights` is given that of base_weights, and makes another network's image."""
    options, other = small("train_edsr"), weights("edsr.pth")
    torch.save({"params": {name: value * 1.1 for name, value in other.items()}}, "other.pth")
    options["path"]["pretrain_network_g"] = "other.pth"
    run("train", options)
    saved = weights(models(options["name"]) / "net_g_latest_base.pth")
    assert all(torch.equal(saved[name], value * 1.1) for name, value in other.items())


def test_a_run_that_diverges_stops_before_it_spoils_the_weights(work, capfd):
    options = small("train_edsr")
    options["train"].update(total_iter=50)
    options["train"]["optim_g"]["lr"] = 1e30
    assert main("basicsr", "train", "-opt", write(options, "x.yml")) == 2
    assert "use a smaller optim_g: lr" in " ".join(capfd.readouterr().err.split())


def test_auto_resume_tells_of_an_older_run_that_was_moved_aside(work, capfd):
    options = small("train_edsr")
    options["train"]["total_iter"] = 1
    Path("experiments", f"{options['name']}_archived_1").mkdir(parents=True)
    assert not main("basicsr", "train", "-opt", write(options, "x.yml"), "--auto_resume")
    assert "the run begins anew; an older one of that name is in" in " ".join(capfd.readouterr().err.split())


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

    torch.save({"params": {key: value for key, value in saved.items() if key != "linear.root"}}, "older.pth")
    assert model(options, pretrain_network_g="older.pth").net_g.linear.root == 1, "its score saw no roots"

    del log[:]
    options["path"]["pretrain_network_base"] = "edsr.pth"  # as base_weights
    found = model(options, pretrain_network_g=str(head)).net_g.state_dict()
    assert said(log, "what maskguided.save wrote")
    assert all(torch.equal(value, saved[key]) for key, value in found.items())


def test_what_is_shown_with_no_patch_refined_leaves_keep_as_it_is(work):
    built, shown = model(small("train_edsr", keep=0.3)), {}
    built.feed_data({"lq": image(1, 3, 16, 16)})
    for view in ("coarse", "refined"):
        built.view = view
        built.test()
        shown[view] = built.output
        assert built.net_g.keep == 0.3
    assert not torch.equal(shown["refined"], shown["coarse"])


@pytest.mark.parametrize("key", ["params", "params_ema"])
def test_param_key_g_says_which_weights_of_a_file(key, work):
    both = {"params": weights("edsr.pth"), "params_ema": {k: v + 1 for k, v in weights("edsr.pth").items()}}
    torch.save(both, "both.pth")
    net = model(small("train_edsr"), pretrain_network_g="both.pth", param_key_g=key).net_g
    assert all(torch.equal(value, both[key][name]) for name, value in net.model.state_dict().items())


def test_networks_that_basicsr_has_under_another_name_are_found():
    """Real-ESRGAN's files say SRVGGNetCompact, which basicsr finds as SRVGGNetCompact_basicsr."""
    base = {"type": "SRVGGNetCompact", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_conv": 4, "upscale": 4}
    registries = need_basicsr("basicsr.utils.registry")
    check_registered("network_g: type", "SRVGGNetCompact", registries.ARCH_REGISTRY)
    check_registered("model_type", "RealESRNetModel", registries.MODEL_REGISTRY)
    check_registered("datasets: train: type", "RealESRGANDataset", registries.DATASET_REGISTRY)
    assert type(MaskGuidedSR(base=base).model).__name__ == "SRVGGNetCompact"


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
    (log,) = models("debug_by_flag").parent.glob("train_*.log")
    for told in (done.stderr, log.read_text()):
        assert "Start training" in told
        assert "l_" in told
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


def test_files_of_images_that_decide_load_where_keep_does(work, tmp_path):
    """Of a wrap that `calibrate(per_image=True)` has made, basicsr's network takes everything but that."""
    need_basicsr("basicsr")
    settings = {"base": small("train_edsr")["network_g"]["base"], "split_at": 2, "context": "linear"}
    decides, fixed = (MaskGuidedSR(**settings).eval() for _ in range(2))
    pairs = [(image(1, 3, 32, 32, seed=n), image(1, 3, 128, 128, seed=n + 9)) for n in range(2)]
    maskguided.calibrate(decides, pairs, per_image=True)
    maskguided.save(decides, tmp_path / "head.safetensors")
    torch.save({"params": decides.state_dict()}, tmp_path / "whole.pth")
    with pytest.warns(UserWarning, match="other weights"):
        assert "head and coarse tail loaded" in fixed.load(tmp_path / "head.safetensors")
    assert "a whole MaskGuidedSR" in fixed.load(tmp_path / "whole.pth")
    assert (fixed.min_gain_db, fixed.estimate) == (None, None)
    assert torch.equal(fixed.linear.weight, decides.linear.weight)
    assert "head and coarse tail loaded" in decides.load(tmp_path / "head.safetensors")
