"""What DeepSpeed costs on one CPU process: steps with and without it take turns in one process.

    python benchmarks/training/turns.py --manifest data/mvtec_ad --preset small --steps 8 --out turns_small.json

speed.py compares whole runs; where other work shares the machine, or the machine is another one from minute to minute,
two runs of the same thing differ by more than what is asked for. Here both run our step (objective, network, clipping,
AdamW, average) on the same batches and networks of the same initial weights, one as `fmad train` does on one process,
ZeRO-2 under accelerate, one around a bare fused AdamW. Who begins alternates, and the ratio is the median of those of
each turn, whose two steps are neighbours in time. A step does not read data in either. Also the average of CPU seconds
of all threads, and the median difference: it comes from the optimizer and does not depend on the batch, so `--batch 1`
shows it best.
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
from speed import CORES, BareEngine

from fmad_dist.config_files import parse_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True, help="a converted dataset")
    parser.add_argument("--features", default="features", help="folder of its feature cache")
    parser.add_argument("--preset", default="small", help="one in a process: accelerate starts once")
    parser.add_argument("--steps", type=int, default=8, help="of each kind")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("turns.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    os.environ |= alone | {"ACCELERATE_USE_DEEPSPEED": "true", "THP_MEM_ALLOC_ENABLE": "1"}  # as `fmad train` sets them
    print("| preset | bare AdamW s | DeepSpeed s | speed of bare | difference s | CPU s of both |")
    print("|---|---:|---:|---:|---:|---:|")
    row = measure(arguments.preset, arguments.steps, arguments)
    bare, ours = row["bare"]["median_s"], row["deepspeed"]["median_s"]
    cpu = f"{row['bare']['cpu_s']:.2f}, {row['deepspeed']['cpu_s']:.2f}"
    ratio, difference = row["ratio"], row["difference_s"]
    print(f"| {arguments.preset} | {bare:.3f} | {ours:.3f} | {ratio:.3f} | {difference:.3f} | {cpu} |", flush=True)
    facts = {"machine": f"{CORES} cores", "torch": torch.__version__, "batch": arguments.batch}
    arguments.out.write_text(json.dumps({**facts, **row}, indent=1) + "\n")


def measure(preset: str, steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    runs = build(preset, arguments)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(steps + 2):
        order = list(runs) if turn % 2 else list(runs)[::-1]
        for name in order:
            start, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            found[name].append((time.perf_counter() - start, time.process_time() - cpu))
    medians = {}
    for name, pairs in found.items():
        walls, cpus = zip(*pairs[2:], strict=True)  # the first steps allocate
        medians[name] = {"median_s": statistics.median(walls), "cpu_s": statistics.mean(cpus), "all_s": walls}
    pairs = list(zip(medians["bare"]["all_s"], medians["deepspeed"]["all_s"], strict=True))
    ratio = statistics.median(bare / ours for bare, ours in pairs)
    difference = statistics.median(ours - bare for bare, ours in pairs)
    return {"preset": preset, "ratio": ratio, "difference_s": difference, **medians}


def build(preset: str, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """One step of each kind, on the same features."""
    from fmad_dist.features.prepare import prepare_features
    from fmad_dist.flow.objective import FlowMatching
    from fmad_dist.networks.build import build_network, network_spec
    from fmad_dist.stream.plan import BatchLayout
    from fmad_dist.training.data import open_data
    from fmad_dist.training.ema import ShardedEma
    from fmad_dist.training.engine import build_engine, gather_objects, start_accelerator
    from fmad_dist.training.guard import NonFiniteGuard
    from fmad_dist.training.step import StepRunner
    from fmad_dist.world import World

    tree = {"data": {"manifests": [arguments.manifest], "workers": 0}, "features": {"cache": arguments.features}}
    train = {"global_batch": arguments.batch, "precision": "fp32", "betas": [0.9, 0.95], "steps": 1000}
    config = parse_config(tree | {"model": {"preset": preset}, "train": train}, source="turns")
    world, layout = World(), BatchLayout.fit(arguments.batch, None, 1)
    data = open_data(config)
    features = prepare_features(config.features, data, world, torch.device("cpu"), gather_objects)
    batch = next(iter(data.batches(features.source, layout, 0, 0, 1, pin=False)))
    spec = network_spec(config.model, features.backbone.num_channels, config.features.grid)
    accelerator = start_accelerator(config.train, layout, world)
    engines: dict[str, Any] = {}
    for name in ("bare", "deepspeed"):
        torch.manual_seed(0)
        network = build_network(spec).train()
        bare = name == "bare"
        engines[name] = BareEngine(network, 1e-3) if bare else build_engine(accelerator, network, config.train)

    def stepper(engine: Any) -> Callable[[], object]:
        ema = ShardedEma(engine.optimizer, config.train.ema)
        objective = FlowMatching(config.objective, config.train.seed)
        runner = StepRunner(engine, ema, features, objective, config.model, NonFiniteGuard(5, 0))
        return lambda: runner.run([batch], 1e-4)

    return {name: stepper(engine) for name, engine in engines.items()}


if __name__ == "__main__":
    main()
