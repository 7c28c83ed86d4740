"""All test maps of the five benchmarks: our evaluation beside anomalib's and adeval's AUPRO, on the same maps.

    python benchmarks/metrics/five_benchmarks.py --out benchmarks/metrics [--adeval FOLDER] [--classes 48]

48 classes with the normal and anomalous test images of MVTec AD, VisA, MVTec LOCO AD, MVTec 3D-AD and MPDD: 7,110 maps
of 256 x 256, made from token grids as a detector's are. Every contender is a process of its own that makes the same
maps class by class and feeds them image by image; making them is not counted. Memory is the peak above what the process
had after it had made the largest class once. What is not installed is left out; `--adeval` is a folder that has adeval
(`pip install --no-deps --target FOLDER adeval`).
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.curves import pro_curve
from fmad_dist.metrics.histogram import MapPixels, PixelHistogram
from fmad_dist.metrics.regions import label_regions
from fmad_dist.metrics.state import EvaluationState, ScoredImage
from fmad_dist.metrics.strips import Strips
from fmad_dist.metrics.wire import encode_state

# normal and anomalous test images of every class, and about how many types of defect a class has
COUNTS: dict[str, tuple[str, int]] = {
    "mvtec_ad": (
        "20/63 58/92 23/109 28/89 21/57 40/70 32/92 22/93 26/141 41/119 33/84 12/30 60/40 19/60 32/119",
        5,
    ),
    "visa": ("100/100 60/100 50/100 50/100 50/100 100/100 100/100 100/100 100/100 101/100 101/100 50/100", 1),
    "mvtec_loco": ("102/173 94/236 138/172 122/219 119/193", 2),
    "mvtec_3d": ("22/88 21/87 27/132 28/103 26/104 20/80 26/106 22/92 32/69 25/87", 4),
    "mpdd": ("32/47 26/51 30/30 30/14 26/71 32/69", 2),
}
SIZE, GRID, LIMIT = 256, 16, 0.3


@dataclass(frozen=True, slots=True)
class Class:
    name: str
    normal: int
    anomalous: int
    types: int
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds of one contender on the clock and of its processor, MB above the baseline, AUPRO by class."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    aupro: dict[str, float]
    detail: dict[str, float]


def classes(number: int) -> list[Class]:
    found = []
    for dataset, (counts, types) in COUNTS.items():
        for position, pair in enumerate(counts.split()):
            normal, anomalous = map(int, pair.split("/"))
            found.append(Class(f"{dataset}/{position:02d}", normal, anomalous, types, len(found)))
    assert sum(one.normal + one.anomalous for one in found) == 7110
    return found[:: len(found) // number][:number] if number < len(found) else found


def make_maps(one: Class) -> tuple[np.ndarray, np.ndarray]:
    """Maps float32 [n, SIZE, SIZE], squared norms of 16 Gaussian features on a token grid, and masks bool; the features
    of tokens under a defect are larger."""
    rng = np.random.default_rng(one.seed)
    count, scale = one.normal + one.anomalous, SIZE // GRID
    masks = np.zeros((count, SIZE, SIZE), dtype=bool)
    for mask in masks[one.normal :]:
        for _ in range(int(rng.integers(1, 4))):
            (y, x), (height, width) = rng.integers(0, SIZE - 40, 2), rng.integers(4, 40, 2)
            mask[y : y + height, x : x + width] = True
    covered = masks.reshape(count, GRID, scale, GRID, scale).mean(axis=(2, 4))
    levels = rng.gamma(8.0, 1 / 8.0, (count, GRID, GRID)) * rng.lognormal(0, 0.3, (count, 1, 1)) * (1 + 2 * covered)
    tokens = torch.from_numpy(levels.astype(np.float32))[:, None]
    maps = torch.nn.functional.interpolate(tokens, size=(SIZE, SIZE), mode="bilinear")[:, 0].numpy()
    return maps, masks


class Watch:
    """Adds up the time inside `with` blocks."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter() - self._start[0]
        self.cpu_s += time.process_time() - self._start[1]


Measured = Iterator[tuple[Class, np.ndarray, np.ndarray]]
Contender = Callable[[Measured, Watch, dict[str, float]], dict[str, float]]


def whole_evaluation(data: Measured, watch: Watch, detail: dict[str, float]) -> dict[str, float]:
    """All metrics of every class and type of defect, with intervals and the report's panels."""
    state = EvaluationState(Protocol())
    image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    for one, maps, masks in data:
        for n, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
            label = int(n >= one.normal)
            kind = f"type {n % one.types}" if label else "good"
            what = (f"{one.name}/{n:04d}", one.name, label, kind, float(anomaly_map.max()))
            with watch:
                state.update(ScoredImage(*what, anomaly_map, mask, image))
    detail["update_s"] = watch.wall_s
    with watch:
        size = len(encode_state(state))
    detail["state_mb"] = size / 1e6
    images = [pixels.bins.num_bytes for found in state.classes.values() for pixels in found.pixels.values()]
    detail["bins_kb_per_image"] = float(np.mean(images)) / 1e3
    detail["encode_s"] = watch.wall_s - detail["update_s"]
    with watch:
        results = compute_results(state)
    detail["compute_s"] = watch.wall_s - detail["update_s"] - detail["encode_s"]
    return {name: result.metrics.aupro for name, result in results.classes.items()}


def histogram_alone(data: Measured, watch: Watch, detail: dict[str, float]) -> dict[str, float]:
    found = {}
    for one, maps, masks in data:
        with watch:
            histogram = PixelHistogram(Protocol().histogram_bins)
            for anomaly_map, mask in zip(maps, masks, strict=True):
                histogram.add(MapPixels.of(anomaly_map, mask, 8))
            found[one.name] = pro_curve(histogram).area(LIMIT)
        for number in (50, 1000):  # as the protocols ader and flowad take it
            detail[f"{one.name} by {number} strips"] = Strips(histogram).aupro(number, LIMIT)
    return found


def anomalib_aupro(data: Measured, watch: Watch, detail: dict[str, float]) -> dict[str, float]:
    from anomalib.metrics.aupro import _AUPRO

    found = {}
    for one, maps, masks in data:
        with watch:
            metric = _AUPRO(fpr_limit=LIMIT)
            for anomaly_map, mask in zip(maps, masks, strict=True):
                metric.update(torch.from_numpy(anomaly_map)[None], torch.from_numpy(mask).int()[None])
            found[one.name] = float(metric.compute())
    return found


def adeval_strips(number: int) -> Contender:
    def evaluate(data: Measured, watch: Watch, detail: dict[str, float]) -> dict[str, float]:
        if not hasattr(np, "trapz"):
            setattr(np, "trapz", np.trapezoid)  # noqa: B010 - adeval 1.1.0 needs the name that numpy 2.4 dropped
        from adeval import EvalAccumulator

        found = {}
        for one, maps, masks in data:
            with watch:
                low, high = float(maps.min()), float(maps.max())
                accumulator = EvalAccumulator(low, high, low, high, nstrips=number)
                for anomaly_map, mask in zip(maps, masks, strict=True):
                    accumulator.add_anomap(anomaly_map, mask.astype(np.uint8))
                found[one.name] = accumulator._aupro()
        return found

    return evaluate


def exact_sort(data: Measured, watch: Watch, detail: dict[str, float]) -> dict[str, float]:
    """Every distinct score as a threshold, in float64: what the others are measured against."""
    found = {}
    for one, maps, masks in data:
        with watch:
            order = np.argsort(maps, axis=None)[::-1]
            scores = maps.ravel()[order]
            last = np.append(np.flatnonzero(np.diff(scores)), scores.size - 1)
            weights = np.zeros(maps.shape)
            for weight, mask in zip(weights, masks, strict=True):
                weight[mask] = label_regions(mask, 8).weights
            pro = np.append(0.0, np.cumsum(weights.ravel()[order])[last])
            fpr = np.append(0.0, np.cumsum(~masks.ravel()[order])[last] / (~masks).sum())
            stop = int(np.searchsorted(fpr, LIMIT, side="right"))
            share = (LIMIT - fpr[stop - 1]) / (fpr[stop] - fpr[stop - 1])
            height = np.append(pro[:stop], pro[stop - 1] + share * (pro[stop] - pro[stop - 1])) / pro[-1]
            found[one.name] = float(np.trapezoid(height, np.append(fpr[:stop], LIMIT)) / LIMIT)
    return found


CONTENDERS: dict[str, tuple[str, Contender]] = {
    "evaluation": ("fmad: all metrics, types of defect, 95 % intervals", whole_evaluation),
    "histogram": ("fmad: AUPRO alone", histogram_alone),
    "anomalib": ("anomalib: AUPRO", anomalib_aupro),
    "adeval50": ("adeval: AUROC, AP, AUPRO with 50 strips", adeval_strips(50)),
    "adeval1000": ("adeval: AUROC, AP, AUPRO with 1000 strips", adeval_strips(1000)),
    "exact": ("exact sort", exact_sort),
}


def run_one(name: str, number: int) -> Outcome:
    chosen = classes(number)
    make_maps(max(chosen, key=lambda one: one.normal + one.anomalous))
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch, detail = Watch(), dict[str, float]()
    found = CONTENDERS[name][1](((one, *make_maps(one)) for one in chosen), watch, detail)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline) / 1024
    return Outcome(watch.wall_s, watch.cpu_s, peak, found, detail)


def environment(number: int) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("numpy", "scipy", "torch", "anomalib", "adeval"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    maps = sum(one.normal + one.anomalous for one in classes(number))
    return {
        "machine": f"{os.cpu_count()} cores CPU, {platform.machine()}",
        "data": f"{number} classes, {maps} maps of {SIZE} x {SIZE}",
        "threads": f"{torch.get_num_threads()} for torch; numpy, and so ours and adeval, has one",
        "load at start": ", ".join(f"{value:.1f}" for value in os.getloadavg()) + " (1, 5, 15 minutes)",
    } | versions


def markdown(facts: dict[str, str], outcomes: dict[str, Outcome]) -> str:
    lines = ["# All test maps of the five benchmarks", ""]
    lines += ["Written by `python benchmarks/metrics/five_benchmarks.py --out benchmarks/metrics --adeval FOLDER`.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "| what | wall s | CPU s | peak MB above baseline | mean error of AUPRO | largest |",
        "|---|" + "---:|" * 5,
    ]
    reference = outcomes["exact"].aupro if "exact" in outcomes else {}
    for name, outcome in outcomes.items():
        errors = [abs(value - reference[key]) for key, value in outcome.aupro.items() if key in reference]
        shown = [f"{np.mean(errors):.0e}", f"{np.max(errors):.0e}"] if errors and name != "exact" else ["", ""]
        cells = [CONTENDERS[name][0], f"{outcome.wall_s:.1f}", f"{outcome.cpu_s:.1f}", f"{outcome.peak_mb:.0f}", *shown]
        lines.append(f"| {' | '.join(cells)} |")
    detail = outcomes["evaluation"].detail if "evaluation" in outcomes else {}
    lines += ["", "The whole evaluation: " + ", ".join(f"{key} {value:.3g}" for key, value in detail.items()) + "."]
    for number in (50, 1000):
        if f"adeval{number}" in outcomes and "histogram" in outcomes:
            ours, theirs = outcomes["histogram"].detail, outcomes[f"adeval{number}"].aupro
            apart = max(abs(ours[f"{name} by {number} strips"] - value) for name, value in theirs.items())
            lines += ["", f"AUPRO by {number} strips from our histogram is at most {apart:.0e} from adeval's own."]
    return "\n".join(lines) + "\n"


def run_all(names: list[str], arguments: argparse.Namespace) -> None:
    facts, outcomes = environment(arguments.classes), {}
    for name in names:
        words = ["--contender", name, "--classes", str(arguments.classes)]
        ended = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, env=os.environ)
        if ended.returncode:
            print(f"{name}: left out ({ended.stderr.strip().splitlines()[-1]})", file=sys.stderr)
            continue
        outcomes[name] = Outcome(**json.loads(ended.stdout.splitlines()[-1]))
        print(f"{name}: {outcomes[name].wall_s:.1f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    record: dict[str, Any] = {"environment": facts, "outcomes": {name: asdict(one) for name, one in outcomes.items()}}
    (arguments.out / "five_benchmarks.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "five_benchmarks.md").write_text(markdown(facts, outcomes))
    print(markdown(facts, outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--classes", type=int, default=48, help="of the 48, evenly spread")
    parser.add_argument("--adeval", type=Path, help="folder that has the package adeval")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, separated by commas")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(asdict(run_one(arguments.contender, arguments.classes))))
        return
    if arguments.adeval:
        folders = [str(arguments.adeval.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(folders)
        sys.path.insert(0, folders[0])
    run_all(arguments.only.split(","), arguments)


if __name__ == "__main__":
    main()
