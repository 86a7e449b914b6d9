"""Networks that spandrel recognises by their weights. It is imported only when no adapter knows them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError, MissingDependency


class Called(nn.Module):
    """A network whose own forward does not return the image alone, called the way spandrel calls it."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.model, x)


def import_spandrel() -> ModuleType:
    """The package; a MissingDependency with the pip command where it is not installed."""
    try:
        return importlib.import_module("spandrel")
    except ImportError as error:
        absent = error.name in (None, "spandrel")
        raise MissingDependency(
            f"spandrel is not installed: pip install 'maskguided[spandrel]'{'' if absent else f' ({error})'}"
        ) from None


def describe(weights: Mapping[str, Tensor]) -> Any:
    """spandrel's descriptor of the network that these weights belong to, loaded with them and in eval mode.

    Raises:
        MissingDependency: spandrel is not installed.
        CheckpointError: spandrel does not know them, or takes them for a network that they do not fit.
    """
    spandrel = import_spandrel()
    try:
        # A copy: some of its architectures rename entries in the dict they are given.
        found = spandrel.ModelLoader().load_from_state_dict(dict(weights))
    except spandrel.UnsupportedModelError:
        raise CheckpointError(f"spandrel {spandrel.__version__} does not know them") from None
    except Exception as error:  # whatever an architecture raises that was taken for another
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"spandrel {spandrel.__version__} could not load them ({type(error).__name__}: {reason})"
        ) from None
    return found.eval()


def image_to_image(descriptor: Any) -> nn.Module:
    """The network of a descriptor as a module from image to image."""
    call = getattr(descriptor, "_call_fn", None)
    if call is None or call.__module__ == type(descriptor).__module__:  # the default: the network itself
        return descriptor.model  # type: ignore[no-any-return]
    return Called(descriptor.model, call).eval()
