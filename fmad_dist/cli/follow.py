"""`fmad follow`: the evaluator beside a training."""

from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.cli import options


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
