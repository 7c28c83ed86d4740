"""`fmad train`."""

from functools import partial
from typing import Annotated

import typer

from fmad_dist.base.world import is_launched
from fmad_dist.cli import options


def train(
    config: options.Config,
    overrides: options.Overrides = None,
    data: options.RunData = None,
    processes: options.Processes = None,
    max_restarts: options.MaxRestarts = 0,
    endpoint_url: options.RunEndpointUrl = None,
    tracking_uri: options.RunTrackingUri = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the job needs and if it fits.")] = False,
    is_complete: Annotated[
        bool, typer.Option("--is-complete", help="Train nothing; exit code 75 unless the run's detector is there.")
    ] = False,
    nodes: options.Nodes = 1,
    gpus: options.Gpus = 8,
    gpu: options.Gpu = "H200",
    mfu: options.Mfu = 0.4,
) -> None:
    """Train on this machine, or go on from the run's newest checkpoint.

    The same job on many nodes is `accelerate launch launcher/train.py`. SIGTERM and SIGUSR1 stop it after a
    checkpoint. Exit codes: 2 bad input, 75 stopped on request, 76 hung.
    """
    resolved = options.resolve_run(config, overrides, data, endpoint_url, tracking_uri)
    if resolved.data.mode == "indexed" and not is_launched():
        from fmad_dist.stream.training_stream import open_stream

        open_stream(resolved.data, resolved.train.seed)  # before torch is imported, so a refusal comes at once

    if is_complete:
        from fmad_dist.training.status import check_complete

        check_complete(resolved)
        typer.echo(f"{resolved.name} is complete")
        return

    if dry_run:
        from fmad_dist.training.preflight import forecast

        found = forecast(resolved, nodes, gpus, gpu, mfu)
        typer.echo("\n".join(found.lines()))
        found.check()
        return

    from fmad_dist.launch.processes import run_job
    from fmad_dist.training.loop import train as job
    from fmad_dist.training.preflight import check_job

    check = partial(check_job, resolved)
    libraries = "fmad_dist.training.libraries"
    if run_job(
        job, resolved, processes, check=check, max_restarts=max_restarts, needs_launcher=True, libraries=libraries
    ):
        typer.echo(f"run directory: {resolved.run_dir}")
