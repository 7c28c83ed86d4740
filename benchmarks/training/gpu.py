"""images/s, MFU and memory of `fmad train` on one GPU beside a plain PyTorch loop under DDP, from cached features.

    python benchmarks/training/gpu.py --data data/mvtec_ad --out benchmarks/training

Both in bf16 with torch.compile, AdamW, clipped gradients and averaged weights. fmad runs as `fmad train` does (ZeRO-2,
accelerate, its stream and its log) but saves nothing at the end; the peer is `plain` below, one function, which
compiles the whole network where fmad compiles one block, and keeps all activations. The first third of each run is not
counted. Estimated memory is that of the dry run.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from one_process import train_without_saving
from plain_loop import read_features
from torch import nn
from torch.nn import functional

from fmad_dist.config.files import load_config
from fmad_dist.config.run import RunConfig
from fmad_dist.networks.cost import network_cost
from fmad_dist.networks.dit import PRESETS, DiT, DiTSpec
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.training.budget import Layout, layout_of, memory_budget
from fmad_dist.training.engine import smallest_gpu
from fmad_dist.training.throughput import find_accelerator

CHANNELS, GRID = 192, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a converted dataset; its size does not matter")
    parser.add_argument("--presets", nargs="+", default=["B", "L", "G"])
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 256, 128], help="for each preset")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--stages", nargs="+", type=int, default=[2], help="ZeRO")
    parser.add_argument("--skip-plain", action="store_true")
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--worker", nargs=3, metavar=("CACHE", "PRESET", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--train", metavar="CONFIG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train_without_saving(load_config(options.train), port=29614)
        return
    if options.worker:
        cache, preset, batch = options.worker
        print(json.dumps(plain(Path(cache), preset, options.steps, int(batch))))
        return
    rows: list[dict[str, Any]] = []
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        sizes = list(zip(options.presets, options.batches, strict=True))
        for preset, batch in sizes:
            for stage in options.stages:
                rows.append(fmad(preset, batch, stage, options, Path(scratch)))
                show(rows, options.out)
        for preset, batch in [] if options.skip_plain else sizes:
            cache = next(path.parent for path in (Path(scratch) / "features").glob("*/cache.json"))
            command = [__file__, "--data", "-", "--out", "-", "--steps", str(options.steps), "--worker"]
            rows.append({"what": "plain loop, DDP", "preset": preset, "batch": batch})
            rows[-1] |= json.loads(run([*command, str(cache), preset, str(batch)]).splitlines()[-1])
            show(rows, options.out)


def run(command: list[str]) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done.stdout


def fmad(preset: str, batch: int, stage: int, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    name = f"{preset}-{batch}-{stage}"
    every = max(1, options.steps // 6)
    train = {"steps": options.steps, "log_every": every, "global_batch": batch, "lr": 1e-4, "zero_stage": stage}
    tree = {
        "name": name,
        "output": str(scratch / "runs"),
        "data": {"manifests": [options.data], "workers": 4},
        "features": {"cache": str(scratch / "features")},
        "model": {"preset": preset},
        "train": train | {"checkpoint_every": 10**6, "warmup_samples": 0},
        "tracking": {"mlflow": False},
    }
    config = scratch / f"{name}.json"
    config.write_text(json.dumps(tree))
    start = time.time()
    run([__file__, "--data", "-", "--out", "-", "--train", str(config)])
    whole = time.time() - start
    lines = [json.loads(line) for line in (scratch / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    counted = lines[2:]
    layout = gpu_layout(load_config(config))
    return {
        "what": f"fmad train, ZeRO-{stage}",
        "preset": preset,
        "batch": batch,
        "images_per_s": statistics.harmonic_mean(line["images_per_s"] for line in counted),
        "mfu": statistics.mean(line.get("mfu_percent", math.nan) for line in counted) / 100,
        "data_wait_percent": statistics.mean(line["data_wait_percent"] for line in counted),
        "memory_gib": max(line["memory_gib"] for line in lines),
        "estimated_gib": memory_budget(spec_of(preset), layout).total / 2**30,
        "recomputes": layout.checkpointing,
        "first_steps_s": every * batch / lines[0]["images_per_s"],
        "whole_s": whole,
    }


def spec_of(preset: str) -> DiTSpec:
    return DiTSpec(CHANNELS, GRID, *PRESETS[preset])


def gpu_layout(config: RunConfig) -> Layout:
    """As `fmad train` decides it on this GPU."""
    batch = BatchLayout.fit(config.train.global_batch, None, 1)
    return layout_of(config, spec_of(config.model.preset), batch, torch.bfloat16, smallest_gpu())


def plain(cache: Path, preset: str, steps: int, batch: int) -> dict[str, float]:
    """The peer: the same maths in one function."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29612"}
    os.environ |= alone
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda" if on_gpu else "cpu")
    features = torch.from_numpy(read_features(cache))
    values = features[:64].float().transpose(0, 1).flatten(1)
    mean, std = (v.view(1, -1, 1, 1).to(device) for v in (values.mean(1), values.std(1)))
    spec = DiTSpec(features.shape[1], features.shape[2], *PRESETS[preset])
    network = DiT(spec).to(device).train()
    average = [weight.detach().clone() for weight in network.parameters()]
    weights = list(network.parameters())
    optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=0.0, fused=True)
    model = torch.compile(nn.parallel.DistributedDataParallel(network), dynamic=False)
    start = first = time.perf_counter()
    for step in range(steps):
        if step == steps // 3:
            if on_gpu:
                torch.cuda.synchronize()
            start = time.perf_counter()
        rows = torch.randint(len(features), (batch,))
        data = features[rows]
        data = (data.pin_memory() if on_gpu else data).to(device, non_blocking=True)
        x = (data.float() - mean) / std
        noise, t = torch.randn_like(x), torch.rand(batch, device=device)
        at = t.view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = model(at * x + (1 - at) * noise, t)
        loss = functional.mse_loss(predicted.float(), x - noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, [weight.detach() for weight in weights], 0.001)
        if step == steps // 6 - 1:
            loss.item()
            first = time.perf_counter() - first
    if on_gpu:
        torch.cuda.synchronize()
    images_per_s = (steps - steps // 3) * batch / (time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else math.nan
    peak = find_accelerator(torch.cuda.get_device_name()) if on_gpu else None
    mfu = network_cost(spec, torch.bfloat16).training_flops * images_per_s / peak.peak_flops if peak else math.nan
    return {"images_per_s": images_per_s, "mfu": mfu, "memory_gib": memory, "first_steps_s": first}


def show(rows: list[dict[str, Any]], out: Path) -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    (out / "gpu.json").write_text(
        json.dumps({"device": gpu, "torch": torch.__version__, "rows": rows}, indent=1) + "\n"
    )
    keys = ("images_per_s", "mfu", "data_wait_percent", "memory_gib", "estimated_gib", "first_steps_s")
    lines = [
        "| DiT | batch | | images/s | MFU | data wait % | peak GiB | dry run GiB | first steps s |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = " | ".join(f"{row[key]:.3g}" if key in row else "" for key in keys)
        what = row["what"] + (", recomputing activations" if row.get("recomputes") else "")
        lines.append(f"| {row['preset']} | {row['batch']} | {what} | {cells} |")
    (out / "gpu.md").write_text(f"{gpu}, bf16, torch {torch.__version__}\n\n" + "\n".join(lines) + "\n")
    print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
