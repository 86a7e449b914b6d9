"""What test_device.py asks of a device that is not the CPU: python device_checks.py CHECK ... Fails if it is not so."""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import pretend
import pytest
import torch

pretend.register()  # before what decorates with torch.inference_mode

import toys  # noqa: E402
from support import NETWORKS, difference, image, scaled  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import maskguided  # noqa: E402
from maskguided import infer, timing  # noqa: E402
from maskguided.cli import app  # noqa: E402
from maskguided.imaging.images import write_image  # noqa: E402
from maskguided.probing.modules import first_weight  # noqa: E402

SETTINGS = (
    {},
    {"skip": "3x3"},
    {"merge": "image", "scorer": "head", "coarse_tail": "deep", "coarse_on": "unrefined"},
    {"merge": "image", "scorer": "linear", "coarse_tail": "light", "refine_tail": "light", "context": "linear"},
    {"merge": "image", "scorer": "coarse", "exchange": False, "halo": 2},
)
AUTOMATIC = (toys.SizesAndVectors, toys.Nested, toys.Tokens, toys.Strided)
WRAPPED = {name: NETWORKS[name] for name in ("pan-small-x3", "edsr-original")} | {
    kind.__name__: lambda kind=kind: scaled(kind()) for kind in AUTOMATIC
}


def there(x: Tensor) -> Tensor:
    return x.to(pretend.NAME)


def the_device_is_one() -> None:
    x = there(image(1, 3, 4, 4))
    with pytest.raises(RuntimeError, match="on the same device"):
        x + image(1, 3, 4, 4)
    x.max().item(), x.cpu(), x[x > 0.5], x.nonzero()
    assert pretend.waits == ["_local_scalar_dense", "_to_copy", "index", "nonzero"], pretend.waits


def moved() -> None:
    """What was wrapped on the CPU and moved gives the same there, and the host waits for nothing."""
    for name, build in WRAPPED.items():
        for settings in SETTINGS:
            fast, x = maskguided.wrap(build(), keep=0.4, **settings).eval(), image(2, 3, 37, 43)
            expected, explained = fast(x), fast.explain(x)
            fast, x = fast.to(pretend.NAME), there(x)
            pretend.waits.clear()
            refined = fast(x)
            assert pretend.waits == [], (name, settings, pretend.waits)
            assert refined.device.type == pretend.NAME
            assert difference(refined.cpu(), expected) < 2e-6, (name, settings)  # other strides, other sums
            assert torch.equal(fast.explain(x).mask.cpu(), explained.mask), (name, settings)


def timed() -> None:
    """Each run until it is done there: of several GPUs one alone is the current one."""
    x = there(image(1, 3, 16, 16))
    timing.alternate({"a": lambda x: x + 1, "b": lambda x: x * 2}, [x], 1, warm=0)
    assert pretend.waited_for == [x.device, x.device]


def wrapped_there() -> None:
    """A network that is there already is wrapped there."""
    for name, build in WRAPPED.items():
        assert maskguided.inspect(build().to(pretend.NAME)).can_split
        for settings in SETTINGS:
            if settings.get("scorer") == "head" or settings.get("coarse_tail") == "deep":  # drawn at random
                continue
            expected = maskguided.wrap(build(), keep=0.4, **settings).eval()(image(1, 3, 37, 43))
            network = build().to(pretend.NAME)
            fast = maskguided.wrap(network, keep=0.4, **settings).eval()
            assert {p.device.type for p in (*fast.parameters(), *fast.buffers())} == {pretend.NAME}, (name, settings)
            assert difference(fast(there(image(1, 3, 37, 43))).cpu(), expected) < 2e-6, (name, settings)


def calibrated_there() -> None:
    """Whatever device its images are on."""
    images = list(image(4, 3, 48, 48).split(1))

    def calibrated(network: nn.Module, given: list[Tensor]) -> maskguided.MaskGuided:
        fast = maskguided.wrap(network, merge="image", coarse_tail="light", context="linear").eval()
        maskguided.calibrate(fast, given, max_cost=0.8)
        return fast

    pairs = [(x, image(1, 3, 96, 96)) for x in images]
    expected, of_images = (calibrated(NETWORKS["edsr-original"](), images) for _ in range(2))
    maskguided.calibrate(of_images, pairs, max_cost=0.8, per_image=True)
    for given in (images, [there(x) for x in images]):
        fast = calibrated(NETWORKS["edsr-original"]().to(pretend.NAME), given)
        assert fast.keep == expected.keep
        assert difference(fast(there(images[0])).cpu(), expected(images[0])) < 1e-5
        maskguided.calibrate(fast, [tuple(map(there, pair)) for pair in pairs], max_cost=0.8, per_image=True)
        assert fast.min_gain_db == pytest.approx(of_images.min_gain_db, rel=1e-4)


def upscaled_there() -> None:
    """Images of any kind, whole and in tiles."""
    pixels = (image(1, 4, 50, 70)[0].permute(1, 2, 0) * 255).byte().numpy()
    here = maskguided.wrap(NETWORKS["pan-small-x3"](), keep=0.4).eval()
    fast = maskguided.wrap(NETWORKS["pan-small-x3"]().to(pretend.NAME), keep=0.4).eval()
    for kind in (pixels, pixels[..., :3], pixels[..., 0]):
        for tile in (0, 32):
            expected, found = infer.upscale(here, kind, tile=tile), infer.upscale(fast, kind, tile=tile)
            assert np.abs(found.image.astype(int) - expected.image.astype(int)).max() <= 1, "but for rounding"
            assert np.array_equal(found.mask, expected.mask)


def the_commands_go_there() -> None:
    """calibrate brings network and images there, and explain."""
    seen: list[set[str]] = []

    def note(fast: maskguided.MaskGuided, images: Tensor | list[Tensor], *args: object, **kwargs: object) -> None:
        seen.append({first_weight(fast).device.type, images[0].device.type})
        raise maskguided.MaskGuidedError("seen")

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        lr, out = f"{folder}/lr.png", f"{folder}/out"
        write_image(lr, (image(1, 3, 32, 32)[0].permute(1, 2, 0) * 255).byte().numpy())
        patch.setattr("maskguided.commands.calibrate.calibrate", note)
        patch.setattr("maskguided.pictures.explain_picture", note)
        for command, kind in (("calibrate", "safetensors"), ("explain", "png")):
            given = [command, "-i", lr, "-o", f"{out}.{kind}", "--device", pretend.NAME]
            with pytest.raises(maskguided.MaskGuidedError, match="seen"):
                CliRunner().invoke(app, given, catch_exceptions=False)
    assert seen == [{pretend.NAME}] * 2


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for check in sys.argv[1:]:
        globals()[check]()
