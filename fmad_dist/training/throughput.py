"""How fast training goes, what it waits for and how busy its nodes are, beside the peak speed of accelerators.

Nodes are read where metrics are logged, so that it costs no thread and no server call.
"""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fmad_dist.base.world import World
from fmad_dist.networks.build import NetworkSpec
from fmad_dist.networks.cost import network_cost
from fmad_dist.stream.batches import Batch

NodeMetrics = dict[str, float]


class Meter:
    """Measures images per second, MFU, the share of time spent waiting for data and peak memory since the last reading.

    `image_share` is what the function of that name returns.
    """

    def __init__(self, image_share: float | None = None) -> None:
        self._image_share = image_share
        self._start = time.perf_counter()
        self._waited = 0.0
        self._images = 0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the same batches; the time to get each is counted as waiting."""
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
        """Return images_per_s, mfu_percent (if known), data_wait_percent, memory_gib, and start a new interval."""
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
    """Return the seconds that an image's training FLOPs take on all accelerators of the job at their peak."""
    accelerator = find_accelerator(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if accelerator is None:
        return None
    return network_cost(spec, torch.bfloat16).training_flops / (accelerator.peak_flops * world.size)


def memory_bytes() -> int:
    """Return the peak GPU memory of this process, or its peak resident memory where there is no GPU, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`peak_flops` in operations per second, `memory` in bytes."""

    name: str
    peak_flops: float
    memory: int


ACCELERATORS = tuple(
    Accelerator(name, teraflops * 1e12, gib << 30)
    for name, teraflops, gib in (
        ("B200", 2250, 179),
        ("H200", 989, 140),
        ("GH200", 989, 94),
        ("H100", 989, 79),
        ("A100-80", 312, 79),
        ("A100", 312, 39),
        ("L40S", 362, 44),
        ("L4", 121, 22),
        ("A10", 125, 22),
    )
)


def find_accelerator(device_name: str) -> Accelerator | None:
    """Find an accelerator by a name like "h200" or "NVIDIA A100-SXM4-80GB"; None if unknown."""
    wanted = device_name.upper()
    matching = [one for one in ACCELERATORS if all(word in wanted for word in one.name.split("-"))]
    return max(matching, key=lambda one: len(one.name)) if matching else None


class NodeMonitor:
    """Usage of this process's node since the last reading; only the first process of a node reads."""

    def __init__(self, world: World) -> None:
        self.prefix = f"system/node{world.node}"
        self.reads = world.local_rank == 0
        self.read()  # psutil's shares are of the time since the last call

    def read(self) -> NodeMetrics:
        """Return shares in percent and memory in GiB: `system/node<n>/cpu_percent`, `memory_gib`, and per GPU
        `gpu<i>_memory_gib` and, where the driver tells, `gpu<i>_percent`; empty on other processes."""
        if not self.reads:
            return {}
        import psutil

        memory = psutil.virtual_memory()
        found = {"cpu_percent": psutil.cpu_percent(), "memory_gib": (memory.total - memory.available) / 2**30}
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            found[f"gpu{number}_memory_gib"] = (total - free) / 2**30
            found |= _utilization(number)
        return {f"{self.prefix}/{name}": float(value) for name, value in found.items()}


def _utilization(number: int) -> NodeMetrics:
    try:
        return {f"gpu{number}_percent": float(torch.cuda.utilization(number))}
    except (ModuleNotFoundError, RuntimeError):  # needs the driver's Python package
        return {}
