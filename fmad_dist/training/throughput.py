"""How fast training goes and what it waits for."""

import resource
import time
from collections.abc import Iterator

import torch

from fmad_dist.networks.build import NetworkSpec
from fmad_dist.networks.cost import network_cost
from fmad_dist.stream.batches import Batch
from fmad_dist.training.accelerators import find_accelerator
from fmad_dist.world import World


class Meter:
    """Images per second, MFU, share of time spent waiting for data, peak memory, since the last reading.

    `image_share` is that of the function below.
    """

    def __init__(self, image_share: float | None = None) -> None:
        self._image_share = image_share
        self._start = time.perf_counter()
        self._waited = 0.0
        self._images = 0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time to get each is counted as waiting."""
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def count(self, images: int) -> None:
        self._images += images

    def read(self) -> dict[str, float]:
        """images_per_s, mfu_percent (if known), data_wait_percent, memory_gib; starts a new interval."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        values = {
            "images_per_s": self._images / elapsed,
            **({"mfu_percent": 100.0 * self._image_share * self._images / elapsed} if self._image_share else {}),
            "data_wait_percent": 100.0 * self._waited / elapsed,
            "memory_gib": memory_bytes() / 2**30,
        }
        self._start, self._waited, self._images = time.perf_counter(), 0.0, 0
        return values


def image_share(spec: NetworkSpec, world: World) -> float | None:
    """Seconds that the training FLOPs of an image would take on all accelerators of the job at their peak."""
    accelerator = find_accelerator(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if accelerator is None:
        return None
    return network_cost(spec, torch.bfloat16).training_flops / (accelerator.peak_flops * world.size)


def memory_bytes() -> int:
    """Peak GPU memory of this process, or its peak resident memory where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
