"""What a scorer costs: seconds per image and peak memory above the loaded model."""

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(slots=True)
class Cost:
    """Sums over the measured batches of one process; the first batch warms up and is not counted."""

    seconds: float = 0.0
    num_images: int = 0
    peak_bytes: int = 0
    warm: bool = False

    @contextmanager
    def measured(self, num_images: int, device: torch.device) -> Iterator[None]:
        before = _start_peak(device)
        _wait(device)
        start = time.perf_counter()
        yield
        _wait(device)
        elapsed = time.perf_counter() - start
        self.peak_bytes = max(self.peak_bytes, _peak(device) - before)
        if self.warm:
            self.seconds += elapsed
            self.num_images += num_images
        self.warm = True

    @property
    def images_per_s(self) -> float:
        return self.num_images / self.seconds if self.seconds else float("nan")


def mean_speed(costs: Sequence[Cost]) -> float:
    """Images/s of one process: the mean over those that measured any; NaN if none did."""
    speeds = [cost.images_per_s for cost in costs if cost.num_images]
    return sum(speeds) / len(speeds) if speeds else float("nan")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _start_peak(device: torch.device) -> int:
    """Forget earlier peaks; returns the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):  # give freed memory back, so that only what is used counts
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # 5 resets the peak (Linux)
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
