"""Training that is killed, stopped, hung, starved of disk and fed NaN: nothing is lost beyond the last checkpoint."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from fmad_dist.config.files import load_config
from fmad_dist.detector.completeness import what_lacks
from fmad_dist.detector.files import read_spec
from fmad_dist.training.checkpoint import Checkpoints
from tests.integration.jobs import LAUNCH_SECONDS, Job, fmad, launched, ranks_of, train
from tests.integration.test_training_jobs import kill_when

pytestmark = pytest.mark.slow
STEPS = 40
KILLS = 10


class Background:
    """`fmad train` in the background; its output goes to files, so that it never waits for a reader."""

    def __init__(self, job: Job, name: str, processes: int, options: Sequence[str]) -> None:
        words = ["train", "--config", str(job.config()), "--processes", str(processes), f"name={name}", *options]
        self.output, self.errors = (job.root / f"{name}.{kind}" for kind in ("out", "err"))
        with open(self.output, "w") as output, open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fmad_dist.cli", *words], stdout=output, stderr=errors
            )

    def ended(self) -> int:
        """Its exit code, when it is there."""
        return self.process.wait(LAUNCH_SECONDS)

    def must_run(self) -> None:
        assert self.process.poll() is None, self.errors.read_text()[-6000:]

    def ranks(self) -> list[psutil.Process]:
        """The training processes of now."""
        return ranks_of(self.process.pid)


@contextmanager
def started(job: Job, name: str, processes: int, *options: str) -> Iterator[Background]:
    """A job that is ended with all it started, whatever the test does."""
    background = Background(job, name, processes, options)
    try:
        yield background
    finally:
        if background.process.poll() is None:
            for one in psutil.Process(background.process.pid).children(recursive=True):
                one.kill()
        background.process.kill()
        background.process.wait()


def steps_done(job: Job, name: str) -> int:
    path = job.run(name) / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_step(job: Job, name: str, step: int, running: Background) -> None:
    while steps_done(job, name) < step:
        running.must_run()
        time.sleep(0.01)


def weights(job: Job, name: str) -> dict[str, np.ndarray]:
    return load_file(job.run(name) / "detector" / "weights.safetensors")


@pytest.fixture(scope="module")
def undisturbed(job: Job) -> dict[str, np.ndarray]:
    train(job, "undisturbed", 2, *LONG)
    return weights(job, "undisturbed")


LONG = (f"train.steps={STEPS}", "train.checkpoint_every=4", "train.global_batch=12")


def test_ten_kills_change_nothing(job: Job, undisturbed: dict[str, np.ndarray]) -> None:
    """SIGKILL a random rank after a random step, ten times; restarts are automatic, and not a bit differs."""
    rng = random.Random(0)
    with started(job, "drill", 2, *LONG, "--max-restarts", str(KILLS)) as running:
        for kill in range(KILLS):
            wait_for_step(job, "drill", min(rng.randint(2, 6) + 3 * kill, STEPS - 2), running)
            rng.choice(running.ranks()).kill()
            wait_for_restart(running)
        assert running.ended() == 0, running.errors.read_text()[-6000:]
    assert (
        running.output.read_text().count("resumed drill at step") >= KILLS - 2
    )  # the first kills may come before a checkpoint
    assert job.losses("drill") == job.losses("undisturbed")
    found = weights(job, "drill")
    assert all(np.array_equal(found[name], tensor) for name, tensor in undisturbed.items())


def wait_for_restart(running: Background) -> None:
    """Until the ranks of now are gone and others are there."""
    before = {one.pid for one in running.ranks()}
    while not (now := {one.pid for one in running.ranks()}) or now & before:
        running.must_run()
        time.sleep(0.05)


def test_preempted_and_resumed_at_other_sizes_and_stages(job: Job, undisturbed: dict[str, np.ndarray]) -> None:
    """2 processes ZeRO-2, SIGUSR1, 1 process ZeRO-1, SIGTERM, 3 processes ZeRO-3: the same losses and averages."""
    for processes, number in ((2, signal.SIGUSR1), (1, signal.SIGTERM)):
        before = steps_done(job, "elastic")
        with started(job, "elastic", processes, *LONG, f"train.zero_stage={processes}") as running:
            wait_for_step(job, "elastic", before + 5, running)
            running.process.send_signal(number)
            code, errors = running.ended(), running.errors.read_text()
        assert code == 75, errors
        done = Checkpoints(str(job.run("elastic") / "checkpoints")).steps()[-1]
        assert f"stopped: elastic was asked to stop and saved step {done} " in errors
        assert "Traceback" not in errors
        assert before + 5 <= done == steps_done(job, "elastic") < STEPS
    train(job, "elastic", 3, *LONG, "train.zero_stage=3")
    np.testing.assert_allclose(job.losses("elastic"), job.losses("undisturbed"), rtol=1e-5)
    assert job.samples("elastic") == job.samples("undisturbed")
    found = weights(job, "elastic")
    for name, tensor in undisturbed.items():
        if not name.startswith("scorer."):  # statistics of scores, of another size
            np.testing.assert_allclose(found[name], tensor, rtol=0, atol=2e-4, err_msg=name)


def test_killed_in_calibration(job: Job, zero2: Path) -> None:
    """A complete run goes on with more steps of another batch and is killed before its detector is saved: the next
    start makes the detector anew, and so does one with another scorer alone. No sample comes twice or is left out."""
    run = Path(shutil.copytree(zero2, job.run("calibrated")))
    for path in run.glob("samples-*.jsonl"):
        path.unlink()
    (run / "tracking.json").unlink()
    more = ("train.steps=8", "train.global_batch=4")
    command = ["train", "--config", str(job.config()), "--processes", "2", "name=calibrated", *more]
    kill_when(command, run / "checkpoints" / "step-00000008" / "checkpoint.json")
    config = load_config(run / "config.yaml")
    assert what_lacks(run, config) == "the detector is of step 6 instead of 8"
    assert "100%), complete" not in fmad("status", str(run)).stdout
    assert sorted(job.samples("calibrated")) == list(range(48, 56))

    for ready in (lambda one: one.ranks(), lambda one: "made from the last checkpoint" in one.output.read_text()):
        with started(job, "calibrated", 2, *more) as running:  # asked to stop before the loop, and after it
            while not ready(running):
                running.must_run()
                time.sleep(0.01)
            running.process.send_signal(signal.SIGUSR1)
            assert running.ended() == 75, running.errors.read_text()[-6000:]
        assert "stopped: asked to stop while no steps were done" in running.errors.read_text()
        assert "Traceback" not in running.errors.read_text()
    assert what_lacks(run, config) == "the detector is of step 6 instead of 8"

    done = fmad(*command)
    assert "the detector is of step 6 instead of 8; it is made from the last checkpoint" in done.stdout
    assert what_lacks(run, config) is None
    before = weights(job, "calibrated")
    done = fmad(*command, "scorer.name=endpoint")
    assert "the detector is of other scorer" in done.stdout
    spec = read_spec(run / "detector")
    assert (spec.train_step, spec.scorer.name) == (8, "endpoint")
    assert all(np.array_equal(before[name], one) for name, one in weights(job, "calibrated").items())
    assert "was complete already" in fmad(*command, "scorer.name=endpoint").stdout


def test_the_launcher_alone_is_killed(job: Job) -> None:
    """SIGKILL leaves it no time to end its ranks: they end with it, and the next start goes on."""
    options = ("train.checkpoint_every=2", "train.steps=100000")
    with started(job, "orphans", 2, *options) as running:
        wait_for_step(job, "orphans", 5, running)
        ranks = running.ranks()
        running.process.kill()
        assert psutil.wait_procs(ranks, timeout=30)[1] == []
    found = Checkpoints(str(job.run("orphans") / "checkpoints")).steps()[-1]
    with started(job, "orphans", 2, *options) as running:
        while "resumed orphans at step" not in running.output.read_text():
            running.must_run()
            time.sleep(0.01)
        assert f"resumed orphans at step {found} " in running.output.read_text()
        wait_for_step(job, "orphans", found + 1, running)


def test_a_stopped_rank_ends_the_job(job: Job) -> None:
    """SIGSTOP: the other rank waits for it, dumps its stack and ends; the launcher ends the stopped one."""
    with started(job, "hung", 2, "train.steps=100000", "train.hang_s=5") as running:
        wait_for_step(job, "hung", 3, running)
        stopped = running.ranks()[1]
        stopped.suspend()
        start = time.monotonic()
        code, errors = running.ended(), running.errors.read_text()
        elapsed = time.monotonic() - start
    assert code == 76, errors
    assert elapsed < 5 + 60, f"{elapsed:.0f} s"
    assert "error: rank 0: no training step for 5 s after step" in errors
    assert "most recent call first" in errors
    assert "in run_steps" in errors
    assert not stopped.is_running()


def test_a_full_disk_keeps_the_last_checkpoint(job: Job, tmp_path: Path) -> None:
    """A small tmpfs takes one checkpoint and not a second one."""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=52m", "none", tmp_path]).returncode:
        assert not os.environ.get("CI"), "mounting a tmpfs needs root"
        pytest.skip("mounting a tmpfs needs root")
    try:
        words = ("name=full", f"train.checkpoint_url={tmp_path}", "train.checkpoint_every=2")
        done = fmad("train", "--config", str(job.config()), "--processes", "2", *words, check=False)
        assert done.returncode == 2, done.stderr
        assert f"{tmp_path}/full/step-00000004" in done.stderr
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert Checkpoints(str(tmp_path / "full")).steps() == [2]
        words = ("name=full", f"train.checkpoint_url={tmp_path}", "train.checkpoint_every=100", "train.steps=3")
        subprocess.run(["mount", "-o", "remount,size=200m", tmp_path], check=True)
        again = fmad("train", "--config", str(job.config()), "--processes", "2", *words)
        assert "resumed full at step 2" in again.stdout
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def faulty(job: Job, name: str, bad_steps: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Train on two processes under plain `accelerate launch`; see faulty_train.py."""
    script = Path(__file__).with_name("faulty_train.py")
    words = ("--config", str(job.config()), f"name={name}", *options)
    return launched(script, *words, FMAD_TEST_BAD_STEPS=bad_steps)


def test_steps_that_are_not_finite_are_skipped_then_undone_then_fatal(job: Job, zero2: Path) -> None:
    skipped = faulty(job, "nan-skipped", "2")
    assert skipped.returncode == 0, skipped.stderr
    records = [json.loads(line) for line in (job.run("nan-skipped") / "metrics.jsonl").read_text().splitlines()]
    assert [record["skipped_steps"] for record in records] == [0, 0, 1, 1, 1, 1]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert job.losses("nan-skipped")[:2] == job.losses("zero2")[:2]
    assert job.losses("nan-skipped")[3] != job.losses("zero2")[3]

    undone = faulty(job, "nan-undone", "3,4", "train.max_skipped=2")
    assert undone.returncode == 0, undone.stderr
    said = (
        "2 steps in a row up to step 5 had a loss or gradient that is not finite; went back to step 3 (1 of at most 2)"
    )
    assert f"{said} and leaves out positions 24 to 39 of the stream" in undone.stderr
    assert job.losses("nan-undone")[:3] == job.losses("zero2")[:3]
    assert sorted(job.samples("nan-undone")) == list(range(64))  # of the first try, too
    assert Checkpoints(str(job.run("nan-undone") / "checkpoints")).read(6).state.position == 64

    fatal = faulty(job, "nan-fatal", "3,4,5,6", "train.max_skipped=2", "train.max_rollbacks=1")
    assert fatal.returncode != 0
    assert "error: training diverged: 2 steps in a row up to step 5" in fatal.stderr
    assert "after 1 returns to a checkpoint; lower train.lr" in fatal.stderr
    assert Checkpoints(str(job.run("nan-fatal") / "checkpoints")).steps() == [3]
