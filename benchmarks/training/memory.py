"""The dry run's memory against what training processes really take: presets x ZeRO stages, two processes.

    python benchmarks/training/memory.py --presets tiny small B --batch 8 --out memory.json

Each case starts two training processes and sets beside `fmad_dist.training.budget` what rank 0 takes over four
optimizer steps on random features: on a GPU the peak of allocated memory; on a CPU the growth of resident memory to its
peak, after two steps of a very small network have loaded what does not depend on the network, with an allocator that
gives freed blocks back.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
CHANNELS, GRID, STEPS = 192, 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "B"])
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--batch", type=int, default=16, help="images per process")
    parser.add_argument("--accumulation", type=int, default=1, help="micro batches per step")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    parser.add_argument("--worker", nargs=3, metavar=("PRESET", "STAGE", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        preset, stage, file = arguments.worker
        measure(preset, int(stage), arguments.batch, arguments.accumulation, arguments.precision, Path(file))
        return
    rows = []
    print("| preset | ZeRO | estimate MiB | measured MiB | estimate / measured |\n|---|---:|---:|---:|---:|")
    for preset in arguments.presets:
        for stage in arguments.stages:
            row = case(preset, stage, arguments)
            rows.append(row)
            ratio = row["estimate"] / row["measured"]
            print(f"| {preset} | {stage} | {row['estimate']:.0f} | {row['measured']:.0f} | {ratio:.2f} |", flush=True)
    settings = {"batch": arguments.batch, "accumulation": arguments.accumulation}
    facts = {"machine": machine(), "torch": torch.__version__, **settings, "rows": rows}
    arguments.out.write_text(json.dumps(facts, indent=1))


def machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return gpu or f"{os.cpu_count()} cores, {platform.machine()}"


def case(preset: str, stage: int, arguments: argparse.Namespace) -> dict[str, float | str]:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "row.json"
        launch = [sys.executable, "-m", "accelerate.commands.launch"]
        launch += ["--config_file", str(ROOT / "launcher/accelerate/one_node.yaml")]
        launch += ["--num_processes", str(arguments.processes), __file__, "--batch", str(arguments.batch)]
        launch += ["--precision", arguments.precision, "--worker", preset, str(stage), str(file)]
        launch += ["--accumulation", str(arguments.accumulation)]
        threads = str(max(1, (os.cpu_count() or 1) // arguments.processes))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "DS_ACCELERATOR": accelerator()}
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        return json.loads(file.read_text())


def accelerator() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def measure(preset: str, stage: int, batch: int, accumulation: int, precision: str, file: Path) -> None:
    """One of the training processes."""
    from fmad_dist.base.world import World
    from fmad_dist.config.run import TrainConfig
    from fmad_dist.networks.dit import PRESETS, DiTSpec
    from fmad_dist.stream.plan import BatchLayout
    from fmad_dist.training.budget import Layout, memory_budget
    from fmad_dist.training.engine import compute_dtype, start_accelerator
    from fmad_dist.training.throughput import memory_bytes

    world = World.from_environment()
    spec = DiTSpec(CHANNELS, GRID, *PRESETS[preset])
    config = TrainConfig(
        global_batch=batch * accumulation * world.size, zero_stage=stage, precision=precision, compile="off"
    )
    started = start_accelerator(config, BatchLayout(config.global_batch, batch, world.size), world)
    train(started, replace(spec, width=64, depth=1, heads=1), config, batch, 2 * accumulation)
    gc.collect()
    before = memory_now()
    train(started, spec, config, batch, STEPS * accumulation)
    if world.is_main:
        budget = memory_budget(spec, Layout(stage, world.size, batch, accumulation, False, compute_dtype(config)))
        row = {"preset": preset, "stage": stage, "estimate": budget.total / 2**20}
        row["measured"] = (memory_bytes() - before) / 2**20
        row |= {name: getattr(budget, name) / 2**20 for name in budget.__slots__}
        file.write_text(json.dumps(row))
    started.end_training()


def train(accelerator: Any, spec: Any, config: Any, batch: int, rounds: int) -> None:
    from fmad_dist.networks.build import build_network
    from fmad_dist.training.engine import build_engine
    from fmad_dist.training.weights import ShardedEma

    torch.manual_seed(0)
    engine = build_engine(accelerator, build_network(spec), config)
    ema = ShardedEma(engine.optimizer, 0.99)
    for _ in range(rounds):
        x = torch.randn(batch, CHANNELS, GRID, GRID, device=engine.device, dtype=engine.dtype)
        loss = engine.deepspeed(x, torch.rand(batch, device=engine.device)).float().square().mean()
        engine.deepspeed.backward(loss)
        engine.deepspeed.step()
        if engine.deepspeed.global_steps > ema.updates:
            ema.update()
    engine.deepspeed.destroy()
    accelerator.free_memory()


def memory_now() -> int:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    import psutil

    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
