"""Where the time of a training step goes: torch's profiler around a few steps of `fmad train`, on one process.

python benchmarks/training/profile_step.py --config FILE --out profile.txt [section.key=value ...]
"""

import argparse
import time
from pathlib import Path

import torch
from one_process import train_without_saving
from torch.profiler import ProfilerActivity, profile

from fmad_dist.config.files import load_config
from fmad_dist.training.step import StepRunner

FIRST, COUNT = 20, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    steps = [f"train.steps={FIRST + COUNT + 2}", "tracking.mlflow=false", "train.checkpoint_every=1000000"]
    watched = Watched(options.out)
    original = StepRunner.run
    StepRunner.run = lambda runner, *given: watched.call(lambda: original(runner, *given))  # type: ignore[method-assign]
    train_without_saving(load_config(options.config, [*options.overrides, *steps]), port=29613)


class Watched:
    """Calls of a step, of which some are profiled; the table is written after them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.number = 0
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self.profile = profile(activities=activities)
        self.start = 0.0

    def call(self, step):
        if self.number == FIRST:
            self.wait()
            self.start = time.perf_counter()
            self.profile.start()
        found = step()
        self.number += 1
        if self.number == FIRST + COUNT:
            issued = time.perf_counter() - self.start
            self.wait()
            elapsed = time.perf_counter() - self.start
            self.profile.stop()
            self.write(issued, elapsed)
        return found

    def wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def write(self, issued: float, elapsed: float) -> None:
        averages = self.profile.key_averages()
        gpu = torch.cuda.is_available()
        text = [f"{COUNT} steps: {1000 * elapsed:.1f} ms, of which the CPU issued work for {1000 * issued:.1f} ms"]
        for key in (["self_device_time_total"] if gpu else []) + ["self_cpu_time_total"]:
            text.append(averages.table(sort_by=key, row_limit=30, max_name_column_width=70))
        self.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
