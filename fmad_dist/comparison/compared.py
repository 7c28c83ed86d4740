"""What a comparison finds: the metric state and the costs of every scorer, and its row when everything is scored.

A cost is seconds per image and peak memory above the loaded model.
"""

import ctypes
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.results import Results
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.metrics.wire import decode_state, encode_state

FEATURES = "features"  # in `costs`, of what all scorers share
_COSTS = "costs"


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


@dataclass(frozen=True, slots=True)
class Row:
    """One scorer: network evaluations per image, images/s and peak memory of its part alone, and its results. With one
    batch per process there is no speed, because it warms up, and images/s are NaN."""

    title: str
    evaluations: int
    images_per_s: float
    peak_bytes: int
    results: Results


@dataclass(frozen=True)
class Compared:
    """By title of a scorer. A cost is of one process of one start, so a comparison that was killed has those of all its
    starts."""

    states: dict[str, EvaluationState]
    costs: dict[str, list[Cost]]

    @classmethod
    def nothing(cls, titles: Sequence[str], protocol: Protocol) -> "Compared":
        return cls({title: EvaluationState(protocol) for title in titles}, {title: [] for title in (*titles, FEATURES)})

    def encoded(self) -> bytes:
        costs = {title: [asdict(cost) for cost in found] for title, found in self.costs.items()}
        states = {str(number): encode_state(state) for number, state in enumerate(self.states.values())}
        blobs = states | {_COSTS: json.dumps(costs).encode()}
        return save({name: np.frombuffer(blob, dtype=np.uint8) for name, blob in blobs.items()})

    def merge(self, parts: Iterable[bytes]) -> "Compared":
        """This with encoded others merged into it, which are of the same scorers."""
        for part in parts:
            blobs = {name: blob.tobytes() for name, blob in load(part).items()}
            for number, state in enumerate(self.states.values()):
                state.merge(decode_state(blobs[str(number)]))
            for title, found in json.loads(blobs[_COSTS]).items():
                self.costs[title] += [Cost(**cost) for cost in found]
        return self
