"""The one family of errors, and of warnings. Each text says what was wrong, with what values, and what would work."""

import sys
import warnings

import torch

_INSIDE = (__package__, "torch", "contextlib")


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty; its type where there is none."""
    return next(filter(None, str(error).splitlines()), type(error).__name__)


def warn(text: str) -> None:
    """Issue a MaskGuidedWarning at the line of the first caller that is neither maskguided nor torch."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, MaskGuidedWarning, stacklevel=level)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; by the text, too: allocators of the CPU and of Apple's GPUs have no error class."""
    known = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # the last: of cuBLAS and cuDNN
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in known)


class MaskGuidedWarning(UserWarning):
    """All that maskguided warns of; the commands show these, and no others."""


class MaskGuidedError(Exception):
    """Base of every error that maskguided raises on purpose."""


class ArgumentError(MaskGuidedError, ValueError):
    """An argument or a setting is out of its range; the text names the range."""


class CannotSplit(MaskGuidedError):
    """A network could not be split; the text names the step that failed."""


class CheckpointError(MaskGuidedError):
    """A weight file could not be read, written, or does not belong to this network."""


class ImageError(MaskGuidedError):
    """An image file could not be read or written."""


class MissingDependency(MaskGuidedError, ImportError):
    """An optional package is needed and absent; the text gives the pip command."""


class ExportError(MaskGuidedError):
    """A network could not be exported, or the file does not do what the network does."""
