"""The `fmad` command. Heavy imports happen inside the commands, so that help is instant."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from data_tools.cli import app as data_app
from fmad_dist.errors import UserError
from fmad_dist.launch import JobFailed, die_with_parent, prefix
from fmad_dist.steps import BOUND

app = typer.Typer(
    help="Distributed flow-matching anomaly detection for visual inspection.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
registry_app = typer.Typer(help="Registered versions of the detector.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(registry_app, name="registry")

ConfigOption = Annotated[Path, typer.Option("--config", help="YAML configuration, see configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Values that replace the file's.")
]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="Dry run: number of nodes.")]
GpusOption = Annotated[int, typer.Option("--gpus", min=1, help="Dry run: GPUs per node.")]
GpuOption = Annotated[str, typer.Option("--gpu", help="Dry run: H200, H100, A100, ...")]
MfuOption = Annotated[float, typer.Option("--mfu", min=0.01, max=1.0, help="Dry run: assumed share of the peak speed.")]
RestartsOption = Annotated[
    int,
    typer.Option(
        "--max-restarts", min=0, help="Start again from the newest checkpoint when a process dies, so many times."
    ),
]
WorkersOption = Annotated[int, typer.Option("--workers", help="Reader processes per rank.")]
SaveEveryOption = Annotated[
    float, typer.Option("--save-every", min=0.0, help="Seconds after which scored images are kept.")
]
Processes = Annotated[int, typer.Option("--processes", help="Local processes; 0 = one per GPU, or 2 on a CPU.")]
TrackingUri = Annotated[
    str | None,
    typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow server; default runs/mlflow.db."),
]
ModelOption = Annotated[str, typer.Option("--model", help="models:/NAME@ALIAS, a run directory or a detector folder.")]


@app.command()
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


@app.command()
def doctor(config: ConfigOption, overrides: Overrides = None, processes: Processes = 0) -> None:
    """Check versions, GPUs, clocks, storage, disks and MLflow before hours are spent; one line each, with the fix.

    On many nodes: `accelerate launch launcher/doctor.py` with the options of the job.
    """
    from fmad_dist.config_files import load_config
    from fmad_dist.launch import default_processes, launch

    values = overrides or []
    load_config(config, values)
    launch("doctor.py", ["--config", str(config), *values], processes or default_processes())


@app.command()
def export(
    run: Annotated[str, typer.Option("--run", help="Run directory, or the folder or URL of its checkpoints.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the detector.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint of this step; default the newest.")] = None,
) -> None:
    """Make a calibrated detector from a checkpoint, on one machine without a GPU."""
    from fmad_dist.training.export import export as run_export

    typer.echo(f"detector of step {run_export(run, step, out)}: {out}")


@app.command()
def evaluate(
    model: ModelOption,
    manifest: Annotated[list[str], typer.Option("--manifest", help="URL of a converted dataset; repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results, tables and report.html.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[scorer.key=value]...", help="Score with other settings than the model's own."),
    ] = None,
    processes: Processes = 0,
    workers: WorkersOption = 0,
    save_every: SaveEveryOption = 60.0,
    maps: Annotated[
        str | None, typer.Option("--maps", help="URL of a folder for all anomaly maps, as float16 WebDataset tars.")
    ] = None,
    tiff: Annotated[
        str | None, typer.Option("--tiff", help="URL of a folder for all maps as TIFF at the size of the images.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Evaluate as others do, to compare with their numbers: ader, dinomaly, flowad.")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Score every test image exactly once and write metrics and a report.

    When it is killed, the same command goes on with the images that were not scored yet.
    """
    from fmad_dist.config_files import override_scorer
    from fmad_dist.detector import locate_detector, read_spec
    from fmad_dist.evaluation.protocol import named_protocol
    from fmad_dist.evaluation.summary import print_summary
    from fmad_dist.launch import default_processes, launch
    from fmad_dist.stream.mixture import Mixture
    from fmad_dist.tracking.registry import log_evaluation, named_version, use_registry

    wanted = None if protocol is None else named_protocol(protocol)
    Mixture.load(manifest)  # before MLflow is imported, so a refusal comes at once
    use_registry(tracking_uri)
    folder = locate_detector(model)
    spec = read_spec(folder)
    override_scorer(spec.scorer, overrides or [])
    arguments = ["--model", str(folder), "--name", named_version(model), "--out", str(out), "--workers", str(workers)]
    arguments += ["--save-every", str(save_every)]
    arguments += [word for name, url in (("--maps", maps), ("--tiff", tiff)) if url for word in (name, url)]
    arguments += [] if protocol is None else ["--protocol", protocol]
    arguments += [word for url in manifest for word in ("--manifest", url)] + (overrides or [])
    launch("evaluate.py", arguments, processes or default_processes())
    print_summary(out)
    used = wanted or spec.protocol
    if not overrides and used == spec.protocol and not used.biased:  # else an experiment, not the model's quality
        log_evaluation(model, out)


@app.command()
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


@app.command()
def compare(
    config: Annotated[Path, typer.Option("--config", help="Configuration of a finished run, e.g. its config.yaml.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for comparison.json, comparison.md and comparison.png.")],
    overrides: Overrides = None,
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
    model: Annotated[
        str | None, typer.Option(help="A model that was trained elsewhere on the data of --config; default its run.")
    ] = None,
    processes: Processes = 0,
    tracking_uri: TrackingUri = None,
) -> None:
    """Compare scorers on one trained model: quality, network evaluations, speed and memory, measured in one run."""
    from fmad_dist.config_files import load_config

    values = overrides or []
    resolved = load_config(config, values)

    from fmad_dist.comparison.choice import choose
    from fmad_dist.comparison.peers import choose_peers
    from fmad_dist.detector import locate_detector, read_spec
    from fmad_dist.launch import default_processes, launch

    if model is not None:
        from fmad_dist.tracking.registry import use_registry

        use_registry(tracking_uri)
    folder = locate_detector(model or str(resolved.run_dir))
    spec = read_spec(folder)
    choose(scorers, spec.objective, spec.scorer)
    choose_peers(peers)
    arguments = ["--config", str(config), "--model", str(folder), "--scorers", scorers, "--peers", peers]
    arguments += ["--out", str(out), *values]
    launch("compare.py", arguments, processes or default_processes())


@app.command()
def bench(
    config: Annotated[Path, typer.Option("--config", help="Benchmarks and runs, see configs/benchmarks/five.yaml.")],
    overrides: Overrides = None,
    processes: Processes = 0,
    max_restarts: RestartsOption = 0,
    workers: WorkersOption = 0,
    save_every: SaveEveryOption = 60.0,
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is done and what is to do.")] = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Only write the configurations of the trainings to do, and list them.")
    ] = False,
    collect: Annotated[bool, typer.Option("--collect", help="Start nothing; report what is there.")] = False,
    nodes: NodesOption = 1,
    gpus: GpusOption = 8,
    gpu: GpuOption = "H200",
    mfu: MfuOption = 0.4,
) -> None:
    """Train, evaluate and compare on several benchmarks, and write one report over all of them.

    Killed at any point, the same command goes on; what is done is repeated only when its inputs changed. Exit codes:
    0 done, 75 stopped on request or not all there yet, else that of the first command that failed.
    """
    from fmad_dist.bench.config import load_bench

    resolved = load_bench(config, overrides or [])

    from fmad_dist.bench.plan import Machines, plan_lines
    from fmad_dist.bench.run import collect_bench, prepare_bench, run_bench
    from fmad_dist.bench.stages import Options
    from fmad_dist.tracking.registry import use_registry

    if tracking_uri:  # to the stages by the environment: their commands are shown, and the URI may hold a password
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    if resolved.takes_models:
        use_registry(tracking_uri)
    options = Options(processes or None, max_restarts or None, workers or None, save_every)
    if dry_run:
        typer.echo("\n".join(plan_lines(resolved, options, Machines(nodes, gpus, gpu, mfu))))
    elif prepare:
        typer.echo("\n".join(prepare_bench(resolved)))
    elif collect:
        collect_bench(resolved)
    else:
        run_bench(resolved, options)


@app.command()
def predict(
    model: ModelOption,
    source: Annotated[str, typer.Option("--source", help="Folder of images: a path or any fsspec URL.")],
    out: Annotated[str, typer.Option("--out", help="Where scores.csv, maps/ and overlays/ go.")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Score unlabelled images: a table with decisions, heat maps and overlays."""
    from fmad_dist.detector import Detector
    from fmad_dist.predict import predict as run
    from fmad_dist.tracking.registry import use_registry
    from fmad_dist.world import World

    use_registry(tracking_uri)
    summary = run(Detector.load(model).place(World().device), source, out)
    typer.echo(f"{summary.num_images} images, {summary.num_anomalous} anomalous: {out}/scores.csv")
    if summary.unreadable:
        raise UserError(f"{len(summary.unreadable)} images could not be scored, first: {summary.unreadable[0]}")


@app.command()
def sync(run: Annotated[Path, typer.Argument(help="Directory of a training run.")]) -> None:
    """Give MLflow what it has missed of a run while it was away: metrics, how the run ended, the detector."""
    from fmad_dist.tracking.registry import sync_run

    typer.echo(sync_run(run))


@registry_app.command()
def register(
    run: Annotated[Path, typer.Option("--run", help="Directory of a finished training run.")],
) -> None:
    """Register the detector of a finished run as a new version with the alias `candidate`."""
    from fmad_dist.tracking.registry import register_run

    typer.echo(f"registered {register_run(run)} (alias candidate)")


@app.command()
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


def main(arguments: list[str] | None = None) -> None:
    """Run the command (default: the process's arguments); bad input ends in one sentence and exit code 2."""
    if os.environ.pop(BOUND, None):
        die_with_parent()
    try:
        app(args=arguments)
    except UserError as error:
        typer.echo(f"{prefix(error)}: {error}", err=True)
        sys.exit(error.exit_code)
    except JobFailed as error:
        typer.echo(f"error: {error}; its own message is above.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
