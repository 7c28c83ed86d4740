"""Commands around registered versions."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Registered versions of the detector.", no_args_is_help=True)


@app.command()
def register(
    run: Annotated[Path, typer.Option("--run", help="Directory of a finished training run.")],
) -> None:
    """Register the detector of a finished run as a new version with the alias `candidate`."""
    from fmad_dist.tracking.registry import register_run

    typer.echo(f"registered {register_run(run)} (alias candidate)")
