"""`fmad bench`: several benchmarks from one configuration, each model trained, evaluated and compared."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmad_dist.cli import options

if TYPE_CHECKING:
    from fmad_dist.bench.config import BenchConfig

app = typer.Typer(
    help="Train, evaluate and compare on several benchmarks, and write one report over all of them.",
    no_args_is_help=True,
)
BenchOption = Annotated[Path, typer.Option("--config", help="Benchmarks and runs: a YAML file or benchmarks/five.")]


@app.command()
def plan(
    config: BenchOption,
    overrides: options.Overrides = None,
    processes: options.Processes = None,
    max_restarts: options.MaxRestarts = 0,
    workers: options.Workers = 0,
    save_every: options.SaveEvery = 60.0,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.RunEndpointUrl = None,
    nodes: options.Nodes = 1,
    gpus: options.Gpus = 8,
    gpu: options.Gpu = "H200",
    mfu: options.Mfu = 0.4,
) -> None:
    """Say what is done, what is to do by which command, and how long it will take. Starts nothing."""
    resolved = _read(config, overrides, tracking_uri, endpoint_url)

    from fmad_dist.bench.plan import Machines, plan_lines
    from fmad_dist.bench.stages import Options

    settings = Options(processes, max_restarts, workers, save_every)
    typer.echo("\n".join(plan_lines(resolved, settings, Machines(nodes, gpus, gpu, mfu))))


@app.command()
def prepare(
    config: BenchOption,
    overrides: options.Overrides = None,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.RunEndpointUrl = None,
) -> None:
    """Write the configurations of the trainings to do, for jobs on many nodes, and list them. Starts nothing."""
    resolved = _read(config, overrides, tracking_uri, endpoint_url)

    from fmad_dist.bench.driver import prepare_bench

    typer.echo("\n".join(prepare_bench(resolved)))


@app.command()
def run(
    config: BenchOption,
    overrides: options.Overrides = None,
    processes: options.Processes = None,
    max_restarts: options.MaxRestarts = 0,
    workers: options.Workers = 0,
    save_every: options.SaveEvery = 60.0,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.RunEndpointUrl = None,
) -> None:
    """Do what is not done yet, and write the report.

    Killed at any point, the same command goes on; what is done is repeated only when its inputs changed. Exit codes:
    0 done, 75 stopped on request, else that of the first command that failed.
    """
    resolved = _read(config, overrides, tracking_uri, endpoint_url)

    from fmad_dist.bench.driver import run_bench
    from fmad_dist.bench.stages import Options

    run_bench(resolved, Options(processes, max_restarts, workers, save_every))


@app.command()
def collect(
    config: BenchOption,
    overrides: options.Overrides = None,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.RunEndpointUrl = None,
) -> None:
    """Write the report over what is there, for example from jobs of a cluster. Exit code 75 if something is missing."""
    resolved = _read(config, overrides, tracking_uri, endpoint_url)

    from fmad_dist.bench.driver import collect_bench

    collect_bench(resolved)


def _read(
    config: Path, overrides: list[str] | None, tracking_uri: str | None, endpoint_url: str | None
) -> "BenchConfig":
    """The configuration, with MLflow at its server where models are taken from its registry."""
    from fmad_dist.bench.config import load_bench
    from fmad_dist.tracking.server import use_registry

    endpoint = [f"run.data.endpoint_url={endpoint_url}"] if endpoint_url else []
    resolved = load_bench(config, [*endpoint, *(overrides or [])])
    if tracking_uri:  # to the stages by the environment: their commands are shown, and the URI may hold a password
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    if resolved.takes_models:
        use_registry(tracking_uri)
    return resolved
