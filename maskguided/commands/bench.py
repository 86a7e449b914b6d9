"""The command that measures a wrapped network beside the dense one: maskguided bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from .. import bench, checkpoint, pictures
from ..errors import ArgumentError
from ..files import write_whole
from ..imaging.pairs import Pair, read_pairs
from ..networks import load_network
from ..probing.modules import first_weight
from ..probing.probe import Probe, probe_network, runs_channels_last
from ..probing.untouched import untouched
from ..timing import alternate
from .console import out, progress_bar, say
from .options import (
    Body,
    Device,
    HeadFile,
    Images,
    Inputs,
    ModelName,
    NetScale,
    Overwrite,
    WeightFile,
    blocks,
    inputs_of,
    is_starter,
    new_file,
    new_picture,
    pick_device,
    pick_dtype,
    use_threads,
)

_WIDEST = 200
"""Columns of a table in a file, which would be cut to 80 as that of an unknown terminal."""
_ROUNDS = (3, 15)
_SECONDS = 3.0
"""For the dense network, unless that is fewer or more rounds than these."""


def bench_command(
    images: Images = None,
    input: Inputs = None,
    hr: Annotated[Path | None, typer.Option(help="HR image or folder, for PSNR; the same names.")] = None,
    weights: WeightFile = None,
    model: ModelName = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: Annotated[str, typer.Option(help="One or several, as 4,8,12; auto: half.")] = "auto",
    body: Body = None,
    keep: Annotated[
        str | None, typer.Option(help="One or several.", show_default="0,0.25,0.5; with a head 0 and the head's")
    ] = None,
    min_gain: Annotated[
        str | None,
        typer.Option(help="dB, one or several: each image decides; for a --head of calibrate --per-image."),
    ] = None,
    patch_size: Annotated[str, typer.Option(help="One or several; auto: what suits the network.")] = "auto",
    halo: Annotated[str, typer.Option(help="One or several; auto: what suits the network.")] = "auto",
    merge: Annotated[
        str | None,
        typer.Option(help="features, image, or both as features,image.", show_default="features, or the head's"),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="How often everything is run in turn.", min=1, show_default="3; up to 15 of what takes a moment"
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[
        str, typer.Option(help="fp32, fp16, bf16, or auto: fp16 on a GPU if the network is fit for it.")
    ] = "fp32",
    threads: Annotated[
        int, typer.Option(help="CPU threads; more than one is unsteady on a shared machine.", min=1)
    ] = 1,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--no-channels-last",
            help="Memory format, for both sides.",
            show_default="channels-last, if the network runs so",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the rows here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table here, as Markdown.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw quality against time and MACs here (.png, .pdf, .svg).")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Dense against coarse against keep: time, MACs and, with --hr, PSNR, all in one run."""
    inputs = inputs_of("bench", images, input)
    if merge is None and is_starter(weights, model, head, split_at, body):
        head = checkpoint.STARTER_HEAD
    elif head is None and (keep, min_gain) == (None, None):
        keep = "0,0.25,0.5"
    elif head is not None and (split_at, body, merge) != ("auto", None, None):
        raise ArgumentError(f"--head {head} has its own split, blocks and merge; give either it or them")
    for path, suffix in ((json_file, ".json"), (markdown, ".md")):
        if path is not None:
            new_file(path, overwrite, suffix)
    if plot is not None:
        new_picture(plot, overwrite, *inputs, hr)
    keeps, least = _numbers("keep", keep), _numbers("min_gain", min_gain)
    settings = [
        bench.Setting(
            merge="image" if m == "image" else "features",
            split_at=blocks(n),
            patch_size=_size(p),
            halo=_size(h),
            keeps=keeps,
            head=head,
            min_gains=least,
            body=body,
        )
        for m in _listed("merge", merge or "features", ("features", "image").index, "features, image or both")
        for n in _listed("split_at", split_at, blocks, "auto, or numbers of blocks")
        for p in _listed("patch_size", patch_size, _size, "auto, or whole numbers of LR pixels")
        for h in _listed("halo", halo, _size, "auto, or whole numbers of LR pixels")
    ]
    use_threads(threads)
    where = pick_device(device)
    loaded = load_network(weights, model, scale)
    net = loaded.model.to(where, pick_dtype(dtype, where, loaded.supports_half))
    probe, like = probe_network(net), first_weight(net)
    last = runs_channels_last(net, probe.input(*probe.sizes[0])) if channels_last is None else channels_last
    net = net.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    pairs = read_pairs(inputs, hr, like.device, like.dtype, last, grey=probe.in_channels == 1)
    rounds = _rounds(net, probe, pairs) if rounds is None else rounds
    with progress_bar() as progress:
        task = progress.add_task("all settings and rounds", total=bench.steps(pairs, settings, rounds), unit="images")
        rows = bench.measure(net, pairs, settings, rounds, lambda: progress.advance(task))
    place = inputs[0].resolve().name + (f" and {len(inputs) - 1} more" if inputs[1:] else "")
    what = f"{_several(len(pairs), 'image')} of {place}, {type(net).__name__}, {bench.machine(threads, where)}"
    how = f"{dtype}, {'channels_last' if last else 'contiguous'}, {_several(rounds, 'round')}"
    header = f"{what}, {how}; {_dense(rows[0])}"
    say(header)
    console = out if out.is_terminal else Console(width=_WIDEST, highlight=False)
    console.print(_table(rows))
    if json_file is not None:
        content = json.dumps({"machine": header, "rows": [asdict(row) for row in rows]}, indent=1)
        write_whole(json_file, lambda beside: beside.write_text(f"{content}\n"))
    if plot is not None:
        pictures.bench_picture(rows, plot)
    if markdown is not None:
        text = f"{header}\n\n{_markdown(rows)}\n"
        write_whole(markdown, lambda beside: beside.write_text(text, errors="surrogateescape"))  # a folder's name


def _rounds(net: nn.Module, probe: Probe, pairs: Sequence[Pair]) -> int:
    """Enough for a median that tells: what takes a moment varies most, and costs little to repeat."""
    height, width = probe.round_size
    with untouched(net):  # what a network keeps of a forward under inference_mode cannot be written later
        (small,) = alternate({"dense": net}, [probe.input(height, width)], 1)["dense"]
    pixels = sum(pair.lr.shape[2] * pair.lr.shape[3] for pair in pairs)
    least, most = _ROUNDS
    return min(max(least, int(_SECONDS / (small * pixels / (height * width)))), most)


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def _dense(row: bench.Row) -> str:
    """What the dense network takes and reaches."""
    quality = "" if row.dense_psnr is None else f", PSNR {row.dense_psnr:.2f} dB (Y, uint8, border = scale)"
    return f"dense: {row.dense_seconds:.2f} s{quality}"


def _lines(rows: list[bench.Row]) -> list[tuple[str, ...]]:
    """The heads of the columns, and the cells of each row; there is a min gain where an image decides, and a PSNR where
    there are HR images."""
    free, known = any(row.min_gain_db is not None for row in rows), rows[0].psnr is not None
    heads = ("merge", "split", "patch", "halo", *(["min gain"] if free else []), "keep", "MACs", "time", "spread")
    lines = [(*heads, *(["PSNR-Y", "to dense"] if known else []), "like dense")]
    for row in rows:
        least = "" if row.min_gain_db is None else f"{row.min_gain_db:g}"
        spread = "-" if row.spread is None else f"{row.spread:.0%}"
        quality = () if row.to_dense is None else (f"{row.psnr:.2f}", f"{row.to_dense:+.2f}")
        lines.append((
            row.merge, str(row.split_at), str(row.patch_size), str(row.halo), *([least] if free else []),
            f"{row.keep:.3g}", f"{row.macs_ratio:.3f}", f"{row.time_ratio:.3f}", spread, *quality,
            "same" if row.fidelity is None else f"{row.fidelity:.2f}",
        ))  # fmt: skip
    return lines


def _table(rows: list[bench.Row]) -> Table:
    heads, *lines = _lines(rows)
    caption = "MACs and time: ratio to the dense network of the same run; like dense: PSNR-Y to its images"
    # so narrow that 80 columns are enough for all digits
    table = Table(
        *(head.replace(" ", "\n") for head in heads),
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption=caption,
        caption_justify="left",
    )
    for line in lines:
        table.add_row(*line)
    return table


def _markdown(rows: list[bench.Row]) -> str:
    heads, *lines = _lines(rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ("---",) * len(heads), *lines))


def _size(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _numbers(name: str, text: str | None) -> tuple[float, ...]:
    return () if text is None else tuple(map(float, _listed(name, text, float, "numbers, as 0.25,0.5")))


def _listed(name: str, text: str, kind: Any, takes: str) -> list[str]:
    """The parts of "4,8,12", each of which `kind` must take; what it takes, in words."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        try:
            kind(part)
        except ValueError:
            raise ArgumentError(
                f"--{name.replace('_', '-')} {text}: {part!r} is not valid there; use {takes}"
            ) from None
    return parts
