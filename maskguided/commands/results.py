"""Where the results of `upscale` go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArgumentError, ImageError, warn
from ..imaging.images import SUFFIXES, list_images, read_image
from .options import same_place, writable

_UNWRITTEN = (".gif", ".jp2", ".jxl", ".avif", ".heic", ".ppm", ".exr", ".svg", ".pdf")
"""Suffixes that name an image, not a folder."""


@dataclass(frozen=True)
class Job:
    """An image to upscale, and where what comes of it goes."""

    path: Path
    target: Path
    mask: Path | None
    """For the picture of its refined patches."""

    def check(self, overwrite: bool) -> None:
        """What would fail after the work is said before it, as an ImageError."""
        if self.target.suffix.lower() not in SUFFIXES:
            read_image(self.path)  # says so, if it is no image at all
            what = f"{self.target.suffix} is not written" if self.target.suffix else "a name without a suffix"
            raise ImageError(f"{self.target}: {what}; choose the format of the results, as --ext png")
        for file in [self.target] if self.mask is None else [self.target, self.mask]:
            if file.exists() and not overwrite:
                raise ImageError(f"{file} exists already; add --overwrite to replace it, or --skip-existing")


def jobs(inputs: Sequence[Path], output: Path | None, suffix: str, ext: str, show_mask: bool) -> list[Job]:
    """The images of files and folders, and places for their results: files can be written there, no two are the same.

    Raises:
        ImageError: there are no images.
        ArgumentError: a result would replace an image, or another result, or cannot be written.
    """
    if output is not None and len(inputs) > 1 and _is_image_name(output):
        raise ArgumentError(f"--output {output} is a file name, but there are {len(inputs)} inputs; name a folder")
    place_of: dict[Path, Path] = {}
    for input in inputs:
        folder = output or (_folder_beside(input) if input.is_dir() else input.parent)
        place_of.update((path, _place(path, input, folder, suffix, ext)) for path in list_images(input))
    if len(place_of) > 1:
        place_of = _without_results(place_of)
    paths, targets = list(place_of), list(place_of.values())
    target, count = Counter(targets).most_common(1)[0]
    if count > 1:
        instead = "use --ext auto" if ext != "auto" else "leave --output out, or upscale them one by one"
        raise ArgumentError(f"--ext {ext}: {count} images would all be written to {target}; {instead}")
    for folder in {target.parent for target in targets}:
        writable(folder)
    masks: Sequence[Path | None] = _mask_names(targets) if show_mask else [None] * len(targets)
    for path, mask in zip(paths, masks, strict=True):
        if mask is not None and (mask in targets or same_place(mask, path)):
            raise ArgumentError(
                f"{mask}, a picture of a mask, would replace an image or a result; give another --suffix"
            )
    return [Job(*places) for places in zip(paths, targets, masks, strict=True)]


def _without_results(place_of: dict[Path, Path]) -> dict[Path, Path]:
    """Without the results of an earlier run, where they lie beside the images and are given with them."""
    targets = list(place_of.values())
    made = {os.path.realpath(target) for target in (*targets, *_mask_names(targets))}
    left = {path: target for path, target in place_of.items() if os.path.realpath(path) not in made}
    if len(left) < len(place_of):
        where = next(path for path in place_of if path not in left).parent
        warn(f"{where}: {len(place_of) - len(left)} results of an earlier run in it are left out")
    return left


def _is_image_name(output: Path) -> bool:
    """Whether results' place is the name of one."""
    return output.suffix.lower() in SUFFIXES and not output.is_dir()


def _folder_beside(folder: Path) -> Path:
    """Where the results of a folder's images go, unless the user says so."""
    whole = folder.resolve()
    if not whole.name:
        raise ArgumentError(f"--input {folder}: no folder lies beside it; give --output FOLDER")
    return (folder if folder.name not in ("", "..") else whole).with_name(f"{whole.name}_out")


def _place(path: Path, input: Path, output: Path, suffix: str, ext: str) -> Path:
    """Where the result of `path` goes: `output` itself if it names an image and there is one, else a file in it."""
    if _is_image_name(output):
        if input.is_dir():
            raise ArgumentError(f"--output {output} is a file name, but --input {input} is a folder; name a folder")
        if ext != "auto" and output.suffix.lower() != f".{ext.removeprefix('.')}".lower():
            raise ArgumentError(f"--ext {ext} with --output {output}, whose suffix is its format; give one of them")
        return _not_itself(path, output)
    if output.suffix.lower() in _UNWRITTEN and not output.exists() and not input.is_dir():
        raise ArgumentError(f"--output {output}: results are written as {', '.join(s[1:] for s in SUFFIXES)}")
    ending = path.suffix if ext == "auto" else f".{ext.removeprefix('.')}"
    if ending.lower() not in SUFFIXES and ext != "auto":
        raise ArgumentError(f"--ext {ext}: use auto, {', '.join(s[1:] for s in SUFFIXES)}")
    name = f"{path.stem}{'_' + suffix if suffix else ''}{ending}"
    if Path(name).name != name:
        raise ArgumentError(f"--suffix {suffix}: it is a part of a file's name")
    return _not_itself(path, output / name)


def _not_itself(path: Path, target: Path) -> Path:
    if same_place(target, path):
        raise ArgumentError(f"{path} would be replaced by its own result; give --output FOLDER or a --suffix")
    return target


def _mask_names(targets: Sequence[Path]) -> list[Path]:
    """Where the picture of each result's mask goes: NAME_mask.png, or NAME_jpg_mask.png beside a NAME.png."""
    stems = Counter(target.with_suffix("") for target in targets)
    own = [f"_{t.suffix[1:]}" if stems[t.with_suffix("")] > 1 else "" for t in targets]
    return [target.with_name(f"{target.stem}{ending}_mask.png") for target, ending in zip(targets, own, strict=True)]
