"""`fmad view`: scored images in a browser."""

from typing import Annotated

import typer

from fmad_dist.cli import options


def view(
    results: Annotated[str, typer.Argument(metavar="RESULTS", help="Folder or URL of a prediction or an evaluation.")],
    data: Annotated[list[str] | None, typer.Option(help="URL of a converted dataset, for its images.")] = None,
    maps: Annotated[str | None, typer.Option("--maps", help="What an evaluation was given as --maps.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 = a free one.")] = 0,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Look through scored images in a browser, on this machine only; Ctrl-C ends it."""
    from fmad_dist.view.results import open_results
    from fmad_dist.view.server import serve

    serve(open_results(results, data or (), maps), port, lambda url: typer.echo(f"{url}   (Ctrl-C ends)"))
