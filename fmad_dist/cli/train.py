"""`fmad train` and what goes with a run: `fmad doctor` before it, `status` and `follow` beside it, `sync` after it."""

from functools import partial
from pathlib import Path
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
    if run_job(job, resolved, processes, check=check, max_restarts=max_restarts, needs_launcher=True):
        typer.echo(f"run directory: {resolved.run_dir}")


def doctor(
    config: options.Config,
    overrides: options.Overrides = None,
    data: options.RunData = None,
    processes: options.Processes = None,
    endpoint_url: options.RunEndpointUrl = None,
    tracking_uri: options.RunTrackingUri = None,
) -> None:
    """Check versions, GPUs, clocks, storage, disks and MLflow before hours are spent; one line each, with the fix.

    On many nodes: `accelerate launch launcher/doctor.py` with the options of the job.
    """
    resolved = options.resolve_run(config, overrides, data, endpoint_url, tracking_uri)

    from fmad_dist.launch.processes import run_job
    from fmad_dist.training.doctor import run_doctor

    run_job(run_doctor, resolved, processes)


def status(
    run: Annotated[str, typer.Argument(help="Run directory, or the folder or URL of its checkpoints.")],
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Say where a run is: metrics, checkpoints, detector, what MLflow has, and the command to go on with.

    Reads only, and can be asked of a run that trains.
    """
    from fmad_dist.follow.record import best_of
    from fmad_dist.training.status import RunStatus

    found = RunStatus(run)
    typer.echo("\n".join(found.lines()))
    best = best_of(found.folder) if found.folder else None
    if best:
        typer.echo(f"follow         {best['what']}: {best['best_by']} is best at step {best['step']}")
    typer.echo(
        f"to go on       {found.next_command}" + ("   (if it does not run any more)" if found.seems_to_run else "")
    )


def follow(
    run: options.Run,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the record; default the run directory.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Score the checkpoints that are there and end.")] = False,
    patience: Annotated[float, typer.Option(min=0.0, help="Seconds without a new checkpoint until it ends.")] = 7200.0,
    per_class: Annotated[int, typer.Option(min=1, help="Most held-out normals per class.")] = 16,
    processes: options.Processes = None,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Score each new checkpoint of a running training on synthetic defects on held-out normals; no test image is read.

    A job of its own, on other GPUs or another machine: `accelerate launch launcher/follow.py`. It ends with the
    training; the same command goes on where it stopped.
    """
    from fmad_dist.follow.follow import FollowOptions
    from fmad_dist.follow.follow import follow as job
    from fmad_dist.follow.record import record_folder
    from fmad_dist.launch.processes import run_job
    from fmad_dist.training.export import find_checkpoint

    folder = record_folder(run, str(out) if out else None)
    if once:
        find_checkpoint(run, None)  # else there is nothing to do
    settings = FollowOptions(run=run, out=str(folder), once=once, patience_s=patience, per_class=per_class)
    run_job(job, settings, processes)


def sync(run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training run.")]) -> None:
    """Give MLflow what it has missed of a run while it was away: metrics, how the run ended, the detector."""
    from fmad_dist.registry.register import sync_run

    typer.echo(sync_run(run))
