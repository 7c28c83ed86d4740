"""Commands that look at images nobody has labelled."""

from typing import Annotated

import typer

from fmad_dist.cli.options import CompileOption, ModelOption, Processes, TrackingUri
from fmad_dist.errors import UserError


def predict(
    model: ModelOption,
    source: Annotated[
        list[str],
        typer.Option("--source", help="URL of a folder of images or tars, a .tar, or a converted dataset; repeatable."),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder or URL for scores.parquet, maps/ and overlays/.")],
    processes: Processes = 0,
    sensitivity: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Higher finds more and errs more; 0.5 = as calibrated.")
    ] = 0.5,
    threshold: Annotated[
        str, typer.Option(help="class: that of the inferred class; global: one for all, for products of no class.")
    ] = "class",
    pictures: Annotated[str, typer.Option(help="Whose heat maps and overlays to write: all, anomalous, none.")] = "all",
    max_bad: Annotated[int, typer.Option("--max-bad", min=0, help="Unreadable images before it is an error.")] = 100,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove another prediction that is in --out.")] = False,
    compiled: CompileOption = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Score unlabelled images: a table with decisions, heat maps and overlays.

    When it is killed, the same command goes on with the images that were not scored yet. On many nodes:
    `accelerate launch launcher/predict.py`. Exit code 2 if an image could not be read.
    """
    from fmad_dist.detector_files import locate_detector, read_spec
    from fmad_dist.launch import default_processes, launch
    from fmad_dist.prediction.pictures import Pictures
    from fmad_dist.prediction.table import TABLE_NAME, read_parquet, summarise
    from fmad_dist.registry.versions import named_version, use_registry
    from fmad_dist.scoring.calibration import threshold_name
    from fmad_dist.storage import Store
    from fmad_dist.world import World

    if pictures not in list(Pictures):
        raise UserError(f"--pictures {pictures!r}: give {', '.join(Pictures)}.")
    chosen = threshold_name(threshold)
    use_registry(tracking_uri)
    folder = locate_detector(model)
    read_spec(folder)
    name, count = named_version(model), processes or default_processes()
    if count == 1:
        from fmad_dist.prediction.run import PredictionOptions, run_prediction

        given = (sensitivity, chosen, Pictures(pictures), max_bad, overwrite, compiled)
        options = PredictionOptions(source, out, name, *given)
        run_prediction(str(folder), options, World())
    else:
        arguments = ["--model", str(folder), "--name", name, "--out", out, "--pictures", pictures]
        arguments += ["--sensitivity", str(sensitivity), "--threshold", chosen, "--max-bad", str(max_bad)]
        arguments += ["--overwrite"] * overwrite + ["--compile"] * compiled
        arguments += [word for url in source for word in ("--source", url)]
        launch("predict.py", arguments, count)
    summary = summarise(read_parquet(Store(out).read(TABLE_NAME)))
    typer.echo(f"{summary.num_images} images, {summary.num_anomalous} anomalous: {out}/{TABLE_NAME}")
    if summary.num_unreadable:
        raise UserError(f"{summary.num_unreadable} images could not be scored, first: {summary.first_error}")


def view(
    results: Annotated[str, typer.Argument(help="Folder or URL of a prediction or an evaluation.")],
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Converted dataset of an evaluation, to show its images; repeatable."),
    ] = None,
    maps: Annotated[str | None, typer.Option("--maps", help="What an evaluation was given as --maps.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 = a free one.")] = 0,
) -> None:
    """Look through scored images in a browser, on this machine only; Ctrl-C ends it."""
    from fmad_dist.view.folders import open_results
    from fmad_dist.view.server import serve

    serve(open_results(results, source or (), maps), port, lambda url: typer.echo(f"{url}   (Ctrl-C ends)"))
