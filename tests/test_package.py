"""What is imported when, and in which direction."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskguided

PACKAGE = Path(maskguided.__file__).parent
COMMANDS = ("upscale", "inspect", "bench", "calibrate", "finetune", "explain", "export")
LAYERS = [
    {"errors", "values"},
    {f"windows.{name}" for name in ("arguments", "products", "readings", "reductions")} | {"probing.thin", "optional"},
    {"patches", "weights", "metrics", "files"},
    {"imaging.tiff", "imaging.png", "windows.compiled"},
    {"windows.global_ops", "windows.lines"},
    {"cost", "probing.modules", "probing.receptive", "probing.untouched"},
    {"probing.probe"},
    {f"windows.{name}" for name in ("borders", "detours", "exchange", "per_image", "shifts")} | {"parts"},
    {"windows.trial", "integrations.basicsr_plugin", "integrations.spandrel_bridge"},
    {"split", "imaging.images", "head"},
    {"split_checks", "base", "calibration.curve", "gain", "imaging.pairs", "training.samples"},
    {"windows.context", "windows.run", "tails.light", "skip"},
    {"windows.sizes", "tails.coarse", "automatic"},
    {"adapter", "tails.refine", "settings"},
    {"knobs", "splitting"},
    {"held"},
    {"guided"},
    {"wrapping"},
    {"error_map", "networks", "infer", "inspection", "timing", "training.choices"},
    {"checkpoint", "calibration.closed_form", "calibration.inputs", "calibration.prices", "training.stages"},
    {"training.recipe"},
    {"calibration.measure"},
    {"calibration.search"},
    {"bench", "calibrate", "export", "training.pool"},
    {"training.validation"},
    {"training.run"},
    {"finetune", "pictures"},
    {f"integrations.basicsr_{part}" for part in ("kinds", "options", "network", "model", "command")},
    {"__init__"},
    {"commands.console", "commands.options", "commands.results"},
    {"commands.basicsr_yaml", *(f"commands.{name}" for name in COMMANDS)},
    {"cli"},
    {"__main__"},
]
LATE = {  # within a function, when all is loaded
    ("checkpoint", "__init__"),  # the version, into files
    ("integrations.basicsr_plugin", "integrations.basicsr_network"),  # what BasicSR's registries ask for
    ("integrations.basicsr_plugin", "integrations.basicsr_model"),
}


def short(path: Path) -> str:
    """How LAYERS calls a module: by its dotted name within the package; those of automatic/ are one."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0] if parts[0] == "automatic" else ".".join(parts)


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports; see `short` for their names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                candidates = (folder / f"{alias.name}.py", folder.with_suffix(".py"), folder / "__init__.py")
                found.add(short(next(file for file in candidates if file.exists())))
    return found


def test_imports_run_one_way():
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for path in PACKAGE.rglob("*.py"):
        own = short(path)
        for name in imports_of(path) - {own}:
            allowed = level[name] <= level[own] if own != "__init__" else True
            assert allowed or (own, name) in LATE, f"{own} imports {name}"


def test_the_core_needs_torch_and_numpy_alone():
    code = """
import sys
optional = "typer rich cv2 tifffile safetensors timm basicsr spandrel torchvision matplotlib accelerate".split()
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in optional:
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


def test_wrapping_imports_no_compiler():
    """It takes seconds, of each command."""
    code = "import sys, torch; before = set(sys.modules); import maskguided; maskguided.starter(); "
    code += "print(*[name for name in ('torch._inductor', 'torch._dynamo') if name in set(sys.modules) - before])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_version_is_one():
    from importlib.metadata import version

    assert version("maskguided") == maskguided.__version__


def test_what_a_command_wrote_at_the_top_is_not_kept():
    root, written = Path(__file__).parents[1], {".png", ".tif", ".jpg", ".pth", ".safetensors", ".onnx", ".pt2"}
    try:
        tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    assert [name for name in tracked.splitlines() if "/" not in name and Path(name).suffix in written] == []


def test_what_texts_name_is_there():
    """`maskguided.x.y` in a text, as of an error, is something that a reader can call or import."""
    names = {
        name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in re.findall(r"\bmaskguided((?:\.[A-Za-z_]\w*)+)", node.value)
    }
    assert len(names) > 10
    files = (".safetensors", ".adapters", ".png")  # endings of file names, and the entry-point group
    for name in sorted(names - set(files)):
        module, found = maskguided, True
        for part in name[1:].split("."):
            found = found and hasattr(module, part)
            module = getattr(module, part, None)
        assert found, f"maskguided{name}"
