"""The commands for users of BasicSR: maskguided basicsr train, maskguided basicsr test."""

from __future__ import annotations

import typer

from ..integrations import basicsr_command

app = typer.Typer(no_args_is_help=True, help="BasicSR's train and test, with MaskGuidedSR, MaskGuidedModel and PAN.")
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("train", context_settings=_PASS_ON, options_metavar="-opt FILE [OPTIONS]")
def train(context: typer.Context) -> None:
    """Train as the YAML file says; results go to ./experiments.

    All of BasicSR's flags work: -opt, --auto_resume, --launcher, --debug, --force_yml.
    """
    basicsr_command.run("train", context.args)


@app.command("test", context_settings=_PASS_ON, options_metavar="-opt FILE [OPTIONS]")
def test(context: typer.Context) -> None:
    """Test as the YAML file says, and compare with the coarse and the whole network; results go to ./results.

    All of BasicSR's flags work: -opt, --launcher, --debug, --force_yml.
    """
    basicsr_command.run("test", context.args)
