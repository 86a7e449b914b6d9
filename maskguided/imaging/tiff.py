"""Large TIFF files a part at a time, so that they need not be in memory."""

from __future__ import annotations

import logging
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import warn
from ..optional import optional

LARGE = 2**28
"""Bytes of pixels from which on a TIFF or a PNG is not held in memory. Smaller TIFFs are compressed, which one that is
written out of order cannot be."""
SUFFIXES = (".tif", ".tiff")
_CLASSIC = 2**32 - 2**25
"""Bytes of pixels up to which a file need be no BigTIFF; the rest of the 4 GiB is for tables."""
_GREY, _RGB = 1, 2
"""What tag 262 (PhotometricInterpretation) says of black at zero, and of colour."""
_ROWS = 16
"""Of a strip."""


class StripedTiff:
    """A new TIFF file, uncompressed, whose pixels are written where they belong as they are made; BigTIFF from 4 GiB.

    Args:
        path: the file.
        shape: (H, W) or (H, W, 3).
        dtype: uint8 or uint16.

    >>> import tempfile
    >>> from maskguided.imaging.images import read_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with StripedTiff(Path(folder) / "a.tif", (2, 4), np.uint8) as file:
    ...         file[0:2, 2:4] = np.array([[1, 2], [3, 4]], np.uint8)
    ...     read_image(Path(folder) / "a.tif").tolist()
    [[0, 0, 1, 2], [0, 0, 3, 4]]
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        with _tifffile().TiffWriter(path, bigtiff=_bytes(shape, dtype) > _CLASSIC) as file:
            self.start, _ = file.write(
                None, shape=shape, dtype=dtype, photometric="rgb" if len(shape) == 3 else "minisblack",
                rowsperstrip=_ROWS, metadata=None, software="maskguided", returnoffset=True,
            )  # fmt: skip
        self.file = path.open("r+b")

    def __setitem__(self, place: tuple[slice, slice], pixels: NDArray[Any]) -> None:
        """Write `pixels` (h, w) or (h, w, 3) at these rows and columns, whose start and stop are given."""
        rows, cols = place
        size = self.dtype.itemsize * (self.shape[2] if len(self.shape) == 3 else 1)
        for row, content in zip(range(rows.start, rows.stop), pixels.astype(self.dtype, copy=False), strict=True):
            self.file.seek(self.start + (row * self.shape[1] + cols.start) * size)
            self.file.write(content.tobytes())

    def __enter__(self) -> StripedTiff:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def mapped(path: Path) -> NDArray[Any] | None:
    """The pixels of a large file, read as they are looked at: of an uncompressed TIFF in its usual form; else None."""
    if path.suffix.lower() not in SUFFIXES or path.stat().st_size <= LARGE:
        return None
    tifffile, log = _tifffile(), logging.getLogger("tifffile")
    before, log.disabled = log.disabled, True  # what it says of a damaged file OpenCV will say
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            plain = (
                len(file.pages) == 1
                and page.is_memmappable
                and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
                and (page.photometric, page.samplesperpixel) in ((_RGB, 3), (_GREY, 1))
                and page.tags.valueof("Orientation", 1) == 1
            )
            image: NDArray[Any] | None = tifffile.memmap(path, mode="r") if plain else None
    except Exception:  # whatever a damaged file makes tifffile raise
        return None
    finally:
        log.disabled = before
    return image if image is not None and _is_plain(image.shape, image.dtype) else None  # not the other byte order


def is_large(shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Whether it is an image of grey or RGB that need not be in memory to be written."""
    return _is_plain(shape, dtype) and _bytes(shape, dtype) > LARGE


def _is_plain(shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Whether it is the shape and type of a grey or RGB image of 8 or 16 bits."""
    return len(shape) in (2, 3) and shape[2:] in ((), (3,)) and dtype in (np.uint8, np.uint16)


def _bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _tifffile() -> Any:
    return optional("tifffile", "a large TIFF", "tifffile")


class Looked(NamedTuple):
    """A file's bytes, made such that OpenCV reads what they say, and what it does not tell of them."""

    stored: bytes
    meaning: int | None = None
    """PhotometricInterpretation of a TIFF."""
    is_multiplied: bool = False
    """Whether its colours are multiplied by its alpha."""


def look_at(stored: bytes, path: Path) -> Looked:
    """What to read instead of the bytes of a TIFF; others are as they are.

    By an alpha that is called unassociated libtiff multiplies colours of 8 bits: it is made one of no stated kind. What
    zero is, and that colours are multiplied already, OpenCV does not see, or in 8 bits alone. What it leaves out (alpha
    beside grey, colour profiles) is warned of.
    """
    looked = Looked(stored)
    order, kind = {b"II": "<", b"MM": ">"}.get(stored[:2]), stored[2:4]
    big = kind in (b"+\0", b"\0+")
    if order is None or not (big or kind in (b"*\0", b"\0*")):
        return looked
    offset, number, row = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    try:
        (start,) = struct.unpack_from(order + offset, stored, 8 if big else 4)
        (count,) = struct.unpack_from(order + number, stored, start)
        first, size = start + struct.calcsize(order + number), struct.calcsize(order + row)
        for entry in range(first, first + size * count, size):
            tag, _, length, value = struct.unpack_from(order + row, stored, entry)
            (value,) = struct.unpack_from(f"{order}H", value)
            if tag == 262:  # PhotometricInterpretation
                looked = looked._replace(meaning=value)
            if (tag, value) == (277, 2):  # SamplesPerPixel
                warn(f"{path}: the alpha channel of a grey TIFF is left out; a PNG keeps it")
            if tag == 34675:  # ICCProfile
                warn(f"{path}: the colour profile of a TIFF is left out; a PNG keeps it")
            if (tag, length) == (338, 1):  # ExtraSamples: 0 of no stated kind, 1 associated, 2 not
                looked = looked._replace(is_multiplied=value == 1)
                if value == 2:
                    at = entry + size - (8 if big else 4)
                    looked = looked._replace(stored=stored[:at] + b"\0\0" + stored[at + 2 :])
    except struct.error:  # damaged, as OpenCV will find
        pass
    return looked
