"""What the tests of BasicSR's workflow share: small options, and networks that basicsr itself has trained."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from support import need_basicsr

from maskguided import cli
from maskguided.imaging.images import write_image
from maskguided.integrations import basicsr_command

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


@pytest.fixture(scope="session")
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
