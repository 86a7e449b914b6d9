"""Read any super-resolution weight file as a flat state dict, without unpickling code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import CheckpointError, MissingDependency
from .optional import optional
from .values import as_path

# Where the files of this field keep the weights, the averaged ones (EMA) before the others.
_KEYS = (
    "params_ema",
    "params-ema",
    "model_ema",
    "params",
    "model_state_dict",
    "state_dict",
    "model",
    "net",
    "network_g",
)
_PREFIXES = ("module.", "_orig_mod.", "netG.")

HEAD_FORMAT = "maskguided-1"
"""What `metadata["format"]` says in a file of maskguided.save."""

Module = TypeVar("Module", bound=nn.Module)
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Weights:
    """What `read` found in a file."""

    tensors: dict[str, Tensor]
    key: str | None
    """The entry that held the weights; None for a bare state dict."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The header of a safetensors file; of others, the texts beside the weights."""


def read(path: str | Path, key: str | None = None) -> Weights:
    """Read a .pth, .pt, .ckpt, .bin or .safetensors file onto the CPU.

    Honours the nesting that BasicSR, Real-ESRGAN and others write (EMA weights first) and strips
    the prefixes of DataParallel, torch.compile and GAN trainers.

    Args:
        path: the file.
        key: the entry to take where there are several, as "params"; where it is not there, and by default, EMA weights
            first. A safetensors file has no entries.

    Raises:
        CheckpointError: no such file, not a weight file, code inside, or no tensors in it.
    """
    path = as_path(path, "path")
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder; name a weight file in it" if path.is_dir() else f"{path}: no such file"
        )
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        return Weights(_stripped(tensors), None, metadata)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a damaged file makes torch raise
        with path.open("rb") as file:
            start = file.read(40)
        if start.startswith(b"version https://git-lfs"):
            raise CheckpointError(
                f"{path}: where the weights are (Git LFS), not the weights; git lfs pull brings them"
            ) from None
        if start[8:9] == b"{":
            raise CheckpointError(f"{path}: looks like safetensors; let its name end in .safetensors") from None
        if start[:2] not in (b"PK", b"\x80\x02"):  # how files of torch.save begin, today's and those before torch 1.6
            raise CheckpointError(
                f"{path}: not a readable weight file, but {_looks_like(start)}. Expected a file of "
                "torch.save(model.state_dict(), ...) or safetensors"
            ) from None
        raise CheckpointError(
            f"{path}: not a readable weight file: damaged (is the download whole?), or one that holds other objects "
            "than tensors, which could run code. Expected a file of torch.save(model.state_dict(), ...) or "
            "safetensors; if you trust the file, load it yourself and save its state dict"
        ) from None
    texts = _entries(content, str)
    keys = _KEYS if key is None else (key, *_KEYS)
    key = None
    while isinstance(content, Mapping) and (
        inner := next((k for k in keys if isinstance(content.get(k), Mapping)), None)
    ):
        key, content = inner, content[inner]
    tensors = _entries(content, Tensor)
    if not tensors:
        found = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path}: no weights found in it (it holds {found or 'nothing'}); "
            f"expected a state dict, bare or under one of {', '.join(_KEYS)}"
        )
    return Weights(_stripped(tensors), key, texts)


def load_into(model: Module, weights: Mapping[str, Tensor], owner: str | None = None) -> Module:
    """Load all of `weights`; a CheckpointError names what is missing, unknown or of another shape.

    `owner`: whose weights they should be; by default what the class of `model` is called.
    """
    own = model.state_dict()
    wrong = [f"missing {name}" for name in own.keys() - weights.keys()]
    wrong += [f"unknown {name}" for name in weights.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if isinstance(own[name], Tensor) and weights[name].shape != own[name].shape  # not a module's extra state
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise CheckpointError(
            f"these weights are not of this {owner or type(model).__name__}: {'; '.join(sorted(wrong)[:4])}{more}"
        )
    model.load_state_dict(dict(weights))
    return model


def count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are under `prefix`.

    >>> count_blocks({"body.0.w": torch.zeros(1), "body.1.w": torch.zeros(1)}, "body")
    2
    """
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for name in weights if (match := pattern.match(name))), default=-1)


def import_safetensors(module: str = "safetensors") -> Any:
    """The package, or a `module` of it; imported late, since the core needs torch alone."""
    return optional(module, "a safetensors file", "safetensors")


def _entries(content: object, kind: type[Kind]) -> dict[str, Kind]:
    """Those of a dict that have a name and are of that kind; none where it is no dict."""
    pairs = content.items() if isinstance(content, Mapping) else ()
    return {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, kind)}


def _looks_like(start: bytes) -> str:
    """What a file that begins so may be, for one who has downloaded something else than weights."""
    if not start:
        return "an empty file"
    if start.lstrip()[:1] == b"<":
        return "a page of HTML (download the file itself, not the page about it)"
    return f"something that begins with {start[:8]!r}"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with torch.device("cpu"), import_safetensors().safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except MissingDependency:
        raise
    except Exception as error:  # its own error class is not exported under one name by all versions
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _stripped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = list(tensors)
    for _ in range(3):
        for prefix in _PREFIXES:
            if names and all(name.startswith(prefix) for name in names):
                names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, tensors.values(), strict=True))
