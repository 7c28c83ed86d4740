"""Training from a real S3 server that dies, with damaged samples, and with wrong credentials."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fmad_dist.base.world import World
from fmad_dist.config.run import DataConfig
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import load_dataset
from fmad_dist.training.checkpoint import Checkpoints
from fmad_dist.training.checkpoint_reader import opened
from tests.integration.jobs import LAUNCH_SECONDS, Job, convert_tree, fmad, make_product_tree, train
from tests.support.radosgw import Radosgw

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_product_tree(tmp_path_factory.mktemp("s3-images"))


def job_on(bucket: str, images: Path, root: Path) -> Job:
    """A job whose manifest and feature cache lie on S3."""
    return Job(root, convert_tree(images, f"{bucket}/data"))


def test_a_wrong_secret_ends_the_command_at_once(
    bucket: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_on(bucket, images, tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    start = time.monotonic()
    done = fmad("train", "--config", str(job.config()), check=False)
    elapsed = time.monotonic() - start
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{bucket}/data" in done.stderr
    assert "access denied" in done.stderr
    assert "wrong-secret" not in done.stderr + done.stdout
    assert elapsed < 30, f"{elapsed:.1f} s: it was tried again, for which there are {DataConfig().patience_s} s"
    assert not job.run("base").exists()


def test_the_gateway_dies_in_the_middle_of_an_epoch(
    radosgw: Radosgw, bucket: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes read images from S3 in every step and save checkpoints to it, it is away for 20 s, and two samples
    are damaged; the other run has one process."""
    job = job_on(bucket, images, tmp_path)
    damaged = damage_two(job.manifest)
    steps = ["train.steps=20", "train.checkpoint_every=1000", "data.workers=1", f"features.cache={bucket}/features"]
    train(job, "undisturbed", 1, *steps, "features.cache=null", f"data.cache={tmp_path / 'blocks'}")
    assert (tmp_path / "blocks").exists()

    config = str(job.config())
    words = ["train", "--config", config, "--processes", "2", "name=disturbed", *steps, "features.cache=null"]
    words += [f"train.checkpoint_url={bucket}/checkpoints", "train.checkpoint_every=1"]
    metrics = job.run("disturbed") / "metrics.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "fmad_dist.cli", *words], stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_step(metrics, 6, process)
        radosgw.kill()
        seen = len(metrics.read_text().splitlines())
        threading.Timer(20.0, radosgw.restart).start()
        _, errors = process.communicate(timeout=LAUNCH_SECONDS)
    assert process.returncode == 0, errors
    assert 6 <= seen < 18, "the gateway must die in the middle"
    assert "the storage does not answer" in errors
    assert "the storage answers again" in errors
    checkpoints = Checkpoints(f"{bucket}/checkpoints/disturbed")
    assert checkpoints.steps() == [19, 20]
    with opened(checkpoints.read(20), World()) as tensors:
        assert tensors.names("ema") == tensors.names("weight")
    assert job.samples("disturbed") == job.samples("undisturbed")
    assert job.losses("disturbed") == pytest.approx(job.losses("undisturbed"), abs=1e-4)
    for name in ("disturbed", "undisturbed"):
        lines = [json.loads(line) for line in (job.run(name) / "bad_samples.jsonl").read_text().splitlines()]
        assert {line["sample_id"] for line in lines} == damaged
        assert all(line["url"].startswith(f"{bucket}/data/shards/train-") for line in lines)
        last = json.loads((job.run(name) / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["bad_samples"] == 2
        assert not damaged & set(job.samples(name).values())
        assert (job.run(name) / "detector" / "detector.json").exists()


def damage_two(url: str) -> set[str]:
    """Flip a byte of two training images; returns their ids."""
    dataset = load_dataset(url)
    ids = set()
    for row in dataset.indices("train")[[3, 17]]:
        sample = dataset.sample(int(row))
        assert sample.image is not None
        data = bytearray(Store(url).read(sample.shard))
        data[sample.image.offset + 60] ^= 1
        Store(url).write(sample.shard, bytes(data))
        ids.add(sample.sample_id)
    return ids


def wait_for_step(metrics: Path, step: int, process: "subprocess.Popen[str]") -> None:
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= step):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
