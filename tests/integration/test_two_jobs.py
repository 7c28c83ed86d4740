"""Two jobs of one name, or of one place for checkpoints: the second is refused and told of the first, which goes on."""

import time
from pathlib import Path

import pytest
from psutil import Process

from tests.integration.jobs import LAUNCH_SECONDS, Job, fmad, in_background

pytestmark = pytest.mark.slow


def test_the_second_job_is_refused_and_the_first_goes_on(job: Job, tmp_path: Path) -> None:
    config, shared = str(job.config(steps=100_000)), f"train.checkpoint_url={tmp_path / 'checkpoints'}"
    words = ["train", "--config", config, "--processes", "1", "name=twice", shared, "train.log_samples=false"]
    metrics = job.run("twice") / "metrics.jsonl"
    with in_background(tmp_path / "first.log", *words) as first:
        deadline = time.monotonic() + LAUNCH_SECONDS
        while not (metrics.exists() and metrics.stat().st_size):
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        before = (job.run("twice") / "config.yaml").read_bytes()
        for other in ("train.lr=0.5", f"output={tmp_path / 'elsewhere'}"):
            second = fmad(*words, other, check=False)
            assert second.returncode == 2
            said = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
            assert len(said) == 1
            assert "in use by another job (" in said[0]
            ranks = {f"process {child.pid}, since" for child in Process(first.pid).children(recursive=True)}
            assert any(rank in said[0] for rank in ranks)
        assert (job.run("twice") / "config.yaml").read_bytes() == before
        size = metrics.stat().st_size
        time.sleep(5.0)
        assert first.poll() is None
        assert metrics.stat().st_size > size
