"""`fmad compare`: scorers on one trained model."""

from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.cli import options


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
