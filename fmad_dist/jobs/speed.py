"""How fast a job over many images was, where its time went and what memory it took.

Measured figures differ from run to run, so they are kept apart from the results, which never do: in a file of their
own and in a marked section of the report.
"""

import json
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from fmad_dist.storage import Store

SPEED_NAME = "speed.json"
RATES = ("images_per_s", "images_per_s_of_a_process")
FIGURES = ("num_images", *RATES, "seconds", "results_seconds", "host_bytes", "device_bytes", "machine", "torch")
T = TypeVar("T")
END: Any = object()

PHASES = {  # of an evaluation
    "read": "waiting for images and masks",
    "features": "backbone",
    "score": "flow and scorer, up to the map",
    "metrics": "histograms, regions, panels",
    "save": "keeping what was scored, in case of a kill; writing maps",
}


@dataclass(frozen=True, slots=True)
class ProcessSpeed:
    """One process: the images it scored, seconds per phase, and its peaks in bytes; 0 device bytes without a GPU."""

    num_images: int
    seconds: dict[str, float]
    host_bytes: int  # resident, with libraries and model
    device_bytes: int

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


@dataclass(slots=True)
class Stopwatch:
    """Sums up the phases of one process, the first batch and its warm-up included."""

    device: torch.device
    num_images: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels run on after the call that started them
        self.seconds[name] += time.perf_counter() - start

    def reading(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time to get each counts as `read`."""
        while True:
            with self.phase("read"):
                batch = next(batches, END)
            if batch is END:
                return
            yield batch

    def stop(self) -> ProcessSpeed:
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        device = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return ProcessSpeed(self.num_images, dict(self.seconds), host, device)


@dataclass(frozen=True, slots=True)
class Speed:
    """An evaluation: its processes in rank order, and the seconds the main one took from states to results."""

    processes: tuple[ProcessSpeed, ...]
    results_seconds: float
    machine: str
    torch: str

    @property
    def num_images(self) -> int:
        """Images that were scored since the last start."""
        return sum(process.num_images for process in self.processes)

    @property
    def images_per_s(self) -> float:
        """Of all processes together: the slowest decides. NaN if nothing was left to score."""
        slowest = max(process.total_seconds for process in self.processes)
        return self.num_images / slowest if self.num_images else float("nan")

    @property
    def images_per_s_of_a_process(self) -> float:
        seconds = sum(process.total_seconds for process in self.processes)
        return self.num_images / seconds if self.num_images else float("nan")

    @property
    def seconds(self) -> dict[str, float]:
        """Of all processes, by phase."""
        return {name: sum(process.seconds[name] for process in self.processes) for name in PHASES}

    @property
    def host_bytes(self) -> int:
        return max(process.host_bytes for process in self.processes)

    @property
    def device_bytes(self) -> int:
        return max(process.device_bytes for process in self.processes)


def speed_of(processes: Sequence[ProcessSpeed], results_seconds: float, device: torch.device) -> Speed:
    """The speed of all processes, beside the name of the processor `device`, for a reader who compares speeds."""
    cpu = f"{platform.machine()} CPU, one thread per process"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return Speed(tuple(processes), results_seconds, machine, torch.__version__)


def write_speed(speed: Speed, out: Path) -> None:
    """Write speed.json into the folder `out`; rates are null if nothing was left to score."""
    body = {name: getattr(speed, name) for name in FIGURES}
    body |= {} if speed.num_images else dict.fromkeys(RATES)
    body["processes"] = [asdict(process) for process in speed.processes]
    Store(out).write(SPEED_NAME, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())


def read_speed(out: Path) -> Speed:
    """Read what `write_speed` wrote."""
    body = json.loads(Store(out).read(SPEED_NAME))
    processes = tuple(ProcessSpeed(**process) for process in body["processes"])
    return Speed(processes, body["results_seconds"], body["machine"], body["torch"])
