"""What one-step endpoint scoring adds to its single network evaluation: maps, image scores, class and threshold.

    python benchmarks/methods/endpoint_cost.py RUN_DIR [--repeats 30]

Both are timed in turn on the same normalised features, one thread on a CPU. Content keys are part of the scoring.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fmad_dist.config.files import load_config
from fmad_dist.config.scorers import ScorerConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.flow.noise import content_keys
from fmad_dist.scoring.endpoint import EndpointConfig
from fmad_dist.scoring.residual import ResidualConfig
from fmad_dist.training.data import open_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = Detector.load(arguments.run).move_to(device)
    data = open_data(load_config(arguments.run / "config.yaml"))
    images = torch.stack(data.images.decode(data.images.fetch(data.split.train[:8].tolist()))).to(device)
    print(f"{device}, {platform.machine()}, torch {torch.__version__}, median of {arguments.repeats}\n")
    print("| scorer | batch | network ms | scoring ms | on top |\n|---|---:|---:|---:|---:|")
    scorers: dict[str, ScorerConfig] = {
        "endpoint": EndpointConfig(),
        "endpoint, paper's post-processing": EndpointConfig(postprocess="paper"),
        "residual": ResidualConfig(),
    }
    for title, scorer in scorers.items():
        for batch in (1, 8):
            network, scoring = compare(
                detector.with_calibration(None).with_scorer(scorer), images[:batch], arguments.repeats
            )
            print(f"| {title} | {batch} | {network:.1f} | {scoring:.1f} | {scoring / network - 1:+.1%} |", flush=True)


def compare(detector: Detector, images: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Median milliseconds of one network evaluation and of the whole scoring, for features that are there already."""
    network, scoring = [], []
    with torch.inference_mode():
        x = detector.features(images)
        t = torch.ones(len(x), device=x.device)
        for _ in range(repeats + 3):
            network.append(timed(lambda: detector.field(x, t), x.device))
            scoring.append(timed(lambda: detector.score(x, content_keys(images)), x.device))
    return statistics.median(network[3:]), statistics.median(scoring[3:])


def timed(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
