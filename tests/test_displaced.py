"""Networks that bring pixels into another order before their blocks, and back after them: a patch of the blocks' map is
no patch of the image."""

from __future__ import annotations

import pytest
import torch
from support import difference, image, scaled
from torch.nn import functional as F
from toys import Chain

import maskguided
from maskguided import CannotSplit


class Reordered(Chain):
    def __init__(self, there, back) -> None:
        super().__init__()
        self.there, self.back = there, back

    def forward(self, x):
        y = self.there(self.first(x))
        for block in self.blocks:
            y = block(y)
        return self.finish(self.back(y))


def rolled(dims):
    def half(x, back=False):
        by = [x.shape[dim] // 2 for dim in dims]
        return x.roll([-n for n in by] if back else by, dims)

    return half, lambda x: half(x, back=True)


def mosaic(x):
    """AP-BSN's way: four images, each of every other pixel, side by side."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 2, 5, 4).reshape(b, c, h, w)


def unmosaic(x):
    b, c, h, w = x.shape
    return x.view(b, c, 2, h // 2, 2, w // 2).permute(0, 1, 3, 2, 5, 4).reshape(b, c, h, w)


def even_first(x):
    return torch.cat([x[:, :, ::2], x[:, :, 1::2]], 2)


def interleaved(x):
    return torch.stack(x.chunk(2, 2), 3).flatten(2, 3)


def to_even(step):
    """`step` on maps whose sides are even, as AP-BSN pads them."""
    return lambda x: step(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate"))


ORDERS = {
    "rolled by half": rolled((2, 3)),
    "columns rolled by half": rolled((3,)),
    "a mosaic of every other pixel": (to_even(mosaic), unmosaic),
    "even rows before odd ones": (to_even(even_first), interleaved),
}


class Cropped(Reordered):
    def forward(self, x):
        return super().forward(x)[:, :, : 2 * x.shape[2], : 2 * x.shape[3]]


@pytest.mark.parametrize("order", ORDERS)
def test_a_patch_of_reordered_pixels_is_refused(order):
    network, x = scaled(Cropped(*ORDERS[order])), image(1, 3, 20, 24)
    there, back = ORDERS[order]
    assert torch.equal(back(there(x)), x)
    with pytest.raises(CannotSplit, match="stands elsewhere than in the image"):
        maskguided.split(network, 2)


def test_pixels_that_change_places_only_within_blocks_are_taken():
    """Rolled and rolled back in the stem: what the blocks see lies as the image does."""
    there, back = rolled((2, 3))
    network, x = scaled(Reordered(lambda y: back(there(y)), lambda y: y)), image(1, 3, 20, 24)
    fast = maskguided.wrap(network, 2, keep=1).eval()
    assert difference(fast(x), network(x)) < 1e-5


@pytest.mark.parametrize(("share", "gain", "seed"), [(0, 1, 1), (0.1, 1, 0), (1, 0.3, 0)])
def test_what_all_pixels_hang_on_stands_nowhere_else(share, gain, seed):
    """A change shows in the whole image where all pixels attend to all, and by chance more in some places."""

    class Attending(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            flat = x.flatten(2)
            return share * self.mix(x) + (flat @ (flat.mT @ flat).softmax(1)).view_as(x)

    network = Chain()
    network.blocks = torch.nn.ModuleList(Attending() for _ in range(4))
    assert maskguided.split(scaled(network, gain=gain, seed=seed), 2).split_at == 2
