"""`fmad sync`: what MLflow has missed of a run."""

from pathlib import Path
from typing import Annotated

import typer


def sync(run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training run.")]) -> None:
    """Give MLflow what it has missed of a run while it was away: metrics, how the run ended, the detector."""
    from fmad_dist.registry.register import sync_run

    typer.echo(sync_run(run))
