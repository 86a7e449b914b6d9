"""How long and how a stage trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import ArgumentError
from ..values import as_number, is_whole
from .choices import Options

_WHOLE = {"steps": 1, "batch": 1, "crop": 1, "warmup": 0, "seed": 0, "pool": 0}
"""Whole numbers, and the least of each."""
_LARGEST_SEED = 2**32 - 1
"""That numpy takes."""


@dataclass(frozen=True)
class Recipe:
    """How long and how a stage trains."""

    steps: int = 2000
    batch: int = 16
    """Crops of a step, over all processes."""
    crop: int = 48
    """Side of a crop in LR pixels."""
    rate: float = 1e-3
    """Learning rate, after a warm-up; it falls to a hundredth of that along a cosine."""
    optimizer: str = "adamw"
    """A name that timm.optim.create_optimizer_v2 knows."""
    warmup: int = 50
    """Steps in which the rate grows."""
    ema: float = 0.998
    """Decay of the average of the weights that is kept in the end; 0: none."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""
    seed: int = 0
    precision: str = "no"
    """Mixed precision: "no", "bf16" or "fp16"."""
    pool: int = 0
    """Different crops that the stages coarse, refine, head and joint draw from; what they keep frozen is then run once
    per crop and stays in memory (on PAN x4 a crop of 48x48 takes 1 to 2 MB). 0: crops do not end, nothing is kept."""
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            if not is_whole(getattr(self, name), least):
                raise ArgumentError(f"{name}={getattr(self, name)!r}: use {least} or more, a whole number")
        if self.seed > _LARGEST_SEED:
            raise ArgumentError(f"seed={self.seed}: use 0 to {_LARGEST_SEED}")
        if not 0 < as_number(self.rate) < float("inf") or not 0 <= as_number(self.ema) < 1:
            raise ArgumentError(f"rate={self.rate!r}, ema={self.ema!r}: use a rate above 0 and an ema of 0 to below 1")
        if not as_number(self.clip) >= 0:
            raise ArgumentError(f"clip={self.clip!r}: use 0 or more")
        if not isinstance(self.options, Options):
            raise ArgumentError(f"options={self.options!r}: use a maskguided.finetune.Options")
        if self.pool and self.pool < self.batch:
            raise ArgumentError(f"pool={self.pool}: use 0, or at least the batch of {self.batch}")
        if not isinstance(self.optimizer, str):
            raise ArgumentError(f"optimizer={self.optimizer!r}: a name that timm knows; use 'adamw', say")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ArgumentError(f"precision={self.precision!r}; use 'no', 'bf16' or 'fp16'")
        for name, kind in (*((whole, int) for whole in _WHOLE), ("rate", float), ("ema", float), ("clip", float)):
            object.__setattr__(self, name, kind(getattr(self, name)))  # numpy's numbers are none in a checkpoint
