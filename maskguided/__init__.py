"""Restore globally, refine locally: run a super-resolution network's deep blocks only where they are needed.

>>> import torch, maskguided
>>> from maskguided.adapters.pan_net import PAN
>>> fast = maskguided.wrap(PAN(features=8, up_features=8, blocks=4), split_at=2)
>>> fast.keep = 0.25
>>> fast(torch.rand(1, 3, 33, 47)).shape
torch.Size([1, 3, 132, 188])
"""

from . import finetune
from .adapter import Adapter, register
from .base import Explanation
from .calibrate import calibrate
from .calibration.curve import Calibration
from .checkpoint import load, save, starter
from .errors import (
    ArgumentError,
    CannotSplit,
    CheckpointError,
    ExportError,
    ImageError,
    MaskGuidedError,
    MaskGuidedWarning,
    MissingDependency,
)
from .export import export
from .guided import MaskGuided
from .inspection import inspect
from .networks import from_file
from .split import Facts, Split
from .splitting import split
from .wrapping import wrap

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "ArgumentError",
    "Calibration",
    "CannotSplit",
    "CheckpointError",
    "Explanation",
    "ExportError",
    "Facts",
    "ImageError",
    "MaskGuided",
    "MaskGuidedError",
    "MaskGuidedWarning",
    "MissingDependency",
    "Split",
    "calibrate",
    "export",
    "finetune",
    "from_file",
    "inspect",
    "load",
    "register",
    "save",
    "split",
    "starter",
    "wrap",
]
