"""Another device than the CPU, without having one: see pretend.py. Tests marked `gpu` look at a real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

backends = pytest.importorskip("torch.utils.backend_registration")
HERE = Path(__file__).parent


@pytest.mark.skipif(
    not hasattr(backends, "_setup_privateuseone_for_python_backend"), reason="this torch has no devices in Python"
)
@pytest.mark.parametrize(
    "checks",
    [
        ("the_device_is_one", "timed", "moved", "upscaled_there"),
        ("wrapped_there", "calibrated_there", "the_commands_go_there"),
    ],
)
def test_on_another_device(checks):
    run = subprocess.run([sys.executable, HERE / "device_checks.py", *checks], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
