"""The evaluator beside a training: a real job that is stopped, goes on and never reads a test image."""

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.jobs import LAUNCH_SECONDS, Job, fmad, in_background

pytestmark = pytest.mark.slow


def lines(run: Path) -> list[dict]:
    path = run / "follow.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def without_test_shards(manifest: str) -> Iterator[None]:
    """Nobody can read a test image meanwhile."""
    shards = Path(manifest) / "shards"
    hidden = shards.rename(shards.with_name("all-shards"))
    try:
        shutil.copytree(hidden, shards, ignore=shutil.ignore_patterns("test-*"))
        assert 0 < len(list(shards.iterdir())) < len(list(hidden.iterdir()))
        yield
    finally:
        shutil.rmtree(shards)
        hidden.rename(shards)


def test_it_stops_goes_on_and_has_the_same_numbers_on_1_and_2_processes(job: Job, zero2: Path) -> None:
    """On two processes it waits for the detector, which is taken away, until SIGTERM; then one process makes the line
    that is taken away again, and only that one."""
    run = job.run("followed")
    shutil.copytree(zero2, run, ignore=shutil.ignore_patterns("detector"))
    words, log = ["follow", "--run", str(run), "--per-class", "2"], job.root / "followed.log"
    with in_background(log, *words, "--processes", "2") as process:
        deadline = time.monotonic() + LAUNCH_SECONDS
        while len(lines(run)) < 2:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LAUNCH_SECONDS) == 75, log.read_text()
    assert "stopped: following" in log.read_text()
    assert "Traceback" not in log.read_text()
    before = lines(run)
    assert [line["step"] for line in before] == [3, 6]
    (run / "follow.jsonl").write_text(json.dumps(before[0]) + "\n")
    with without_test_shards(job.manifest):
        done = fmad(*words, "--once", "--processes", "1")
    assert re.findall(r"^step (\d+): synthetic", done.stdout, re.MULTILINE) == ["6"]
    assert [facts(line) for line in lines(run)] == [facts(line) for line in before]
    check_line(before[1])
    check_tracking(job, run)
    assert Image.open(run / "synthetic.png").size[1] > 3 * 192


def facts(line: dict) -> dict:
    """What a restart on another number of processes must find again, to the last bit."""
    return {key: value for key, value in line.items() if key not in ("seconds", "tracked")}


def check_line(line: dict) -> None:
    assert "not test results" in line["what"]
    assert line["num_normals"] == 3  # of 12 training images one is held out
    assert 15 <= line["num_defects"] <= 21
    assert sorted(line["classes"]) == ["tiny/bar", "tiny/disc", "tiny/ring"]
    assert 0.0 <= line["mean"]["aupro"] <= 1.0


def check_tracking(job: Job, run: Path) -> None:
    import mlflow

    uri = f"sqlite:///{job.root / 'runs' / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    run_id = json.loads((run / "tracking.json").read_text())["run_id"]
    found = {(metric.step, metric.value) for metric in client.get_metric_history(run_id, "synthetic/aupro")}
    assert found == {(line["step"], line["mean"]["aupro"]) for line in lines(run)}
    assert client.get_run(run_id).info.status == "FINISHED"  # the status is the training's
    assert all(line["tracked"] for line in lines(run))
