"""Global operations per image: once over all the windows that are refined in it, as if they were one map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..patches import Chosen
from .arguments import named
from .global_ops import GlobalOps
from .lines import Lines
from .products import Products
from .readings import READ_PLAINLY, Reading
from .reductions import (
    DEVIATIONS,
    EXTREMES,
    LARGEST,
    MEANS,
    NORMALISED,
    NORMS,
    OVER_DIMS,
    SECOND_POWERS,
    SMALLEST,
    SOFTMAX,
    along,
    dims_of,
    is_first_step,
    is_flat,
    is_global,
    is_transposed,
    precise,
)


class _FirstStep(NamedTuple):
    """Rows, or columns, of a map that were taken together, as the first of two steps: x.sum(3).sum(2)."""

    result: Tensor
    name: str
    weighed: Tensor
    """The same of the pixels that count."""


class PerImage(GlobalOps):
    """Within it, a global operation on the k windows of each image sees them as one map.

    Windows overlap by their halos, and at borders where they were moved inward: a pixel counts in the patch that it
    belongs to.

    Args:
        chosen: the patches whose windows are at work.
        unit: what windows are multiples of: one that is no larger may be a single pixel deep in the network.
        reading: how ambiguous operations are read.
        strangers: shapes of tensors that are no windows though there are as many of them.
        noted: a set that collects their shapes.

    `doubts` collects the fields of `reading` that mattered: another value there would have changed a result.
    """

    def __init__(
        self,
        chosen: Chosen,
        *,
        unit: int = 0,
        reading: Reading = READ_PLAINLY,
        strangers: frozenset[tuple[int, ...]] = frozenset(),
        noted: set[tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.k, self.windows, self.window = chosen.index.shape[1], chosen.index.numel(), chosen.grid.window
        self.owned = chosen.owned if chosen.grid.overlaps else None
        self.reading, self.are_single = reading, max(self.window) <= unit
        self.strangers, self.noted = strangers, noted
        self.doubts: frozenset[str] = frozenset()
        self.first_steps: list[_FirstStep] = []
        self.products, self.lines = Products(self.k, self.windows), Lines(chosen)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.products.waiting and (product := self.products.product(func, args)) is not None:
            return product
        result = super().__torch_function__(func, types, args, kwargs)
        if self.owned is not None and args and is_first_step(func, args, kwargs):
            self._take_first_step(result, func, args, kwargs)
        return result

    def _take_first_step(self, result: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        x, name = args[0], func.__name__
        if x.shape[0] != self.windows or tuple(x.shape) in self.strangers:
            return
        pixels = self._weighed(x, name, (), {"dim": (2, 3)})
        if pixels is not x:
            weighed = func(pixels, *args[1:], **kwargs)
            if name in EXTREMES:
                result, weighed = result.values, weighed.values
            self.first_steps.append(_FirstStep(result, name, weighed))

    def takes_in(self, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        if is_global(func, args, kwargs, single=self.are_single):
            self._doubt(func.__name__)
            return True
        if is_transposed(func, args, kwargs):
            x = args[0]
            if x.shape[0] != self.windows or self._unflattened(x.shape[-1]) is None:
                return False
            self._doubt(func.__name__, "transposed")
            return self.reading.transposed
        if along(func, args, kwargs) is not None:
            self._doubt(func.__name__, "lines")
            return self.reading.lines
        flat = is_flat(func, args, kwargs)
        if flat:
            self._doubt(func.__name__, "flat")
        return flat and self.reading.flat

    def _doubt(self, name: str, *fields: str) -> None:
        self.doubts |= {*fields, *(["sums"] if name in ("sum", *SECOND_POWERS) else [])}

    def reduce(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        name = func.__name__
        if self.strangers and tuple(x.shape) in self.strangers:
            return func(x, *args, **kwargs)
        if x.shape[0] != self.windows:
            return self._folded(func, x, args, kwargs)
        if (dim := along(func, (x, *args), kwargs)) is not None:
            keeps = name != "mean" or (args[1] if len(args) > 1 else kwargs.get("keepdim", False))
            means = self.lines.means(x, dim)
            return means.unsqueeze(dim) if keeps else means
        if name in (NORMALISED, SOFTMAX):
            return self._for_products(name, x, kwargs)
        if name in NORMS:
            return self._normalised(x, name, (x, *args), kwargs)
        if name in DEVIATIONS:
            return self._together(func, x, args, kwargs)
        return self._reduced(func, x, args, kwargs)

    def _for_products(self, name: str, x: Tensor, kwargs: Any) -> Tensor:
        """What (B*k, ..., h*w) is normalised to over the pixels of an image, for a product that will sum over them."""
        size = self._unflattened(x.shape[-1])
        counts = None if self.owned is None or size is None else self.owned(*size).flatten(2)
        if name == SOFTMAX:
            return self.products.softmax(x, counts)
        return self.products.normalised(x, kwargs.get("eps", 1e-12), counts)

    def _reduced(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        """A mean, sum, norm or extreme of an image: of each window first, then of what these give."""
        name = func.__name__
        weighed = self._weighed(x, name, args, kwargs)
        each: Any  # a tensor, or values and where they are
        if name == "adaptive_avg_pool2d" and torch.compiler.is_compiling():
            each = weighed.mean((2, 3), keepdim=True)  # the pool fails on a number of windows that is a symbol
        else:
            each = func(weighed, *args, **kwargs)
        if name in EXTREMES:
            return type(each)((self._combined(name, each.values), each.indices))
        combined = self._combined(name, each)
        of_variance = self.reading.sums == "variance" and name == "sum"
        return combined * self._less_one(x, combined.dim()) if of_variance else combined

    def _less_one(self, x: Tensor, dims: int) -> Tensor | float:
        """What the mean of a sum over windows is multiplied by, if it will be divided by the pixels of a window less
        one, and not of a map."""
        size = self._unflattened(x.shape[2]) if x.dim() == 3 else (x.shape[2], x.shape[3])
        if size is None or size[0] * size[1] == 1:
            return 1.0
        pixels = size[0] * size[1]
        counted = x.new_full((x.shape[0],), self.k * pixels, dtype=precise(x))
        if self.owned is not None:
            of_image = self.owned(*size).reshape(-1, self.k, pixels).sum((1, 2))
            counted = of_image.to(precise(x)).repeat_interleave(self.k)
        factor = (1 - 1 / pixels) / (1 - 1 / counted)
        return factor.view(-1, *[1] * (dims - 1)).to(x.dtype)

    def _folded(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        """Of a map with several rows for a window (see `Reading.rows`)."""
        groups, rest = divmod(x.shape[0], self.windows)
        # Else it is no map of all windows, or a norm has weights for as many channels as there are now.
        if rest or groups < 2 or x.dim() != 4 or func.__name__ in NORMS:
            if rest and self.noted is not None:
                self.noted.add(tuple(x.shape))
            return func(x, *args, **kwargs)
        self._doubt(func.__name__, "rows")
        if self.reading.rows == "unknown":
            return func(x, *args, **kwargs)
        if self.reading.rows == "stacked":
            each = [self.reduce(func, part, args, kwargs) for part in torch.split(x, self.windows)]
            return _each(torch.cat, zip(*each, strict=True), each[0]) if isinstance(each[0], tuple) else torch.cat(each)

        def folded(value: Tensor) -> Tensor:
            return value.reshape(x.shape[0], x.shape[1], *value.shape[2:])

        result = self.reduce(func, x.reshape(self.windows, -1, *x.shape[2:]), args, kwargs)
        return _each(folded, result, result) if isinstance(result, tuple) else folded(result)

    def _weighed(self, x: Tensor, name: str, args: Any, kwargs: Any) -> Tensor:
        """`x` changed so that reducing all of it reduces the pixels that are owned: the others become 0, or -inf or inf
        where the largest or smallest is sought; for a mean the owned grow by all / owned, for a norm by its root."""
        for first in self.first_steps:
            if x is first.result and name == first.name:
                return first.weighed
        counts = None if self.owned is None else self._counts(x, name, args, kwargs)
        if counts is None:
            return x
        if name in (*LARGEST, *SMALLEST, "logsumexp"):
            return x.masked_fill(~counts, torch.inf if name in SMALLEST else -torch.inf)
        if self.reading.sums == "total" and name not in MEANS:
            return x * counts.to(x.dtype)
        pixels = counts.reshape(-1, self.k, counts[0].numel())
        weight = (pixels[0].numel() / pixels.sum((1, 2)).to(precise(x))).repeat_interleave(self.k)
        weight = (weight.sqrt() if name in SECOND_POWERS else weight).view(-1, *[1] * (x.dim() - 1))
        return x * (counts * weight).to(x.dtype if x.is_floating_point() else weight.dtype)

    def _counts(self, x: Tensor, name: str, args: Any, kwargs: Any) -> Tensor | None:
        """Of a map of windows, however its dimensions lie, the pixels that count, in a shape that goes with it."""
        assert self.owned is not None
        high, wide = self.window
        if x.dim() == 3:  # (B*k, C, h*w)
            size = self._unflattened(x.shape[2])
            return None if size is None else self.owned(*size).flatten(2)
        dims = dims_of(name, (x, *args), kwargs) if name in OVER_DIMS else {2, 3}
        fits = [x.shape[n] * wide == x.shape[n + 1] * high for n in (1, 2)]
        last = dims == {1, 2} or (dims == {1, 2, 3} and fits == [True, False])  # (B*k, h, w, C)
        if not fits[0 if last else 1]:  # rows or columns that are taken together already
            return None
        counts = self.owned(*(x.shape[1:3] if last else x.shape[2:]))
        return counts.permute(0, 2, 3, 1) if last else counts

    def _unflattened(self, pixels: int) -> tuple[int, int] | None:
        """Height and width of a window's map of so many pixels."""
        high, wide = self.window
        height = int(math.sqrt(pixels * high / wide) + 0.5)  # torch.compile does not know math.isqrt
        width = height * wide // high
        return (height, width) if height * width == pixels else None

    def _combined(self, name: str, each: Tensor) -> Tensor:
        """From what each window gives, (B*k, ...), what the image gives, for each of its windows."""
        apart = each.reshape(-1, self.k, *each.shape[1:])
        if name in SECOND_POWERS:
            squares = apart.to(precise(apart)).square()  # float16 ends at 256 squared
            found = (squares.sum(1) if self.reading.sums == "total" else squares.mean(1)).sqrt().to(apart.dtype)
        elif name == "logsumexp":
            found = apart.logsumexp(1)
        elif name in LARGEST:
            found = apart.amax(1)
        elif name in SMALLEST:
            found = apart.amin(1)
        else:
            apart = apart if apart.is_floating_point() else apart.float()  # a count: (x > 0).sum((2, 3))
            found = apart.sum(1) if self.reading.sums == "total" and name == "sum" else apart.mean(1)
        return found.repeat_interleave(self.k, dim=0)

    def _together(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        """A deviation of the windows as one map; pixels that do not count are put where they make no difference."""
        flat = x.dim() == 3  # (B*k, C, h*w)
        size = self._unflattened(x.shape[2]) if flat else tuple(x.shape[2:])
        if size is None:
            return func(x, *args, **kwargs)
        x = x.reshape(*x.shape[:2], *size)
        if self.owned is not None:
            last = not flat and dims_of(func.__name__, (x, *args), kwargs) == {1, 2}  # (B*k, h, w, C)
            x = self._counted(x.permute(0, 3, 1, 2) if last else x, args, kwargs)
            x = x.permute(0, 2, 3, 1) if last else x
        whole = x.reshape(-1, self.k, *x.shape[1:]).transpose(1, 2).flatten(2, 3)  # (B, C, k*h, w)
        whole = whole.flatten(2) if flat else whole
        result = func(whole, *args, **kwargs)
        if isinstance(result, tuple):
            return tuple(value.repeat_interleave(self.k, dim=0) for value in result)
        return result.repeat_interleave(self.k, dim=0)

    def _counted(self, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        """`x` changed so that its plain deviation is that of the pixels that count."""
        assert self.owned is not None
        counts = self.owned(*x.shape[2:]).to(x.dtype)
        unbiased = kwargs.get("unbiased", args[1] if len(args) > 1 and isinstance(args[1], bool) else True)
        correction = kwargs.get("correction", int(unbiased))
        mean, _, number = self._moments(x, over_batch=False)
        every = self.k * x.shape[2] * x.shape[3]
        wider = ((every - correction) / (number - correction)).sqrt()
        changed: Tensor = mean + (x - mean) * counts * wider
        return changed.to(x.dtype)

    def _moments(self, x: Tensor, over_batch: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance (biased) and number of the pixels that count: (B*k, C, 1, 1) or (1, C, 1, 1)."""
        x = x.to(precise(x))  # half precision does not count so far
        counts = x.new_ones(1) if self.owned is None else self.owned(*x.shape[2:]).to(x.dtype)

        def total(value: Tensor) -> Tensor:
            value = value.sum((2, 3), keepdim=True)
            if over_batch:
                return value.sum(0, keepdim=True)
            return value.reshape(-1, self.k, *value.shape[1:]).sum(1).repeat_interleave(self.k, dim=0)

        number = total(counts.expand(x.shape[0], 1, *x.shape[2:]))
        mean = total(x * counts) / number
        return mean, total((x - mean).square() * counts) / number, number

    def _normalised(self, x: Tensor, name: str, args: Any, kwargs: Any) -> Tensor:
        """Batch, instance or group norm by the statistics of `x` itself."""
        given = named(NORMS[name], args, kwargs)
        mean, variance, _ = self._moments(x, name == "batch_norm")
        if name == "group_norm":
            mean, variance = _of_groups(mean, variance, given["num_groups"])
        result: Tensor = (x - mean) * (variance + given.get("eps", 1e-5)).rsqrt()
        weight, bias = given.get("weight"), given.get("bias")
        if weight is not None:
            result = result * weight[:, None, None]
        return (result if bias is None else result + bias[:, None, None]).to(x.dtype)


def _each(change: Callable[[Any], Any], values: Iterable[Any], like: tuple[Any, ...]) -> Any:
    """A tuple of the kind of `like`: torch.max gives one whose entries have names."""
    return type(like)(tuple(map(change, values)))


def _of_groups(mean: Tensor, variance: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of groups of channels, from those of the channels: (n, C, 1, 1) each."""
    means, variances = (v.reshape(len(v), groups, -1) for v in (mean, variance))
    middle = means.mean(2, keepdim=True)
    spread = (variances + (means - middle).square()).mean(2, keepdim=True)
    wide, deep = (v.expand_as(means).reshape_as(mean) for v in (middle, spread))
    return wide, deep
