"""How far do metrics on synthetic defects track those on the real test split? One training, every checkpoint, both.

    python benchmarks/quality/synthetic.py --source ../shared/data --out out/synthetic

`--source` holds trees as for shared_small.py. The run is trained with configs/benchmarks/shared_small.yaml but fewer
steps, followed with `fmad follow --once`, and then every checkpoint is scored on the test images, which is what the
follower never does. Nothing is chosen by these figures.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch
from scipy.stats import spearmanr

from fmad_dist.base.world import World
from fmad_dist.config.files import parse_config
from fmad_dist.detector.detector import Detector
from fmad_dist.evaluation.labelled_images import LabelledImages, scored_images, shards_of_test_split
from fmad_dist.flow.noise import content_keys
from fmad_dist.follow.synthetic import SyntheticSet
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.training.checkpoint_reader import read_averages
from fmad_dist.training.export import RunParts, checkpoints_of

DATASETS = ("mvtec_ad", "mpdd", "surface")
METRICS = {"image_auroc": "image AUROC", "aupro": "AUPRO"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=75, help="steps between checkpoints")
    parser.add_argument("--processes", default="2")
    parser.add_argument("--skip-training", action="store_true", help="take the finished run in --out")
    arguments = parser.parse_args()
    if not arguments.skip_training:
        train(arguments)
    run = arguments.out / "synthetic"
    fmad("follow", "--run", str(run), "--once", "--processes", arguments.processes)
    lines = [json.loads(line) for line in (run / "follow.jsonl").read_text().splitlines()]
    parts, per_step = read_run(run)
    real, real_areas = real_metrics(parts, per_step)
    report = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU; torch {torch.__version__}",
        "normals": lines[0]["num_normals"],
        "defects": lines[0]["num_defects"],
        "synthetic": {line["step"]: line["classes"] for line in lines},
        "real": real,
        "kinds": {line["step"]: line["kinds"] for line in lines},
        "median_area_percent": {"synthetic": synthetic_areas(parts), "real": real_areas},
    }
    (arguments.out / "synthetic.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "synthetic.md").write_text(table(json.loads(json.dumps(report))))
    print(f"\n{arguments.out / 'synthetic.md'}")


def train(arguments: argparse.Namespace) -> None:
    shards = [str(arguments.out / "data" / name) for name in DATASETS]
    for name, out in zip(DATASETS, shards, strict=True):
        source = str(arguments.source / name)
        fmad("data", "convert", "--layout", "mvtec", "--dataset", name, "--source", source, "--out", out)
    fmad(
        *("train", "--config", "configs/benchmarks/shared_small.yaml", "--processes", arguments.processes),
        *("name=synthetic", f"output={arguments.out}", f"data.manifests={json.dumps(shards)}"),
        *(f"features.cache={arguments.out / 'features'}", f"train.steps={arguments.steps}"),
        *(f"train.checkpoint_every={arguments.every}", f"train.keep_every={arguments.every}", "tracking.mlflow=false"),
    )


def read_run(run: Path) -> tuple[RunParts, dict[int, Detector]]:
    """What all detectors of the run share, and the detector of every checkpoint."""
    torch.set_num_threads(1)
    checkpoints, _ = checkpoints_of(str(run))
    every = {step: checkpoints.read(step) for step in checkpoints.steps()}
    config = parse_config(next(iter(every.values())).state.config, source=str(run))
    parts = RunParts.prepare(config, World(), torch.device("cpu"))
    return parts, {step: parts.detector(one, read_averages(one)) for step, one in every.items()}


def real_metrics(parts: RunParts, per_step: dict[int, Detector]) -> tuple[dict, dict[str, float]]:
    """Metrics of the test split by step and class, and the median area of its defects; features are computed once."""
    mixture, first = parts.data.mixture, next(iter(per_step.values()))
    states = {step: EvaluationState(parts.config.protocol) for step in per_step}
    areas: dict[str, list[float]] = {}
    images = LabelledImages(mixture, first.image_size, first.spec.protocol.map_size)
    for batch in images.read([batch for shard in shards_of_test_split(mixture) for batch in shard]):
        x, keys = first.features(batch.images), content_keys(batch.images)
        for step, detector in per_step.items():
            for scored in scored_images(mixture, batch, detector.score(x, keys)):
                states[step].update(scored)
        for row, mask in zip(batch.rows, batch.masks, strict=True):
            if mask.any():
                areas.setdefault(mixture.class_names[mixture.class_numbers[row]], []).append(100 * mask.mean())
    found = {step: compute_results(state).classes for step, state in states.items()}
    values = {
        step: {name: {metric: getattr(one.metrics, metric) for metric in METRICS} for name, one in classes.items()}
        for step, classes in found.items()
    }
    return values, {name: median(of_class) for name, of_class in areas.items()}


def synthetic_areas(parts: RunParts) -> dict[str, float]:
    """The median area of the synthetic defects of each class, as the follower draws them."""
    images = SyntheticSet(parts.data, per_class=16)
    areas: dict[str, list[float]] = {}
    for row in images.rows.tolist():
        drawn = [100 * image.mask.mean() for image in images.images(row)[1:]]
        areas.setdefault(images.class_name(row), []).extend(drawn)
    return {name: median(of_class) for name, of_class in areas.items()}


def table(report: dict) -> str:
    steps = list(report["real"])
    rows = [f"Machine: {report['machine']}. {report['normals']} held-out normals, {report['defects']} defects.", ""]
    for metric, title in METRICS.items():
        rows += [f"## {title}: synthetic / real", "", f"| class | {' | '.join(steps)} | rank correlation | lost |"]
        rows.append("|---" * (len(steps) + 3) + "|")
        names = sorted(report["real"][steps[0]])
        for name in [*names, "mean"]:
            pairs = [
                (value(report["synthetic"][s], name, metric), value(report["real"][s], name, metric)) for s in steps
            ]
            rows.append(row(name, pairs))
        rows.append("")
    rows += ["## Median area of a defect, % of the picture", "", "| class | synthetic | real |", "|---|---|---|"]
    ours, real = report["median_area_percent"]["synthetic"], report["median_area_percent"]["real"]
    rows += [f"| {name} | {ours[name]:.2f} | {real[name]:.2f} |" for name in sorted(real)]
    return "\n".join([*rows, ""])


def row(name: str, ours: list[float], real: list[float]) -> str:
    correlation = spearmanr(ours, real).statistic
    lost = max(real) - real[max(range(len(ours)), key=ours.__getitem__)]  # by taking the checkpoint with the best ours
    cells = " | ".join(f"{one:.3f} / {other:.3f}" for one, other in zip(ours, real, strict=True))
    return f"| {name} | {cells} | {correlation:.2f} | {lost:.3f} |"


def value(classes: dict, name: str, metric: str) -> float:
    if name != "mean":
        return classes[name][metric]
    return sum(one[metric] for one in classes.values()) / len(classes)


def fmad(*arguments: str) -> None:
    print(f"$ fmad {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "fmad_dist.cli", *arguments], check=True)


if __name__ == "__main__":
    main()
