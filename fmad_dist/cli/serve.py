"""`fmad serve`: answers to requests with images."""

from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.cli import options


def serve(
    model: options.Model,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 = all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    copies: Annotated[int, typer.Option(min=1, help="Processes that answer, each with a detector of its own.")] = 1,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Answer requests with images over HTTP as `mlflow models serve` does, from files that were checked."""
    from fmad_dist.serving.server import serve as run

    run(Path(options.find_model(model, tracking_uri).folder), host, port, copies)
