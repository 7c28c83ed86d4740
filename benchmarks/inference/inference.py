"""Latency and images/s of every scorer beside peers: warm, at batches 1, 8 and 32, with and without decoding.

    python benchmarks/inference/inference.py --detector DIR --images DIR --out benchmarks/inference

`--detector` is any detector of forward flow matching, `--images` a folder of images; only their size matters here, not
what is found. Every method is timed end to end, from uint8 pixels to score and map; decoding and resizing a file is
timed once and added. Methods take turns, so that a machine that slows down slows all of them. Peers that need a package
which is not installed are left out, saying so.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from draw import draw, table
from peers import peers
from torch import Tensor

from fmad_dist.comparison.choice import choose
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.onnx import build_graph, run, runtime
from fmad_dist.images.codec import IMAGE_SUFFIXES, open_image, square_rgb
from fmad_dist.networks.build import describe_network

BATCHES = (1, 8, 32)
SCORERS = (
    *("endpoint", "inversion:steps=1", "inversion:steps=3", "reconstruction:steps=1", "residual"),
    *("mismatch:noises=2:times=4", "mismatch:noises=8:times=8", "density:steps=5:probes=10"),
)
EXPORTED = ("endpoint", "inversion:steps=1", "inversion:steps=3")
Method = Callable[[Tensor], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", required=True, help="folder, URL or models:/ URI")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of inference.json, .md and .png")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=20.0, help="batches that take longer, in s, are left out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    detector = Detector.load(options.detector).move_to(torch.device("cpu"))
    images, decode_ms = read(options.images, detector.image_size, max(BATCHES))
    methods, stages = ours(detector) | peers(detector), parts(detector)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {options.threads} threads",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "backbone": detector.spec.features.backbone,
        "network": describe_network(detector.spec.network),
        "image_size": detector.image_size,
        "decode_ms": decode_ms,
        "methods": measure(methods, images, options.rounds, options.limit),
        "stages": measure(stages, images, options.rounds, options.limit),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "inference.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "inference.md").write_text(table(found))
    (options.out / "inference.png").write_bytes(draw(found))
    print(table(found))


def read(folder: Path, side: int, count: int) -> tuple[Tensor, float]:
    """uint8 [count, 3, side, side], and the milliseconds that a file takes from its bytes to that, on one thread."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in IMAGE_SUFFIXES]
    paths = paths[:: max(1, len(paths) // count)][:count]
    datas = [path.read_bytes() for path in paths]
    start = time.perf_counter()
    pictures = [
        np.asarray(square_rgb(open_image(data, path), side, path)) for data, path in zip(datas, paths, strict=True)
    ]
    elapsed = time.perf_counter() - start
    many = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return many.repeat(-(-count // len(many)), 1, 1, 1)[:count], 1000 * elapsed / len(paths)


def ours(detector: Detector) -> dict[str, Method]:
    """Every scorer through `Detector`, the own one as it was fitted, and some also through ONNX Runtime."""
    methods: dict[str, Method] = {f"fmad {detector.spec.scorer.name}, the detector's own": detector}
    for text in SCORERS:
        (config,) = choose(text, detector.spec.objective).scorers.values()
        methods[f"fmad {text}"] = detector.with_calibration(None).with_scorer(config)
    for text in EXPORTED:
        (config,) = choose(text, detector.spec.objective).scorers.values()
        session = runtime(build_graph(detector.with_calibration(None).with_scorer(config)).SerializeToString())
        methods[f"fmad {text}, ONNX Runtime"] = lambda images, session=session: run(
            session, images.permute(0, 2, 3, 1).contiguous().numpy()
        )
    return methods


def parts(detector: Detector) -> dict[str, Method]:
    """What a detection consists of."""
    cached: dict[int, Tensor] = {}

    def flow(images: Tensor) -> object:
        if len(images) not in cached:
            cached[len(images)] = detector.features(images)
        return detector.field(cached[len(images)], torch.full((len(images),), 0.5))

    return {"backbone and whitening": detector.features, "one evaluation of the flow": flow}


def measure(methods: dict[str, Method], images: Tensor, rounds: int, limit: float) -> dict[str, dict[str, float]]:
    """Milliseconds of a call by method and batch, median over rounds. Batches that would take more than `limit`
    seconds, going by a single image, are left out."""
    single = {name: min(call_ms(method, images[:1]) for _ in range(2)) for name, method in methods.items()}
    times: dict[str, dict[int, list[float]]] = {
        name: {batch: [] for batch in BATCHES if batch == 1 or batch * single[name] < 1000 * limit} for name in methods
    }
    for turn in range(rounds + 1):
        for name, method in methods.items():
            for batch, found in times[name].items():
                found.append(call_ms(method, images[:batch]))
        print(f"{'warm-up' if not turn else f'round {turn} of {rounds}'} done", flush=True)
    return {
        name: {str(batch): round(statistics.median(found[1:]), 2) for batch, found in by_batch.items()}
        for name, by_batch in times.items()
    }


@torch.inference_mode()
def call_ms(method: Method, images: Tensor) -> float:
    start = time.perf_counter()
    method(images)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
