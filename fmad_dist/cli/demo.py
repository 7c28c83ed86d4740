"""`fmad demo`: one pass through the whole system, on data it makes itself or on a real tree."""

import json
import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

from fmad_dist.base.errors import UserError
from fmad_dist.cli import options


def demo(
    source: Annotated[Path | None, typer.Option(help="Tree in the MVTec AD layout; default: a made one.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.")] = Path("demo"),
    config: options.Config = Path("demo"),
    processes: options.Processes = None,
    overrides: options.Overrides = None,
) -> None:
    """The whole system once: data, shards, training, evaluation, registry, prediction, report."""
    from fmad_dist.report.result_files import read_results

    tree = source if source is not None else _made_tree(out)
    dataset = re.sub(r"[^A-Za-z0-9_-]", "_", tree.resolve().name) if source is not None else "demo"
    data, sheet, run = out / "data" / dataset, out / f"{dataset}.png", out / "runs" / f"demo-{dataset}"
    results, predictions = out / "results" / dataset, out / "predictions" / dataset
    ranks = [] if processes is None else ["--processes", str(processes)]
    _fmad("data", "convert", "--layout", "mvtec", "--dataset", dataset, "--source", str(tree), "--out", str(data))
    _fmad("data", "preview", str(data), "--out", str(sheet))
    _start_anew(run)
    settings = [f"name={run.name}", f"output={run.parent}", f"features.cache={out / 'features'}"]
    _fmad("train", "--config", str(config), "--data", str(data), *ranks, *(overrides or []), *settings)
    tracking = json.loads((run / "tracking.json").read_text())
    registered = json.loads((run / "registered.json").read_text())
    model = f"models:/{registered['name']}/{registered['version']}"
    common = ["--model", model, "--tracking-uri", tracking["uri"], *ranks]
    common.append("--overwrite")  # the demo always trains another model
    _fmad("evaluate", *common, "--data", str(data), "--out", str(results))
    _fmad("predict", *common, "--source", str(min(tree.glob("*/test"))), "--out", str(predictions))
    mean = read_results(results)["mean"]
    typer.echo(f"contact sheet  {sheet}")
    typer.echo(f"run            {run}   (metrics.jsonl, config.yaml, checkpoints/, detector/)")
    typer.echo(f"MLflow         {tracking['uri']}   (look: mlflow ui --backend-store-uri {tracking['uri']})")
    typer.echo(f"predictions    {predictions}   (scores.parquet, maps/, overlays/; look: fmad view {predictions})")
    typer.echo(
        f"demo: image_auroc={mean['image_auroc']:.3f} pixel_auroc={mean['pixel_auroc']:.3f} aupro={mean['aupro']:.3f} "
        f"model={model} report={results / 'report.html'}"
    )


def _made_tree(out: Path) -> Path:
    from data_tools.demo_products import make_demo_tree

    tree = out / "images"
    if not tree.exists():  # a tree that exists is a whole one
        print(f"making demo images in {tree}", flush=True)
        make_demo_tree(tree)
    return tree


def _start_anew(run: Path) -> None:
    """Remove an older run of the demo: it would count as finished, and the demo always trains from the start."""
    if run.exists():
        if not (run / "config.yaml").exists() and not (run / "metrics.jsonl").exists():
            raise UserError(f"{run}: exists and is not a run of the demo; remove it or choose another --out.")
        shutil.rmtree(run)


def _fmad(*arguments: str) -> None:
    from fmad_dist.launch.commands import CommandRunner

    code = CommandRunner().run(arguments)
    if code:
        raise UserError(f"`fmad {arguments[0]}` failed with exit code {code}; its message is above.")
