"""`fmad predict`: images that nobody has labelled."""

from typing import Annotated

import typer

from fmad_dist.base.errors import UserError
from fmad_dist.cli import options


def predict(
    model: options.Model,
    out: Annotated[str, typer.Option("--out", help="Folder or URL for scores.parquet, maps/ and overlays/.")],
    source: Annotated[list[str] | None, typer.Option(help="Folder of images or tars, or a .tar; repeatable.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="URL of a converted dataset; repeatable.")] = None,
    overwrite: options.Overwrite = False,
    sensitivity: options.Sensitivity = 0.5,
    threshold: Annotated[
        str, typer.Option(help="class: that of the inferred class; global: one for all, for products of no class.")
    ] = "class",
    pictures: Annotated[str, typer.Option(help="Whose heat maps and overlays to write: all, anomalous, none.")] = "all",
    max_bad: Annotated[int, typer.Option(min=0, help="Unreadable images that are no error yet; 0 = none.")] = 100,
    processes: options.Processes = None,
    save_every: options.SaveEvery = 60.0,
    compiled: options.Compile = False,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Score unlabelled images: a table with decisions, heat maps and overlays.

    When it is killed, the same command goes on with the images that were not scored yet. On many nodes:
    `accelerate launch launcher/predict.py`. Exit code 2 if an image could not be read.
    """
    sources = (*(source or ()), *(data or ()))
    if not sources:
        raise UserError("--source: give the images to score, or a converted dataset by --data.")

    from fmad_dist.launch.processes import run_job
    from fmad_dist.prediction.predict import PredictionOptions, run_prediction
    from fmad_dist.prediction.results import TABLE_NAME, Pictures, read_parquet, summarise
    from fmad_dist.scoring.calibration import threshold_name
    from fmad_dist.storage import Store

    if pictures not in list(Pictures):
        raise UserError(f"--pictures {pictures!r}: give {', '.join(Pictures)}.")
    chosen = threshold_name(threshold)
    found = options.find_model(model, tracking_uri)
    settings = PredictionOptions(
        model=found.folder,
        name=found.name,
        sources=sources,
        out=out,
        sensitivity=sensitivity,
        threshold=chosen,
        pictures=pictures,
        max_bad=max_bad,
        save_s=save_every,
        compiled=compiled,
        overwrite=overwrite,
    )
    if run_job(run_prediction, settings, processes):
        summary = summarise(read_parquet(Store(out).read(TABLE_NAME)))
        typer.echo(f"{summary.num_images} images, {summary.num_anomalous} anomalous: {out}/{TABLE_NAME}")
        if summary.num_unreadable:
            raise UserError(f"{summary.num_unreadable} images could not be scored, first: {summary.first_error}")
