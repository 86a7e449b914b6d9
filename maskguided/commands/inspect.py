"""The command that says what a network is: maskguided inspect."""

from __future__ import annotations

import typer

from .. import inspection
from ..networks import load_network
from .console import out
from .options import (
    Body,
    ModelName,
    NetScale,
    SplitAt,
    WeightFile,
    blocks,
)


def inspect_command(
    model: ModelName = None,
    weights: WeightFile = None,
    scale: NetScale = None,
    split_at: SplitAt = "auto",
    body: Body = None,
) -> None:
    """Say what the body of a network is, what a cut costs, or why it cannot be split."""
    loaded = load_network(weights, model, scale)
    if weights is not None:
        out.print(f"{weights.name}: {loaded}", markup=False)
    found = inspection.inspect(loaded.model, blocks(split_at), body=body)
    out.print(str(found), markup=False)
    if not found.can_split:
        raise typer.Exit(1)
