"""The network of a BasicSR YAML file: `network_g: {type: MaskGuidedSR, ...}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from .. import checkpoint
from ..errors import ArgumentError, CheckpointError
from ..guided import MaskGuided
from ..head import MaskHead
from ..networks import load_network
from ..splitting import split
from ..tails.coarse import make_coarse_tail
from ..training import stages
from ..training.choices import Options
from ..values import arguments_of, check_arguments, check_keys
from ..weights import HEAD_FORMAT, load_into, read
from .basicsr_kinds import check_registered
from .basicsr_options import stage_options
from .basicsr_plugin import import_basicsr


class MaskGuidedSR(MaskGuided):
    """A network that basicsr builds, wrapped; its state dict is that of any MaskGuided (model.*, head.*, ...).

    Args:
        base: {type: EDSR, num_in_ch: 3, ...}, what would stand under `network_g` without us. Default: the
            network that `base_weights` is recognised as.
        base_weights: weight file of the base; what basicsr saved (net_g_*.pth), or any other.
        split_at, adapter, body, cut: as for `maskguided.wrap`.
        settings: the others of `maskguided.wrap`: keep, patch_size, halo, merge, scorer, ...
    """

    def __init__(
        self,
        *,
        base: Mapping[str, Any] | None = None,
        base_weights: str | None = None,
        split_at: int | Literal["auto"] = "auto",
        adapter: str | None = None,
        body: str | Sequence[str] | None = None,
        cut: str | None = None,
        **settings: Any,
    ) -> None:
        known = arguments_of(MaskGuidedSR) + [name for name in arguments_of(MaskGuided) if name != "split"]
        check_keys("network_g", settings, known)
        check_arguments("network_g: head", settings.get("head") or {}, MaskHead, skip=1)
        network = _base(base, base_weights)
        super().__init__(split(network, split_at, adapter=adapter, body=body, cut=cut), **settings)
        self.base_is_loaded, self.head_is_loaded = base_weights is not None, False
        self._stage: tuple[str, Options] | None = None
        self._base_weights = None if base_weights is None else checkpoint.fingerprint(self.model.state_dict())

    def start_stage(self, stage: str, options: Mapping[str, Any]) -> list[nn.Parameter]:
        """Make the parameters of a training stage, which are returned, the only ones that train."""
        self._stage = stage, stage_options(options)
        return stages.train_only(self, stage)

    @property
    def base_is_new(self) -> bool:
        """Whether the base has other weights than those of `base_weights`: they must be saved as well."""
        return checkpoint.fingerprint(self.model.state_dict()) != self._base_weights

    def forward(self, x: Tensor, score: Tensor | None = None, *, target: Tensor | None = None) -> Tensor:
        """The HR image of `x`; with its `target`, the loss of the stage that was started.

        The loss is computed here because DistributedDataParallel sees to gradients only of what its own
        forward calls.
        """
        if target is None:
            return super().forward(x, score)
        if self._stage is None:
            raise ArgumentError("target= asks for the loss of a training stage; call start_stage first")
        stage, options = self._stage
        return stages.loss(self, stage, stages.prepare(self, stage, x, target, options), options)

    def load(self, path: str | Path, *, key: str | None = None, strict: bool = True) -> str:
        """Load a file of the base alone, of the whole, or of maskguided.save; returns which it was, in words.

        Args:
            path: the file.
            key: entry to take first, "params" or "params_ema".
            strict: whether a file of the whole must have all weights, and no others.

        Raises:
            CheckpointError: it is none of the three, or of another network.
        """
        content = read(path, key)
        if content.metadata.get("format") == HEAD_FORMAT:
            checkpoint.load_onto(path, self)
            self.head_is_loaded = True
            trained = any(name.startswith("model.") for name in content.tensors)
            self.base_is_loaded |= trained
            base = "and what was trained of the base" if trained else "the base stays as it is"
            return f"what maskguided.save wrote: head and coarse tail loaded, {base}"
        names, entry = content.tensors.keys(), content.key or "a bare state dict"
        self.min_gain_db, self.estimate = None, None  # in these files `keep` decides
        own, tensors = self.state_dict(), checkpoint.without_estimate(checkpoint.upgraded(content.tensors))
        plain, whole = (len(names & known.keys()) for known in (self.model.state_dict(), own))
        if not plain and not whole:
            raise CheckpointError(
                f"{path}: none of its weights ({', '.join(sorted(names)[:3])}, ...) is of MaskGuidedSR or of its base "
                f"{type(self.model).__name__} ({', '.join(sorted(self.model.state_dict())[:3])}, ...)"
            )
        try:
            if plain > whole:
                if not strict:
                    raise CheckpointError("strict_load_g: false is for files of a whole MaskGuidedSR, not of its base")
                self._load_base(content.tensors)
                self.base_is_loaded = True
                return f"a plain {type(self.model).__name__} ({entry}): the base is loaded, the head stays as it is"
            self.base_is_loaded = self.head_is_loaded = True
            if strict:
                load_into(self, tensors)
                return f"a whole MaskGuidedSR ({entry})"
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        fitting = {n: v for n, v in tensors.items() if n in own and own[n].shape == v.shape}
        self.load_state_dict(fitting, strict=False)
        return f"a whole MaskGuidedSR ({entry}), not strict: {len(fitting)} of {len(own)} tensors fit and are loaded"

    def _load_base(self, weights: Mapping[str, Tensor]) -> None:
        load_into(self.model, weights)
        if self.coarse_tail is not None:  # it begins as a copy of the tail that was there before
            self.coarse_tail.load_state_dict(make_coarse_tail(self.split, self.coarse_tail_kind).state_dict())


def _base(base: Mapping[str, Any] | None, weights: str | None) -> nn.Module:
    if base is None:
        if weights is None:
            raise ArgumentError(
                "network_g: MaskGuidedSR needs a network to wrap: base: {type: EDSR, num_in_ch: 3, ...}, "
                "base_weights: FILE, or both"
            )
        return load_network(weights).model
    network = _built(base)
    if weights is None:
        return network
    try:
        return load_into(network, read(weights).tensors)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(weights) else f"{weights}: {text}") from None


def _built(base: Mapping[str, Any]) -> nn.Module:
    archs = import_basicsr("basicsr.archs")
    registry = import_basicsr("basicsr.utils.registry").ARCH_REGISTRY
    arguments = dict(base)
    kind = arguments.pop("type", None)
    check_registered("network_g: base: type", kind, registry)
    check_arguments(f"network_g: base ({kind})", arguments, registry.get(kind))
    try:
        network: nn.Module = archs.build_network({"type": kind, **arguments})
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"network_g: base ({kind}): {error}") from error
    return network
