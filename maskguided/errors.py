"""The one family of errors, and of warnings. Each text says what was wrong, with what values, and what would work."""

import warnings

import torch


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty; its type where there is none."""
    return next(filter(None, str(error).splitlines()), type(error).__name__)


def warn(text: str, stacklevel: int = 2) -> None:
    """Warn of what the caller's caller does (stacklevel 2), or one that is farther."""
    warnings.warn(text, MaskGuidedWarning, stacklevel=stacklevel + 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; by the text, too: allocators of the CPU and of Apple's GPUs have no error class."""
    known = ("can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in known)


class MaskGuidedWarning(UserWarning):
    """All that maskguided warns of; the commands show these, and no others."""


class MaskGuidedError(Exception):
    """Base of every error that maskguided raises on purpose."""


class ArgumentError(MaskGuidedError, ValueError):
    """An argument or a setting is out of its range; the text names the range."""


class CannotSplit(MaskGuidedError):
    """A network could not be split into Base and Refine; the text names the stage that failed."""


class CheckpointError(MaskGuidedError):
    """A weight file could not be read, written, or does not belong to this network."""


class ImageError(MaskGuidedError):
    """An image file could not be read or written."""


class MissingDependency(MaskGuidedError, ImportError):
    """An optional package is needed and absent; the text gives the pip command."""


class ExportError(MaskGuidedError):
    """A network could not be exported, or the file does not do what the network does."""
