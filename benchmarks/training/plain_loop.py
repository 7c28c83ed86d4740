"""Peer of speed.py and turns.py: one file, one process, plain PyTorch, the maths of `fmad train` on cached features.

    python benchmarks/training/plain_loop.py CACHE_FOLDER PRESET STEPS BATCH THREADS

Prints images/s over the steps after the first quarter. fp32, AdamW, clipped gradients, cosine rate, averaged weights.
"""

import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from fmad_dist.networks.dit import PRESETS, DiT, DiTSpec


def main(cache: str, preset: str, steps: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    step = plain_step(Path(cache), preset, steps, batch)
    for _ in range(steps // 4):
        step()
    start = time.perf_counter()
    for _ in range(steps - steps // 4):
        step()
    print((steps - steps // 4) * batch / (time.perf_counter() - start))


def plain_step(cache: Path, preset: str, steps: int, batch: int) -> Callable[[], None]:
    """The next of `steps` training steps."""
    torch.manual_seed(0)
    features = read_features(cache)
    channels, grid = features.shape[1:3]
    values = torch.from_numpy(features[:64].astype(np.float32)).transpose(0, 1).flatten(1)
    mean, std = values.mean(dim=1).view(1, -1, 1, 1), values.std(dim=1).view(1, -1, 1, 1)
    network = DiT(DiTSpec(channels, grid, *PRESETS[preset])).train()
    average = [weight.detach().clone() for weight in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    order = np.random.default_rng(0)
    numbers = itertools.count()

    def step() -> None:
        rows = order.choice(len(features), batch, replace=False)
        x = (torch.from_numpy(features[rows].astype(np.float32)) - mean) / std
        noise, t = torch.randn_like(x), torch.rand(batch)
        mixed = t.view(-1, 1, 1, 1) * x + (1 - t.view(-1, 1, 1, 1)) * noise
        loss = functional.mse_loss(network(mixed, t), x - noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * next(numbers) / steps))
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, [weight.detach() for weight in network.parameters()], 0.001)

    return step


def read_features(folder: Path) -> np.ndarray:
    """All records of a feature cache, float16 [N, C, G, G], mapped from disk."""
    key = json.loads((folder / "cache.json").read_text())
    shape = tuple(key["shape"])
    parts = [np.memmap(path, np.float16, "r").reshape(-1, *shape) for path in sorted(folder.glob("features-*.f16"))]
    return np.concatenate(parts)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
