"""The `fmad` command. Heavy imports happen inside the commands, so that help is instant.

Every command is defined once. That of a job (train, evaluate, ...) does the same whether a user starts `fmad NAME`,
which starts local ranks, or a launcher starts `launcher/NAME.py` on every rank.
"""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fmad_dist.base.console import say
from fmad_dist.base.errors import UserError, full_disk
from fmad_dist.base.process import (
    EXIT_INTERRUPTED,
    JobFailed,
    Stdout,
    die_with_parent,
    end_now,
    end_process,
    own_exit_code,
    prefix,
    share_cores,
    spare_collector,
)
from fmad_dist.base.stopping import serve_stop_signal
from fmad_dist.base.world import is_launched
from fmad_dist.cli import (
    bench,
    calibrate,
    compare,
    config,
    data,
    demo,
    doctor,
    evaluate,
    export,
    follow,
    predict,
    registry,
    report,
    serve,
    status,
    sync,
    train,
    view,
)
from fmad_dist.launch.commands import BOUND


class Commands(TyperGroup):
    """The commands; Ctrl-C ends each of them with one line and exit code 130."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            say("stopped by Ctrl-C")
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.command()(train.train)
app.command()(doctor.doctor)
app.command()(export.export)
app.command()(export.export_onnx)
app.command()(calibrate.calibrate)
app.command()(evaluate.evaluate)
app.command()(follow.follow)
app.command()(compare.compare)
app.command()(report.report)
app.add_typer(bench.app, name="bench")
app.command()(predict.predict)
app.command()(view.view)
app.command()(serve.serve)
app.command()(status.status)
app.command()(sync.sync)
app.command()(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(registry.app, name="registry")
app.add_typer(config.app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        from fmad_dist.base.version import code_version

        typer.echo(code_version())
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print version and commit.")
    ] = False,
) -> None:
    """Distributed flow-matching anomaly detection for visual inspection."""


def run(*command: str) -> None:
    """`fmad <command>` with the arguments of this process, in a process of its own; without a command, what was
    installed as `fmad`."""
    Stdout.install()
    try:
        main([*command, *sys.argv[1:]])
    except SystemExit as ended:
        if not isinstance(ended.code, int):
            raise
        if ended.code == EXIT_INTERRUPTED:
            end_now(ended.code)
        end_process(ended.code)


def main(arguments: list[str]) -> None:
    """Run the command; bad input ends in one sentence and exit code 2."""
    if is_launched():
        serve_stop_signal()
    if is_launched() or os.environ.pop(BOUND, ""):
        die_with_parent()
    share_cores()
    spare_collector()
    try:
        app(args=arguments, prog_name="fmad")
    except UserError as error:
        typer.echo(f"{prefix(error)}: {error}", err=True)
        sys.exit(own_exit_code(error.exit_code))
    except OSError as error:
        told = full_disk(error)
        if told is None:
            raise
        typer.echo(f"error: {told}", err=True)
        sys.exit(own_exit_code(told.exit_code))
    except JobFailed as error:
        typer.echo(f"error: {error}; its own message is above.", err=True)
        sys.exit(1)
