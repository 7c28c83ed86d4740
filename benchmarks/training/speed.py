"""images/s of training from cached features beside a plain PyTorch loop and beside our loop without DeepSpeed.

    python benchmarks/training/speed.py --data data/mvtec_ad --presets tiny small --out speed.json

All in fp32 with the same network, batch and number of steps; the first quarter of each run is not counted. The cases
take turns, `--repeats` times, and the median is reported. "no DeepSpeed" is our stream, objective, step and average
around a bare AdamW. Features are computed once, before.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).parent
CORES = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a converted dataset")
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "B"])
    parser.add_argument("--steps", nargs="+", type=int, default=[80, 40, 12], help="for each preset")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    parser.add_argument("--worker", metavar="CONFIG", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(without_deepspeed(arguments.worker))
        return
    rows = []
    print(
        "| preset | plain loop | no DeepSpeed | fmad train | of plain | 2 processes |\n|---|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for preset, steps in zip(arguments.presets, arguments.steps, strict=False):
            rows.append(compare(preset, steps, arguments, Path(scratch)))
            row = rows[-1]
            cells = [row[key] for key in ("plain", "no_deepspeed", "fmad")]
            shown = " | ".join(f"{cell:.2f}" for cell in cells)
            print(f"| {preset} | {shown} | {row['fmad'] / row['plain']:.3f} | {row['fmad_2']:.2f} |", flush=True)
    facts = {"machine": f"{CORES} cores, {platform.machine()}", "torch": torch.__version__, "batch": arguments.batch}
    arguments.out.write_text(json.dumps({**facts, "steps": arguments.steps, "rows": rows}, indent=1))


def compare(preset: str, steps: int, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    config = scratch / f"{preset}.json"
    train = {"steps": steps, "log_every": max(1, steps // 4), "global_batch": arguments.batch, "precision": "fp32"}
    tree = {
        "output": str(scratch / "runs"),
        "data": {"manifests": [arguments.data], "workers": 0},
        "features": {"cache": str(scratch / "features")},
        "model": {"preset": preset},
        "train": train | {"betas": [0.9, 0.95], "checkpoint_every": 10**6},
        "scorer": {"name": "inversion"},  # fits nothing: only training is measured
        "tracking": {"mlflow": False},
    }
    config.write_text(json.dumps(tree))
    fmad_train(config, f"{preset}-warm", 1, "train.steps=1")  # computes the features
    cache = next(path.parent for path in (scratch / "features").glob("*/cache.json"))
    plain = [str(HERE / "plain_loop.py"), str(cache), preset, str(steps), str(arguments.batch), str(CORES)]
    bare = [__file__, "--data", arguments.data, "--worker", str(config)]
    found: dict[str, list[float]] = {"plain": [], "no_deepspeed": [], "fmad": [], "fmad_2": []}
    for turn in range(arguments.repeats):
        found["plain"].append(printed(plain))
        found["no_deepspeed"].append(printed(bare))
        found["fmad"].append(fmad_train(config, f"{preset}-1-{turn}", 1))
        found["fmad_2"].append(fmad_train(config, f"{preset}-2-{turn}", 2))
    return {"preset": preset, "all": found, **{name: statistics.median(values) for name, values in found.items()}}


def printed(command: list[str]) -> float:
    """The last line of a script's output."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(CORES)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def fmad_train(config: Path, name: str, processes: int, *options: str) -> float:
    """images/s of the intervals after the first."""
    command = ["-m", "fmad_dist.cli", "train", "--config", str(config), "--processes", str(processes), f"name={name}"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # fmad's own choice
    subprocess.run([sys.executable, *command, *options], env=environment, capture_output=True, check=True)
    lines = (config.parent / "runs" / name / "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line)["images_per_s"] for line in lines][1:]
    return statistics.harmonic_mean(speeds) if speeds else float("nan")


class BareEngine:
    """What `StepRunner` and `ShardedEma` use of a DeepSpeed engine, over plain AdamW."""

    def __init__(self, network: nn.Module, lr: float) -> None:
        self.network, self.deepspeed, self.device, self.dtype = network, self, torch.device("cpu"), torch.float32
        self.weights = list(network.parameters())
        self.optimizer: Any = torch.optim.AdamW(self.weights, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.optimizer.overflow, self.optimizer.fp32_partitioned_groups_flat = False, self.weights

    def __call__(self, *inputs: Any) -> torch.Tensor:
        return self.network(*inputs)

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def backward(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()


def without_deepspeed(path: str) -> float:
    """images/s of our loop around a bare optimizer."""
    from fmad_dist.base.world import World
    from fmad_dist.config.files import load_config
    from fmad_dist.features.prepare import prepare_features
    from fmad_dist.flow.objective import FlowMatching
    from fmad_dist.networks.build import build_network, network_spec
    from fmad_dist.stream.plan import BatchLayout
    from fmad_dist.training.data import open_data
    from fmad_dist.training.place import Place
    from fmad_dist.training.step import NonFiniteGuard, StepRunner, learning_rate
    from fmad_dist.training.throughput import Meter
    from fmad_dist.training.weights import ShardedEma

    config = load_config(path)
    settings, world = config.train, World()
    data = open_data(config)
    features = prepare_features(config, data, world, torch.device("cpu"))
    torch.manual_seed(0)
    network = build_network(network_spec(config.model, features.backbone.num_channels, config.features.grid)).train()
    engine: Any = BareEngine(network, settings.lr)
    ema = ShardedEma(engine.optimizer, settings.ema)
    objective = FlowMatching(config.objective, settings.seed)
    runner = StepRunner(engine, ema, features, objective, config.model, NonFiniteGuard(5, 0))
    layout = BatchLayout.fit(settings.global_batch, None, 1)
    meter = Meter()
    starts = range(0, settings.steps * settings.global_batch, settings.global_batch)
    for step, batch in enumerate(data.batches(features.source, layout, 0, starts, pin=False)):
        if step == settings.steps // 4:
            meter.read()
        runner.run([batch], learning_rate(settings, Place(step, step * settings.global_batch)))
        meter.count(settings.global_batch)
    return meter.read()["images_per_s"]


if __name__ == "__main__":
    main()
