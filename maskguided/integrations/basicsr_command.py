"""`maskguided basicsr train` and `test`: basicsr's own pipelines, with our network and model known to them."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import ArgumentError, CheckpointError, warn
from ..training.choices import check_stage
from . import basicsr_options
from .basicsr_options import GIVEN, Options, Phase
from .basicsr_plugin import import_basicsr, register


def run(phase: Phase, arguments: list[str]) -> None:
    """Run basicsr's train or test pipeline in the current folder, where experiments/ or results/ go.

    Args:
        phase: "train" or "test".
        arguments: -opt FILE and all other flags of basicsr: --launcher, --auto_resume, --debug, --force_yml.

    Raises:
        MissingDependency: basicsr is not installed.
        MaskGuidedError: the options cannot work; the text says which and why.
    """
    file, launcher, rest = _parse(phase, arguments)
    pipeline = import_basicsr(f"basicsr.{phase}")
    register()
    basicsr_options.read_yaml(file)
    basicsr_options.check_launcher(launcher)
    if launcher != "none" and "fork" in multiprocessing.get_all_start_methods():
        # basicsr would choose "spawn", whose processes import basicsr anew, without our stand-in.
        multiprocessing.set_start_method("fork", force=True)
    argv = [f"maskguided basicsr {phase}", "-opt", file, "--launcher", launcher, *rest]
    replaced: dict[str, Any] = {"parse_options": _checked(pipeline.parse_options, phase, rest)}
    if phase == "train":
        replaced["load_resume_state"] = load_resume_state
    with _set(sys, argv=argv), _set(pipeline, **replaced):
        try:
            getattr(pipeline, f"{phase}_pipeline")(os.getcwd())  # noqa: PTH109  # basicsr joins strings to it
        except (AssertionError, ValueError) as error:
            if not _of_images(error):
                raise
            said = str(error).strip().splitlines()[-1]  # the lines before are a worker process's traceback
            raise ArgumentError(f"datasets: {said.rpartition('Error: ')[2]}") from None


def load_resume_state(options: Options) -> Options | None:
    """As basicsr's, which loads onto a GPU even where there is none; the optimizer moves what it takes."""
    path = options["path"].get("resume_state")
    if options["auto_resume"]:
        states = Path("experiments", options["name"], "training_states").glob("*.state")
        latest = max(states, key=lambda state: float(state.stem), default=None)
        path = None if latest is None else str(latest)
        options["path"]["resume_state"] = path
        if latest is None and (aside := sorted(Path("experiments").glob(f"{options['name']}_archived_*"))):
            warn(
                f"--auto_resume: experiments/{options['name']} has no training state, so the run begins anew; an older "
                f"one of that name is in {aside[-1]}"
            )
    if not path:
        return None
    if not Path(path).is_file():
        raise ArgumentError(f"path: resume_state: {path}: no such file (from {Path.cwd()})")
    try:
        state: Options = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise: basicsr writes it in place
        raise CheckpointError(
            f"{path}: no training state that can be read, as of a run that was killed while it was written; remove it, "
            f"and --auto_resume goes on from the one before ({' '.join(str(error).split())})"
        ) from None
    if not Path(options["path"]["experiments_root"]).is_dir():
        raise ArgumentError(
            f"path: resume_state: {path}: a run goes on in its own folder, and there is no "
            f"experiments/{options['name']}; use the name that it was started with"
        )
    options["path"][GIVEN] = options["path"].get("pretrain_network_g")
    import_basicsr("basicsr.utils").check_resume(options, state["iter"])
    return state


def _parse(phase: Phase, arguments: list[str]) -> tuple[str, str, list[str]]:
    """File, launcher and the arguments that basicsr's own parser shall see."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-opt", "--opt")
    parser.add_argument("--launcher", default="none")
    # torch.distributed.launch passes it with a hyphen, which basicsr's parser does not know; torchrun not at all.
    parser.add_argument("--local_rank", "--local-rank")
    known, rest = parser.parse_known_args(arguments)
    if known.opt is None:
        raise ArgumentError(f"-opt FILE is missing: maskguided basicsr {phase} -opt x.yml")
    return known.opt, known.launcher, rest


def _checked(parse_options: Any, phase: Phase, rest: list[str]) -> Any:
    def parse(*args: Any, **kwargs: Any) -> Any:
        try:
            options, parsed = parse_options(*args, **kwargs)
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            if "--force_yml" not in rest:
                raise
            raise ArgumentError(
                f"{' '.join(rest)}: {type(error).__name__} {error}; it takes entries as train:optim_g:lr=0.001, "
                "in blocks that the file has"
            ) from None
        network = options.get("network_g")
        if isinstance(network, dict) and isinstance(weights := network.get("base_weights"), str):
            network["base_weights"] = str(Path(weights).expanduser())  # as basicsr does with paths that it knows
        basicsr_options.check(options, phase)
        _try_network(options, phase)
        return options, parsed

    return parse


def _try_network(options: Options, phase: Phase) -> None:
    """Make the network once: what is wrong with it is said before basicsr moves an older run of that name aside."""
    from .basicsr_network import MaskGuidedSR

    settings = {**options["network_g"], "base_weights": basicsr_options.base_weights(options)}
    if settings.pop("type") != MaskGuidedSR.__name__:
        return
    # Whoever asks for basicsr's logger first decides where it writes: not this.
    quiet = _set(import_basicsr("basicsr.archs"), get_root_logger=lambda: logging.getLogger("network tried"))
    with quiet, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # what there is to warn of is said when it is made
        net = MaskGuidedSR(**settings)
    if phase == "train" and options["model_type"] == "MaskGuidedModel":
        check_stage(net, options["train"]["stage"])


def _of_images(error: Exception) -> bool:
    """Whether basicsr's data sets say it: that pairs are missing, or images are too small."""
    trace = "".join(traceback.format_exception(error))  # with that of a worker process, which stands in the text
    return f"{Path('basicsr', 'data')}{os.sep}" in trace and bool(str(error).strip())


@contextmanager
def _set(module: ModuleType, **values: Any) -> Iterator[None]:
    """Attributes of a module, for a while."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
