"""The training procedure of a BasicSR YAML file: `model_type: MaskGuidedModel`. Importing this imports basicsr."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import checkpoint
from ..errors import ArgumentError
from ..files import torch_save_whole
from ..infer import run_tiled
from ..training.choices import RANKING, too_small
from ..weights import read
from .basicsr_kinds import lacking
from .basicsr_network import MaskGuidedSR
from .basicsr_options import GIVEN, base_weights, check_train, stage_options
from .basicsr_plugin import import_basicsr

_SRModel: Any = import_basicsr("basicsr.models.sr_model").SRModel
_logger = import_basicsr("basicsr.utils").get_root_logger
_MADE_WITH = "maskguided"
"""Entry of a net_g_*.pth beside its weights: the settings and the stage that they were trained for, as JSON."""


class MaskGuidedModel(_SRModel):  # type: ignore[misc]
    """Trains one stage of a MaskGuidedSR and validates it; `train: stage` says which (see training/stages.py)."""

    def __init__(self, opt: dict[str, Any]) -> None:
        _check(opt)
        opt["network_g"]["base_weights"] = base_weights(opt)
        self.view = "refined"
        super().__init__(opt)

    @property
    def _bare(self) -> MaskGuidedSR:
        net: MaskGuidedSR = self.get_bare_model(self.net_g)
        return net

    @property
    def _shown(self) -> MaskGuidedSR:
        """The network that is validated and saved for use: the averaged one, where there is one."""
        average: MaskGuidedSR | None = getattr(self, "net_g_ema", None)
        return self._bare if average is None else average

    def model_to_device(self, net: MaskGuidedSR) -> nn.Module:
        """Load, choose what trains, distribute: in this order, since a stage starts from the weights that are there,
        and DistributedDataParallel looks at requires_grad."""
        if net.scale != self.opt["scale"]:
            raise ArgumentError(f"scale: {self.opt['scale']}, but the base of network_g enlarges {net.scale} times")
        net.to(self.device)
        path = self.opt["path"]
        resumed = path.get("pretrain_network_g") if path.get("resume_state") else None
        given = path.get(GIVEN) if resumed else path.get("pretrain_network_g")
        self._load(net, given)
        if not net.base_is_loaded:
            _logger().warning(
                "The base starts from random weights: give network_g: base_weights, or path: pretrain_network_g with "
                "those of the base"
            )
        if self.is_train:
            self._start_stage(net)
        self._load(net, resumed)
        if resumed:
            self._check_resumed(net, resumed)
        self._loaded, path["pretrain_network_g"] = resumed or given, None  # so that basicsr does not load it again
        # A network may have parameters that it does not use, and the stages that train all of it train them too.
        whole = self.is_train and self.opt["train"]["stage"] in ("all", "end", "joint")
        self.opt.setdefault("find_unused_parameters", whole)
        placed: nn.Module = super().model_to_device(net)
        return placed

    def _load(self, net: nn.Module, path: str | None, key: str | None = None) -> None:
        if path is not None:
            own = self.opt["path"]
            self.load_network(net, path, own.get("strict_load_g", True), key or own.get("param_key_g", "params"))

    def _check_resumed(self, net: MaskGuidedSR, path: str) -> None:
        """A run goes on in its own stage; what else is set now may be another, and is said."""
        before = json.loads(read(path).metadata.get(_MADE_WITH, "{}"))
        now = json.loads(self._made_with(net))
        differ = [
            f"{name}: {now[name]} (it was {before[name]})" for name in now if before.get(name) not in (None, now[name])
        ]
        if before.get("stage") not in (None, now["stage"]):
            raise self._another_stage(f"something else (stage {before['stage']})")
        if differ:
            _logger().warning(f"The run goes on with another {', '.join(differ)}")

    def _made_with(self, net: MaskGuidedSR) -> str:
        """The settings and the stage of a run, as JSON."""
        return json.dumps({**checkpoint.settings_of(net), "stage": self.opt["train"]["stage"]})

    def _another_stage(self, what: str) -> ArgumentError:
        return ArgumentError(
            f"train: stage: {self.opt['train']['stage']}: the run that is resumed trained {what}; give this stage its "
            "own name, and path: pretrain_network_g, that run's net_g_latest.pth"
        )

    def _start_stage(self, net: MaskGuidedSR) -> None:
        train = self.opt["train"]
        self._trained = net.start_stage(train["stage"], train.get("stage_opt") or {})
        count, every = (sum(p.numel() for p in group) for group in (self._trained, net.parameters()))
        _logger().info(f"Stage {train['stage']}: training {count:,} of {every:,} parameters")
        size = self.opt["datasets"]["train"].get("gt_size")
        options = stage_options(train.get("stage_opt") or {})
        if size and (wrong := too_small(net, train["stage"], size // net.scale, options)):
            _logger().warning(f"datasets: train: gt_size: {size}: {wrong}")
        if train["stage"] in RANKING and net.scorer != "head":
            _logger().warning(f"scorer: {net.scorer} ranks the patches, so validation does not see the head")

    def init_training_settings(self) -> None:
        self.net_g.eval()  # no dropout, no batch statistics: what is trained is what will run
        train = self.opt["train"]
        for name in ("pixel_opt", "perceptual_opt"):
            if train.get(name):
                _logger().warning(f"train: {name} is not used: stage {train['stage']} has a loss of its own")
        self.ema_decay = train.get("ema_decay", 0)
        if self.ema_decay > 0:
            self._start_average()
        self.setup_optimizers()
        self.setup_schedulers()

    def _start_average(self) -> None:
        self.net_g_ema = copy.deepcopy(self._bare).requires_grad_(False)
        self._load(self.net_g_ema, self._loaded, "params_ema")
        self.net_g_ema.eval()

    def setup_optimizers(self) -> None:
        settings = dict(self.opt["train"]["optim_g"])
        self.optimizer_g = self.get_optimizer(settings.pop("type"), self._trained, **settings)
        self.optimizers.append(self.optimizer_g)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        try:
            super().resume_training(resume_state)
        except ValueError as error:  # of torch: other parameters
            raise self._another_stage(f"something else ({error})") from None

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad()
        loss = self.net_g(self.lq, target=self.gt)
        if not loss.isfinite():  # before it spoils the weights, and the files
            raise ArgumentError(
                f"train: the loss of iteration {current_iter} is {loss.item()}; use a smaller optim_g: lr, and go on "
                "with --auto_resume"
            )
        loss.backward()
        self.optimizer_g.step()
        self.log_dict = self.reduce_loss_dict(OrderedDict({f"l_{self.opt['train']['stage']}": loss}))
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        """Average what trains; the rest would only drift by rounding, away from the file that it is in."""
        averages = dict(self.net_g_ema.named_parameters())
        for name, value in self._bare.named_parameters():
            if value.requires_grad:
                averages[name].mul_(decay).add_(value, alpha=1 - decay)

    @torch.no_grad()
    def test(self) -> None:
        """Run `self.view` of the network on a validation image: refined, coarse or dense."""
        net, keep = self._shown.eval(), self._shown.keep
        try:
            if self.view == "coarse":
                net.keep = 0
            self.output = net.model(self.lq) if self.view == "dense" else self._restored(net)
        finally:
            net.keep = keep

    def _restored(self, net: MaskGuidedSR) -> torch.Tensor:
        tile = self.opt["val"].get("tile") or 0
        if not tile:
            return net.forward(self.lq)
        return run_tiled(net, self.lq, tile, self.opt["val"].get("tile_pad", 16))

    def nondist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """As basicsr; a test run also measures what refining nothing, and the whole network, would give."""
        super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        if self.is_train or not self.opt["val"].get("metrics"):
            return
        results = {"refined": dict(self.metric_results)}
        # The whole network at once is what tiles are there to avoid.
        for view in ("coarse",) if self.opt["val"].get("tile") else ("coarse", "dense"):
            self.view = view
            super().nondist_validation(dataloader, current_iter, None, False)
            results[view] = dict(self.metric_results)
        self.view = "refined"
        _logger().info(f"{dataloader.dataset.opt['name']}, {self._shown.extra_repr()}:\n{_table(results)}")

    def _log_validation_metric_values(self, current_iter: Any, dataset_name: str, tb_logger: Any) -> None:
        if self.view == "refined":
            super()._log_validation_metric_values(current_iter, dataset_name, tb_logger)

    def save(self, epoch: int, current_iter: int) -> None:
        """Beside basicsr's files, those that `maskguided upscale --weights BASE --head HEAD` takes."""
        super().save(epoch, current_iter)
        if self.opt["rank"] != 0:
            return
        checkpoint.save(self._shown, self._file("net_g", current_iter, "_maskguided.safetensors"))
        if self._shown.base_is_new:
            torch_save_whole(self._file("net_g", current_iter, "_base.pth"), {"params": _weights(self._shown.model)})

    def save_network(self, net: Any, net_label: str, current_iter: int, param_key: Any = "params") -> None:
        """As basicsr, but the file is written whole or not at all, and says what its weights were trained for."""
        if self.opt["rank"] != 0:
            return
        nets, keys = (value if isinstance(value, list) else [value] for value in (net, param_key))
        content: dict[str, Any] = {key: _weights(self.get_bare_model(one)) for one, key in zip(nets, keys, strict=True)}
        path = self._file(net_label, current_iter, ".pth")
        torch_save_whole(path, {**content, _MADE_WITH: self._made_with(self._bare)})

    def _file(self, net_label: str, current_iter: int, ending: str) -> Path:
        label = "latest" if current_iter == -1 else current_iter
        return Path(self.opt["path"]["models"]) / f"{net_label}_{label}{ending}"

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = "params") -> None:
        bare: MaskGuidedSR = self.get_bare_model(net)
        trained_for_it = bare.scorer == "head" or bare.coarse_tail is not None
        goes_on = not self.is_train or bool(self.opt["path"].get("resume_state"))
        if goes_on and trained_for_it and (made_with := read(load_path).metadata.get(_MADE_WITH)):
            checkpoint.check_settings(load_path, json.loads(made_with), bare)  # weights fit any cut, and say nothing
        seen = bare.load(load_path, key=param_key, strict=strict)
        _logger().info(f"Loading {load_path}: {seen}")
        if not self.is_train and bare.scorer == "head" and not bare.head_is_loaded:
            _logger().warning(f"scorer: head, but no head is in {load_path}: an untrained one chooses the patches")


def _weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in net.state_dict().items()}


def _check(opt: dict[str, Any]) -> None:
    kind = opt["network_g"]["type"]
    if kind != MaskGuidedSR.__name__:
        raise ArgumentError(
            f"network_g: type: {kind}: MaskGuidedModel takes {{type: MaskGuidedSR, base: {{type: {kind}, ...}}}}; "
            f"to train {kind} itself, use model_type: SRModel"
        )
    if "scale" not in opt:
        raise lacking("scale")
    if opt["is_train"]:
        check_train(opt["train"])


def _table(results: dict[str, dict[str, float]]) -> str:
    names = list(results["refined"])
    rows = [f"\t{view:8}" + "".join(f"{row[name]:12.4f}" for name in names) for view, row in results.items()]
    return "\n".join(["\t" + " " * 8 + "".join(f"{name:>12}" for name in names), *rows])
