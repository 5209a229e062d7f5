"""The `ridgecast` command: names, errors and exit codes.

Registers the commands and maps the error family to exit codes, in one place.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import RidgecastError, SpecError, unknown_name
from . import (
    calibrating,
    claiming,
    footprinting,
    llming,
    lookup,
    measuring,
    modelling,
    planning,
    predicting,
    reporting,
    studying,
    training,
    webbing,
)
from .output import USAGE, exit_code

__all__ = ["app"]


class _Group(TyperGroup):
    """A group that names the nearest commands, and turns refusals into exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a refusal becomes one line on stderr and its exit code."""
        try:
            return super().invoke(ctx)
        except RidgecastError as error:
            if os.environ.get("RIDGECAST_TRACEBACK"):
                raise
            typer.echo(f"ridgecast: {error}", err=True)
            raise typer.Exit(exit_code(error)) from error
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            if error.filename is None:
                raise
            typer.echo(f"ridgecast: {error.filename}: {error.strerror}", err=True)
            raise typer.Exit(USAGE) from error

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a command; raise SpecError with the nearest three names."""
        found = super().get_command(ctx, cmd_name)
        if found is None and not cmd_name.startswith("-"):
            help_line = "`ridgecast --help` lists them."
            raise SpecError(unknown_name("command", cmd_name, self.list_commands(ctx), help_line))
        return found


# rich_markup_mode=None: the help and the usage errors are plain text and do not load Rich
app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"ridgecast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Know how long GPU work takes, what it draws and what it costs, before it runs.

    Exit codes: 0 ok, 1 a bug of ours, 2 usage, 3 no answer, 4 measurement refused.
    """


app.command("predict")(predicting.predict)
app.command("explain")(predicting.explain)
app.command("tune")(predicting.tune)
app.command("measure")(measuring.measure)
app.command("calibrate")(calibrating.calibrate)
app.command("study")(studying.study)
app.command("train")(training.train)
app.command("accuracy")(training.accuracy)
app.command("claims")(claiming.claims)
app.command("llm")(llming.llm)
app.command("compare")(llming.compare)
app.command("plan")(planning.plan)
app.command("hardware")(lookup.hardware)
app.command("ops")(lookup.ops)
app.command("models")(modelling.models)
app.command("techniques")(modelling.techniques)
app.command("footprint")(footprinting.footprint)
app.command("report")(reporting.report)
app.command("web")(webbing.web)
app.command("doctor")(lookup.doctor)
