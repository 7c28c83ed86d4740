"""How fast training goes and what it waits for."""

import time
from collections.abc import Iterator

import torch

from fmad_dist.stream.batches import Batch


class Meter:
    """Images per second, share of time spent waiting for data, peak memory, since the last reading."""

    def __init__(self) -> None:
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
        """images_per_s, data_wait_percent, memory_gib; starts a new interval."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        values = {
            "images_per_s": self._images / elapsed,
            "data_wait_percent": 100.0 * self._waited / elapsed,
            "memory_gib": memory_bytes() / 2**30,
        }
        self._start, self._waited, self._images = time.perf_counter(), 0.0, 0
        return values


def memory_bytes() -> int:
    """Peak GPU memory of this process, or its resident memory where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import psutil

    return int(psutil.Process().memory_info().rss)
