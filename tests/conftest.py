from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr_runs import log, trained, work  # noqa: F401  (fixtures of several files, made once)
from hypothesis import HealthCheck, settings
from support import need_basicsr, scaled

from maskguided.adapters.pan_net import PAN
from maskguided.imaging.images import list_images, read_image, write_image
from maskguided.windows.compiled import COMPILED

settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", parent=settings.get_profile("ci"), max_examples=1000)
settings.load_profile("ci")


if "PYTEST_XDIST_WORKER" in os.environ:  # each worker, and what it starts, takes one core
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _quiet_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def fresh_compiler() -> None:
    """torch.compile compiles a function (MaskGuided.forward) only so often in a process, of whatever network."""
    if not COMPILED:
        pytest.skip("before torch 2.10 windows are not compiled")
    torch.compiler.reset()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of a small PAN x4."""
    path = tmp_path_factory.mktemp("weights") / "pan.pth"
    torch.save({"params": scaled(PAN(features=8, up_features=8, blocks=4), gain=0.5).state_dict()}, path)
    return str(path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three photographs to train on."""
    need_basicsr("basicsr.utils.matlab_functions")
    skimage = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "coffee", "chelsea"):
        write_image(folder / f"{name}.png", getattr(skimage, name)()[:200, :220])
    return folder


@pytest.fixture
def folders(photos: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Three HR images to train on, and as LR of scale 2 every second pixel."""
    for package in ("timm", "accelerate"):
        pytest.importorskip(package, reason="training needs timm and accelerate: pip install 'maskguided[train]'")
    for number, path in enumerate(list_images(photos)[:3]):
        hr = read_image(path)[: 60 + 2 * number, :70]
        write_image(tmp_path / "hr" / f"{number}.png", hr)
        write_image(tmp_path / "lr" / f"{number}.png", np.ascontiguousarray(hr[::2, ::2]))
    return tmp_path / "hr", tmp_path / "lr"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
