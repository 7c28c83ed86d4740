"""What `fmad train` costs on one CPU process: steps of three loops take turns in one process.

    python benchmarks/training/turns.py --data data/mvtec_ad --preset small --steps 8 --out turns_small.json

speed.py compares whole runs; where other work shares the machine, or the machine is another one from minute to minute,
two runs of the same thing differ by more than what is asked for. Here neighbours in time are compared: a step of
plain_loop.py ("plain"), one of our stream, objective, clipping and average around a bare fused AdamW ("bare"), and the
same as `fmad train` does on one process, ZeRO-2 under accelerate ("fmad"). All read cached features in each step. Who
begins goes round, and a ratio is the median of those of each turn. Also the average of CPU seconds of all threads, and
the median difference from plain: what an optimizer costs does not depend on the batch, so `--batch 1` shows it best.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plain_loop import plain_step
from speed import CORES, BareEngine

from fmad_dist.config.files import parse_config

KINDS = ("plain", "bare", "fmad")
STEPS = 1000  # that the rate falls over; more than are run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a converted dataset")
    parser.add_argument("--features", default="features", help="folder of its feature cache")
    parser.add_argument("--preset", default="small", help="one in a process: accelerate starts once")
    parser.add_argument("--steps", type=int, default=8, help="of each kind")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("turns.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    os.environ |= alone | {"ACCELERATE_USE_DEEPSPEED": "true", "THP_MEM_ALLOC_ENABLE": "1"}  # as `fmad train` sets them
    row = measure(arguments.preset, arguments.steps, arguments)
    print("| preset | plain s | bare AdamW s | fmad s | bare: speed of plain | fmad: speed of plain | of bare |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    cells = [f"{row[name]['median_s']:.3f}" for name in KINDS] + [f"{ratio:.3f}" for ratio in row["ratios"].values()]
    print(f"| {arguments.preset} | {' | '.join(cells)} |", flush=True)
    facts = {"machine": f"{CORES} cores", "torch": torch.__version__, "batch": arguments.batch}
    arguments.out.write_text(json.dumps({**facts, **row}, indent=1) + "\n")


def measure(preset: str, steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    runs = build(preset, arguments)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    for turn in range(steps + 2):
        for place in range(len(KINDS)):
            name = KINDS[(turn + place) % len(KINDS)]
            start, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            found[name].append((time.perf_counter() - start, time.process_time() - cpu))
    medians: dict[str, Any] = {}
    for name, pairs in found.items():
        walls, cpus = zip(*pairs[2:], strict=True)  # the first steps allocate
        medians[name] = {"median_s": statistics.median(walls), "cpu_s": statistics.mean(cpus), "all_s": walls}
    times = {name: medians[name]["all_s"] for name in KINDS}
    compared = [("bare", "plain"), ("fmad", "plain"), ("fmad", "bare")]
    ratios = {
        f"{ours} of {theirs}": statistics.median(a / b for a, b in zip(times[theirs], times[ours], strict=True))
        for ours, theirs in compared
    }
    difference = statistics.median(a - b for a, b in zip(times["fmad"], times["plain"], strict=True))
    return {"preset": preset, "ratios": ratios, "difference_s": difference, **medians}


def build(preset: str, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """One step of each kind, on the same features."""
    from fmad_dist.base.world import World
    from fmad_dist.features.prepare import prepare_features
    from fmad_dist.flow.objective import FlowMatching
    from fmad_dist.networks.build import build_network, network_spec
    from fmad_dist.stream.plan import BatchLayout
    from fmad_dist.training.data import open_data
    from fmad_dist.training.engine import build_engine, start_accelerator
    from fmad_dist.training.step import NonFiniteGuard, StepRunner
    from fmad_dist.training.weights import ShardedEma

    tree = {"data": {"manifests": [arguments.data], "workers": 0}, "features": {"cache": arguments.features}}
    train = {"global_batch": arguments.batch, "precision": "fp32", "betas": [0.9, 0.95], "steps": STEPS}
    config = parse_config(tree | {"model": {"preset": preset}, "train": train}, source="turns")
    world, layout = World(), BatchLayout.fit(arguments.batch, None, 1)
    data = open_data(config)
    features = prepare_features(config, data, world, torch.device("cpu"))
    spec = network_spec(config.model, features.backbone.num_channels, config.features.grid)
    accelerator = start_accelerator(config.train, layout, world)
    engines: dict[str, Any] = {}
    for name in ("bare", "fmad"):
        torch.manual_seed(0)
        network = build_network(spec).train()
        bare = name == "bare"
        engines[name] = BareEngine(network, 1e-3) if bare else build_engine(accelerator, network, config.train)

    def stepper(engine: Any) -> Callable[[], object]:
        ema = ShardedEma(engine.optimizer, config.train.ema)
        objective = FlowMatching(config.objective, config.train.seed)
        runner = StepRunner(engine, ema, features, objective, config.model, NonFiniteGuard(5, 0))
        batches = iter(
            data.batches(features.source, layout, 0, range(0, STEPS * arguments.batch, arguments.batch), pin=False)
        )
        return lambda: runner.run([next(batches)], 1e-4)

    source: Any = features.source
    (cache,) = source.caches.values()  # the one that ours reads, whatever else the folder holds
    plain = plain_step(Path(cache.store.url), preset, STEPS, arguments.batch)
    return {"plain": plain, **{name: stepper(engine) for name, engine in engines.items()}}


if __name__ == "__main__":
    main()
