"""Random super-resolution networks: what real ones do, freely combined.

plan = draw(plans())     every choice; its repr rebuilds the network that failed
model = build(plan)      seeded, every layer at a scale at which it matters
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from random_blocks import KINDS, Kind, Layout, Style, activation, conv, to_layout, to_map
from torch import Tensor, nn
from torch.nn import functional as F

OPTIONS: dict[str, tuple[Any, ...]] = {
    "kind": tuple(KINDS),
    "width": (8, 4, 12),
    "channels": ((3, 3), (1, 1), (3, 1)),
    "scale": (2, 1, 3, 4),
    "activation": ("relu", "leaky", "gelu"),
    "window": (2, 4),
    "held": ("list", "sequential", "attributes", "groups"),
    "depth": (3, 4, 5, 6, 7, 8),
    "grouped": ((2, 2), (3, 2), (4, 2), (2, 3)),
    "shared": (False, True),
    "between": ("chain", "residual", "concat", "accumulate"),
    "body_conv": (False, True),
    "feature_skip": (False, True),
    "image_skip": (None, "bilinear", "nearest", "bicubic"),
    "skip_by_size": (False, True),
    "skip_after_crop": (False, True),
    "in_place": (False, True),
    "stem": ("conv", "two-convs", "unshuffle"),
    "mean": (None, "buffer", "tensor", "new_zeros", "zeros"),
    "upsampler": ("shuffle", "two-step", "transposed", "nearest"),
    "pad": (None, 2, 4, 8),
    "pad_mode": ("reflect", "replicate", "constant", "flip", "beyond"),
    "gate": (False, True),
    "output": ("tensor", "tuple", "list", "dict"),
}
"""The values of each choice, the simplest first, which is where Hypothesis shrinks to."""


@dataclass(frozen=True)
class Plan:
    """All choices of one network."""

    kind: str = "residual"
    other: str | None = None
    """The kind of every second block."""
    width: int = 8
    channels: tuple[int, int] = (3, 3)
    scale: int = 2
    activation: str = "relu"
    window: int = 2
    held: str = "list"
    depth: int = 3
    grouped: tuple[int, int] | None = None
    """(groups, blocks in each)."""
    shared: bool = False
    """One module (of each kind) stands in all places, or in all places of its group."""
    between: str = "chain"
    body_conv: bool = False
    feature_skip: bool = False
    image_skip: str | None = None
    skip_by_size: bool = False
    skip_after_crop: bool = False
    """The skip takes the image as given and is added behind the crop; else the padded one, before it."""
    in_place: bool = False
    stem: str = "conv"
    mean: str | None = None
    upsampler: str = "shuffle"
    pad: int | None = None
    pad_mode: str = "reflect"
    gate: bool = False
    output: str = "tensor"
    seed: int = 0

    @property
    def of_kind(self) -> Kind:
        return KINDS[self.kind]

    @property
    def layout(self) -> Layout:
        return self.of_kind.layout

    @property
    def stride(self) -> int:
        return 2 if self.stem == "unshuffle" else 1

    @property
    def step(self) -> int:
        """What the size of the image, once it is padded, must be a multiple of."""
        return self.stride * (self.window if self.layout == "tokens" else 1)

    @property
    def multiple_of(self) -> int:
        """What the size of the given image must be a multiple of."""
        return 1 if self.pad else self.step

    @property
    def is_local(self) -> bool:
        """No block looks at the whole map."""
        return "channel-attention" not in (self.kind, self.other)

    @property
    def is_global(self) -> bool:
        """Every block looks at the whole map."""
        return self.kind == "channel-attention" and self.other is None

    @property
    def expected_blocks(self) -> int | None:
        """How many blocks the body has; None where more than one answer is right.

        That is so for two kinds in turn (the ones of a kind alone are a run, too), and where the blocks are
        light beside the convolutions of the same shape around them, which are then a run of their own.
        """
        strays = (self.stem == "two-convs") + self.body_conv
        count, weight = self.depth, self.of_kind.weight
        if self.grouped:
            groups, size = self.grouped
            if groups >= 3:
                return groups if groups * (size * weight + 1) >= 4 * strays else None
            strays += groups
        return None if self.other or count * weight < 4 * strays else count

    def image_of(self, output: Any) -> Tensor:
        """The final image in what the network returns."""
        return {"tuple": lambda: output[0], "list": lambda: output[-1], "dict": lambda: output["sr"]}.get(
            self.output, lambda: output
        )()

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The largest size up to this one that the network takes."""
        return height // self.multiple_of * self.multiple_of, width // self.multiple_of * self.multiple_of


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Every plan that makes sense."""

    def choose(name: str, sensible: Any = lambda _: True, options: tuple[Any, ...] = ()) -> Any:
        # With its name beside it each choice is of its own sort; Hypothesis would copy values between equal sorts,
        # which yields near copies of one plan instead of other plans.
        return draw(st.sampled_from([(name, option) for option in options or OPTIONS[name] if sensible(option)]))[1]

    some: dict[str, Any] = {name: choose(name) for name in ("kind", "width", "channels", "scale", "activation")}
    kind = KINDS[some["kind"]]
    if kind.layout == "tokens":
        some["window"] = choose("window")
    some["shared"] = choose("shared", options=(False, False, False, True))
    if kind.simple:
        others = tuple(name for name, other in KINDS.items() if other.simple and name != some["kind"])
        some["other"] = choose("other", options=(None,) * len(others) + others)
    some["held"] = choose("held", lambda held: held != "sequential" or not (kind.takes or kind.pair))
    if some["held"] == "groups":
        some["grouped"] = choose("grouped")
        some["depth"] = some["grouped"][0] * some["grouped"][1]
    else:
        some["depth"] = choose("depth")
    if some["held"] != "sequential":
        some["between"] = choose("between")
    for name in ("body_conv", "feature_skip", "in_place", "stem", "mean", "gate"):
        some[name] = choose(name)
    plan = Plan(**some)
    factor = plan.scale * plan.stride
    some["upsampler"] = choose("upsampler", lambda way: way != "two-step" or factor == 4)
    some["pad"] = choose("pad", lambda multiple: multiple is None or multiple % plan.step == 0)
    if some["pad"]:
        some["pad_mode"] = choose("pad_mode")
    if plan.channels[0] == plan.channels[1]:
        some["image_skip"] = choose("image_skip")
    if some.get("image_skip"):
        some["skip_by_size"] = choose("skip_by_size")
        some["skip_after_crop"] = some["pad"] is not None and choose("skip_after_crop")
    # At scale 1 the features of a padded image are larger than the image: nobody could tell which one is meant.
    clear = plan.scale > 1 or plan.stride > 1 or not some["pad"]
    some["output"] = choose("output", lambda output: output != "tuple" or clear)
    return Plan(**some, seed=zlib.crc32(repr(some).encode()) % 100)


class Group(nn.Module):
    """Blocks, a convolution and a skip around both."""

    def __init__(self, plan: Plan, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.plan = plan
        whole = not plan.of_kind.takes and not plan.of_kind.pair
        self.blocks = nn.Sequential(*blocks) if whole else nn.ModuleList(blocks)
        self.conv = conv(plan.width, plan.width)

    def forward(self, x, *args, **kwargs):
        layout, y = self.plan.layout, x
        if isinstance(self.blocks, nn.Sequential):
            y = self.blocks(y)
        else:
            for block in self.blocks:
                y = block(y, *args, **kwargs)
                y = y[0] if self.plan.of_kind.pair else y
        size = args[0] if layout == "tokens" else (0, 0)
        return to_layout(self.conv(to_map(y, layout, size)), layout) + x


class RandomNetwork(nn.Module):
    """The network of a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan, c, (inputs, outputs) = plan, plan.width, plan.channels
        if plan.mean == "buffer":
            self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6][:inputs]).view(1, -1, 1, 1))
        if plan.stem == "unshuffle":
            self.stem = nn.Sequential(nn.PixelUnshuffle(2), conv(4 * inputs, c))
        else:
            self.stem = nn.Sequential(conv(inputs, c), conv(c, c)) if plan.stem == "two-convs" else conv(inputs, c)
        units = self._hold()
        if plan.between == "concat":
            self.fuse = conv(c * units, c, 1)
        if plan.body_conv:
            self.body_conv = conv(c, c)
        if plan.gate:
            self.gate = nn.Sequential(nn.Linear(c, c), nn.Sigmoid())
        self.factor = plan.scale * plan.stride
        self.up = self._upsampler(plan.upsampler, outputs)
        if plan.output == "list":
            self.early = self._upsampler("shuffle", outputs)

    def _hold(self) -> int:
        """Make the blocks and hold them as planned; returns how many the body's loop sees."""
        plan = self.plan
        if plan.grouped:
            groups, size = plan.grouped
            self.body = nn.ModuleList(Group(plan, self._blocks(size)) for _ in range(groups))
            return groups
        blocks = self._blocks(plan.depth)
        if plan.held == "attributes":
            for number, block in enumerate(blocks, 1):
                setattr(self, f"B{number}", block)
        else:
            self.body = nn.Sequential(*blocks) if plan.held == "sequential" else nn.ModuleList(blocks)
        return plan.depth

    def _blocks(self, count: int) -> list[nn.Module]:
        plan, kinds = self.plan, [self.plan.kind, self.plan.other or self.plan.kind]
        # Shared window attention is always shifted: otherwise nothing would cross its windows.
        made = [
            KINDS[kinds[i % 2]].make(
                Style(plan.width, plan.activation, plan.in_place, plan.window, 1 if plan.shared else i)
            )
            for i in range(count)
        ]
        return [made[i % 2 if plan.other else 0] for i in range(count)] if plan.shared else made

    def _upsampler(self, way: str, outputs: int) -> nn.Sequential:
        c, f = self.plan.width, self.factor
        if way == "shuffle":
            return nn.Sequential(conv(c, outputs * f * f), nn.PixelShuffle(f))
        if way == "transposed":
            return nn.Sequential(nn.ConvTranspose2d(c, outputs, f + 2, stride=f, padding=1))
        steps: list[nn.Module] = []
        if way == "two-step":
            for _ in range(2):
                act = activation(self.plan.activation, self.plan.in_place)
                steps += [conv(c, 4 * c), nn.PixelShuffle(2), act]
        return nn.Sequential(*steps, conv(c, outputs))

    def forward(self, x):
        plan, (h, w) = self.plan, (x.shape[2], x.shape[3])
        padded = self._padded(x, h, w) if plan.pad else x
        mean = self._mean(padded) if plan.mean else None
        first = self.stem(padded if mean is None else padded - mean)
        gate = self.gate(first.mean((2, 3))) if plan.gate else None
        y = features = self._body(first)
        y = y if gate is None else y * gate[:, :, None, None]
        if plan.upsampler == "nearest":
            y = F.interpolate(y, scale_factor=self.factor, mode="nearest")
        image = self.up(y)
        if mean is not None and plan.channels[0] == plan.channels[1] and mean.shape[-1] == 1:
            image = image + mean
        if plan.image_skip and not plan.skip_after_crop:
            image = self._sum(image, self._enlarged(padded))
        if plan.pad:
            image = image[:, :, : h * plan.scale, : w * plan.scale]
        if plan.image_skip and plan.skip_after_crop:
            image = self._sum(image, self._enlarged(x))
        if plan.output == "list":
            return [self.early(first)[:, :, : h * plan.scale, : w * plan.scale], image]
        return {"tuple": (image, features), "dict": {"sr": image}}.get(plan.output, image)

    def _body(self, first):
        plan, size = self.plan, (first.shape[2], first.shape[3])
        y = to_layout(first, plan.layout)
        y = self.body(y) if plan.held == "sequential" else self._loop(y, first, size)
        y = to_map(y, plan.layout, size)
        if plan.between == "concat":
            y = self.fuse(y)
        if plan.body_conv:
            y = self.body_conv(y)
        return self._sum(y, first) if plan.feature_skip else y

    def _loop(self, y, first, size):
        plan, takes = self.plan, self.plan.of_kind.takes
        args = {"first": (first,), "size": (size,)}.get(takes, ())
        kwargs = {"strength": 0.5} if takes == "strength" else {}
        attributes = plan.held == "attributes"
        blocks = [getattr(self, f"B{i}") for i in range(1, plan.depth + 1)] if attributes else self.body
        outputs, aux = [], None
        total = torch.zeros_like(y) if plan.between == "accumulate" else None
        for block in blocks:
            new = block(y, *args, **kwargs)
            if plan.of_kind.pair and not plan.grouped:
                new, aux = new
            y = y + 0.5 * new if plan.between == "residual" else new
            if plan.between == "concat":
                outputs.append(y)
            elif plan.between == "accumulate":
                total = self._sum(total, y)
        if plan.between == "concat":
            return torch.cat(outputs, 1 if plan.layout == "map" else -1)
        y = total if plan.between == "accumulate" else y
        return y if aux is None else y + 0.5 * aux

    def _sum(self, a, b):
        if self.plan.in_place:
            a += b
            return a
        return a + b

    def _padded(self, x, h, w):
        m = self.plan.pad
        below, right = (m - h % m) % m, (m - w % m) % m
        if self.plan.pad_mode == "beyond":  # as CRAFT does: a multiple is padded by one more
            below, right = m - h % m, m - w % m
        if self.plan.pad_mode in ("flip", "beyond"):
            x = torch.cat([x, torch.flip(x, [2])], 2)[:, :, : h + below, :]
            return torch.cat([x, torch.flip(x, [3])], 3)[:, :, :, : w + right]
        return F.pad(x, (0, right, 0, below), mode=self.plan.pad_mode)

    def _mean(self, x):
        if self.plan.mean == "buffer":
            return self.mean
        if self.plan.mean == "tensor":
            return torch.tensor([0.4, 0.5, 0.6][: self.plan.channels[0]], device=x.device).view(1, -1, 1, 1)
        if self.plan.mean == "new_zeros":
            return x.new_zeros(x.shape[0], 1, x.shape[2], x.shape[3]) + 0.4
        return torch.zeros(x.shape[0], x.shape[1], 1, 1, device=x.device) + 0.4

    def _enlarged(self, x):
        s, mode = self.plan.scale, self.plan.image_skip
        if self.plan.skip_by_size:
            return F.interpolate(x, size=(x.shape[2] * s, x.shape[3] * s), mode=mode)
        return F.interpolate(x, scale_factor=s, mode=mode)


def build(plan: Plan) -> nn.Module:
    """The network of `plan`, in eval mode, its weights following from the plan's seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(plan.seed)
        model = RandomNetwork(plan).eval()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
        _level(model, torch.rand(1, plan.channels[0], 16, 24))
    return model


def _level(model: RandomNetwork, x: Tensor) -> None:
    """Scale each layer, on its first call, to outputs of deviation 1 (the last: 0.25): none dies, none explodes."""
    final = [module for module in model.up if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))][-1]
    handles, done = [], set[int]()

    def level(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        per_channel = out.flatten(2).transpose(1, 2) if not isinstance(layer, nn.Linear) else out
        per_channel = per_channel.reshape(-1, per_channel.shape[-1])
        if id(layer) in done or len(per_channel) == 1:  # a pooled vector is a single sample
            return None
        done.add(id(layer))
        mean = per_channel.mean(0)
        gain = (0.25 if layer is final else 1) / float(per_channel.std(0).square().mean().sqrt())
        offset = torch.rand_like(layer.bias) * 0.4 - 0.2 + (0.4 if layer is final else 0)
        layer.bias.sub_(mean).mul_(gain).add_(offset)
        layer.weight.mul_(gain)
        return layer.forward(*args)

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            handles.append(module.register_forward_hook(level))
    model(x)
    for handle in handles:
        handle.remove()
