"""One model for five real categories on two cores, beside memory banks on the same features: convert, train, compare.

    python benchmarks/quality/shared_small.py --source ../shared/data --out out/shared_small

`--source` holds trees in the MVTec AD layout: mvtec_ad/{bottle,toothbrush}, mpdd/metal_plate and
surface/{magnetic_tile,kolektor_sdd}. Test images are only read by the comparison at the end; scorers, peers, steps and
all other settings are fixed beforehand, here and in configs/benchmarks/shared_small.yaml. `section.key=value` words
replace values of that file. A second start goes on where the first one stopped.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

DATASETS = ("mvtec_ad", "mpdd", "surface")
SCORERS = "deviation,inversion,inversion:steps=10,reconstruction:steps=1,endpoint,mismatch:noises=2:times=4"
PEERS = "bank,bank_pooled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", default="2")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    out, processes = arguments.out, ("--processes", arguments.processes)
    shards = [str(out / "data" / name) for name in DATASETS]
    for name, url in zip(DATASETS, shards, strict=True):
        fmad(
            "data",
            "convert",
            "--layout",
            "mvtec",
            "--dataset",
            name,
            "--source",
            str(arguments.source / name),
            "--out",
            url,
        )
    fmad(
        *("train", "--config", "configs/benchmarks/shared_small.yaml", *processes, f"output={out}"),
        *(f"data.manifests={json.dumps(shards)}", f"features.cache={out / 'features'}", *arguments.overrides),
    )
    run, compared = out / "shared_small", out / "compared"
    fmad(
        *("compare", "--config", str(run / "config.yaml"), "--scorers", SCORERS, "--peers", PEERS),
        *("--out", str(compared), "--overwrite", *processes),
    )
    shutil.copy(compared / "comparison.json", out / "shared_small.json")
    (out / "shared_small.md").write_text(training(run) + (compared / "comparison.md").read_text())
    print(f"\n{out / 'shared_small.md'}")


def training(run: Path) -> str:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before = [{"samples": 0}, *lines[:-1]]
    seconds = sum((b["samples"] - a["samples"]) / b["images_per_s"] for a, b in zip(before, lines, strict=True))
    last = lines[-1]
    return (
        f"Training: {last['step']} steps, {last['samples']} samples, {seconds / 60:.1f} minutes, last loss "
        f"{last['loss']:.3f}.\n\n"
    )


def fmad(*arguments: str) -> None:
    print(f"$ fmad {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "fmad_dist.cli", *arguments], check=True)


if __name__ == "__main__":
    main()
