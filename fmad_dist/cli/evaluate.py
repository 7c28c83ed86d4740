"""`fmad evaluate`: metrics on images whose truth is known."""

from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.cli import options


def evaluate(
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, typer.Option("--out", help="Folder for results, tables and report.html.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[scorer.key=value]...", help="Score with other settings than the model's own."),
    ] = None,
    overwrite: options.Overwrite = False,
    protocol: Annotated[str | None, typer.Option(help="Evaluate as others do: ader, dinomaly, flowad.")] = None,
    maps: Annotated[str | None, typer.Option(help="Folder or URL for all anomaly maps, as float16 tars.")] = None,
    tiff: Annotated[str | None, typer.Option(help="Folder or URL for all maps, as TIFF of the images' sizes.")] = None,
    processes: options.Processes = None,
    workers: options.Workers = 0,
    save_every: options.SaveEvery = 60.0,
    compiled: options.Compile = False,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Score every test image exactly once and write metrics and a report; the results of a registered model go to
    MLflow, too.

    When it is killed, the same command goes on with the images that were not scored yet. Another finished evaluation in
    --out is refused. On many nodes: `accelerate launch launcher/evaluate.py`.
    """
    from fmad_dist.config.files import override_scorer
    from fmad_dist.config.protocol import named_protocol
    from fmad_dist.stream.mixture import Mixture

    wanted = None if protocol is None else named_protocol(protocol)
    mixture = Mixture.load(data)  # before torch and MLflow are imported, so a refusal comes at once
    found = options.find_model(model, tracking_uri)
    override_scorer(found.spec.scorer, overrides or [])

    from fmad_dist.evaluation.evaluate import EvaluationOptions, run_evaluation
    from fmad_dist.launch.processes import run_job
    from fmad_dist.registry.evidence import log_evaluation
    from fmad_dist.report.result_files import print_summary

    settings = EvaluationOptions(
        model=found.folder,
        name=found.name,
        data=tuple(data),
        out=str(out),
        overrides=tuple(overrides or ()),
        protocol=protocol,
        maps=maps,
        tiff=tiff,
        workers=workers,
        save_s=save_every,
        compiled=compiled,
        overwrite=overwrite,
    )
    if run_job(run_evaluation, settings, processes):
        print_summary(out)
        used = wanted or found.spec.protocol
        if not overrides and used == found.spec.protocol and not used.biased:  # else it is not the model's quality
            log_evaluation(model, out, found.spec.weights_sha256, mixture.digests, data)
