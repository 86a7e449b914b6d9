"""Options that several commands share, and the network that they name."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterable
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from .. import checkpoint
from ..error_map import dense_image, is_rough
from ..errors import ArgumentError, CheckpointError, first_line
from ..files import make_folder_of
from ..guided import MaskGuided
from ..networks import STARTER, Loaded, load_network
from ..pictures import PICTURES, drawing
from ..tails.light import LightTail
from ..tails.refine import LightTailed
from ..wrapping import wrap
from .console import warning, working

_LOOK = 64  # LR pixels
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Images = Annotated[list[Path] | None, typer.Argument(help="Images and folders of images, as -i.", show_default=False)]
Inputs = Annotated[
    list[Path] | None,
    typer.Option("--input", "-i", help="An image, or a folder of images; several, too: -i *.png.", show_default=False),
]
ModelName = Annotated[
    str | None, typer.Option("--model", "-n", help="pan, edsr or rcan; default: what the weights are, or starter.")
]
WeightFile = Annotated[
    Path | None,
    typer.Option("--weights", "-w", help="Weight file: .pth, .pt or .safetensors; default: the starter network."),
]
NetScale = Annotated[
    int | None, typer.Option("--scale", help="The network's scale where the weights don't tell (PAN x2, x3).", min=1)
]
HeadFile = Annotated[Path | None, typer.Option("--head", help="File of maskguided.save; its settings are used.")]
SplitAt = Annotated[
    str, typer.Option(help="Blocks that run on the whole image; auto: half of them; 4,8,12: patches leave at each.")
]
Body = Annotated[
    str | None, typer.Option(help="Names of the blocks, for a network without an adapter: layers.*.blocks.*")
]
Keep = Annotated[
    float | None, typer.Option(help="Share of patches to refine, 0 to 1.", show_default="the head's, or 0.5")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all.", min=1)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")]

Output = Annotated[Path, typer.Option("--output", "-o", help="Where to save: a .safetensors file.")]
_THREADS = 1024

_SETTINGS: dict[str, Any] = {
    "body": Body,
    "onward": Annotated[
        str | None,
        typer.Option(
            help="Share of the refined patches that goes on at each cut after the first: 0.6,0.3.", show_default="all"
        ),
    ],
    "merge": Annotated[
        str | None, typer.Option(help="features or image.", show_default="features, or image with --coarse-tail")
    ],
    "coarse_tail": Annotated[
        str | None, typer.Option(help="copy, light, deep or residual; not with --merge features.", show_default="copy")
    ],
    "coarse_on": Annotated[
        str | None, typer.Option(help="Where the coarse tail runs: all or unrefined patches.", show_default="all")
    ],
    "refine_tail": Annotated[
        str | None,
        typer.Option(help="Of refined patches, with --merge image: own, or light, cheaper.", show_default="own"),
    ],
    "skip": Annotated[
        str | None,
        typer.Option(
            help="Where nothing is refined, with --merge features: identity, or 1x1 or 3x3, once calibrated.",
            show_default="identity",
        ),
    ],
    "patch_size": Annotated[
        int | None, typer.Option(help="Side of a patch, LR pixels.", show_default="8, or what suits the network")
    ],
    "halo": Annotated[
        int | None, typer.Option(help="Context around a patch, LR pixels.", show_default="0, or what the network needs")
    ],
    "exchange": Annotated[
        bool | None,
        typer.Option(
            "--exchange/--alone", help="Refined windows see their neighbours, or each itself.", show_default="exchange"
        ),
    ],
}


def use_threads(threads: int | None) -> None:
    """Let torch use that many threads of the CPU; all, where none are named."""
    most = max(_THREADS, os.cpu_count() or 1)
    if threads is not None and threads > most:
        raise ArgumentError(f"--threads {threads}: use 1 to {most}")  # of too many, torch dies without a word
    if threads:
        torch.set_num_threads(threads)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each setting of a wrapped network: it gets them as **settings, None if not given."""
    # not typing.get_type_hints: Python 3.10's makes "X | None = None" another type, and what typer is told is lost
    whole = signature(command, eval_str=True)
    own = [parameter for parameter in whole.parameters.values() if parameter.kind != Parameter.VAR_KEYWORD]
    added = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in _SETTINGS.items()]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**{**given, "onward": shares(given["onward"])})

    run.__signature__ = whole.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return run


def inputs_of(command: str, images: list[Path] | None, input: list[Path] | None) -> list[Path]:
    """The images of a command: of -i, and of the arguments, into which a shell makes -i *.png."""
    inputs = [*(input or []), *(images or [])]
    if not inputs:
        what = "an image" if command == "explain" else "an image or a folder"
        raise ArgumentError(f"{command} what? Give {what}: maskguided {command} -i photo.png")
    return inputs


def same_place(a: Path, b: Path) -> bool:
    """Whether two paths lead to one place; links are followed, and one that leads to itself is no error."""
    return os.path.realpath(a) == os.path.realpath(b)


def new_file(path: Path, overwrite: bool, *suffixes: str, inputs: Iterable[Path | None] = ()) -> Path:
    """`path`, if a result may be written there: asked before the work, not after it. Its folder is made.

    Of the command's own `inputs` none is replaced, whatever `overwrite` says.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        known = ", ".join(suffixes[:-1]) + " or " * (len(suffixes) > 1) + suffixes[-1]
        raise ArgumentError(f"{path}: name a file that ends in {known}")
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise ArgumentError(f"{path} exists already; add --overwrite to replace it")
    if any(given is not None and same_place(given, path) for given in inputs):
        raise ArgumentError(f"{path} would replace a file that it is made from; give it another name")
    make_folder_of(path)
    writable(path.parent)
    return path


def new_picture(path: Path, overwrite: bool, *made_from: Path | None) -> Path:
    """`new_file` for a picture, which replaces no image of what it is made from: files, or folders of them."""
    places = [place for place in made_from if place is not None]
    inputs = [image for place in places for image in (place.iterdir() if place.is_dir() else [place])]
    new_file(path, overwrite, *PICTURES, inputs=inputs)
    drawing()
    return path


def one_image(path: Path) -> Path:
    """`path`, if it is no folder."""
    if path.is_dir():
        raise ArgumentError(f"--input {path} is a folder; give one image")
    return path


def writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, or a folder to be in one."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(f"{folder}: no file can be written there ({error.strerror})") from None


def pick_device(name: str) -> torch.device:
    """ "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps"; an ArgumentError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # of several processes each has its own, and nothing on the first
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ArgumentError(
            f"--device {name}: not usable here (no device is called so); use auto, cpu, cuda, cuda:1 or mps"
        ) from None
    try:
        torch.empty(1, device=device).cpu()  # of the meta device nothing comes back
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = first_line(error).partition(". ")[0]  # of what is not built in, torch tells all that is
        raise ArgumentError(f"--device {name}: not usable here ({why}); use cpu or auto") from None
    return device


def pick_dtype(name: str, device: torch.device, supports_half: bool | None) -> torch.dtype:
    """ "fp32", "fp16", "bf16" or "auto": half on CUDA if the network is known to allow it, else fp32."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" and supports_half else torch.float32
    if name not in DTYPES:
        raise ArgumentError(f"--dtype {name}: use auto, {', '.join(DTYPES)}")
    if name == "fp16" and supports_half is False:
        raise ArgumentError("--dtype fp16: this network leaves the range of float16, or may; use bf16 or fp32")
    return DTYPES[name]


def blocks(text: str) -> Any:
    """--split-at: a number, several with commas between, or "auto"."""
    if text == "auto":
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"--split-at {text}: use a number of blocks, several as 4,8,12, or auto") from None
    return numbers if len(numbers) > 1 else numbers[0]


def shares(text: str | None) -> tuple[float, ...] | None:
    """--onward: numbers with commas between."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"--onward {text}: use shares from 0 to 1 with commas between, as 0.6,0.3") from None


def wrapped(network: nn.Module, head: Path | None, split_at: str, **settings: Any) -> MaskGuided:
    """`network` wrapped as a file says, or as the options say; what is None there is wrap's own choice."""
    given = {name: value for name, value in settings.items() if value is not None}
    cut = {} if split_at == "auto" else {"split_at": blocks(split_at)}
    with working("looking at the network"):  # of a large transformer, a minute long
        fast = wrap(network, **cut, **given) if head is None else checkpoint.load(head, network, **given, **cut)
    for name in ("coarse_tail", "coarse_on"):
        if fast.merge != "image" and given.get(name, "all") != "all":
            raise ArgumentError(
                f"--{name.replace('_', '-')} {given[name]} with merge {fast.merge}: the network's own tail runs on the "
                "whole image, and there is no other; add --merge image"
            )
    return fast


def is_fresh(weights: Path | None, head: Path | None) -> bool:
    """Whether a user's network is wrapped with nothing that was fitted or trained for it."""
    return weights is not None and head is None


def warn_of_rough(
    fast: MaskGuided, lr: Tensor, weights: Path | None, head: Path | None, *, refine_all: bool = False
) -> None:
    """Say so where a fresh wrap's image will not look like the network's: tried on the middle of `lr` (1, C, H, W).

    `refine_all`: and have all patches refined then, for the user has named no keep.
    """
    if not is_fresh(weights, head):
        return
    rows, cols = middle(lr.shape[2], lr.shape[3])
    part = lr[:, :, rows, cols]
    if isinstance(fast.split, LightTailed):
        why = "the light refine tail is bilinear until it is calibrated, and so is what is refined"
        instead = "or leave --refine-tail out"
    elif fast.keep == 1 or not is_rough(fast, part, dense_image(fast, part)):
        return
    else:
        light = isinstance(fast.coarse_tail, LightTail)
        cause = "light coarse tail is bilinear until it is calibrated"
        why = f"the {cause if light else 'blocks of this network cannot be left out as they are'}: what is not refined "
        why += "would be worse than bicubic, so all patches are refined" if refine_all else "will be worse than bicubic"
        instead = "to be faster than the network" if refine_all else "or use --keep 1"
        fast.keep = 1 if refine_all else fast.keep
    warning(
        f"{why}; first `maskguided calibrate -i PHOTOS -w {weights} -o F.safetensors`, then add --head F.safetensors, "
        f"{instead}"
    )


def middle(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns in the middle of an image, enough to see what its coarse image is like."""
    top, left = (max(0, (side - _LOOK) // 2) for side in (height, width))
    return slice(top, top + _LOOK), slice(left, left + _LOOK)


def is_starter(weights: Path | None, model: str | None, head: Path | None, split_at: str, body: str | None) -> bool:
    """Whether nothing is said of a network at all: then it is the starter network with its own head."""
    return model in (None, STARTER) and (weights, head, split_at, body) == (None, None, "auto", None)


def ready(
    weights: Path | None, model: str | None, scale: int | None, head: Path | None, split_at: str, **settings: Any
) -> tuple[Loaded, MaskGuided]:
    """A network to use as it is; where nothing is said of it at all, the starter network with its own head."""
    if is_starter(weights, model, head, split_at, settings.get("body")):
        given = {name: value for name, value in settings.items() if value is not None}
        for name in ("merge", "coarse_tail", "refine_tail", "skip"):
            if name in given:
                raise ArgumentError(
                    f"--{name.replace('_', '-')} {given[name]}: the network that ships with maskguided has parts "
                    "trained for its own; give --weights, or --split-at to wrap it anew"
                )
        if scale is not None:
            load_network(scale=scale)  # it has a scale of its own
        loaded = load_network()
        return loaded, checkpoint.load(checkpoint.STARTER_HEAD, loaded.model, **given)
    loaded = load_network(weights, model, scale)
    try:
        fast = wrapped(loaded.model, head, split_at, **settings)
    except CheckpointError as error:
        if weights is not None:
            raise
        raise CheckpointError(f"{error} (the starter network, for want of --weights)") from None
    loaded.inform(fast.split)
    return loaded, fast
