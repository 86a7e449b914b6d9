from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
PAGE = Path(__file__).parents[1] / "docs" / "new_backbone.md"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example):
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    by_hand = example.name == "00_by_hand.py"
    assert f"largest difference to {'maskguided.wrap: 0.0e+00' if by_hand else 'the dense image'}" in done.stdout
    if example.name == "03_new_backbone_adapter.py":
        shown = PAGE.read_text().partition("and prints\n\n```text\n")[2].partition("the parts together")[0]
        assert shown.count("\n") == 4
        assert shown in done.stdout  # multiply-adds are the same everywhere


def test_all_examples_are_there():
    assert len(EXAMPLES) >= 4


def test_the_code_of_the_page_on_new_backbones_runs(tmp_path):
    """What it quotes from its example is there, word for word; all else runs after it, its test under pytest."""
    example = next(path for path in EXAMPLES if path.name == "03_new_backbone_adapter.py").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    quoted = [b for b in blocks if b in example or textwrap.indent(b, "    ") in example]
    assert (len(quoted), len(blocks)) == (2, 5)
    test = tmp_path / "test_page.py"
    test.write_text("\n\n".join([example, *(block for block in blocks if block not in quoted)]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", test]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
