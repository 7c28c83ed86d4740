"""Commands around a training run."""

from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.cli.options import (
    ConfigOption,
    GpuOption,
    GpusOption,
    MfuOption,
    NodesOption,
    Overrides,
    OverwriteOption,
    Processes,
    RestartsOption,
)


def train(
    config: ConfigOption,
    overrides: Overrides = None,
    processes: Processes = 0,
    max_restarts: RestartsOption = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the job needs and if it fits.")] = False,
    nodes: NodesOption = 1,
    gpus: GpusOption = 8,
    gpu: GpuOption = "H200",
    mfu: MfuOption = 0.4,
) -> None:
    """Train on this machine, or go on from the run's newest checkpoint.

    The same job on many nodes is `accelerate launch launcher/train.py`. SIGTERM and SIGUSR1 stop it after a
    checkpoint. Exit codes: 2 bad input, 75 stopped on request, 76 hung.
    """
    from fmad_dist.config_files import load_config
    from fmad_dist.storage import use_endpoint
    from fmad_dist.stream.training_stream import open_stream

    values = overrides or []
    resolved = load_config(config, values)  # said here, bad input is one sentence and not one per process
    use_endpoint(resolved.data.endpoint_url)
    if resolved.data.mode == "indexed":
        open_stream(resolved.data, resolved.train.seed)  # before torch is imported, so a refusal comes at once

    if dry_run:
        from fmad_dist.training.forecast import forecast

        found = forecast(resolved, nodes, gpus, gpu, mfu)
        typer.echo("\n".join(found.lines()))
        found.check()
        return

    from fmad_dist.launch import default_processes, launch
    from fmad_dist.training.preflight import check_job

    count = processes or default_processes()
    check_job(resolved, count)
    launch("train.py", ["--config", str(config), *values], count, max_restarts)
    typer.echo(f"run directory: {resolved.run_dir}")


def doctor(config: ConfigOption, overrides: Overrides = None, processes: Processes = 0) -> None:
    """Check versions, GPUs, clocks, storage, disks and MLflow before hours are spent; one line each, with the fix.

    On many nodes: `accelerate launch launcher/doctor.py` with the options of the job.
    """
    from fmad_dist.config_files import load_config
    from fmad_dist.launch import default_processes, launch

    values = overrides or []
    load_config(config, values)
    launch("doctor.py", ["--config", str(config), *values], processes or default_processes())


def export(
    run: Annotated[str, typer.Option("--run", help="Run directory, or the folder or URL of its checkpoints.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the detector.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint of this step; default the newest.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a calibrated detector from a checkpoint, on one machine without a GPU."""
    from fmad_dist.training.export import export as run_export

    typer.echo(f"detector of step {run_export(run, step, out, overwrite)}: {out}")


def follow(
    run: Annotated[str, typer.Option("--run", help="Run directory, or the folder or URL of its checkpoints.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the record; default the run directory.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Score the checkpoints that are there and end.")] = False,
    patience: Annotated[float, typer.Option(min=0.0, help="Seconds without a new checkpoint until it ends.")] = 7200.0,
    per_class: Annotated[int, typer.Option(min=1, help="Most held-out normals per class.")] = 16,
    processes: Processes = 0,
) -> None:
    """Score each new checkpoint of a running training on synthetic defects on held-out normals; no test image is read.

    A job of its own, on other GPUs or another machine: `accelerate launch launcher/follow.py`. It ends with the
    training; the same command goes on where it stopped.
    """
    from fmad_dist.follow.record import record_folder
    from fmad_dist.launch import default_processes, launch
    from fmad_dist.training.export import find_checkpoint

    record_folder(run, out)
    if once:
        find_checkpoint(run, None)  # else there is nothing to do
    arguments = ["--run", run, "--patience", str(patience), "--per-class", str(per_class)]
    arguments += (["--once"] if once else []) + (["--out", str(out)] if out else [])
    launch("follow.py", arguments, processes or default_processes())


def sync(run: Annotated[Path, typer.Argument(help="Directory of a training run.")]) -> None:
    """Give MLflow what it has missed of a run while it was away: metrics, how the run ended, the detector."""
    from fmad_dist.registry.register import sync_run

    typer.echo(sync_run(run))


def demo(
    data: Annotated[
        Path | None, typer.Option(help="A real tree in the MVTec AD layout; default: make a small dataset.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    config: ConfigOption = Path("configs/demo.yaml"),
    processes: Processes = 0,
) -> None:
    """The whole system once: data, shards, training, evaluation, registry, prediction, report."""
    from fmad_dist.demo import run_demo

    typer.echo(run_demo(data, out, config, processes))
