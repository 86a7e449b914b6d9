"""Reductions over the whole map, in whatever words a network has them: to a vector, and of a map."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def simam(y):
    """SimAM: a variance of its own, divided by the pixels less one."""
    far = (y - y.mean((2, 3), keepdim=True)).square()
    variance = far.sum((2, 3), keepdim=True) / (y.shape[2] * y.shape[3] - 1)
    return y * torch.sigmoid(far / (4 * (variance + 1e-4)) + 0.5)


def weights_of(y):
    """GCNet's, (B, 1, h*w): how much each pixel counts."""
    return torch.softmax(9 * y[:, :1].flatten(2), 2)


def mean_of(y, total):
    return total / (y.shape[2] * y.shape[3])


def contrast(y):
    """IMDN's: row sums are summed."""
    mean = mean_of(y, y.sum(3, keepdim=True).sum(2, keepdim=True))
    return mean_of(y, (y - mean).pow(2).sum(3, keepdim=True).sum(2, keepdim=True)).pow(0.5) + mean


def deviation_in_steps(y):
    """Both row means are taken before either is taken on, and one of them twice."""
    mean, square = y.mean(3, keepdim=True), (y * y).mean(3, keepdim=True)
    return (square.mean(2, keepdim=True) - mean.mean(2, keepdim=True).square()).sqrt() + mean.mean(2, keepdim=True)


def grn(y):
    """ConvNeXt V2's global response norm, channels last."""
    last = y.permute(0, 2, 3, 1)
    size = torch.norm(last, p=2, dim=(1, 2), keepdim=True)
    return (last * size / (size.mean(-1, keepdim=True) + 1e-6)).permute(0, 3, 1, 2)


def by_groups(y):
    """EMA attention's: groups of channels in the batch."""
    groups = y.reshape(y.shape[0] * 4, -1, *y.shape[2:])
    return (groups * torch.sigmoid(3 * F.adaptive_avg_pool2d(groups, 1))).reshape(y.shape)


def stacked(y):
    """Two branches one after the other along the batch."""
    both = torch.cat([y, 2 - y])
    return torch.cat((both * torch.sigmoid(both.mean((2, 3), keepdim=True))).chunk(2), 1)[:, 8:24]


def masked(y):
    """A mean of what is larger than 1.6, which may be a single pixel."""
    chosen = (y > 1.6).float()
    return (y * chosen).sum((2, 3), keepdim=True) / chosen.sum((2, 3), keepdim=True).clamp_min(1)


def grouped_largest(y):
    """The largest values of groups of channels in the batch, by name."""
    groups = y.reshape(y.shape[0] * 4, -1, *y.shape[2:])
    return groups.max(3, keepdim=True).values.max(2, keepdim=True).values.reshape(*y.shape[:2], 1, 1)


def both_at_once(y):
    """Two means, the first steps of which come before the second ones."""
    rows, squares = y.mean(3), y.square().mean(3)
    return (squares.mean(2) - 0.5 * rows.mean(2).square())[..., None, None]


def transposed(y):
    """Restormer's: two heads of channels attend to channels."""
    q, k, v = (part.unflatten(1, (2, 8)).flatten(3) for part in (y, y.sub(1).square(), y))  # (B, 2, 8, h*w)
    attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return ((9 * attention).softmax(-1) @ v).reshape(y.shape)


def transposed_tokens(y):
    """One head, from tokens."""
    tokens = y.flatten(2).mT  # (B, h*w, C)
    q, k = F.normalize(tokens.mT, 2, -1), F.normalize(tokens.sub(1).square().mT, p=2, dim=2)
    return torch.bmm((9 * torch.bmm(k, q.mT)).softmax(-1), tokens.mT).view(y.shape)


def transposed_einsum(y):
    """Restormer's, by einsum."""
    q, k, v = (part.unflatten(1, (2, 8)).flatten(3) for part in (y, y.sub(1).square(), y))
    attention = torch.einsum("bhcn,bhdn->bhcd", F.normalize(q, dim=-1), F.normalize(k, dim=-1))
    return torch.einsum("bhcd,bhdn->bhcn", (9 * attention).softmax(-1), v).reshape(y.shape)


def transposed_heads_in_batch(y):
    """The same by bmm, heads in the batch once they are normalised."""
    q, k, v = (part.unflatten(1, (2, 8)).flatten(3) for part in (y, y.sub(1).square(), y))
    q, k, v = (part.flatten(0, 1) for part in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v))
    return torch.bmm((9 * torch.bmm(q, k.mT)).softmax(-1), v).reshape(y.shape)


VECTORS = {
    "both at once": both_at_once,
    "largest of groups": grouped_largest,
    "masked mean": masked,
    "sum over size": lambda y: mean_of(y, y.sum((2, 3), keepdim=True)),
    "contrast": contrast,
    "mean, by numpy's name for dim": lambda y: y.mean(axis=(2, 3), keepdim=True),
    "mean, by keywords": lambda y: torch.mean(input=y, dim=(2, 3), keepdim=True),
    "mean of means": lambda y: y.mean(3).mean(2)[..., None, None],
    "mean of means, columns first": lambda y: y.mean(2, keepdim=True).mean(3, keepdim=True),
    "deviation, in steps": deviation_in_steps,
    "flattened": lambda y: y.flatten(2).mean(2)[..., None, None],
    "viewed": lambda y: y.reshape(*y.shape[:2], -1).mean(-1)[..., None, None],
    "flattened, by a pool": lambda y: F.adaptive_avg_pool1d(y.flatten(2), 1)[..., None],
    "largest, flattened, by a pool": lambda y: F.adaptive_max_pool1d(y.flatten(2), 1)[..., None],
    "pool of the map's size": lambda y: F.avg_pool2d(y, y.shape[2:]),
    "largest": lambda y: F.max_pool2d(y, (y.shape[2], y.shape[3])),
    "largest, flattened": lambda y: torch.max(y.flatten(2), 2)[0][..., None, None],
    "largest of the largest": lambda y: y.max(3, keepdim=True).values.max(2, keepdim=True).values,
    "smallest": lambda y: y.sub(2).flatten(2).min(2, keepdim=True)[0][..., None],
    "logsumexp": lambda y: 0.2 * torch.logsumexp(y.flatten(2), 2)[..., None, None],
    "deviation": lambda y: y.std((2, 3), keepdim=True),
    "variance, biased": lambda y: torch.var(y, (2, 3), False, True),
    "deviation, flattened": lambda y: y.flatten(2).std(2)[..., None, None],
    "deviation, channels last": lambda y: y.permute(0, 2, 3, 1).std((1, 2))[..., None, None],
    "number of pixels": lambda y: mean_of(y, (y > 1.6).sum((2, 3), keepdim=True).to(y.dtype)),
    "weighed pixels": lambda y: (y.flatten(2)[:, None] @ weights_of(y)[..., None])[:, 0, :, :, None],
    "weighed pixels, summed": lambda y: (y * weights_of(y).view_as(y[:, :1])).sum((2, 3), keepdim=True),
}
MAPS = {
    "group norm": lambda y: F.group_norm(y, 4),
    "norm": lambda y: y * (n := torch.norm(y, dim=(2, 3), keepdim=True)) / (n.mean(1, keepdim=True) + 1e-6),
    "channels last": grn,
    "groups": by_groups,
    "stacked": stacked,
    "vector norm": lambda y: (
        y * (n := torch.linalg.vector_norm(y, dim=(2, 3), keepdim=True)) / (n.mean(1, True) + 1e-6)
    ),
    "over channels, too": lambda y: y - y.mean((1, 2, 3), keepdim=True),
    "over all of a map, channels last": lambda y: y - y.permute(0, 2, 3, 1).mean((1, 2, 3)).view(-1, 1, 1, 1),
    "transposed attention": transposed,
    "transposed attention, of tokens": transposed_tokens,
    "transposed attention, by einsum": transposed_einsum,
    "transposed attention, heads in the batch": transposed_heads_in_batch,
    "parameter-free attention": simam,
    "plain total": lambda y: y / (1 + 0.01 * y.sum((2, 3), keepdim=True).abs()),
}
