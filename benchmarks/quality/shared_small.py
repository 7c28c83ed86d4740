"""One model for five real categories on two cores: convert, train, evaluate with several scorers, write the table.

    python benchmarks/quality/shared_small.py --data ../shared/data --out out/shared_small

`--data` holds trees in the MVTec AD layout: mvtec_ad/{bottle,toothbrush}, mpdd/metal_plate and
surface/{magnetic_tile,kolektor_sdd}. Test images are only read by the evaluations at the end; scorer, steps and all
other settings are fixed beforehand in configs/benchmarks/shared_small.yaml.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

DATASETS = ("mvtec_ad", "mpdd", "surface")
SCORERS = {
    "inversion, 3 steps (the model's own)": [],
    "inversion, 10 steps": ["scorer.steps=10"],
    "reconstruction, tau 0.5, 1 step": ["scorer.name=reconstruction", "scorer.steps=1", "scorer.tau=0.5"],
}
METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--skip-training", action="store_true", help="evaluate the finished run in --out")
    arguments = parser.parse_args()
    shards = [str(arguments.out / "data" / name) for name in DATASETS]
    run = arguments.out / "shared_small"
    if not arguments.skip_training:
        for name, out in zip(DATASETS, shards, strict=True):
            source = str(arguments.data / name)
            fmad("data", "convert", "--layout", "mvtec", "--dataset", name, "--source", source, "--out", out)
        fmad(
            *("train", "--config", "configs/benchmarks/shared_small.yaml", "--processes", "2"),
            *(f"output={arguments.out}", f"data.manifests={json.dumps(shards)}"),
            f"features.cache={arguments.out / 'features'}",
        )
    manifests = [word for url in shards for word in ("--manifest", url)]
    tables = []
    for number, (title, overrides) in enumerate(SCORERS.items()):
        results = arguments.out / f"results-{number}"
        fmad("evaluate", "--model", str(run), *manifests, "--out", str(results), *overrides)
        tables.append(table(title, json.loads((results / "results.json").read_text())))
    (arguments.out / "shared_small.md").write_text("\n".join([facts(run), *tables]))
    print(f"\n{arguments.out / 'shared_small.md'}")


def facts(run: Path) -> str:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = sum((b["samples"] - a["samples"]) / b["images_per_s"] for a, b in zip([{"samples": 0}, *lines], lines))  # noqa: B905
    last = lines[-1]
    return (
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, no GPU; torch {torch.__version__}. "
        f"Training: {last['step']} steps, {last['samples']} samples, {seconds / 60:.1f} minutes, "
        f"last loss {last['loss']:.3f}.\n"
    )


def table(title: str, results: dict) -> str:
    rows = [f"## {title}", "", f"| class | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    for name, values in [*results["classes"].items(), ("**mean**", results["mean"])]:
        rows.append(f"| {name} | {' | '.join(f'{values[metric]:.3f}' for metric in METRICS)} |")
    return "\n".join([*rows, ""])


def fmad(*arguments: str) -> None:
    print(f"$ fmad {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "fmad_dist.cli", *arguments], check=True)


if __name__ == "__main__":
    main()
