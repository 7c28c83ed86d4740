"""One model per objective on the same data with the same number of samples, and every scorer that fits on each.

    python benchmarks/methods/methods.py --source ../shared/data --out out/methods --steps 500

`--source` holds trees in the MVTec AD layout: mvtec_ad, mpdd and surface. Finished runs are not trained again. Test
images are read by the comparisons alone; all settings are fixed beforehand in configs/benchmarks/methods. Writes one
table over all models, table.md, and the comparison of each model below `--out`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DATASETS = ("mvtec_ad", "mpdd", "surface")
OBJECTIVES = (
    *("forward", "reversed_ot", "reversed_wt_token", "reversed_wt_group", "reversed_wt_soft"),
    *("diffusion", "wt_flow", "pixels_dit", "flow_mismatching"),
)
VELOCITY = "inversion,endpoint,residual,fusion"
DRAWS = "reconstruction,mismatch:noises=2:times=4"
COUPLED = f"{VELOCITY},density:probes=2"
SCORERS = {
    "forward": f"{VELOCITY},density:probes=2,{DRAWS}",
    "reversed_wt_soft": VELOCITY,
    "diffusion": "ddim",
    "wt_flow": "endpoint:postprocess=paper,inversion,endpoint,residual",
    "pixels_dit": f"inversion,endpoint,{DRAWS}",
    "flow_mismatching": "mismatch:noises=4:times=4:postprocess=paper,inversion",
}
OVERRIDES = {"flow_mismatching": ["features.grid=32"]}  # the paper's 256 x 256 needs a GPU
PEERS = {"forward": ["--peers", "cflow"]}
SHOWN = {"image_auroc": "I-AUROC", "pixel_auroc": "P-AUROC", "aupro": "AUPRO"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of eight images for every model")
    parser.add_argument("--processes", default="1", help="of every training; the comparisons use two")
    parser.add_argument("--only", nargs="*", choices=OBJECTIVES, default=OBJECTIVES)
    arguments = parser.parse_args()
    shards = [str(arguments.out / "data" / name) for name in DATASETS]
    for name, out in zip(DATASETS, shards, strict=True):
        source = str(arguments.source / name)
        fmad("data", "convert", "--layout", "mvtec", "--dataset", name, "--source", source, "--out", out)
    for name in arguments.only:
        run = arguments.out / name
        if not (run / "detector" / "detector.json").exists():
            fmad(
                *("train", "--config", f"configs/benchmarks/methods/{name}.yaml", "--processes", arguments.processes),
                *(f"output={arguments.out}", f"data.manifests={json.dumps(shards)}", "tracking.mlflow=false"),
                *(f"features.cache={arguments.out / 'features'}", f"train.steps={arguments.steps}"),
                *OVERRIDES.get(name, []),
            )
        fmad(
            *("compare", "--config", str(run / "config.yaml"), "--scorers", SCORERS.get(name, COUPLED)),
            *("--out", str(compared(arguments.out, name)), "--processes", "2", "--overwrite", *PEERS.get(name, [])),
        )
    found = {name: compared(arguments.out, name) / "comparison.json" for name in OBJECTIVES}
    table = "\n".join(rows({name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}))
    (arguments.out / "table.md").write_text(f"{table}\n")
    print(table)


def compared(out: Path, name: str) -> Path:
    return out / "compare" / name


def rows(comparisons: dict[str, dict]) -> Iterator[str]:
    """All scorers of all models; means over the classes, then the image AUROC of every class."""
    first = next(iter(comparisons.values()))["scorers"]
    classes = list(next(iter(first.values()))["classes"])
    yield f"| model | scorer | NFE | images/s | peak MiB | {' | '.join([*SHOWN.values(), *classes])} |"
    yield "|---|---|" + "---:|" * (3 + len(SHOWN) + len(classes))
    for name, body in comparisons.items():
        for title, row in body["scorers"].items():
            cells = [name, title, str(row["evaluations"]), f"{row['images_per_s']:.1f}", f"{row['peak_mib']:.0f}"]
            cells += [f"{row['mean'][key]:.3f}" for key in SHOWN]
            cells += [f"{row['classes'][one]['image_auroc']:.3f}" for one in classes]
            yield f"| {' | '.join(cells)} |"


def fmad(*arguments: str) -> None:
    print(f"$ fmad {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "fmad_dist.cli", *arguments], check=True)


if __name__ == "__main__":
    main()
