"""`fmad evaluate`, `fmad report` and `fmad compare`: results on images whose truth is known."""

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


def report(
    results: Annotated[Path, typer.Argument(help="Folder of a finished evaluation: its --out.")],
) -> None:
    """Write results.json, the tables and report.html of an evaluation again, as this version makes them; nothing is
    scored."""
    from fmad_dist.evaluation.report import report_again
    from fmad_dist.report.result_files import print_summary

    report_again(results)
    print_summary(results)


def compare(
    config: Annotated[Path, typer.Option("--config", help="Configuration of a finished run, e.g. its config.yaml.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for comparison.json, comparison.md and comparison.png.")],
    overrides: options.Overrides = None,
    overwrite: options.Overwrite = False,
    data: options.RunData = None,
    model: Annotated[str | None, typer.Option(help="A model of the same data; default that of --config.")] = None,
    scorers: Annotated[
        str, typer.Option(help="all, or own and names with options: own,inversion:steps=10,mismatch:noises=4:times=4")
    ] = "all",
    peers: Annotated[
        str,
        typer.Option(
            help="Methods of others on the same features: a memory bank per class or one for all classes (PatchCore), "
            "CFlow-AD. With options: bank, bank_pooled:share=0.01:neighbours=3, cflow:steps=2000"
        ),
    ] = "",
    processes: options.Processes = None,
    save_every: options.SaveEvery = 60.0,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.RunEndpointUrl = None,
) -> None:
    """Compare scorers on one trained model: quality, network evaluations, speed and memory, measured in one run.

    When it is killed, the same command goes on with the images that were not scored yet. Another finished comparison in
    --out is refused. On many nodes: `accelerate launch launcher/compare.py`.
    """
    resolved = options.resolve_run(config, overrides, data, endpoint_url)

    from fmad_dist.comparison.choice import choose, choose_peers
    from fmad_dist.comparison.compare import ComparisonOptions, run_comparison
    from fmad_dist.launch.processes import run_job

    found = options.find_model(model or str(resolved.run_dir), tracking_uri)
    choose(scorers, found.spec.objective, found.spec.scorer)
    choose_peers(peers)
    settings = ComparisonOptions(
        config=resolved,
        model=found.folder,
        out=str(out),
        scorers=scorers,
        peers=peers,
        save_s=save_every,
        overwrite=overwrite,
    )
    run_job(run_comparison, settings, processes)
