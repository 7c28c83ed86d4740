"""`fmad status`: where a run is."""

from typing import Annotated

import typer

from fmad_dist.cli import options


def status(
    run: Annotated[str, typer.Argument(help="Run directory, or the folder or URL of its checkpoints.")],
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Say where a run is: metrics, checkpoints, detector, what MLflow has, and the command to go on with.

    Reads only, and can be asked of a run that trains.
    """
    from fmad_dist.follow.record import best_of
    from fmad_dist.training.status import RunStatus

    found = RunStatus(run)
    typer.echo("\n".join(found.lines()))
    best = best_of(found.folder) if found.folder else None
    if best:
        typer.echo(f"follow         {best['what']}: {best['best_by']} is best at step {best['step']}")
    typer.echo(
        f"to go on       {found.next_command}" + ("   (if it does not run any more)" if found.seems_to_run else "")
    )
