"""THE idea: cut the windows that need more work out of a map, and put the results back.

    grid = Grid(height, width, patch_size, halo)     one cell per patch, in LR pixels
    index = select(score, k)                         which patches: (B, k)
    windows = gather(x, index, grid)                 (B, C, H, W) -> (B * k, C, h, w)
    y = scatter(windows, index, grid, onto=x)        the patch of each window replaces that of `onto`

`Chosen(index, grid)` does both for several maps, and works out once where their pixels are.

Everything here is pure torch on whatever device, dtype and memory format comes in. No value of a GPU is read
back to the host and every shape follows from (grid, k), so a GPU never waits and one compiled graph
serves every image of a size.

A map may live at another resolution than the LR image (the HR image, a PixelUnshuffle stem): its ratio
to the grid is read from its size, so one index moves all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import ArgumentError

Key = TypeVar("Key")
Result = TypeVar("Result")
_Places = list[tuple[tuple[int, int], Tensor]]
"""Where pixels are in maps of a height and width."""


@dataclass(frozen=True)
class Grid:
    """The patches of an image of `height` x `width` LR pixels.

    The cells partition the image: cell (r, c) covers rows `r * patch_size` up to the next cell or the
    border, so the last row and column may be narrower. A window is a cell with `halo` pixels of context
    on each side. All windows have one size; at the border a window is moved inward instead of being
    padded, so that the refine part sees the true border of the image there, as the dense network does.

    >>> grid = Grid(height=20, width=33, patch_size=8, halo=2)
    >>> grid.rows, grid.cols, grid.count, grid.window
    (3, 5, 15, (12, 12))
    >>> Grid(height=5, width=100, patch_size=8, halo=2).window     # never larger than the image
    (5, 12)
    """

    height: int
    width: int
    patch_size: int
    halo: int = 0

    def __post_init__(self) -> None:
        for name in ("height", "width", "patch_size", "halo"):
            if not _is_whole(getattr(self, name)):
                raise ArgumentError(f"{name}={getattr(self, name)!r}: use a whole number of LR pixels")
        if self.height < 1 or self.width < 1:
            raise ArgumentError(f"Grid: the image is {self.height}x{self.width}; both must be at least 1")
        if self.patch_size < 1:
            raise ArgumentError(f"patch_size={self.patch_size}: use 1 or more LR pixels")
        if self.halo < 0:
            raise ArgumentError(f"halo={self.halo}: use 0 or more LR pixels")

    @property
    def rows(self) -> int:
        """Rows of patches."""
        return -(-self.height // self.patch_size)

    @property
    def cols(self) -> int:
        """Columns of patches."""
        return -(-self.width // self.patch_size)

    @property
    def count(self) -> int:
        """Number of patches."""
        return self.rows * self.cols

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of every window, in LR pixels."""
        size = self.patch_size + 2 * self.halo
        return min(size, self.height), min(size, self.width)

    @property
    def overlaps(self) -> bool:
        """Whether windows have pixels in common."""
        return bool(self.halo or self.height % self.patch_size or self.width % self.patch_size)

    def k(self, keep: float) -> int:
        """Number of patches that the share `keep` (0..1) stands for, rounded to the nearest."""
        if not 0 <= keep <= 1:
            raise ArgumentError(f"keep={keep!r}: it is the share of patches to refine; use 0 to 1")
        return number_of(keep, self.count)

    def mask(self, index: Tensor) -> Tensor:
        """(B, rows, cols), bool: True at the patches of `index` (B, k)."""
        flat = torch.zeros(index.shape[0], self.count, dtype=torch.bool, device=index.device)
        return flat.scatter(1, index, True).view(-1, self.rows, self.cols)

    def corners(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Top row and left column of the windows of `index`, in LR pixels, shaped like `index`."""
        return self.corner(0, index // self.cols), self.corner(1, index % self.cols)

    def corner(self, axis: int, cell: Tensor) -> Tensor:
        """The row (axis 0) or column (1) at which windows of a row or column of cells begin, in LR pixels."""
        last = (self.height, self.width)[axis] - self.window[axis]
        return (cell * self.patch_size - self.halo).clamp(0, last)


def number_of(share: float, count: int) -> int:
    """How many of `count` a share (0..1) of them stands for, rounded to the nearest."""
    return int(share * count + 0.5)


def select(score: Tensor, k: int) -> Tensor:
    """The k patches with the largest score, best first; equal scores in order of position.

    Args:
        score: (B, rows, cols) or (B, n), real.
        k: 0..n.

    Returns:
        (B, k), long. Deterministic on every device (a stable sort; topk breaks ties at random on CUDA).

    >>> select(torch.tensor([[[0.1, 0.9], [0.9, 0.5]]]), k=3)
    tensor([[1, 2, 3]])
    """
    flat = score.flatten(1)
    if not (_is_whole(k) and 0 <= k <= flat.shape[1]):
        raise ArgumentError(f"select: k={k} of {flat.shape[1]} patches; use 0 to {flat.shape[1]}")
    return torch.sort(flat, dim=1, descending=True, stable=True).indices[:, :k]


def others(index: Tensor, grid: Grid) -> Tensor:
    """(B, count - k): the patches that are not in `index` (B, k), in order of position.

    >>> others(torch.tensor([[2, 0]]), Grid(4, 4, patch_size=2))
    tensor([[1, 3]])
    """
    chosen = grid.mask(index).flatten(1)
    return torch.sort(chosen.to(torch.uint8), dim=1, stable=True).indices[:, : grid.count - index.shape[1]]


def gather(x: Tensor, index: Tensor, grid: Grid) -> Tensor:
    """Cut the windows of the patches `index` out of `x`.

    Args:
        x: (B, C, r*H, r*W) for a grid of H x W; r is the same in both directions.
        index: (B, k) long, an own choice of patches per image, in any order.

    Returns:
        (B*k, C, r*h, r*w) with (h, w) = grid.window, image by image, in the memory format of `x`.

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> gather(x, torch.tensor([[3]]), Grid(4, 4, patch_size=2, halo=0))[0, 0].tolist()
    [[10.0, 11.0], [14.0, 15.0]]
    """
    check_patches(index, grid, repeated=True)
    return Chosen(index, grid).gather(x)


def scatter(windows: Tensor, index: Tensor, grid: Grid, onto: Tensor) -> Tensor:
    """A copy of `onto` in which the patches `index` come from `windows`; their halo is thrown away.

    Args:
        windows: (B*k, C, r*h, r*w), as `gather` returns them or what a network made of those.
        index: (B, k) long, without repetition within an image.
        onto: (B, C, r*H, r*W), r being the ratio of these maps, which need not be that of `gather`.

    Returns:
        (B, C, r*H, r*W) in the memory format of `onto`. Nothing but the chosen patches changes.

    >>> x = torch.rand(2, 3, 20, 33); grid = Grid(20, 33, patch_size=8, halo=2)
    >>> every = torch.arange(grid.count).expand(2, -1)
    >>> bool((scatter(gather(x, every, grid), every, grid, onto=torch.zeros_like(x)) == x).all())
    True
    """
    check_patches(index, grid, repeated=False)
    return Chosen(index, grid).scatter(windows, onto)


class Chosen:
    """The patches `index` (B, k) of a grid, of which several maps are cut and put back: `gather` and `scatter`.

    Where the pixels of windows are is worked out once for all maps of a size.
    """

    def __init__(self, index: Tensor, grid: Grid) -> None:
        self.index, self.grid = index, grid
        self.corners = grid.corners(index)
        self._pixels: _Places = []
        """(B, k, h, w): each pixel of the windows among those of all maps."""
        self._patches: _Places = []
        """(B*k*p*p,): each pixel of the patches among those of all windows."""
        self._owned: _Places = []
        self._cells: tuple[Tensor, ...] | None = None
        """Image, row and column of the cell of each patch."""

    def gather(self, x: Tensor) -> Tensor:
        """See `patches.gather`."""
        _check_map("gather: x", x)
        batch, channels, height, width = x.shape
        _check_index(self.index, batch)
        place = known(self._pixels, (height, width), lambda: self._find_pixels(x))
        # Pixels as rows of channels: one index_select copies whole pixels (and its gradient is an index_add).
        pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
        windows = pixels.index_select(0, place.flatten())
        windows = windows.view(-1, *place.shape[2:], channels).permute(0, 3, 1, 2)
        return windows if is_channels_last(x) else windows.contiguous()

    def scatter(self, windows: Tensor, onto: Tensor) -> Tensor:
        """See `patches.scatter`."""
        _check_map("scatter: onto", onto)
        (batch, channels, height, width), index, grid = onto.shape, self.index, self.grid
        _check_index(index, batch)
        patch = _at_ratio("patch_size", grid.patch_size, onto, grid)
        size = tuple(_at_ratio("window", length, onto, grid) for length in grid.window)
        if windows.shape != (batch * index.shape[1], channels, *size):
            raise ArgumentError(
                f"scatter: windows of shape {tuple(windows.shape)} onto {tuple(onto.shape)} with an index of "
                f"{tuple(index.shape)}; expected {(batch * index.shape[1], channels, *size)}"
            )
        patches = windows.permute(0, 2, 3, 1)
        if grid.overlaps:
            place = known(self._patches, (height, width), lambda: self._find_patches(onto, patch, size))
            patches = patches.reshape(-1, channels).index_select(0, place).view(-1, patch, patch, channels)
        # The canvas is padded to whole cells; what a narrow border cell writes beyond the image is cropped.
        below, right = grid.rows * patch - height, grid.cols * patch - width
        canvas = F.pad(onto, (0, right, 0, below)) if below or right else onto.clone()
        cells = canvas.view(batch, channels, grid.rows, patch, grid.cols, patch)
        if self._cells is None:
            flat = index.flatten()
            image = torch.arange(batch, device=flat.device).repeat_interleave(index.shape[1])
            self._cells = image, flat // grid.cols, flat % grid.cols
        cells.permute(0, 2, 4, 3, 5, 1)[self._cells] = patches.to(onto.dtype)
        if not (below or right):
            return canvas
        return canvas[:, :, :height, :width].contiguous(memory_format=memory_format_of(onto))

    def owned(self, height: int, width: int) -> Tensor:
        """(B*k, 1, height, width), bool: the pixels of windows of that size that belong to the window's own patch.

        >>> Chosen(torch.tensor([[1]]), Grid(4, 6, patch_size=4)).owned(4, 4)[0, 0, 0].tolist()   # moved inward by 2
        [False, False, True, True]
        """
        return known(self._owned, (height, width), lambda: self._find_owned(height, width))

    def _find_owned(self, height: int, width: int) -> Tensor:
        own = []
        for start, corner, length, whole in zip(
            (self.index // self.grid.cols, self.index % self.grid.cols), self.corners, (height, width),
            self.grid.window, strict=True,
        ):  # fmt: skip
            first = (start * self.grid.patch_size - corner) * length // whole
            position = torch.arange(length, device=self.index.device) - first.flatten()[:, None]
            own.append((position >= 0) & (position < self.grid.patch_size * length // whole))
        return (own[0][:, :, None] & own[1][:, None, :])[:, None]

    def _find_pixels(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = torch.arange(_at_ratio("window height", self.grid.window[0], x, self.grid), device=x.device)
        cols = torch.arange(_at_ratio("window width", self.grid.window[1], x, self.grid), device=x.device)
        top, left = (_at_ratio_of(corner, x, self.grid) for corner in self.corners)
        image = torch.arange(len(self.index), device=x.device)[:, None] * height
        row = (image + top)[:, :, None, None] + rows[:, None]
        return row * width + left[:, :, None, None] + cols

    def _find_patches(self, onto: Tensor, patch: int, window: tuple[int, ...]) -> Tensor:
        """Wherever moving the window inward has put the patch.

        Rows and columns of a narrow border cell that lie beyond the image repeat its last one.
        """
        index, grid = self.index, self.grid
        top, left = self.corners
        down = _at_ratio_of(index // grid.cols * grid.patch_size - top, onto, grid).flatten()
        across = _at_ratio_of(index % grid.cols * grid.patch_size - left, onto, grid).flatten()
        offset = torch.arange(patch, device=onto.device)
        rows = (down[:, None] + offset).clamp(max=window[0] - 1)[:, :, None]
        cols = (across[:, None] + offset).clamp(max=window[1] - 1)[:, None, :]
        number = torch.arange(index.numel(), device=onto.device)[:, None, None]
        return ((number * window[0] + rows) * window[1] + cols).flatten()


def per_pixel(values: Tensor, side: int, size: tuple[int, int] | None = None) -> Tensor:
    """A value for each patch, (..., rows, cols) -> one for each of its side x side pixels, (..., height, width).

    `size`: height and width, to which the last row and column of patches are cut; None: they are whole.

    >>> per_pixel(torch.tensor([[True, False]]), 2, (1, 3)).int()
    tensor([[1, 1, 0]], dtype=torch.int32)
    """
    pixels = values.repeat_interleave(side, -2).repeat_interleave(side, -1)
    return pixels if size is None else pixels[..., : size[0], : size[1]]


def round_up(length: int, multiple: int) -> int:
    """The least multiple that is not smaller.

    >>> round_up(17, 8), round_up(16, 8)
    (24, 16)
    """
    return -(-length // multiple) * multiple


def continued(x: Tensor, height: int, width: int) -> Tensor:
    """`x` (B, C, H, W) with its last row and column repeated up to this size."""
    below, right = height - x.shape[2], width - x.shape[3]
    if not (below or right):
        return x
    if x.is_floating_point():
        return F.pad(x, (0, right, 0, below), mode="replicate")
    rows, cols = (torch.arange(side, device=x.device) for side in (height, width))  # F.pad repeats no masks
    return x[:, :, rows.clamp_max(x.shape[2] - 1)[:, None], cols.clamp_max(x.shape[3] - 1)]


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` is stored channels last; False where its shape leaves both open."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels last where `x` is, else the usual one."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def known(found: list[tuple[Key, Result]], wanted: Key, find: Callable[[], Result]) -> Result:
    """What `found` has for `wanted`, a size, say; looked for and kept, where it has nothing yet.

    No dict: torch.compile would make a graph for each size that is a key.
    """
    for key, result in found:
        if key == wanted:
            return result
    found.append((wanted, find()))
    return found[-1][1]


def _at_ratio(what: str, length: int, x: Tensor, grid: Grid) -> int:
    """`length` LR pixels in pixels of `x`; an error where that is no whole number."""
    height, width = x.shape[-2:]
    if height * grid.width != width * grid.height:
        raise ArgumentError(
            f"a map of {height}x{width} is no multiple of the {grid.height}x{grid.width} grid: "
            "its ratio must be the same in both directions"
        )
    if length * height % grid.height:
        raise ArgumentError(
            f"{what} of {length} LR pixels is no whole number of pixels on a {height}x{width} map of a "
            f"{grid.height}x{grid.width} image: use a patch_size and halo that its stride divides"
        )
    return length * height // grid.height


def _at_ratio_of(position: Tensor, x: Tensor, grid: Grid) -> Tensor:
    return position if x.shape[-2] == grid.height else position * x.shape[-2] // grid.height


def _is_whole(value: object) -> bool:
    """Whether `value` is a whole number: also one that torch.compile does not know yet."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_map(what: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ArgumentError(f"{what} of shape {tuple(x.shape)}; expected a map (B, C, r*H, r*W)")


def check_patches(index: object, grid: Grid, repeated: bool, batch: int | None = None) -> None:
    """Refuse patches that a grid has not, or has `repeated` where that is not meant; of a GPU's index, which would make
    it wait, nothing is looked at."""
    if not isinstance(index, Tensor):
        raise ArgumentError(f"index of type {type(index).__name__}; expected a tensor (B, k) of torch.int64")
    if batch is not None:
        _check_index(index, batch)
    readable = type(index) is Tensor and index.device.type == "cpu" and not torch.compiler.is_compiling()
    readable = readable and not torch._C._functorch.is_functorch_wrapped_tensor(index)
    if not readable or not index.numel() or index.dim() != 2 or index.dtype != torch.long:  # _check_index refuses those
        return
    least, largest = int(index.min()), int(index.max())
    if least < 0 or largest >= grid.count:
        raise ArgumentError(
            f"index of patches {least} to {largest}; a {grid.height}x{grid.width} image with patch_size="
            f"{grid.patch_size} has the patches 0 to {grid.count - 1}"
        )
    if not repeated and int(grid.mask(index).sum()) < index.numel():
        raise ArgumentError("the index has a patch of an image twice; each may be written once")


def _check_index(index: Tensor, batch: int) -> None:
    if index.dim() != 2 or index.shape[0] != batch or index.dtype != torch.long:
        raise ArgumentError(
            f"index of shape {tuple(index.shape)} and {index.dtype} for a batch of {batch}: "
            "expected (B, k) of torch.int64"
        )
