"""The command that upscales images: maskguided upscale."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from ..errors import ArgumentError, ImageError, MaskGuidedError, first_line
from ..files import write_whole
from ..guided import MaskGuided
from ..imaging.images import (
    Image,
    check_format,
    goes_in_parts,
    is_lossless,
    open_large,
    read_image,
    read_profile,
    resize,
    write_image,
)
from ..infer import SMALLEST_TILE, as_input, overlay, upscale, upscale_onto, upscaled_shape
from ..networks import Loaded
from ..probing.modules import first_weight
from . import results
from .console import err, plain, progress_bar, sentence, tell, warning
from .options import (
    Device,
    HeadFile,
    Images,
    Inputs,
    Keep,
    ModelName,
    NetScale,
    Overwrite,
    SplitAt,
    Threads,
    WeightFile,
    inputs_of,
    is_fresh,
    middle,
    pick_device,
    pick_dtype,
    ready,
    use_threads,
    warn_of_rough,
    with_settings,
)

_MOST_PIXELS = 2**30
"""Of a resized result, which is in memory as a whole: as many as OpenCV reads."""


class Alpha(str, Enum):
    """How an alpha channel grows."""

    model = "model"
    bicubic = "bicubic"


@with_settings
def upscale_command(
    images: Images = None,
    input: Inputs = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder, or a file name for a single image.", show_default="beside it"),
    ] = None,
    weights: WeightFile = None,
    model: ModelName = None,
    scale: NetScale = None,
    head: HeadFile = None,
    split_at: SplitAt = "auto",
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
            help="Tile side in LR pixels, to bound memory; 0: whole image. With --min-gain each tile decides.",
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
        bool,
        typer.Option(
            "--show-mask",
            help="Also write a picture of the refined patches (of a large image, of the input's size).",
        ),
    ] = False,
    overwrite: Overwrite = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out images whose results exist: goes on with a folder.")
    ] = False,
    **settings: Any,
) -> None:
    """Upscale images and folders of images; without --weights, x4 with the network that ships with maskguided."""
    use_threads(threads)
    if overwrite and skip_existing:
        raise ArgumentError("--overwrite and --skip-existing: existing results are replaced or left; give one")
    if keep is not None and min_gain is not None:
        raise ArgumentError(f"--keep {keep:g} with --min-gain {min_gain:g}: the one or the other decides; give one")
    inputs = inputs_of("upscale", images, input)
    way = _Way(outscale, tile, tile_pad, alpha.value, overwrite or skip_existing)
    where = pick_device(device)
    jobs = results.jobs(inputs, output, suffix, ext, show_mask)
    if skip_existing:
        jobs = _not_done(jobs)
        if not jobs:
            return
    loaded, fast = ready(weights, model, scale, head, split_at, keep=keep, **settings)
    if min_gain is not None:
        fast.min_gain_db = min_gain
    if tile and fast.split.tiling in ("discouraged", "internal"):
        warning(f"--tile {tile}: {_against_tiles(loaded)}")
    fast = fast.to(where, pick_dtype(dtype, where, fast.split.supports_half)).eval()
    fast = fast.to(memory_format=fast.split.memory_format)
    if is_fresh(weights, head):  # else no image is read for it
        _warn_of_rough(fast, jobs, weights, head, refine_all=keep is None)
    failed = _upscale_all(fast, jobs, way)
    if failed:
        err.print(f"{failed} of {len(jobs)} failed")
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Way:
    """How images are upscaled, beside the network."""

    outscale: float | None
    tile: int | None
    tile_pad: int
    alpha: Any
    overwrite: bool

    def __post_init__(self) -> None:
        if self.outscale is not None and not 0 < self.outscale < float("inf"):
            raise ArgumentError(f"--outscale {self.outscale:g}: a multiple of the input's size; use 3.5, say")
        if self.tile and self.tile < SMALLEST_TILE:
            raise ArgumentError(
                f"--tile {self.tile}: so small a tile is mostly its context; use {SMALLEST_TILE} or more, or 0 for none"
            )


def _not_done(jobs: Sequence[results.Job]) -> list[results.Job]:
    """Those whose results do not exist: a picture of a mask is written before its result, and does not tell."""
    left = [job for job in jobs if not job.target.exists()]
    if len(left) < len(jobs):
        err.print(f"{len(jobs) - len(left)} of {len(jobs)} exist already and are left out")
    return left


def _warn_of_rough(
    fast: MaskGuided, jobs: Sequence[results.Job], weights: Path | None, head: Path | None, *, refine_all: bool
) -> None:
    """`warn_of_rough`, on the first image that can be read."""
    like = first_weight(fast.model)
    for job in jobs:
        try:
            image = read_image(job.path)
            part = image[middle(*image.shape[:2])]
            lr = as_input(part[..., :3] if part.ndim == 3 else part, fast).to(like)
            return warn_of_rough(fast, lr, weights, head, refine_all=refine_all)
        except (MaskGuidedError, RuntimeError):
            continue  # it is told of when its turn comes


def _upscale_all(fast: MaskGuided, jobs: Sequence[results.Job], way: _Way) -> int:
    """How many failed; each is told of when it is done, and the others go on."""
    failed = 0
    with progress_bar() as progress:
        how = f"keep={fast.keep:g}" + ("" if fast.min_gain_db is None else " on average")
        images = progress.add_task(f"x{fast.scale}, {how}", total=len(jobs), unit="images")
        for job in jobs:
            started = time.perf_counter()
            try:
                job.check(way.overwrite)
                (height, width), share = _upscale_file(fast, job, way, progress)
            except KeyboardInterrupt:
                if len(jobs) > 1:
                    again = "the same command with --skip-existing goes on (without --overwrite)"
                    err.print(f"stopped in {plain(job.path.name)}; {again}")
                raise
            except (MaskGuidedError, OSError, RuntimeError, MemoryError) as error:  # also what a network raises
                failed += 1
                what = sentence(error) or f"{job.path}: {type(error).__name__}: {first_line(error)}"
                err.print(f"[red]failed:[/red] {plain(what)}")
            else:
                what = f"{width}x{height}, {share:.0%} refined, {time.perf_counter() - started:.2f} s"
                tell(progress, f"{job.path.name} -> {job.target} ({what})")
            progress.advance(images)
    return failed


def _upscale_file(fast: MaskGuided, job: results.Job, way: _Way, progress: Progress) -> tuple[tuple[int, int], float]:
    """Height and width of the result, and the share of the pixels that was refined."""
    image = read_image(job.path)
    check_format(job.target, image)
    size = None if way.outscale is None else _size_at(way.outscale, image)
    tiles = progress.add_task(job.path.name, total=None, visible=way.tile != 0, unit="tiles")

    def on_tile(done: int, total: int) -> None:
        progress.update(tiles, completed=done, total=total)

    try:
        shape = upscaled_shape(fast, image)
        if way.outscale is None and goes_in_parts(job.target, shape, image.dtype):
            return (shape[0], shape[1]), _upscale_in_strips(fast, image, job, way, on_tile)
        done = upscale(fast, image, tile=way.tile, tile_pad=way.tile_pad, alpha=way.alpha, on_tile=on_tile)
    finally:
        progress.remove_task(tiles)
    made = done.image
    if size is not None:
        made = resize(made, *size, lanczos=True)
    height, width = made.shape[:2]
    job.check(way.overwrite)  # another run may have been here meanwhile
    if job.mask is not None:
        write_image(job.mask, overlay(resize(image, height, width), done.mask))
    write_image(job.target, made, read_profile(job.path), lossless=is_lossless(job.path))
    return (height, width), float(done.mask.mean())


def _size_at(outscale: float, image: Image) -> tuple[int, int]:
    """Height and width of a result that is so many times as large; refused where no reader would take it."""
    height, width = (max(round(min(side * outscale, 1e15)), 1) for side in image.shape[:2])
    if height * width > _MOST_PIXELS:
        raise ImageError(
            f"--outscale {outscale:g} makes {width}x{height} pixels of this image; use less, for at most "
            f"{_MOST_PIXELS / 1e6:.0f} megapixels"
        )
    return height, width


def _upscale_in_strips(
    fast: MaskGuided, image: Image, job: results.Job, way: _Way, on_tile: Callable[[int, int], None]
) -> float:
    """Write a TIFF or PNG that is never in memory as a whole; the share of the pixels that was refined."""
    profile = read_profile(job.path)

    def write(beside: Path) -> float:
        with open_large(beside, upscaled_shape(fast, image), image.dtype, profile, job.target) as file:
            mask = upscale_onto(file, fast, image, way.tile, way.tile_pad, on_tile)
        job.check(way.overwrite)
        if job.mask is not None:
            write_image(job.mask, overlay(image, mask))  # of the LR image, which is in memory
        return float(mask.mean())

    return write_whole(job.target, write)


def _against_tiles(loaded: Loaded) -> str:
    why = "looks at the whole image" if loaded.tiling == "discouraged" else "cuts tiles itself"
    return f"{loaded.architecture} {why}, so borders of tiles may show; leave --tile out if memory allows"
