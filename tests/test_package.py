"""What is imported when, and in which direction."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import maskguided

PACKAGE = Path(maskguided.__file__).parent
LAYERS = [
    {"errors"},
    {"patches", "probing", "weights", "receptive", "cost", "metrics", "global_ops", "optional"},
    {"exchange", "integrations.basicsr_plugin", "integrations.spandrel_bridge"},
    {"split", "images", "head"},
    {"alignment", "base", "coarse", "context", "curve", "gain", "samples", "windows"},
    {"automatic"},
    {"adapter", "results", "settings"},
    {"knobs"},
    {"guided"},
    {"wrapping"},
    {"networks", "infer", "inspection", "stages", "timing"},
    {"checkpoint", "closed_form", "pool", "prices"},
    {"bench", "calibrate", "export", "finetune"},
    {"pictures"},
    {f"integrations.basicsr_{part}" for part in ("options", "network", "model", "command")},
    {"__init__"},
    {"cli_basicsr", "cli_options"},
    {"cli_export", "cli_train"},
    {"cli"},
    {"__main__"},
]


def short(parts: list[str]) -> str:
    """How LAYERS calls a module: by its first name within the package; bridges one by one, for they differ."""
    return ".".join(parts[: 2 if parts[0] == "integrations" else 1]).removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports from another folder of ours; see `short` for their names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            depth = len(path.relative_to(PACKAGE).parts) - node.level
            inside = path.relative_to(PACKAGE).parts[0] if depth else None
            if inside is None:
                own, parts = [alias.name for alias in node.names], (node.module or "").split(".")
                names = [short([*parts, *own])] if node.module else own
                found |= {"__init__" if name == "__version__" else name for name in names}
    return found


def test_imports_run_one_way():
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("automatic/*.py"), *PACKAGE.glob("integrations/*.py")]:
        own = short(list(path.relative_to(PACKAGE).parts))
        if own == "integrations.__init__":
            continue
        for name in imports_of(path) - {own}:
            allowed = level[name] <= level[own] if own != "__init__" else True
            assert allowed or (own, name) == ("checkpoint", "__init__"), f"{own} imports {name}"


def test_the_core_needs_torch_and_numpy_alone():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "typer rich cv2 safetensors timm basicsr spandrel torchvision".split():
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
import torch, maskguided
from maskguided.adapters.pan_net import PAN
fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4), keep=0.5)
assert fast(torch.rand(1, 3, 20, 20)).shape == (1, 3, 80, 80)
try:
    maskguided.save(fast, "x.safetensors")
except maskguided.MissingDependency as error:
    assert "pip install safetensors" in str(error)
else:
    raise SystemExit("saved without safetensors")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version_is_one():
    from importlib.metadata import version

    assert version("maskguided") == maskguided.__version__
