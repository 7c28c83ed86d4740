"""Commands that measure: evaluate, compare, bench."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.cli.options import (
    CompileOption,
    GpuOption,
    GpusOption,
    MfuOption,
    ModelOption,
    NodesOption,
    Overrides,
    OverwriteOption,
    Processes,
    RestartsOption,
    SaveEveryOption,
    TrackingUri,
    WorkersOption,
)


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
    overwrite: OverwriteOption = False,
    compiled: CompileOption = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Score every test image exactly once and write metrics and a report.

    When it is killed, the same command goes on with the images that were not scored yet. Another finished evaluation in
    --out is refused.
    """
    from fmad_dist.config_files import override_scorer
    from fmad_dist.detector_files import locate_detector, read_spec
    from fmad_dist.evaluation.protocol import named_protocol
    from fmad_dist.evaluation.summary import print_summary
    from fmad_dist.launch import default_processes, launch
    from fmad_dist.registry.evidence import log_evaluation
    from fmad_dist.registry.versions import named_version, use_registry
    from fmad_dist.stream.mixture import Mixture

    wanted = None if protocol is None else named_protocol(protocol)
    mixture = Mixture.load(manifest)  # before MLflow is imported, so a refusal comes at once
    use_registry(tracking_uri)
    folder = locate_detector(model)
    spec = read_spec(folder)
    override_scorer(spec.scorer, overrides or [])
    arguments = ["--model", str(folder), "--name", named_version(model), "--out", str(out), "--workers", str(workers)]
    arguments += ["--save-every", str(save_every)]
    arguments += [word for name, url in (("--maps", maps), ("--tiff", tiff)) if url for word in (name, url)]
    arguments += [] if protocol is None else ["--protocol", protocol]
    arguments += ["--overwrite"] * overwrite + ["--compile"] * compiled
    arguments += [word for url in manifest for word in ("--manifest", url)] + (overrides or [])
    launch("evaluate.py", arguments, processes or default_processes())
    print_summary(out)
    used = wanted or spec.protocol
    if not overrides and used == spec.protocol and not used.biased:  # else an experiment, not the model's quality
        log_evaluation(model, out, spec.weights_sha256, mixture.digests, manifest)


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
    from fmad_dist.detector_files import locate_detector, read_spec
    from fmad_dist.launch import default_processes, launch

    if model is not None:
        from fmad_dist.registry.versions import use_registry

        use_registry(tracking_uri)
    folder = locate_detector(model or str(resolved.run_dir))
    spec = read_spec(folder)
    choose(scorers, spec.objective, spec.scorer)
    choose_peers(peers)
    arguments = ["--config", str(config), "--model", str(folder), "--scorers", scorers, "--peers", peers]
    arguments += ["--out", str(out), *values]
    launch("compare.py", arguments, processes or default_processes())


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
    from fmad_dist.registry.versions import use_registry

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
