"""The command line: maskguided upscale, inspect, bench; others in cli_train.py and cli_export.py."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from . import __version__, bench, cli_basicsr, cli_export, cli_train, inspection, results
from .cli_options import (
    Body,
    Device,
    HeadFile,
    Keep,
    ModelName,
    NetScale,
    Overwrite,
    SplitAt,
    Threads,
    WeightFile,
    blocks,
    new_file,
    ready,
    with_settings,
)
from .errors import ArgumentError, MaskGuidedError
from .guided import MaskGuided
from .images import list_images, read_image, resize, write_image
from .infer import overlay, pick_device, pick_dtype, upscale
from .networks import Loaded, load_network

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Super-resolution networks, run only where it matters.",
)
app.add_typer(cli_basicsr.app, name="basicsr")
app.command("calibrate")(cli_train.calibrate_command)
app.command("finetune")(cli_train.finetune_command)
app.command("explain")(cli_train.explain_command)
app.command("export")(cli_export.export_command)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Alpha(str, Enum):
    """How an alpha channel grows."""

    model = "model"
    bicubic = "bicubic"


def main() -> None:
    """Entry point: one sentence and exit code 2 for what we know to be wrong, instead of a traceback."""
    try:
        app()
    except MaskGuidedError as error:
        err.print(f"[red]error:[/red] {_plain(error)}")
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command("upscale")
@with_settings
def upscale_command(
    input: Annotated[Path, typer.Option("--input", "-i", help="An image, or a folder of images.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder, or a file name for a single image.", show_default="beside it"),
    ] = None,
    model: ModelName = None,
    weights: WeightFile = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: SplitAt = "auto",
    body: Body = None,
    keep: Keep = None,
    min_gain: Annotated[
        float | None,
        typer.Option(
            help="Each image refines as many patches as it needs: dB (per whole image) that another must bring; for a "
            "--head of calibrate --per-image.",
            show_default="the head's",
        ),
    ] = None,
    outscale: Annotated[
        float | None,
        typer.Option(
            "--outscale",
            "-s",
            help="Size of the results, as a multiple of the input's; the network's are resized to it (Lanczos).",
            show_default="the network's",
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile",
            "-t",
            help="Tile side in LR pixels, to bound memory; 0: whole image.",
            min=0,
            show_default="384 for images of more than 512x512",
        ),
    ] = None,
    tile_pad: Annotated[int, typer.Option(help="Context around a tile, LR pixels.", min=0)] = 16,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, fp16, bf16.")] = "auto",
    threads: Threads = None,
    alpha: Annotated[Alpha, typer.Option(help="How an alpha channel grows.")] = Alpha.model,
    suffix: Annotated[str, typer.Option(help="Added to the name of each result in a folder.")] = "out",
    ext: Annotated[str, typer.Option(help="Format of the results: auto (as the input), png, jpg, webp, tif.")] = "auto",
    show_mask: Annotated[
        bool, typer.Option("--show-mask", help="Also write a picture of the refined patches.")
    ] = False,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Upscale an image or a folder of images; without --weights, x4 with the network that ships with maskguided."""
    if threads:
        torch.set_num_threads(threads)
    if outscale is not None and not 0 < outscale < float("inf"):
        raise ArgumentError(f"--outscale {outscale:g}: a multiple of the input's size; use 3.5, say")
    paths = list_images(input)
    output = output or (input.with_name(f"{input.resolve().name}_out") if input.is_dir() else input.parent)
    targets = [results.place(path, input, output, suffix, ext) for path in paths]
    target, count = Counter(targets).most_common(1)[0]
    if count > 1:
        raise ArgumentError(f"--ext {ext}: {count} images would all be written to {target}; use --ext auto")
    masks = results.mask_names(targets) if show_mask else [None] * len(targets)
    loaded, fast = ready(weights, model, scale, head, split_at, body=body, keep=keep, **settings)
    if min_gain is not None:
        if keep is not None:
            raise ArgumentError(f"--keep {keep:g} with --min-gain {min_gain:g}: the one or the other decides; give one")
        fast.min_gain_db = min_gain
    if tile and fast.split.tiling in ("discouraged", "internal"):
        err.print(f"[yellow]warning:[/yellow] --tile {tile}: {_plain(_against_tiles(loaded))}")
    where = pick_device(device)
    fast = fast.to(where, pick_dtype(dtype, where, fast.split.supports_half)).eval()
    fast = fast.to(memory_format=torch.channels_last)

    failed = 0
    with _progress("image") as progress:
        how = f"keep={fast.keep:g}" + ("" if fast.min_gain_db is None else " on average")
        images = progress.add_task(f"x{fast.scale}, {how}", total=len(paths))
        for path, target, mask in zip(paths, targets, masks, strict=True):
            started = time.perf_counter()
            try:
                results.refuse(path, target, mask, overwrite)
                size, share = _upscale_file(fast, path, target, outscale, tile, tile_pad, alpha.value, mask, progress)
            except (MaskGuidedError, OSError) as error:
                failed += 1
                err.print(f"[red]failed:[/red] {_plain(error)}")
            else:
                seconds = time.perf_counter() - started
                what = f"{size[1]}x{size[0]}, {share:.0%} refined, {seconds:.2f} s"
                out.print(f"{path.name} -> {target} ({what})", markup=False)
            progress.advance(images)
    if failed:
        err.print(f"{failed} of {len(paths)} failed")
        raise typer.Exit(1)


@app.command("inspect")
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


@app.command("bench")
def bench_command(
    lr: Annotated[Path, typer.Option("--input", "-i", help="LR image or folder.")],
    hr: Annotated[Path | None, typer.Option(help="HR image or folder, for PSNR; the same names.")] = None,
    model: ModelName = None,
    weights: WeightFile = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: Annotated[str, typer.Option(help="One or several, as 4,8,12; auto: half.")] = "auto",
    keep: Annotated[str, typer.Option(help="One or several.")] = "0,0.25,0.5",
    patch_size: Annotated[str, typer.Option(help="One or several; auto: what suits the network.")] = "auto",
    halo: Annotated[str, typer.Option(help="One or several; auto: what suits the network.")] = "auto",
    merge: Annotated[str, typer.Option(help="features, image, or both as features,image.")] = "features",
    rounds: Annotated[int, typer.Option(help="How often everything is run in turn.", min=1)] = 3,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="fp32, fp16, bf16.")] = "fp32",
    threads: Annotated[
        int, typer.Option(help="CPU threads; more than one is unsteady on a shared machine.", min=1)
    ] = 1,
    channels_last: Annotated[bool, typer.Option(help="Memory format, for both sides.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the rows here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table here, as Markdown.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Dense against coarse against keep: time, MACs and, with --hr, PSNR, all in one run."""
    if head is not None and (split_at, merge) != ("auto", "features"):
        raise ArgumentError(f"--head {head} has its own split and merge; give either it or them")
    for path, suffix in ((json_file, ".json"), (markdown, ".md")):
        if path is not None:
            new_file(path, overwrite, suffix)
    torch.set_num_threads(threads)
    where = pick_device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    loaded = load_network(weights, model, scale)
    net = loaded.model.to(where, pick_dtype(dtype, where, loaded.supports_half)).to(memory_format=layout)
    like = next(net.parameters())
    pairs = bench.read_pairs(lr, hr, like.device, like.dtype, channels_last)
    settings = [
        bench.Setting(
            "image" if m == "image" else "features",
            blocks(n),
            _size(p),
            _size(h),
            tuple(map(float, _listed("keep", keep, float))),
            head,
        )
        for m in _listed("merge", merge, ("features", "image").index)
        for n in _listed("split_at", split_at, blocks)
        for p in _listed("patch_size", patch_size, _size)
        for h in _listed("halo", halo, _size)
    ]
    with _progress("setting") as progress:
        task = progress.add_task("settings", total=len(settings))
        rows = bench.measure(net, pairs, settings, rounds, lambda: progress.advance(task))
    header = (
        f"{len(pairs)} images of {lr.name}, {type(net).__name__}, {bench.machine(threads)}, {dtype}, "
        f"{'channels_last' if channels_last else 'contiguous'}, {rounds} rounds; dense: {rows[0].dense_seconds:.2f} s"
        + (f", PSNR {rows[0].dense_psnr:.2f} dB (Y, uint8, border = scale)" if rows[0].dense_psnr is not None else "")
    )
    out.print(header, markup=False)
    out.print(_table(rows))
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": header, "rows": bench.as_json(rows)}, indent=1) + "\n")
    if markdown is not None:
        markdown.write_text(f"{header}\n\n{_markdown(rows)}\n")


_COLUMNS = ("merge", "split", "patch", "halo", "keep", "MACs", "time", "spread", "PSNR-Y", "to dense")


def _cells(row: bench.Row) -> tuple[str, ...]:
    quality = ("", "") if row.psnr is None else (f"{row.psnr:.2f}", f"{row.psnr - (row.dense_psnr or 0):+.2f}")
    return (
        row.merge, str(row.split_at), str(row.patch_size), str(row.halo), f"{row.keep:g}",
        f"{row.macs_ratio:.3f}", f"{row.time_ratio:.3f}", f"{row.spread:.0%}", *quality,
    )  # fmt: skip


def _table(rows: list[bench.Row]) -> Table:
    table = Table(*_COLUMNS, caption="MACs and time: ratio to the dense network of the same run")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _markdown(rows: list[bench.Row]) -> str:
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _upscale_file(
    fast: MaskGuided,
    path: Path,
    target: Path,
    outscale: float | None,
    tile: int | None,
    tile_pad: int,
    alpha: Any,
    mask: Path | None,
    progress: Progress,
) -> tuple[tuple[int, int], float]:
    """Height and width of the result, and the share of the pixels that was refined."""
    image = read_image(path)
    tiles = progress.add_task(path.name, total=None, visible=tile != 0)
    try:
        done = upscale(
            fast, image, tile=tile, tile_pad=tile_pad, alpha=alpha,
            on_tile=lambda number, total: progress.update(tiles, completed=number, total=total),
        )  # fmt: skip
    finally:
        progress.remove_task(tiles)
    made = done.image
    if outscale is not None:
        height, width = (max(int(side * outscale), 1) for side in image.shape[:2])
        made = resize(made, height, width, lanczos=True)
    height, width = made.shape[:2]
    write_image(target, made)
    if mask is not None:
        write_image(mask, overlay(resize(image, height, width), done.mask))
    return (height, width), float(done.mask.mean())


def _size(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _listed(name: str, text: str, kind: Any) -> list[str]:
    """The parts of "4,8,12", each of which `kind` must take."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        try:
            kind(part)
        except ValueError:
            raise ArgumentError(f"--{name.replace('_', '-')} {text}: {part!r} is not valid there") from None
    return parts


def _against_tiles(loaded: Loaded) -> str:
    why = "looks at the whole image" if loaded.tiling == "discouraged" else "cuts tiles itself"
    return f"{loaded.architecture} {why}, so borders of tiles may show; leave --tile out if memory allows"


def _plain(text: object) -> str:
    return str(text).replace("[", "\\[")


@contextmanager
def _progress(unit: str) -> Iterator[Progress]:
    """A bar on a terminal, nothing in a log."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit + "s"))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        yield bar
