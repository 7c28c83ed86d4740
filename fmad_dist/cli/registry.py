"""Commands around registered versions."""

from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.base.console import print_table
from fmad_dist.cli import options

app = typer.Typer(help="Registered versions of the detector.", no_args_is_help=True)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME/VERSION or models:/NAME@ALIAS.")]
BreakLock = Annotated[bool, typer.Option("--break-lock", help="Remove the lock that a dead promotion has left.")]


@app.command()
def register(
    run: Annotated[Path, typer.Option("--run", help="Directory of a finished training run.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of its detector with other thresholds; default its own.")
    ] = None,
) -> None:
    """Register the detector of a finished run as a new version with the alias `candidate`."""
    from fmad_dist.registry.register import register_run

    typer.echo(f"registered {register_run(run, model)} (alias candidate)")


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Registered model; default all.")] = None,
    tracking_uri: options.TrackingUri = None,
) -> None:
    """List versions with their aliases, metrics and what the gate said."""
    from fmad_dist.registry.tables import list_versions

    _on(tracking_uri)
    print_table(list_versions(name))


@app.command()
def show(model: ModelArgument, tracking_uri: options.TrackingUri = None) -> None:
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
        typer.Option("--gate", help="YAML file, or the shipped registry/gate, whose values are the default."),
    ] = None,
    break_lock: BreakLock = False,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.EndpointUrl = None,
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
    tracking_uri: options.TrackingUri = None,
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
    tracking_uri: options.TrackingUri = None,
) -> None:
    """Compare the evaluations of two versions: means with 95 % intervals, and every class."""
    from fmad_dist.registry.tables import compare_versions

    _on(tracking_uri)
    for part in compare_versions(one, other, metric):
        print_table(part)


@app.command()
def download(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for detector.json, weights.safetensors and lineage.json.")],
    overwrite: options.Overwrite = False,
    tracking_uri: options.TrackingUri = None,
) -> None:
    """Write the files of a version to a folder, which every --model takes, and check their digests."""
    from fmad_dist.registry.download import download as run

    _on(tracking_uri)
    spec = run(model, out, overwrite)
    typer.echo(f"{model}: {len(spec.class_names)} classes, step {spec.train_step}, digests are right: {out}")


def _on(tracking_uri: str | None) -> None:
    from fmad_dist.tracking.server import use_registry

    use_registry(tracking_uri)
