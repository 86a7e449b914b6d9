from __future__ import annotations

import doctest
import importlib
import pkgutil

import maskguided


def test_every_example_in_a_docstring_runs():
    names = [m.name for m in pkgutil.walk_packages(maskguided.__path__, "maskguided.") if "__main__" not in m.name]
    modules = [maskguided, *map(importlib.import_module, names), importlib.import_module("maskguided.adapters.pan_net")]
    results = {module.__name__: doctest.testmod(module) for module in modules}
    assert {name for name, result in results.items() if result.failed} == set()
    assert sum(result.attempted for result in results.values()) > 25
