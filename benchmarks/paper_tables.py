"""The tables of the MGA paper (Hu et al., ECCV 2022) in shape, on one network with trained weights.

    python -m benchmarks.paper_tables --weights PANx4_DF2K.pth --hr PHOTOS --test Set5 --test Set14 --work DIR

A test folder holds HR and LRx4 (or LRx2, LRx3: the network's scale). Setup as in the paper unless a table varies it:
split 12, patches of 4x4, halo 1, two tails that are not shared, a head of 2 channels supervised by L1. The network's
weights are trained already, so the paper's first step, D-Net, is left out: the coarse tail starts as a copy of the
network's own and is trained alone (L1 to HR); then the refine part on windows, then the head.

Each training is kept in DIR and reused by the tables that share it; a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import maskguided
from maskguided import MaskGuided, bench, finetune, metrics
from maskguided.base import BaseOutput
from maskguided.checkpoint import load_onto
from maskguided.error_map import patch_error
from maskguided.errors import CheckpointError
from maskguided.finetune import Recipe
from maskguided.head import MaskHead, high_frequency
from maskguided.imaging.pairs import Pair, read_pairs
from maskguided.networks import load_network
from maskguided.patches import per_pixel
from maskguided.training.choices import HeadLoss, Options, Stage
from maskguided.training.stages import train_only

OUTPUT = (720, 1280)  # height and width of the HR image for which MACs are counted
KEEPS = (0.0, 0.25, 0.5, 1.0)
STEPS: dict[Stage, int] = {"coarse": 100, "refine": 60, "head": 200, "end": 0}  # 0: as many as the others together
RATES: dict[Stage, float] = {"coarse": 2e-4, "refine": 1e-4, "head": 1e-3, "end": 2e-4}
Sets = dict[str, list[Pair]]
Row = dict[str, Any]
Metric = Callable[[metrics.Image, metrics.Image, int], float]
METRICS: tuple[Metric, ...] = (metrics.psnr, metrics.ssim)


@dataclass(frozen=True)
class Variant:
    """What the tables vary; the defaults are the paper's."""

    split_at: int = 12
    patch_size: int = 4
    channels: int = 2
    head_loss: HeadLoss = "l1"

    @property
    def parts(self) -> str:
        """Tells apart all that is trained but the head."""
        return f"{self.split_at}_{self.patch_size}"


class Choice(NamedTuple):
    """How many patches are refined and which: the largest score (L), random (R), the smallest (S), ..."""

    keep: float
    way: str = "L"


class Table(NamedTuple):
    title: str
    rows: list[Row]


class Trainer:
    """Trains wraps step by step and keeps each in a folder, so that variants share what they have in common."""

    def __init__(self, model: nn.Module, args: argparse.Namespace) -> None:
        self.model, self.args, self.recipes = model, args, recipes(args)
        self.work: Path = args.work
        self.done: dict[str, Row] = {}
        self.work.mkdir(parents=True, exist_ok=True)

    def coarse(self, split_at: int) -> Path:
        """Step 1: the coarse tail; it does not depend on the patches."""
        return self._trained(f"coarse_{split_at}", "coarse", self.recipes["coarse"], lambda: self._wrap(split_at, 4))

    def refined(self, split_at: int, patch_size: int) -> Path:
        """Step 2, A-Net: the refine part on the windows that it will see."""
        before = self.coarse(split_at)

        def start() -> MaskGuided:
            fast = self._wrap(split_at, patch_size)
            load_onto(before, fast)
            return fast

        return self._trained(f"refine_{split_at}_{patch_size}", "refine", self.recipes["refine"], start)

    def guided(self, variant: Variant) -> MaskGuided:
        """Step 3, M-Net: the head, all else frozen."""
        before = self.refined(variant.split_at, variant.patch_size)

        def start() -> MaskGuided:
            fast = self.load(before)
            if variant.channels != fast.head.settings["channels"]:
                torch.manual_seed(0)
                fast.head = MaskHead(fast.split.feature_channels, channels=variant.channels)
            return fast

        recipe = self.recipes["head"]
        recipe = replace(recipe, options=replace(recipe.options, head_loss=variant.head_loss))
        return self.load(self._trained("head_" + "_".join(map(str, asdict(variant).values())), "head", recipe, start))

    def end_to_end(self) -> MaskGuided:
        """All at once, from the network's own weights."""
        return self.load(self._trained("end", "end", self.recipes["end"], lambda: self._wrap(12, 4)))

    def load(self, path: Path) -> MaskGuided:
        return maskguided.load(path, self.model).to(memory_format=torch.channels_last).eval()

    def _wrap(self, split_at: int, patch_size: int) -> MaskGuided:
        torch.manual_seed(0)  # the head begins at random
        fast = maskguided.wrap(
            self.model, split_at, merge="image", coarse_tail="copy", patch_size=patch_size, halo=1, keep=0.5
        )
        return fast.to(memory_format=torch.channels_last).eval()

    def _trained(self, name: str, stage: Stage, recipe: Recipe, start: Callable[[], MaskGuided]) -> Path:
        path, report = self.work / f"{name}.safetensors", self.work / f"{name}.json"
        if not report.exists():
            self._train(start(), name, stage, recipe)
        self.done[name] = json.loads(report.read_text())
        if self.done[name]["recipe"] != asdict(recipe):
            raise CheckpointError(f"{path} was trained by another recipe; give the same settings, or another --work")
        return path

    def _train(self, fast: MaskGuided, name: str, stage: Stage, recipe: Recipe) -> None:
        checkpoint, began = self.work / f"{name}.checkpoint.pt", time.process_time()
        losses = finetune.fit(fast, self.args.hr, stage, recipe, checkpoint=checkpoint, every=50)
        tenth = max(1, len(losses) // 10)
        ends = [round(float(np.mean(part)), 5) for part in (losses[:tenth], losses[-tenth:]) if part]
        spent = round(time.process_time() - began, 1)
        report = {"stage": stage, "recipe": asdict(recipe), "seconds": spent, "losses": ends}
        print(f"{name}: {recipe.steps} steps, {spent} s of CPU time, loss {ends}", flush=True)
        maskguided.save(fast, self.work / f"{name}.safetensors")
        (self.work / f"{name}.json").write_text(json.dumps(report))  # last, for it says that the training is whole
        checkpoint.unlink(missing_ok=True)


class Restored(NamedTuple):
    """What is the same for every head and every k: the two images that patches are taken from."""

    pair: Pair
    base: BaseOutput
    coarse: Tensor
    refined: Tensor
    """All patches refined, each on its window."""


class Measurer:
    """Quality on the test sets. Each window is refined once: its patch does not depend on which others are chosen."""

    def __init__(self, sets: Sets) -> None:
        self.sets = sets
        self._restored: dict[tuple[str, str], list[Restored]] = {}

    @torch.inference_mode()
    def of(
        self, fast: MaskGuided, parts: str, name: str, choices: Sequence[Choice], metric: Metric = metrics.psnr
    ) -> list[float]:
        """Mean over the images of set `name` for each choice; `parts` tells apart what was trained but the head."""
        if (parts, name) not in self._restored:
            self._restored[parts, name] = [self._restore(fast, pair) for pair in self.sets[name]]
        found = []
        for one in self._restored[parts, name]:
            scores = {way: score_by(way, fast, one) for way in {choice.way for choice in choices}}
            images = [merged(fast, one, choice.keep, scores[choice.way]) for choice in choices]
            found.append([bench.quality(image, one.pair, fast.scale, metric) for image in images])
        return [float(value) for value in np.mean(found, axis=0)]

    @torch.inference_mode()
    def of_dense(self, fast: MaskGuided, name: str) -> list[float]:
        """PSNR and SSIM of the network as it was given."""
        images = [(fast.unwrap()(pair.lr), pair) for pair in self.sets[name]]
        return [float(np.mean([bench.quality(*one, fast.scale, metric) for one in images])) for metric in METRICS]

    @staticmethod
    def _restore(fast: MaskGuided, pair: Pair) -> Restored:
        base = fast.run_base(pair.lr)
        return Restored(pair, base, fast.coarse_image(base), fast.refine(base, base.every))


def score_by(way: str, fast: MaskGuided, one: Restored) -> Tensor:
    """(B, rows, cols): what ranks the patches."""
    grid = one.base.grid
    if way == "R":
        return torch.rand(1, grid.rows, grid.cols, generator=torch.Generator().manual_seed(0))
    if way == "error map":
        return patch_error(fast, one.base, one.refined, one.coarse)
    if way == "input":
        return high_frequency(one.base.x, fast.patch_size)
    return fast.score(one.base) * (-1 if way == "S" else 1)


def merged(fast: MaskGuided, one: Restored, keep: float, score: Tensor) -> Tensor:
    """What `fast.restore(lr, score)` returns at this keep."""
    fast.keep = keep
    side, (height, width) = fast.patch_size * fast.scale, one.coarse.shape[2:]
    mask = per_pixel(one.base.grid.mask(fast.choose(one.base, score)), side, (height, width))
    return torch.where(mask[:, None], one.refined, one.coarse)


def giga_macs(fast: MaskGuided, keep: float) -> tuple[float, float]:
    """G MACs at this keep, and of the dense network."""
    fast.keep = keep
    cost = fast.cost(*(side // fast.scale for side in OUTPUT))
    return cost.guided / 1e9, cost.dense / 1e9


def parameters(fast: MaskGuided) -> dict[str, int]:
    """Of what each network of table 1 runs."""
    refine = sum(p.numel() for p in train_only(fast, "refine"))
    assert fast.coarse_tail is not None
    parts = (fast.model, fast.coarse_tail, fast.head)
    whole, coarse, head = (sum(p.numel() for p in part.parameters()) for part in parts)
    return {"B": whole - refine + coarse, "D": whole, "A": whole + coarse, "M": whole + coarse + head}


def by_keep(fast: MaskGuided, parts: str, measurer: Measurer, way: str = "L") -> Row:
    """PSNR in each set at each keep."""
    row: Row = {}
    for name in measurer.sets:
        found = measurer.of(fast, parts, name, [Choice(keep, way) for keep in KEEPS])
        row |= {f"{name} k={keep:.0%} dB": value for keep, value in zip(KEEPS, found, strict=True)}
    return row


def networks(trainer: Trainer, measurer: Measurer) -> Table:
    fast, parts = trainer.guided(Variant()), Variant().parts
    counts, dense = parameters(fast), giga_macs(fast, 0)[1]
    rows = []
    for kind, keep in (("B", 0.0), ("D", None), ("A", 1.0), ("M", 0.25), ("M", 0.5)):
        row: Row = {"network": f"-{kind}", "k": "dense" if keep is None else f"{keep:.0%}", "parameters": counts[kind]}
        row["G MACs"] = dense if keep is None else giga_macs(fast, keep)[0]
        for name in measurer.sets:
            if keep is None:
                found = measurer.of_dense(fast, name)
            else:
                found = [measurer.of(fast, parts, name, [Choice(keep)], metric)[0] for metric in METRICS]
            row |= {f"{name} dB": found[0], f"{name} SSIM": found[1]}
        rows.append(row)
    return Table("1. Base (-B), dense (-D), refined on all windows (-A), with the mask head (-M)", rows)


def heads(trainer: Trainer, measurer: Measurer) -> Table:
    variants = {
        "three steps, 2 channels, L1 (the paper)": Variant(),
        "1 channel": Variant(channels=1),
        "no supervision": Variant(head_loss="none"),
        "rank loss (ours)": Variant(head_loss="rank"),
    }
    rows = [{"head": name, **by_keep(trainer.guided(one), one.parts, measurer)} for name, one in variants.items()]
    paper = trainer.guided(Variant())
    for way, name in (("R", "none: random"), ("input", "none: detail of the input"), ("error map", "oracle")):
        rows.append({"head": name, **by_keep(paper, Variant().parts, measurer, way)})
    if not trainer.args.no_end_to_end:
        rows.append({"head": "end to end", **by_keep(trainer.end_to_end(), "end", measurer)})
    return Table("2. The head and its training", rows)


def costs(fast: MaskGuided) -> Row:
    return {f"G MACs k={keep:.0%}": giga_macs(fast, keep)[0] for keep in KEEPS[1:3]}


def splits(trainer: Trainer, measurer: Measurer) -> Table:
    rows = []
    for variant in [Variant(split_at=number) for number in trainer.args.splits]:
        fast = trainer.guided(variant)
        name = f"{variant.split_at}+{len(fast.split.blocks) - variant.split_at}"
        rows.append({"blocks": name, **costs(fast), **by_keep(fast, variant.parts, measurer)})
    return Table("3. Where to split", rows)


def patch_sizes(trainer: Trainer, measurer: Measurer) -> Table:
    rows = []
    for variant in [Variant(patch_size=size) for size in trainer.args.patches]:
        fast, name = trainer.guided(variant), f"{variant.patch_size}x{variant.patch_size}"
        rows.append({"patch": name, **costs(fast), **by_keep(fast, variant.parts, measurer)})
    return Table("4. Patch size", rows)


def shares(trainer: Trainer, measurer: Measurer) -> Table:
    fast = trainer.guided(Variant())
    keeps, ways = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 1), "LRS"
    rows: list[Row] = [{"k": f"{keep:.0%}", "G MACs": giga_macs(fast, keep)[0]} for keep in keeps]
    for name in measurer.sets:
        choices = [Choice(keep, way) for keep in keeps for way in ways]
        found = iter(measurer.of(fast, Variant().parts, name, choices))
        for row in rows:
            row |= {f"{name} {way} dB": next(found) for way in ways}
    return Table("5. k, and which k: the largest score (L), random (R), the smallest (S)", rows)


TABLES = (networks, heads, splits, patch_sizes, shares)


def cell(column: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.{4 if 'SSIM' in column else 1 if 'MACs' in column else 3}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown(table: Table) -> str:
    columns = list(table.rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(column, row[column]) for column in columns] for row in table.rows]
    return f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def training(trainer: Trainer, measurer: Measurer) -> Table:
    """What was trained for the tables before; of a training that was killed, the seconds since it went on."""
    rows = []
    for name, one in trainer.done.items():
        recipe = one["recipe"]
        pool = recipe["pool"] if one["stage"] != "end" else "no end"
        row = {"training": name, **{key: recipe[key] for key in ("steps", "batch", "crop")}, "pool": pool}
        rows.append({**row, "rate": f"{recipe['rate']:g}", "CPU seconds": round(one["seconds"])})
    return Table("Training behind the tables", rows)


def foreword(args: argparse.Namespace, sets: Sets) -> str:
    images = ", ".join(f"{name} ({len(pairs)})" for name, pairs in sets.items())
    return (
        f"{args.weights.name}; {images}. PSNR and SSIM on Y (BT.601), uint8-rounded, border = scale, mean over the "
        f"images. MACs for {OUTPUT[1]}x{OUTPUT[0]} output; the halo and, at every k, the whole coarse image count. "
        f"-D is the network as it was given. {bench.machine(args.threads)}.\n"
    )


def recipes(args: argparse.Namespace) -> dict[Stage, Recipe]:
    common = Recipe(batch=args.batch, crop=args.crop, pool=args.pool, options=Options(distill=0, head_loss="l1"))
    steps: dict[Stage, int] = {stage: getattr(args, f"{stage}_steps") for stage in STEPS}
    steps["end"] = steps["end"] or steps["coarse"] + steps["refine"] + steps["head"]
    rates = {stage: getattr(args, f"{stage}_rate") for stage in STEPS}
    return {s: replace(common, steps=n, rate=rates[s], warmup=min(50, n // 10)) for s, n in steps.items()}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--hr", type=Path, action="append", required=True, help="photographs to train on")
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tables", default="1,2,3,4,5", help="which, in which order")
    parser.add_argument("--no-end-to-end", action="store_true", help="leave its row, the dearest, out of table 2")
    parser.add_argument("--splits", type=int, nargs="+", default=[4, 8, 12, 14])
    parser.add_argument("--patches", type=int, nargs="+", default=[2, 4, 8, 16])
    for stage in STEPS:
        parser.add_argument(f"--{stage}-steps", type=int, default=STEPS[stage])
        parser.add_argument(f"--{stage}-rate", type=float, default=RATES[stage])
    for name, value in (("batch", 4), ("crop", 32), ("pool", 200), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    torch.set_num_threads(args.threads)
    model = load_network(args.weights).model.to(memory_format=torch.channels_last).eval()
    trainer = Trainer(model, args)
    lr = f"LRx{maskguided.wrap(model, 12).scale}"
    sets = {
        folder.name: read_pairs(folder / lr, folder / "HR", torch.device("cpu"), torch.float32, True)
        for folder in args.test
    }
    measurer = Measurer(sets)
    texts, tables = [foreword(args, sets)], []
    print(texts[0], flush=True)
    for make in (*(TABLES[int(number) - 1] for number in args.tables.split(",")), training):
        tables.append(make(trainer, measurer))
        texts.append(markdown(tables[-1]))
        print(texts[-1], flush=True)
    if args.markdown is not None:
        args.markdown.write_text("\n".join(texts))
    if args.json is not None:
        args.json.write_text(json.dumps({table.title: table.rows for table in tables}, indent=1))


if __name__ == "__main__":
    main()
