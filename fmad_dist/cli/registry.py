"""Commands around registered versions."""

from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.cli.options import TrackingUri

app = typer.Typer(help="Registered versions of the detector.", no_args_is_help=True)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME/VERSION or models:/NAME@ALIAS.")]
BreakLock = Annotated[bool, typer.Option("--break-lock", help="Remove the lock that a dead promotion has left.")]


@app.command()
def register(
    run: Annotated[Path, typer.Option("--run", help="Directory of a finished training run.")],
) -> None:
    """Register the detector of a finished run as a new version with the alias `candidate`."""
    from fmad_dist.registry.register import register_run

    typer.echo(f"registered {register_run(run)} (alias candidate)")


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Registered model; default all.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """List versions with their aliases, metrics and what the gate said."""
    from fmad_dist.registry.tables import list_versions

    _on(tracking_uri)
    _print(list_versions(name))


@app.command()
def show(model: ModelArgument, tracking_uri: TrackingUri = None) -> None:
    """Say where a version comes from (data, code, configuration, licences), how good it is, and why it is in use."""
    from fmad_dist.registry.tables import show_version

    _on(tracking_uri)
    for line in show_version(model):
        typer.echo(line)


@app.command()
def promote(
    model: ModelArgument,
    gate: Annotated[
        Path | None,
        typer.Option("--gate", help="YAML file, see configs/registry/gate.yaml; default its values."),
    ] = None,
    break_lock: BreakLock = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Make an evaluated version the champion if the gate accepts it. Exit codes: 0 promoted, 1 refused, 2 bad input."""
    from fmad_dist.registry.gate import load_gate
    from fmad_dist.registry.promotion import promote as run

    wanted = load_gate(gate)
    _on(tracking_uri)
    decision = run(model, wanted, break_lock)
    typer.echo("\n".join(decision.lines()))
    typer.echo(f"{model}: " + ("promoted to champion" if decision.accepted else "refused; the champion stays"))
    if not decision.accepted:
        raise typer.Exit(1)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    break_lock: BreakLock = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Give the champion's place back to the version it replaced."""
    from fmad_dist.registry.promotion import rollback as run

    _on(tracking_uri)
    name = name.removeprefix("models:/")
    left, back = run(name, break_lock)
    typer.echo(f"models:/{name}@champion is version {back} again, was version {left}")


@app.command()
def compare(
    one: ModelArgument,
    other: ModelArgument,
    metric: Annotated[str, typer.Option(help="Metric of the table of classes.")] = "image_auroc",
    tracking_uri: TrackingUri = None,
) -> None:
    """Compare the evaluations of two versions: means with 95 % intervals, and every class."""
    from fmad_dist.registry.tables import compare_versions

    _on(tracking_uri)
    for part in compare_versions(one, other, metric):
        _print(part)


def _on(tracking_uri: str | None) -> None:
    from fmad_dist.registry.versions import use_registry

    use_registry(tracking_uri)


def _print(part: object) -> None:
    """A table as wide as it needs to be when nobody sees a terminal's edge."""
    import sys

    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    Console(width=width, soft_wrap=not sys.stdout.isatty()).print(part)
