"""The command that says what a network is: maskguided inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import inspection
from ..errors import ArgumentError
from ..networks import load_network
from .console import say, working
from .options import (
    Body,
    HeadFile,
    ModelName,
    NetScale,
    SplitAt,
    WeightFile,
    blocks,
    is_starter,
    ready,
)


def inspect_command(
    file: Annotated[Path | None, typer.Argument(help="Weight file, as --weights.", show_default=False)] = None,
    weights: WeightFile = None,
    model: ModelName = None,
    scale: NetScale = None,
    split_at: SplitAt = "auto",
    body: Body = None,
    head: HeadFile = None,
) -> None:
    """Say what the body of a network is, what a cut costs, or why it cannot be split; with --head, what that makes."""
    if file is not None and weights is not None:
        raise ArgumentError(f"{file} and --weights {weights}: two weight files; give one")
    weights = weights or file
    if head is not None or is_starter(weights, model, head, split_at, body):
        loaded, fast = ready(weights, model, scale, head, split_at, body=body)
        found = inspection.inspect(fast)
    else:
        loaded = load_network(weights, model, scale)
        with working("looking at the network"):
            found = inspection.inspect(loaded.model, blocks(split_at), body=body)
    if weights is not None:
        say(f"{weights.name}: {loaded}")
    say(found)
    if not found.can_split:
        raise typer.Exit(1)
