"""CPU seconds of the imports and the end of a training and of an evaluating process, and of a job of two training ranks
that has nothing to do, with and without what fmad does to spare them (base/process.py, base/deepspeed.py,
features/light_timm.py, launch/processes.py), turn by turn.

python benchmarks/startup/startup.py --out benchmarks/startup
"""

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from fmad_dist.base.process import end_process, spare_collector
from fmad_dist.base.world import World

ROOT = Path(__file__).parents[2]
PR_SET_CHILD_SUBREAPER = 36
TRAINING = "import fmad_dist.training.loop, deepspeed, accelerate, transformers.integrations"
EVALUATION = "import fmad_dist.evaluation.evaluate"
PROCESSES = 2
SPARED = "from fmad_dist.base.process import end_process, spare_collector; spare_collector(); "
WAYS = {
    "training, as the libraries do it": ["-c", f"import timm; {TRAINING}"],
    "training, fmad": [
        "-c",
        "from fmad_dist.base.deepspeed import import_deepspeed; "
        f"{SPARED}import_deepspeed(); {TRAINING}; end_process(0)",
    ],
    "evaluation, as the libraries do it": ["-c", f"import timm; {EVALUATION}"],
    "evaluation, fmad": ["-c", f"{SPARED}{EVALUATION}; end_process(0)"],
    "two training ranks, accelerate launch": [
        *("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launcher" / "accelerate" / "cpu.yaml")),
        *(str(Path(__file__)), "--rank"),
    ],
    "two training ranks, fmad": [str(Path(__file__)), "--job"],
}


def nothing(options: str, world: World) -> None:
    """A job that has imported what a training rank imports."""
    import fmad_dist.training.libraries
    import fmad_dist.training.loop  # noqa: F401


def job() -> None:
    """Two ranks as `fmad train` starts them."""
    import fmad_dist.training.loop  # noqa: F401  # as the command does
    from fmad_dist.launch.processes import run_job

    spare_collector()
    run_job(nothing, "", PROCESSES, libraries="fmad_dist.training.libraries")


def rank() -> None:
    """One of two ranks that `accelerate launch` has started."""
    spare_collector()
    nothing("", World.from_environment())
    end_process(0)


def cpu_seconds(words: list[str]) -> float:
    """Of a process, of all that it starts, and of what they start, from its start to the end of the last."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)
    while True:  # what a process leaves behind when it ends is ours
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of startup.json")
    parser.add_argument("--times", type=int, default=7)
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(arguments.times + 1):
        for name, words in WAYS.items():
            seconds = cpu_seconds(words)
            if number:  # the first one reads files from disk
                found[name].append(round(seconds, 2))
    medians = {name: statistics.median(values) for name, values in found.items()}
    result = {
        "cpu_seconds": found,
        "median": medians,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    (arguments.out / "startup.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(medians))


if __name__ == "__main__":
    {"--rank": rank, "--job": job}.get(sys.argv[-1], main)()
