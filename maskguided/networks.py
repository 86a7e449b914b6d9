"""A network from a weight file: by the adapter that is named, or by recognising the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .adapter import Adapter, adapters, named
from .errors import ArgumentError, CheckpointError, MaskGuidedError, MissingDependency
from .guided import MaskGuided
from .integrations.spandrel_bridge import describe, image_to_image
from .parts import Cuts
from .split import Split
from .values import as_path
from .weights import HEAD_FORMAT, read
from .wrapping import wrap

STARTER = "starter"
"""The small x4 network that ships with the package (see pretrained/README.md)."""

Tiling = Literal["supported", "discouraged", "internal"]
_PURPOSES = {"SR": "super-resolution", "Restoration": "restoration"}


@dataclass(frozen=True)
class Loaded:
    """A network read from a file, in eval mode on the CPU, and what is known of it besides. None: not known."""

    model: nn.Module
    """Images in 0..1, (B, C, H, W) -> (B, C', s*H, s*W)."""
    architecture: str
    """Name of the adapter that built it, or of spandrel's architecture."""
    by: Literal["adapter", "spandrel"]
    scale: int | None = None
    """As the file says, or as it was read with."""
    supports_half: bool | None = None
    """Whether float16 works."""
    tiling: Tiling | None = None
    """"discouraged": it looks at the whole image; "internal": it cuts tiles itself."""
    multiple_of: int | None = None
    """Sizes that the network was made for; a MaskGuided measures its own rule and pads."""
    smallest: int | None = None
    """LR pixels a side that the network was made for."""

    def inform(self, split: Split) -> None:
        """Tell a split of this network the facts that it does not know by itself."""
        if split.supports_half is None:
            split.supports_half = self.supports_half
        if split.tiling is None:
            split.tiling = self.tiling
        split.__dict__.pop("facts", None)  # they may have been asked for already

    def __str__(self) -> str:
        half = {True: "float16 works", False: "not for float16"}
        known = [
            f"x{self.scale}" if self.scale else "",
            f"sizes that are multiples of {self.multiple_of}" if (self.multiple_of or 1) > 1 else "",
            f"{self.smallest} pixels a side or more" if self.smallest else "",
            half[self.supports_half] if self.supports_half is not None else "",
            f"tiles: {self.tiling}" if self.tiling else "",
        ]
        return ", ".join([f"{self.architecture} ({self.by})", *filter(None, known)])


def from_file(
    path: str | Path,
    split_at: Cuts = "auto",
    *,
    model: str | None = None,
    scale: int | None = None,
    **settings: Any,
) -> MaskGuided:
    """Load a super-resolution network from its weight file alone, and wrap it.

    Known are the architectures of the adapters (PAN, EDSR in two layouts, basicsr's RCAN) and, where spandrel
    is installed (`pip install 'maskguided[spandrel]'`), all of spandrel's. Its facts come along: see `facts`.

    Args:
        path: .pth, .pt, .ckpt or .safetensors; EMA weights are preferred, code in it never runs.
        split_at: how many blocks run on the whole image; "auto": half; several as in `wrap`.
        model: name of the adapter to use, instead of recognising the weights.
        scale: only where the weights do not tell it (PAN x2 and x3).
        settings: of `wrap`.

    Raises:
        CheckpointError: not a weight file, or of a network that nobody here knows.
        MissingDependency: it is known, but needs a package that is not installed.
        CannotSplit, ArgumentError: as `wrap`.

    >>> import tempfile, torch
    >>> from maskguided.adapters.pan_net import PAN
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(PAN(features=8, up_features=8, blocks=4).state_dict(), f"{folder}/net.pth")
    ...     fast = from_file(f"{folder}/net.pth", keep=0.25)
    >>> fast(torch.rand(1, 3, 33, 47)).shape
    torch.Size([1, 3, 132, 188])
    """
    loaded = load_network(as_path(path, "path"), model, scale)  # None would be the starter network
    fast = wrap(loaded.model, split_at, **settings)
    loaded.inform(fast.split)
    return fast


@torch.inference_mode(False)  # what is made must stay trainable wherever it is
def load_network(path: str | Path | None = None, model: str | None = None, scale: int | None = None) -> Loaded:
    """The network that a weight file belongs to, with its facts; without a file, the starter network.

    Args:
        path: as for `from_file`.
        model: name of the adapter that builds it ("pan", "edsr", "rcan"); default: the first adapter that
            recognises the weights and can load all of them, else spandrel.
        scale: only where the weights do not tell it (PAN x2 and x3).

    Raises:
        CheckpointError, MissingDependency, ArgumentError: as `from_file`.
    """
    if path is None:
        if model not in (None, STARTER):
            named(model)  # says so, if there is none of that name
            raise ArgumentError(f"--model {model} needs --weights FILE; without both, the starter network is used")
        found = load_network(Path(__file__).parent / "pretrained" / "starter.safetensors", "pan")
        if scale not in (None, found.model.scale):
            raise ArgumentError(f"--scale {scale} needs --weights FILE; the starter network is x{found.model.scale}")
        return found
    adapter = None if model is None else named(model)
    content = read(path)
    try:
        if content.metadata.get("format") == HEAD_FORMAT:
            raise CheckpointError(
                "this is what maskguided.save wrote: a mask head and settings, without the network's own weights. "
                "Give the network's weight file here and this one to maskguided.load(path, network) (--head)"
            )
        if {"model", "head", "linear"} <= {name.split(".")[0] for name in content.tensors}:
            raise CheckpointError(_of_a_whole(Path(path)))
        if adapter is not None:
            return _by_adapter(adapter, content.tensors, scale)
        return _recognised(content.tensors, scale)
    except MaskGuidedError as error:
        raise type(error)(f"{path}: {error}") from None


def _of_a_whole(path: Path) -> str:
    """What to do with the weights of a whole MaskGuided, as `maskguided basicsr train` writes them."""
    base, head = (path.with_name(f"{path.stem}_{rest}") for rest in ("base.pth", "maskguided.safetensors"))
    own = str(base) if base.is_file() else "the file that its training started from (base_weights)"
    rest = str(head) if head.is_file() else "what maskguided.save wrote"
    return (
        "these are weights of a whole MaskGuided, the network's own and what wrapping added. Give the network's own "
        f"here: {own}; and the rest as --head: {rest}"
    )


def _recognised(weights: Mapping[str, Tensor], scale: int | None) -> Loaded:
    tried = []
    for name, adapter in adapters().items():
        try:
            if adapter.recognises(weights):
                return _by_adapter(adapter, weights, scale)
            tried.append(name)
        except CheckpointError as error:
            tried.append(f"{name} ({error})")
    try:
        descriptor = describe(weights)
    except (CheckpointError, MissingDependency) as error:
        few = ", ".join(sorted(weights)[:4]) + (", ..." if len(weights) > 4 else "")
        raise CheckpointError(
            f"no network is known for these weights ({few}). Adapters tried: {', '.join(tried)}; "
            f"{error}. Build the network in Python, load the weights into it and give it to maskguided.wrap"
        ) from None
    return _by_spandrel(descriptor, scale)


def _by_adapter(adapter: type[Adapter], weights: Mapping[str, Tensor], scale: int | None) -> Loaded:
    try:
        model = adapter.build(weights, scale).eval()
    except KeyError as error:
        raise CheckpointError(
            f"no weights of a network that {adapter.name!r} knows: there is no {error.args[0]!r} in it; "
            "leave the name out (--model) to have the file recognised"
        ) from None
    return Loaded(model, adapter.name, "adapter", scale, adapter.supports_half)


def _by_spandrel(descriptor: Any, scale: int | None) -> Loaded:
    name: str = descriptor.architecture.name
    if descriptor.purpose not in _PURPOSES:
        raise CheckpointError(
            f"spandrel takes it for {name}, a network for {descriptor.purpose}; what can be split is a network for "
            f"{' or '.join(_PURPOSES.values())} that maps one whole image to one"
        )
    if scale not in (None, descriptor.scale):
        raise ArgumentError(f"{name} of x{descriptor.scale}, as spandrel says, not x{scale}; leave scale out (--scale)")
    sizes = descriptor.size_requirements
    return Loaded(
        image_to_image(descriptor),
        name,
        "spandrel",
        scale=descriptor.scale,
        supports_half=descriptor.supports_half,
        tiling=descriptor.tiling.name.lower(),
        multiple_of=sizes.multiple_of,
        smallest=sizes.minimum,
    )
