"""Commands that look at images nobody has labelled."""

from typing import Annotated

import typer

from fmad_dist.cli.options import ModelOption, TrackingUri
from fmad_dist.errors import UserError


def predict(
    model: ModelOption,
    source: Annotated[str, typer.Option("--source", help="Folder of images: a path or any fsspec URL.")],
    out: Annotated[str, typer.Option("--out", help="Where scores.csv, maps/ and overlays/ go.")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Score unlabelled images: a table with decisions, heat maps and overlays."""
    from fmad_dist.detector import Detector
    from fmad_dist.predict import predict as run
    from fmad_dist.registry.versions import use_registry
    from fmad_dist.world import World

    use_registry(tracking_uri)
    summary = run(Detector.load(model).place(World().device), source, out)
    typer.echo(f"{summary.num_images} images, {summary.num_anomalous} anomalous: {out}/scores.csv")
    if summary.unreadable:
        raise UserError(f"{len(summary.unreadable)} images could not be scored, first: {summary.unreadable[0]}")
