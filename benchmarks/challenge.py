"""Split all entries of an NTIRE challenge on efficient super-resolution: networks that nobody here has adapted.

    git clone https://github.com/ofsoundof/NTIRE2022_ESR        # or Amazingren/NTIRE2024_ESR, NTIRE2025_ESR
    python -m benchmarks.challenge NTIRE2022_ESR

The code in that folder is run: its test_demo.py says how each entry is built. Their weights are not needed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F

from maskguided.integrations.basicsr_plugin import import_basicsr

from .architectures import Architecture
from .networks import HEAD, line, row


class Entry(NamedTuple):
    """A network of a challenge."""

    name: str
    model: nn.Module
    data_range: float
    """What its images are multiplied by, which are in 0..1 elsewhere."""


class _Weights(dict[str, Any]):
    """What stands in a weight file, whatever it is looked for under: nothing."""

    def __missing__(self, key: str) -> _Weights:
        return self


def entries(folder: Path, trained: bool = False) -> tuple[list[int], Callable[[int], Entry]]:
    """The numbers of the entries, and what makes the entry of a number, with its weights if it is to be `trained`; it
    raises what the entry's code raises."""
    if not (folder / "test_demo.py").is_file():
        raise SystemExit(f"{folder}: no test_demo.py there; give a checkout of NTIRE2022_ESR or NTIRE2024_ESR")
    import_basicsr("basicsr.archs")  # some register themselves there
    sys.path.insert(0, str(folder.resolve()))
    source = ast.parse((folder / "test_demo.py").read_text())
    (select,) = (part for part in source.body if isinstance(part, ast.FunctionDef) and part.name == "select_model")
    choice = next(i for i, part in enumerate(select.body) if isinstance(part, ast.If))
    tests = (part for part in ast.walk(select.body[choice]) if isinstance(part, ast.Compare))
    numbers = [ast.literal_eval(test.comparators[0]) for test in tests if ast.unparse(test.left) == "model_id"]
    select.body[choice + 1 :] = ast.parse("return model, data_range").body  # what comes after freezes the weights
    names: dict[str, Any] = {"torch": torch, "os": os, "F": F}
    exec(compile(ast.Module([select], []), str(folder / "test_demo.py"), "exec"), names)

    def build(number: int) -> Entry:
        with weights_of(folder) if trained else no_weights(), contextlib.redirect_stdout(io.StringIO()):
            model, data_range = names["select_model"](argparse.Namespace(model_id=number), torch.device("cpu"))
        return Entry(f"{number} {type(model).__name__}", model.eval(), data_range)

    return numbers, build


@contextlib.contextmanager
def no_weights() -> Iterator[None]:
    """Within it, files of weights need not be there, and nothing is taken from them."""
    blank = patch.object(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
    with blank, patch.object(torch, "load", lambda *args, **kwargs: _Weights()):
        yield


@contextlib.contextmanager
def weights_of(folder: Path) -> Iterator[None]:
    """Within it, weights are read from `folder`, and nothing else is unpickled."""
    read, before = functools.partial(torch.load, map_location="cpu", weights_only=True), Path.cwd()
    os.chdir(folder)
    try:
        with patch.object(torch, "load", lambda path, *args, **kwargs: read(path)):
            yield
    finally:
        os.chdir(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkout of the challenge's code")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of entries; default: all")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    numbers, build = entries(args.folder)
    print("\n".join(HEAD))
    split, refused, not_built = 0, [], []
    for number in args.only or numbers:
        try:
            name, model, _ = build(number)
        except Exception as error:  # whatever a foreign network raises: a package is missing, or a GPU
            not_built.append(f"{number}: {type(error).__name__}: {error}".splitlines()[0])
            continue
        found = row(Architecture(name, model.eval, 4))
        split += not found.reason
        if found.reason:
            refused.append(f"{found.name}: {found.reason}")
        else:
            print(line(found), flush=True)
    print(f"\n{split} split, {len(refused)} not:", *refused, sep="\n- ")
    print(f"\n{len(not_built)} could not be built here:", *not_built, sep="\n- ")


if __name__ == "__main__":
    main()
