"""A network by name and weight file, as the command line asks for it."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from torch import nn

from .adapter import adapters, named
from .errors import ArgumentError, CheckpointError
from .weights import read

STARTER = "starter"
"""The small x4 network that ships with the package (see pretrained/README.md)."""


def network(model: str | None, weights: str | Path | None, scale: int | None = None) -> nn.Module:
    """Build the network called `model` from a weight file, in eval mode; with neither, the starter network.

    Args:
        model: name of an adapter ("pan", "edsr", "rcan").
        weights: .pth, .pt or .safetensors.
        scale: only where the weights do not tell it (PAN x3).
    """
    if model in (None, STARTER) and weights is None:
        with as_file(files(__package__) / "pretrained" / "starter.safetensors") as path:
            return network("pan", path)
    known = ", ".join(adapters())
    if model is None:
        raise ArgumentError(f"--weights {weights} needs --model; known: {known}")
    adapter = named(model)
    if weights is None:
        raise ArgumentError(f"--model {model} needs --weights FILE; without both, the starter network is used")
    tensors = read(weights).tensors
    try:
        return adapter.build(tensors, scale)
    except KeyError as error:
        raise CheckpointError(
            f"{weights}: no weights of a network that {model!r} knows: there is no {error.args[0]!r} in it"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{weights}: {error}") from None
