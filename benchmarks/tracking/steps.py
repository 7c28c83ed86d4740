"""Does a bad MLflow server slow training down? Step times of one real training while its server misbehaves.

    python benchmarks/tracking/steps.py --data data/mvtec_ad --out benchmarks/tracking

A real `mlflow server` behind a proxy that answers 500, hangs, refuses the token; then the server is killed, and started
again. Every step is logged, which is far more than usual. Beside it the same training without tracking. At the end
every point must be at the server exactly once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parents[2]))  # for tests.support

from tests.support.mlflow_server import BadProxy, MlflowServer  # noqa: E402

PHASES = (("none", "healthy"), ("error", "status 500"), ("hang", "hangs"), ("forbidden", "status 401"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a converted dataset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phase-s", type=float, default=20.0, help="seconds of each fault; killed: three times")
    parser.add_argument("--steps", type=int, default=900)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        server = MlflowServer(folder / "mlflow").start()
        proxy = BadProxy(server.port)
        try:
            base = measure(folder, options, "without", "tracking.mlflow=false")
            figures = drill(folder, options, server, proxy)
        finally:
            proxy.stop()
            server.kill()
    figures["without tracking"] = summary(base)
    (options.out / "steps.json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, row in figures.items():
        print(f"{name:20s} {row}")


def start(folder: Path, options: argparse.Namespace, name: str, *words: str) -> subprocess.Popen[bytes]:
    config = folder / "config.yaml"
    config.write_text(f"output: {folder}/runs\ndata: {{manifests: [{options.data}], workers: 0}}\n")
    command = [sys.executable, "-m", "fmad_dist.cli", "train", "--config", str(config), "--processes", "1"]
    command += [f"name={name}", f"train.steps={options.steps}", "train.global_batch=4", "train.log_every=1"]
    command += [f"features.cache={folder}/features", "train.checkpoint_every=100000", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def measure(folder: Path, options: argparse.Namespace, name: str, *words: str) -> np.ndarray:
    assert start(folder, options, name, *words).wait() == 0
    return times(folder, name)


def times(folder: Path, name: str) -> np.ndarray:
    """Unix seconds at which each step was recorded."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["time"] / 1000 for line in lines])


def drill(folder: Path, options: argparse.Namespace, server: MlflowServer, proxy: BadProxy) -> dict[str, object]:
    running = start(folder, options, "tracked", f"tracking.uri={proxy.url}")
    record = folder / "runs" / "tracked" / "metrics.jsonl"
    while not record.exists() or len(record.read_text().splitlines()) < 10:  # the first steps are slower
        assert running.poll() is None
        time.sleep(0.5)
    windows: list[tuple[str, float, float]] = []
    for fault, title in PHASES:
        proxy.behave(fault)
        windows.append((title, time.time(), time.time() + options.phase_s))
        time.sleep(options.phase_s)
    proxy.behave("none")
    server.kill()
    windows.append(("killed", time.time(), time.time() + 3 * options.phase_s))
    time.sleep(3 * options.phase_s)
    assert running.poll() is None, "the training ended before the drill did; give it more --steps"
    server.start()
    windows.append(("back again", time.time(), time.time() + options.phase_s))
    assert running.wait() == 0
    stamps = times(folder, "tracked")
    figures: dict[str, object] = {}
    for title, begin, end in windows:
        figures[title] = summary(stamps[(stamps >= begin) & (stamps < end)])
    figures["points"] = {"steps": options.steps, **points(server, folder)}
    return figures


def summary(stamps: np.ndarray) -> dict[str, float]:
    """Seconds per step: median, 95th percentile and longest."""
    steps = np.diff(stamps[10:] if len(stamps) > 100 else stamps)
    found = [float(np.median(steps)), float(np.quantile(steps, 0.95)), float(steps.max())]
    return dict(zip(("median_s", "p95_s", "longest_s"), (round(value, 4) for value in found), strict=True)) | {
        "steps": len(steps)
    }


def points(server: MlflowServer, folder: Path) -> dict[str, int]:
    """Points of the loss at the server, and how many steps have exactly one."""
    from mlflow import MlflowClient

    noted = json.loads((folder / "runs" / "tracked" / "tracking.json").read_text())
    history = MlflowClient(server.url).get_metric_history(noted["run_id"], "loss")
    steps = [point.step for point in history]
    return {"points": len(steps), "steps_with_one_point": sum(steps.count(step) == 1 for step in set(steps))}


if __name__ == "__main__":
    main()
