"""Large PNG files written from the top to the bottom as their pixels are made, so that they need not be in memory."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_ROWS = 64
"""That are filtered together."""
_GREY, _RGB = 0, 2
_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4
"""What the standard calls its filters, and numbers them."""

Bytes = NDArray[np.uint8]


def transparent_grey(stored: bytes) -> int | None:
    """The grey that a PNG file without an alpha channel calls transparent (tRNS), of 8 or 16 bits; None: there is none.

    OpenCV makes an alpha channel of that of colours, but not of grey.
    """
    if stored[:8] != b"\x89PNG\r\n\x1a\n" or stored[25:26] != bytes([_GREY]):
        return None
    depth, at = stored[24], 8
    while at + 8 <= len(stored):
        length, kind = struct.unpack(">I4s", stored[at : at + 8])
        if kind == b"tRNS":
            value = int.from_bytes(stored[at + 8 : at + 10], "big")
            return value * 255 // (2**depth - 1) if depth < 8 else value
        at += length + 12
    return None


class StripedPng:
    """A new PNG file, whose parts are given in rows of parts: each row is compressed once all of its pixels are there.

    Args:
        path: the file.
        shape: (H, W) or (H, W, 3).
        dtype: uint8 or uint16.
        profile: a colour profile (ICC) to keep in it.

    >>> import tempfile
    >>> from maskguided.imaging.images import read_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with StripedPng(Path(folder) / "a.png", (2, 4), np.uint8) as file:
    ...         file[0:2, 2:4] = np.array([[1, 2], [3, 4]], np.uint8)
    ...         file[0:2, 0:2] = np.array([[5, 6], [7, 8]], np.uint8)
    ...     read_image(Path(folder) / "a.png").tolist()
    [[5, 6, 1, 2], [7, 8, 3, 4]]
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: DTypeLike, profile: bytes | None = None) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._pixel = self.dtype.itemsize * (shape[2] if len(shape) == 3 else 1)
        self._row = 0
        """The first that is not compressed yet."""
        self._waiting = np.empty((0, *shape[1:]), self.dtype)
        self._filled = np.zeros(0, np.int64)
        """Columns that there are of each row that waits."""
        self._above = np.zeros(shape[1] * self._pixel, np.uint8)
        self._deflate = zlib.compressobj(strategy=zlib.Z_RLE)  # as small as any other, and the fastest
        self.file = path.open("wb")
        self.file.write(b"\x89PNG\r\n\x1a\n")
        kind = _RGB if len(shape) == 3 else _GREY
        self._chunk(b"IHDR", struct.pack(">2I5B", shape[1], shape[0], 8 * self.dtype.itemsize, kind, 0, 0, 0))
        if profile is not None:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))

    def __setitem__(self, place: tuple[slice, slice], pixels: NDArray[Any]) -> None:
        """Write `pixels` (h, w) or (h, w, 3) at these rows and columns, whose start and stop are given."""
        rows, cols = place
        rows = slice(rows.start - self._row, rows.stop - self._row)
        if more := max(rows.stop - len(self._waiting), 0):
            self._waiting = np.concatenate([self._waiting, np.empty((more, *self.shape[1:]), self.dtype)])
            self._filled = np.concatenate([self._filled, np.zeros(more, np.int64)])
        self._waiting[rows, cols] = pixels
        self._filled[rows] += cols.stop - cols.start
        lacking = self._filled < self.shape[1]
        done = int(lacking.argmax()) if lacking.any() else len(lacking)
        for start in range(0, done, _ROWS):
            self._compress(self._waiting[start : min(start + _ROWS, done)])
        if done:
            self._row += done
            self._waiting, self._filled = self._waiting[done:].copy(), self._filled[done:].copy()

    def _compress(self, rows: NDArray[Any]) -> None:
        big = rows.astype(self.dtype.newbyteorder(">"), order="C", copy=False)
        content = big.view(np.uint8).reshape(len(rows), -1)
        filtered = _filtered(content, self._above, self._pixel)
        self._above = content[-1].copy()
        if made := self._deflate.compress(filtered.tobytes()):
            self._chunk(b"IDAT", made)

    def _chunk(self, name: bytes, content: bytes) -> None:
        check = zlib.crc32(content, zlib.crc32(name))
        self.file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", check))

    def __enter__(self) -> StripedPng:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with self.file:
            if kind is None:
                assert self._row == self.shape[0], f"{self._row} of {self.shape[0]} rows are there"
                self._chunk(b"IDAT", self._deflate.flush())
                self._chunk(b"IEND", b"")


def _filtered(rows: Bytes, above: Bytes, pixel: int) -> Bytes:
    """Rows of bytes as the differences from their neighbours that are the least, behind the number of the filter.

    Args:
        rows: (n, bytes).
        above: the bytes of the row before them.
        pixel: bytes of a pixel.
    """
    up = np.concatenate([above[None], rows[:-1]])
    left, corner = (np.pad(part[:, :-pixel], ((0, 0), (pixel, 0))) for part in (rows, up))
    a, b, c = (part.astype(np.int16) for part in (left, up, corner))
    by_left, by_up, by_both = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where((by_left <= by_up) & (by_left <= by_both), left, np.where(by_up <= by_both, up, corner))
    guesses = {_SUB: left, _UP: up, _AVERAGE: ((a + b) // 2).astype(np.uint8), _PAETH: paeth}
    apart = np.stack([rows - guess for guess in guesses.values()])
    best = np.abs(apart.view(np.int8).astype(np.int16)).sum(2, dtype=np.int64).argmin(0)
    numbers = np.array(list(guesses), np.uint8)[best]
    return np.concatenate([numbers[:, None], apart[best, np.arange(len(rows))]], 1)
