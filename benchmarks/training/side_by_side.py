"""Training steps on a CPU beside others on the same cores, as GNU OpenMP lets threads wait and as `fmad` does.

    python benchmarks/training/side_by_side.py --out side_by_side.json

Each of 1 and of 2 processes at a time uses all cores for steps of the tiny DiT (batch 8) for some seconds; the two ways
take turns. Reported are images/s of all processes together, medians of the rounds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from fmad_dist.base.process import SPINS
from fmad_dist.networks.dit import PRESETS, DiT, DiTSpec

BATCH, CHANNELS, GRID = 8, 192, 16
WAYS = {"as OpenMP does it": {}, "as fmad does it": {"GOMP_SPINCOUNT": SPINS}}
CORES = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("side_by_side.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--worker", type=float, metavar="UNTIL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(steps_until(arguments.worker, arguments.seconds))
        return
    found: dict[str, dict[str, list[float]]] = {way: {"1": [], "2": []} for way in WAYS}
    for _ in range(arguments.rounds):
        for processes in (1, 2):
            for way, variables in WAYS.items():
                found[way][str(processes)].append(speed(processes, variables, arguments.seconds))
    facts = {"machine": f"{CORES} cores, {platform.machine()}", "torch": torch.__version__, "batch": BATCH}
    arguments.out.write_text(json.dumps({**facts, "images_per_s": found}, indent=1) + "\n")
    print("| threads wait | 1 process | 2 processes together |\n|---|---:|---:|")
    for way, values in found.items():
        print(f"| {way} | {' | '.join(f'{statistics.median(of):.1f}' for of in values.values())} |")


def speed(processes: int, variables: dict[str, str], seconds: float) -> float:
    """images/s of all processes together."""
    chosen = {"OMP_NUM_THREADS": str(CORES), **variables}
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    start = time.time() + 6.0  # for imports
    command = [sys.executable, __file__, "--worker", str(start + seconds)]
    running = [
        subprocess.Popen([*command, "--seconds", str(seconds)], env=others | chosen, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return sum(float(process.communicate()[0]) for process in running)


def steps_until(end: float, seconds: float) -> float:
    """images/s of this process in the last `seconds`; steps before them are for warmth."""
    network = DiT(DiTSpec(CHANNELS, GRID, *PRESETS["tiny"])).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    x, t = torch.randn(BATCH, CHANNELS, GRID, GRID), torch.rand(BATCH)
    first, count = 0.0, 0
    while (now := time.time()) < end:
        if not first and now > end - seconds:
            first = now
        network(x, t).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        count += bool(first)
    if not count:
        raise SystemExit("this machine took too long to start; give --seconds more")
    return count * BATCH / (time.time() - first)


if __name__ == "__main__":
    main()
