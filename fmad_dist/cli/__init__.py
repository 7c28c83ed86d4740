"""The `fmad` command. Heavy imports happen inside the commands, so that help is instant."""

import os
import sys

import typer

from data_tools.cli import app as data_app
from fmad_dist.cli.evaluation import bench, compare, evaluate
from fmad_dist.cli.inspection import predict, view
from fmad_dist.cli.onnx import export_onnx
from fmad_dist.cli.registry import app as registry_app
from fmad_dist.cli.training import demo, doctor, export, follow, sync, train
from fmad_dist.errors import UserError
from fmad_dist.launch import JobFailed, die_with_parent, prefix
from fmad_dist.startup import end_process, share_cores, spare_collector
from fmad_dist.steps import BOUND

app = typer.Typer(
    help="Distributed flow-matching anomaly detection for visual inspection.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (train, doctor, export, export_onnx, evaluate, follow, compare, bench, predict, view, sync, demo):
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(registry_app, name="registry")


def run() -> None:
    """The installed command: `main` in a process of its own."""
    try:
        main()
    except SystemExit as ended:
        if not isinstance(ended.code, int):
            raise
        end_process(ended.code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command (default: the process's arguments); bad input ends in one sentence and exit code 2."""
    if os.environ.pop(BOUND, None):
        die_with_parent()
    share_cores()
    spare_collector()
    try:
        app(args=arguments)
    except UserError as error:
        typer.echo(f"{prefix(error)}: {error}", err=True)
        sys.exit(error.exit_code)
    except JobFailed as error:
        typer.echo(f"error: {error}; its own message is above.", err=True)
        sys.exit(1)
