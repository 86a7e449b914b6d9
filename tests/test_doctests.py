from __future__ import annotations

import doctest
import importlib
import pkgutil
import warnings
from types import ModuleType

from support import IN_CI

import maskguided
from maskguided.errors import MissingDependency


def imported(name: str) -> list[ModuleType]:
    """The module; none where it needs a package that is not installed, a failure in CI."""
    try:
        return [importlib.import_module(name)]
    except MissingDependency as error:
        if IN_CI:
            raise
        warnings.warn(f"examples of {name} did not run: {error}", stacklevel=2)
        return []


def test_every_example_in_a_docstring_runs():
    names = [m.name for m in pkgutil.walk_packages(maskguided.__path__, "maskguided.") if "__main__" not in m.name]
    found = [module for name in [*names, "maskguided.adapters.pan_net"] for module in imported(name)]
    results = {module.__name__: doctest.testmod(module) for module in [maskguided, *found]}
    assert {name for name, result in results.items() if result.failed} == set()
    assert sum(result.attempted for result in results.values()) > 25
