"""How fast training batches become features: from stored images, and from the feature cache. Also checks bit equality.

python benchmarks/features/cache_speed.py --data URL [--batches 8]
"""

import argparse
import os
import platform
import tempfile
import time

import numpy as np
import timm
import torch

from fmad_dist.base.world import World
from fmad_dist.features.backbones import FeatureSpec, load_backbone
from fmad_dist.features.cache import CachedSource, CacheFolder
from fmad_dist.stream.image_source import ImageSource
from fmad_dist.stream.mixture import Mixture, split_normals
from fmad_dist.stream.plan import StreamPlan

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batches", type=int, default=8)
    arguments = parser.parse_args()
    mixture = Mixture.load([arguments.data])
    train = split_normals(mixture, 0.1).train
    plan = StreamPlan(train, mixture.class_numbers[train], mixture.digest)
    size = mixture.datasets[0].manifest.rendition.size
    backbone = load_backbone(FeatureSpec("tf_efficientnet_lite0", (0, 1, 2, 3), 16, size))
    images = ImageSource(mixture, size)
    indices = [plan.at(np.arange(n * BATCH, (n + 1) * BATCH)) for n in range(arguments.batches)]
    with tempfile.TemporaryDirectory() as url:
        dataset = mixture.datasets[0]
        folder = CacheFolder.of(url, dataset, backbone, backbone.weights_digest())
        started = time.perf_counter()
        shards = folder.compute(images, mixture.rows("train"), backbone, World())
        cached = CachedSource(mixture, {dataset.name: folder.seal([found.shard for found in shards])})
        built = time.perf_counter() - started
        live, live_s = timed(lambda rows: backbone(torch.stack([images.read(int(r)) for r in rows])), indices)
        fast, fast_s = timed(lambda rows: torch.stack([cached.read(int(r)) for r in rows]), indices)
    count = arguments.batches * BATCH
    print(f"machine: {os.cpu_count()} cores, {platform.machine()}; torch {torch.__version__}, timm {timm.__version__}")
    print(f"dataset: {dataset.name}, {size} px; backbone tf_efficientnet_lite0, taps 0-3, 16x16 tokens")
    print(f"bit-equal batches: {all(torch.equal(a, b) for a, b in zip(live, fast, strict=True))}")
    print(f"build the cache once: {len(dataset.indices('train')) / built:.1f} images/s")
    print(f"from images: {count / live_s:.1f} images/s")
    print(f"from the cache: {count / fast_s:.1f} images/s ({live_s / fast_s:.0f} x)")


def timed(read, indices: list[np.ndarray]) -> tuple[list[torch.Tensor], float]:
    read(indices[0])
    started = time.perf_counter()
    batches = [read(rows) for rows in indices]
    return batches, time.perf_counter() - started


if __name__ == "__main__":
    main()
