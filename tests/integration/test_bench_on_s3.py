"""`fmad bench` on all five benchmarks' layouts on a real S3 server, on three processes, killed as a whole twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from data_tools.conversion.convert import Conversion, convert
from data_tools.fixtures import write_fixture
from fmad_dist.base.world import World
from fmad_dist.evaluation.evaluate import EvaluationOptions, run_evaluation
from fmad_dist.metrics.results import METRIC_NAMES
from tests.integration.jobs import LAUNCH_SECONDS, SIDE, fmad

pytestmark = pytest.mark.slow
LAYOUTS = {"mvtec_ad": "mvtec", "visa": "visa", "mvtec_loco": "loco", "mvtec_3d": "mvtec3d", "mpdd": "mpdd"}
STEPS = 20


def convert_fixtures(root: Path, bucket: str) -> dict[str, str]:
    """The official layout of every benchmark, at S3; dataset -> URL."""
    urls = {dataset: f"{bucket}/{dataset}" for dataset in LAYOUTS}
    for dataset, layout in LAYOUTS.items():
        trees = write_fixture(layout, root / layout)
        source = trees.get("official") or next(iter(trees.values()))
        convert(Conversion(layout=layout, dataset=dataset, source=source, out=urls[dataset], size=SIDE, num_workers=1))
    return urls


def write_config(root: Path, bucket: str, urls: dict[str, str]) -> Path:
    run = {
        "data": {"workers": 0},
        "features": {"image_size": SIDE, "grid": 4, "taps": [1, 2, 3], "cache": f"{bucket}/features"},
        "protocol": {"map_size": SIDE},
        "train": {"steps": STEPS, "global_batch": 9, "warmup_samples": 16, "log_every": 1, "checkpoint_every": 2}
        | {"checkpoint_url": f"{bucket}/checkpoints"},
        "scorer": {"name": "inversion", "steps": 40},
        "tracking": {"mlflow": False},
    }
    benchmarks = {name: {"manifests": [url]} for name, url in urls.items()}
    tree = {"out": str(root / "out"), "mode": "one_model", "peers": "bank_pooled", "benchmarks": benchmarks, "run": run}
    path = root / "five.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start_and_kill(config: Path, ready: Callable[[], bool], output: Path) -> str:
    """Start the bench in a process group of its own and kill the whole group as soon as it is `ready`. Its ranks,
    which have groups of their own, must end too. Returns what it printed."""
    words = ["bench", "run", "--config", str(config), "--processes", "3", "--save-every", "0"]
    with open(output, "w") as file:
        command = [sys.executable, "-m", "fmad_dist.cli", *words]
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + 2 * LAUNCH_SECONDS
        while not ready():
            assert process.poll() is None, output.read_text()[-6000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(started) >= 4, "fmad and three ranks"
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == [], "processes outlived the group that started them"
    return output.read_text()


class Cells(HTMLParser):
    """The rows of all tables of a page: their class and the text of their cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, list[str]]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        self.inside = tag in ("td", "th") or (self.inside and tag != "sup")  # no marks of notes
        if tag in ("td", "th") and self.rows:
            self.rows[-1][1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1][1]:
            self.rows[-1][1][-1] += data.strip()


def check_page(page: str, results: dict) -> None:
    """Every number of the summary is that of results.json."""
    rows = [(kind, cells) for kind, cells in Cells(page).rows if kind in ("mean", "dataset", "class")]
    wanted = [("mean", "Mean over classes", results["mean"])]
    for dataset, mean in results["datasets"].items():
        wanted.append(("dataset", dataset, mean))
        own = {name: values for name, values in results["classes"].items() if name.startswith(f"{dataset}/")}
        wanted += [("class", name.split("/", 1)[1], values) for name, values in own.items()]
    for (kind, cells), (wanted_kind, name, values) in zip(rows, wanted, strict=False):
        numbers = ["–" if values[metric] is None else f"{100 * values[metric]:.1f}" for metric in METRIC_NAMES]
        assert (kind, cells[0], cells[2 : 2 + len(METRIC_NAMES)]) == (wanted_kind, name, numbers)
    assert len(rows) >= len(wanted)


def known(values: dict) -> dict:
    return {metric: values[metric] for metric in METRIC_NAMES if values[metric] is not None}


def test_five_benchmarks_on_s3_survive_the_death_of_everything(bucket: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, bucket, convert_fixtures(tmp_path, bucket))
    out = tmp_path / "out"

    def steps_done() -> int:
        return sum(len(path.read_text().splitlines()) for path in out.glob("runs/all-*/metrics.jsonl"))

    start_and_kill(config, lambda: steps_done() >= 7, tmp_path / "first.log")
    assert not list(out.glob("runs/*/detector"))
    scored = lambda: bool(list(out.glob("evaluations/all/partial/rank-00001-*.part")))  # noqa: E731
    second = start_and_kill(config, scored, tmp_path / "second.log")
    resumed = re.search(r"resumed (all-\w+) at step (\d+) from", second)
    assert resumed is not None, second
    assert 2 <= int(resumed[2]) < STEPS
    assert not (out / "evaluations/all/results.json").exists()
    third = fmad("bench", "run", "--config", str(config), "--processes", "3").stdout
    assert f"[1/3] all: train: done already ({STEPS} steps" in third
    assert re.search(r"\d+ images were scored before", third)

    run = resumed[1]
    words = ["--config", str(out / f"configs/{run}.yaml"), "name=undisturbed", f"train.checkpoint_url={tmp_path}"]
    fmad("train", "--processes", "3", *words)
    undisturbed = load_file(out / "runs/undisturbed/detector/weights.safetensors")
    found = load_file(out / f"runs/{run}/detector/weights.safetensors")
    assert all(np.array_equal(found[name], tensor) for name, tensor in undisturbed.items())
    urls = [f"{bucket}/{name}" for name in LAYOUTS]
    whole = EvaluationOptions(str(out / "runs/undisturbed"), tuple(urls), str(tmp_path / "whole"))
    run_evaluation(whole, World())
    for name in ("results.json", "scores.csv", "state.safetensors"):
        assert (out / "evaluations/all" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    results = json.loads((out / "evaluations/all/results.json").read_text())
    assert sorted(results["datasets"]) == sorted(LAYOUTS)
    body = json.loads((out / "bench.json").read_text())
    assert {key: body[key] for key in results} == results
    check_page((out / "report.html").read_text(), results)
    peers = json.loads((out / "comparisons/all/comparison.json").read_text())["scorers"]["bank_pooled (peer)"][
        "datasets"
    ]
    for name, rows in body["compared"].items():
        assert [row["origin"] for row in rows[:3]] == ["ours", "peer", "published"]
        assert rows[0]["metrics"] == known(results["datasets"][name])
        assert rows[1]["metrics"] == known(peers[name])
        assert f"| {100 * rows[1]['metrics']['image_auroc']:.1f} |" in (out / "results.md").read_text()
