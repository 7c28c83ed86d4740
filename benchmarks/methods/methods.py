"""One model per objective on the same data with the same number of samples, and every scorer that fits on each.

    python benchmarks/methods/methods.py --data ../shared/data --out out/methods --steps 500

`--data` holds trees in the MVTec AD layout: mvtec_ad, mpdd and surface. Finished runs are not trained again. Test
images are read by the comparisons alone; all settings are fixed beforehand in configs/benchmarks/methods.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

DATASETS = ("mvtec_ad", "mpdd", "surface")
OBJECTIVES = (
    *("forward", "reversed_ot", "reversed_wt_token", "reversed_wt_group", "reversed_wt_soft"),
    *("diffusion", "wt_flow", "pixels_dit"),
)
VELOCITY = "inversion,endpoint,residual,fusion,density:probes=2"
INDEPENDENT = f"{VELOCITY},reconstruction,mismatch:noises=2:times=4"
SCORERS = {
    "forward": INDEPENDENT,
    "pixels_dit": "inversion,endpoint,reconstruction,mismatch:noises=4:times=4",
    "diffusion": "ddim",
    "wt_flow": "endpoint:postprocess=paper,inversion,endpoint,residual",
    "reversed_wt_soft": "inversion,endpoint,residual,fusion",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of eight images for every model")
    parser.add_argument("--only", nargs="*", choices=OBJECTIVES, default=OBJECTIVES)
    arguments = parser.parse_args()
    shards = [str(arguments.out / "data" / name) for name in DATASETS]
    for name, out in zip(DATASETS, shards, strict=True):
        source = str(arguments.data / name)
        fmad("data", "convert", "--layout", "mvtec", "--dataset", name, "--source", source, "--out", out)
    for name in arguments.only:
        run = arguments.out / name
        if not (run / "detector" / "detector.json").exists():
            fmad(
                *("train", "--config", f"configs/benchmarks/methods/{name}.yaml", "--processes", "2"),
                *(f"output={arguments.out}", f"data.manifests={json.dumps(shards)}", "tracking.mlflow=false"),
                *(f"features.cache={arguments.out / 'features'}", f"train.steps={arguments.steps}"),
            )
        fmad(
            *("compare", "--config", str(run / "config.yaml"), "--scorers", SCORERS.get(name, VELOCITY)),
            *("--out", str(arguments.out / "compare" / name)),
        )


def fmad(*arguments: str) -> None:
    print(f"$ fmad {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "fmad_dist.cli", *arguments], check=True)


if __name__ == "__main__":
    main()
