"""An exported graph beside torch on real images: agreement, and images/s on the same number of threads.

python benchmarks/serving/onnx_speed.py --detector DIR --onnx model.onnx --images photos --out onnx.json
"""

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from fmad_dist.detector.detector import Detector
from fmad_dist.detector.onnx import compare, run, runtime
from fmad_dist.images.codec import open_image, square_rgb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detector", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=50)
    options = parser.parse_args()
    detector = Detector.load(options.detector)
    paths = sorted(path for path in options.images.rglob("*.png") if "ground_truth" not in path.parts)
    images = read(random.Random(0).sample(paths, options.count), detector.image_size)
    model = options.onnx.read_bytes()
    session = runtime(model)
    channels_last = images.permute(0, 2, 3, 1).contiguous().numpy()
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "threads": torch.get_num_threads(),
        "scorer": detector.spec.scorer.model_dump(mode="json"),
        "file_mb": round(len(model) / 1e6, 1),
        "agreement": asdict(compare(detector, model, images)),
        "images_per_second": {
            "torch": speeds(lambda part: detector(images[part]), len(images)),
            "onnx": speeds(lambda part: run(session, channels_last[part]), len(images)),
        },
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def read(paths: list[Path], side: int) -> Tensor:
    pictures = [np.asarray(square_rgb(open_image(path.read_bytes(), path), side, path)) for path in paths]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def speeds(ask: Callable[[slice], Any], count: int) -> dict[str, float]:
    """By batch, the best of three passes over the images."""
    found = {}
    for batch in (1, 8):
        ask(slice(0, batch))
        times = []
        for _ in range(3):
            began = time.perf_counter()
            for start in range(0, count, batch):
                ask(slice(start, start + batch))
            times.append(time.perf_counter() - began)
        found[f"batch {batch}"] = round(count / min(times), 2)
    return found


if __name__ == "__main__":
    main()
