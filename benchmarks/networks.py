"""Split every architecture of architectures.py automatically, check the laws, and print docs/networks.md.

python -m benchmarks.networks --onnx > docs/networks.md     all, some forty minutes on one core
python -m benchmarks.networks --only basicsr SPAN           those whose names hold one of these words
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import maskguided
from maskguided import MaskGuided, MaskGuidedError, Split
from maskguided.patches import round_up
from maskguided.probing.probe import image_of

from .architectures import ARCHITECTURES, NOT_TRIED, Architecture, seeded

KEEP, SIDE = 0.25, 96
HEAD = (
    "| network | body | multiple | radius | law 1 | law 2 | exchange | law 3 | MACs | ONNX |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
LARGEST_RADIUS = 64  # LR pixels: with a larger one the window is larger than the image that law 2 is checked on


@dataclass(frozen=True)
class Row:
    """What was found for one architecture; `reason` is why it cannot be split."""

    name: str
    body: str = ""
    multiple_of: int = 1
    radius: str = ""
    laws: tuple[str, str, str] = ("", "", "")
    exchange: str = ""
    macs: float = 0.0
    onnx: str = ""
    seconds: float = 0.0
    reason: str = ""


def row(architecture: Architecture, onnx: bool = False) -> Row:
    """Split one network and measure it, and export it if asked to; what fails after the split is a failure, too."""
    model, started = seeded(architecture.build(), gain=architecture.gain), time.perf_counter()
    try:
        parts = maskguided.split(model, adapter="automatic")
    except MaskGuidedError as error:
        return Row(architecture.name, reason=str(error).partition(". An adapter")[0].partition(". Adapters")[0])
    seconds = time.perf_counter() - started
    try:
        return measured(architecture.name, model, parts, seconds, onnx)
    except Exception as error:  # one network must not end the table
        return Row(architecture.name, reason=f"**a fault of ours**: {type(error).__name__}: {error}")


def measured(name: str, model: nn.Module, parts: Split, seconds: float, onnx: bool) -> Row:
    """The row of a network that was split."""
    facts = parts.facts
    radii = tuple("all" if r is None else str(r) for r in (facts.body_radius, facts.radius))
    fast = MaskGuided(parts, keep=KEEP).eval()
    return Row(
        name,
        f"{len(facts.blocks)} x {type(model.get_submodule(facts.blocks[0])).__name__}",
        facts.multiple_of,
        " / ".join(radii),
        (law_1(model, parts), law_2(model, parts), law_3(parts)),
        exchanged(fast, model),
        fast.cost(SIDE, SIDE).ratio,
        exported(fast) if onnx else "",
        seconds,
    )


def law_1(model: nn.Module, parts: Split) -> str:
    """Two images of odd size, or of the next size that the network takes."""
    x = sample(parts, 2, 47, 61)
    whole = image_of(model(x.clone()))
    return verdict(parts.tail(parts.body(parts.prefix(x))), whole, exact=True)


def law_2(model: nn.Module, parts: Split) -> str:
    """All windows, with the halo that the radius asks for, on a strip longer than two of them."""
    radius, step = parts.facts.body_radius, parts.facts.multiple_of
    if radius is None:
        return "global"
    if radius > LARGEST_RADIUS:
        return "radius"
    patch, halo = (round_up(length, step) for length in (8, radius))
    x = sample(parts, 1, 33, 2 * (patch + halo) + 7)
    fast = MaskGuided(parts, keep=1, patch_size=patch, halo=halo).eval()
    return all_windows(fast, model, x)


def all_windows(fast: MaskGuided, model: nn.Module, x: Tensor) -> str:
    """Whether all patches of `x` refined as windows are the network."""
    base = fast.run_base(x)
    return verdict(fast.refine(base, base.every), image_of(model(x.clone())), exact=False)


def exchanged(fast: MaskGuided, model: nn.Module) -> str:
    """All windows, with no halo, on two images, where windows exchange borders."""
    if not fast.exchange:
        return "no"
    found, full = all_windows(fast, model, sample(fast.split, 2, 47, 61)), fast.split.full_size(47, 61)
    if not found.startswith("**") or full == (47, 61):
        return found
    rounded = all_windows(fast, model, sample(fast.split, 2, *full))
    return rounded if rounded.startswith("**") else "multiples"


def law_3(parts: Split) -> str:
    """keep=0 is the coarse image."""
    if not parts.can_skip:
        return "light"
    x = sample(parts, 1, 47, 61)
    return verdict(MaskGuided(parts, keep=0).eval()(x), parts.tail(parts.skip(parts.prefix(x))), exact=True)


def exported(fast: MaskGuided) -> str:
    """Whether an ONNX file, masks and all, gives the image that the network gives."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            maskguided.export(fast, f"{folder}/net.onnx", sample(fast.split, 1, 64, 72))
        except MaskGuidedError:
            return "no"
    return "yes"


def sample(parts: Split, batch: int, height: int, width: int) -> Tensor:
    """A random image of at least this size that the network takes."""
    step = parts.probe.multiple_of
    return parts.probe.input(height + -height % step, width + -width % step, batch)


def verdict(ours: Tensor, reference: Tensor, exact: bool) -> str:
    """ "exact", "holds" (1e-5 of the range), or the relative difference."""
    if torch.equal(ours, reference):
        return "exact"
    difference = float((ours - reference).abs().max() / max(1.0, float(reference.abs().max())))
    return "holds" if difference < 1e-5 and not exact else f"**{difference:.0e}**"


def line(r: Row) -> str:
    """Of the table of what is split."""
    one, two, three = r.laws
    found = (
        f"{r.body} | {r.multiple_of} | {r.radius} | {one} | {two} | {r.exchange} | {three} | {r.macs:.0%} | {r.onnx}"
    )
    return f"| {r.name} | {found} |"


def table(rows: list[Row]) -> str:
    """The page, in Markdown."""
    split, refused = [r for r in rows if not r.reason], [r for r in rows if r.reason]
    lines = [
        "# Networks tried",
        "",
        "Every single-image architecture of basicsr 1.4.2 and spandrel 0.4.2, as a small instance with seeded random",
        f"weights, split automatically (no adapter) at half of its depth: {len(split)} of {len(rows)} are split.",
        "Made by `python -m benchmarks.networks --onnx > docs/networks.md`; CI reruns a part of it.",
        "",
        "- *multiple*: patches, halos and windows are multiples of this many LR pixels; images may have any size.",
        "- *radius*: of the refined blocks / with the tail, LR pixels; *all*: a global operation, or more than 512.",
        "- *law 1*: the parts together are the network, 2 images of 47x61 (or the next size that it takes).",
        "- *law 2*: all windows with a halo of the radius are the network, to 1e-5; *global*: does not apply;",
        f"  *radius*: larger than {LARGEST_RADIUS}, not checked.",
        "- *exchange*: all windows that see their neighbours, with no halo, are the network, to 1e-5, on 2 images of",
        "  47x61; *no*: here windows do not, and have a halo. *multiples*: blocks pad within themselves to a multiple",
        "  ([one exception](idea.md#what-a-window-sees-around-it)), and on such sizes they are the network.",
        "- *law 3*: keep=0 is the coarse image; *light*: blocks cannot be left out, a light tail makes that image.",
        f"- *MACs*: at keep={KEEP:g} on {SIDE}x{SIDE} LR pixels, default patch and halo, of the dense network's. These",
        "  instances are narrow and shallow: a real one, with more blocks before its tail, saves more.",
        "- *ONNX*: a file of it, made at 64x72, gives the same image in onnxruntime. Those with *no* failed unwrapped,",
        "  too (2026-11-28): onnxruntime gives another image (ATD) or none (CRAFT).",
        "",
        *HEAD,
    ]
    lines += [line(r) for r in split]
    lines += ["", "## Not split", "", "| network | reason |", "| --- | --- |"]
    lines += [f"| {r.name} | {r.reason.replace('|', '/')} |" for r in refused]
    lines += ["", "## Not tried", "", "| network | reason |", "| --- | --- |"]
    lines += [f"| {name} | {reason} |" for name, reason in NOT_TRIED.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="words of names")
    parser.add_argument("--onnx", action="store_true", help="export each as well")
    parser.add_argument("--rows", type=Path, help="keep finished rows in this file, and go on from there")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    lines = args.rows.read_text().splitlines() if args.rows and args.rows.exists() else []
    done = {found["name"]: Row(**{**found, "laws": tuple(found["laws"])}) for found in map(json.loads, lines)}
    rows = []
    for architecture in ARCHITECTURES:
        if any(word in architecture.name for word in args.only):
            rows.append(done.get(architecture.name) or row(architecture, args.onnx))
            if args.rows and architecture.name not in done:
                with args.rows.open("a") as file:
                    file.write(json.dumps(asdict(rows[-1])) + "\n")
            r = rows[-1]
            print(
                r.name,
                r.reason or (r.body, r.multiple_of, r.radius, r.laws, r.exchange, f"{r.seconds:.1f} s"),
                file=sys.stderr,
            )
    print(table(rows))


if __name__ == "__main__":
    main()
