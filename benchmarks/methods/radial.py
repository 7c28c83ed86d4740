"""Does a trained model reproduce the theory v_rev(x, 0) = -(1 + a) x? The radial coefficient on training normals.

    python benchmarks/methods/radial.py RUN_DIR ... [--images 64]

For each run: a of its training, the coefficient <v, x> / <x, x> over training normals, and their distance from theory.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from fmad_dist.config.files import load_config
from fmad_dist.detector.detector import Detector
from fmad_dist.training.data import open_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=64, help="training normals, evenly spaced")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    found = [dataclasses.asdict(measure(run, arguments.images)) for run in arguments.runs]
    print("| run | coupling | skip | steps | a | theory -(1 + a) | measured | distance |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for row in found:
        theory = -(1 + row["a"])
        numbers = [row["a"], theory, row["coefficient"], abs(theory - row["coefficient"])]
        cells = [row["run"], row["coupling"], row["skip"], str(row["steps"]), *(f"{value:.3f}" for value in numbers)]
        print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


@dataclasses.dataclass(frozen=True)
class Radial:
    run: str
    path: str
    coupling: str
    skip: str
    steps: int
    a: float
    coefficient: float


def measure(run: Path, num_images: int) -> Radial:
    config = load_config(run / "config.yaml")
    data, detector = open_data(config), Detector.load(run)
    rows = data.split.train
    rows = rows[:: max(1, len(rows) // num_images)]
    cross = power = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), 8):
            images = torch.stack(data.images.decode(data.images.fetch(rows[start : start + 8].tolist())))
            x = detector.features(images)
            v_reversed = -detector.field(x, torch.ones(len(x)))
            cross += float((v_reversed * x).double().sum())
            power += float(x.double().square().sum())
    return Radial(
        run=config.name,
        path=config.objective.path,
        coupling=config.objective.coupling,
        skip=config.model.skip,
        steps=config.train.steps,
        a=detector.spec.coupling_strength,
        coefficient=cross / power,
    )


if __name__ == "__main__":
    main()
