"""Import basicsr 1.4.2 beside a current torchvision, and make our network and model known to it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from ..errors import MissingDependency

_GONE = "torchvision.transforms.functional_tensor"


def import_basicsr(module: str = "basicsr") -> ModuleType:
    """Import `module`, a name within basicsr, and return it.

    Any `import basicsr...` imports all of it, and one of its files asks for a torchvision module that is
    gone since 0.17. A stand-in is there while basicsr is imported, and only if torchvision lacks its own.

    Raises:
        MissingDependency: basicsr is not installed.
    """
    added = None
    if "basicsr" not in sys.modules:
        try:
            importlib.import_module(_GONE)
        except ImportError:
            added = sys.modules[_GONE] = _functional_tensor()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "basicsr":
            raise
        if (other := getattr(sys.modules.get("basicsr"), "__path__", None)) is not None:
            raise MissingDependency(
                f"{module} is not in {next(iter(other), 'basicsr')}, which is imported as basicsr: rename that folder, "
                "or start elsewhere"
            ) from None
        raise MissingDependency(
            f"{module} is not installed: pip install --no-build-isolation 'maskguided[basicsr]' "
            "(Python 3.10 to 3.12, with torch, setuptools and cython installed before)"
        ) from None
    finally:
        if added is not None:
            del sys.modules[_GONE]


def register() -> None:
    """Make `MaskGuidedSR` and `PAN` (archs) and `MaskGuidedModel` (model) known to basicsr; again is harmless.

    Raises:
        MissingDependency: basicsr is not installed.
    """
    registries = import_basicsr("basicsr.utils.registry")
    from .basicsr_model import MaskGuidedModel
    from .basicsr_network import MaskGuidedSR

    pan = importlib.import_module("maskguided.adapters.pan_net").PAN
    for registry, entry in (
        (registries.ARCH_REGISTRY, pan),
        (registries.ARCH_REGISTRY, MaskGuidedSR),
        (registries.MODEL_REGISTRY, MaskGuidedModel),
    ):
        if entry.__name__ not in registry:
            registry.register(entry)


def _functional_tensor() -> ModuleType:
    stand_in = ModuleType(_GONE)
    try:
        functional = importlib.import_module("torchvision.transforms.functional")
        stand_in.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
    except ImportError:
        pass  # basicsr's own import then names torchvision as what is missing
    return stand_in
