"""CPU seconds of the imports and the end of a training and of an evaluating process, with and without what fmad does to
spare them (base/process.py, base/deepspeed.py, features/light_timm.py), turn by turn.

python benchmarks/startup/startup.py --out benchmarks/startup
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path

TRAINING = "import fmad_dist.training.loop, deepspeed, accelerate, transformers.integrations"
EVALUATION = "import fmad_dist.evaluation.evaluate"
SPARED = "from fmad_dist.base.process import end_process, spare_collector; spare_collector(); "
WAYS = {
    "training, as the libraries do it": f"import timm; {TRAINING}",
    "training, fmad": "from fmad_dist.base.deepspeed import import_deepspeed; "
    f"{SPARED}import_deepspeed(); {TRAINING}; end_process(0)",
    "evaluation, as the libraries do it": f"import timm; {EVALUATION}",
    "evaluation, fmad": f"{SPARED}{EVALUATION}; end_process(0)",
}


def cpu_seconds(code: str) -> float:
    """Of a process of its own, from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of startup.json")
    parser.add_argument("--times", type=int, default=7)
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(arguments.times + 1):
        for name, code in WAYS.items():
            seconds = cpu_seconds(code)
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
    main()
