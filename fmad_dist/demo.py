"""`make demo`: one pass through the whole system, on data it makes itself or on a real tree."""

import json
import re
from pathlib import Path

from fmad_dist.errors import UserError
from fmad_dist.evaluation.summary import read_results
from fmad_dist.steps import Steps


def run_demo(data: Path | None, out: Path, config: Path, processes: int) -> str:
    """Run all steps below `out`; returns the last line with metrics, model version and report.

    Raises:
        UserError: a step was given bad input, or a job it launched failed.
    """
    source = data if data is not None else _made_data(out)
    dataset = re.sub(r"[^A-Za-z0-9_-]", "_", source.resolve().name) if data is not None else "demo"
    shards = out / "data" / dataset
    _fmad("data", "convert", "--layout", "mvtec", "--dataset", dataset, "--source", str(source), "--out", str(shards))
    _fmad("data", "preview", str(shards), "--out", str(out / f"{dataset}.png"))
    run = out / "runs" / f"demo-{dataset}"
    overrides = [f"name={run.name}", f"output={run.parent}", f"data.manifests={json.dumps([str(shards)])}"]
    overrides.append(f"features.cache={out / 'features'}")
    _start_anew(run)
    _fmad("train", "--config", str(config), "--processes", str(processes), *overrides)
    tracking = json.loads((run / "tracking.json").read_text())
    registered = json.loads((run / "registered.json").read_text())
    model = f"models:/{registered['name']}/{registered['version']}"
    common = ["--model", model, "--tracking-uri", tracking["uri"]]
    results = out / "results" / dataset
    again = ["--processes", str(processes), "--overwrite"]  # the demo always trains another model
    _fmad("evaluate", *common, "--manifest", str(shards), "--out", str(results), *again)
    test_folder = next(iter(sorted(source.glob("*/test"))))
    predictions = out / "predictions" / dataset
    _fmad("predict", *common, "--source", str(test_folder), "--out", str(predictions), *again)
    mean = read_results(results)["mean"]
    print(f"contact sheet  {out / f'{dataset}.png'}")
    print(f"run            {run}   (metrics.jsonl, config.yaml, checkpoints/, detector/)")
    print(f"MLflow         {tracking['uri']}   (look: mlflow ui --backend-store-uri {tracking['uri']})")
    print(f"predictions    {predictions}   (scores.parquet, maps/, overlays/; look: fmad view {predictions})")
    return (
        f"demo: image_auroc={mean['image_auroc']:.3f} pixel_auroc={mean['pixel_auroc']:.3f} aupro={mean['aupro']:.3f} "
        f"model={model} report={results / 'report.html'}"
    )


def _made_data(out: Path) -> Path:
    from data_tools.demo_products import make_demo_tree

    tree = out / "images"
    if not tree.exists():  # a tree that exists is a whole one
        print(f"making demo images in {tree}", flush=True)
        make_demo_tree(tree)
    return tree


def _start_anew(run: Path) -> None:
    """The demo always trains from the start: an older run of the same name would count as finished."""
    import shutil

    if run.exists():
        if not (run / "config.yaml").exists() and not (run / "metrics.jsonl").exists():
            raise UserError(f"{run}: exists and is not a run of the demo; remove it or choose another --out.")
        shutil.rmtree(run)


def _fmad(*arguments: str) -> None:
    code = Steps().run(arguments)
    if code:
        raise UserError(f"the step `fmad {arguments[0]}` failed with exit code {code}; its message is above.")
