"""Training as users start it: real processes under accelerate + DeepSpeed ZeRO, over gloo on the CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fmad_dist import cli
from fmad_dist.base.world import World
from fmad_dist.config.run import RunConfig, TrainConfig
from fmad_dist.training import preflight
from fmad_dist.training.checkpoint import Checkpoints
from fmad_dist.training.checkpoint_reader import opened
from tests.integration.jobs import LAUNCH_SECONDS, Job, fmad, in_background, train

pytestmark = pytest.mark.slow
TOLERANCE = 2e-5  # relative, of losses between layouts: the order of floating-point sums differs


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "detector" / "weights.safetensors")


def assert_same_weights(one: Path, other: Path, tolerance: float) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tolerance and name.startswith("scorer."):  # statistics of scores, of another size
            continue
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=tolerance, err_msg=name)


def test_zero2_really_trains_under_deepspeed(job: Job, zero2: Path) -> None:
    assert not (job.root / "compiled").exists()  # DeepSpeed would compile an operation that training does not use
    environment = json.loads((zero2 / "environment.json").read_text())
    assert (environment["distributed_type"], environment["zero_stage"], environment["world_size"]) == (
        "DEEPSPEED",
        2,
        2,
    )
    losses = job.losses("zero2")
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    moved = weights(zero2)["network.head.weight"]
    assert np.abs(moved).max() > 0  # the head starts at zero
    assert json.loads((zero2 / "registered.json").read_text()) == {"name": "fmad", "version": "1"}


def test_ranks_do_what_the_parent_has_checked(job: Job, zero2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration file says something else by the time the ranks start."""
    path, check = job.config(), preflight.check_job

    def check_and_change(config: RunConfig, processes: int) -> None:
        check(config, processes)
        path.write_text("train: {steps: many}\n")

    monkeypatch.setattr(preflight, "check_job", check_and_change)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--config", str(path), "--processes", "2", "name=obeyed", "train.hang_s=600"])
    assert ended.value.code == 0
    assert path.read_text() == "train: {steps: many}\n"
    assert job.losses("obeyed") == job.losses("zero2")


def test_every_training_sample_once_per_epoch_and_no_held_out(job: Job, zero2: Path) -> None:
    samples = job.samples("zero2")
    assert sorted(samples) == list(range(48))
    epoch = [samples[position] for position in range(33)]  # 3 classes x (12 - 1 held out)
    assert len(set(epoch)) == 33
    assert len(set(samples.values())) == 33  # the second epoch brings no new ones, so held-out normals never train


def test_zero3_agrees_resumes_and_exports_the_same_format(job: Job, zero2: Path) -> None:
    every = ("train.zero_stage=3", "train.checkpoint_every=1", "train.keep_every=1")
    log = job.root / "follow.log"
    with in_background(log, "follow", "--run", str(job.run("zero3")), "--processes", "1") as follower:
        train(job, "zero3", 2, *every)
        assert follower.wait(LAUNCH_SECONDS) == 0, log.read_text()  # it waited for the run and ended with it
    followed = [json.loads(line)["step"] for line in (job.run("zero3") / "follow.jsonl").read_text().splitlines()]
    assert followed == [1, 2, 3, 4, 5, 6]
    assert "the training is complete; synthetic AUPRO was best at step" in log.read_text()
    assert json.loads((job.run("zero3") / "environment.json").read_text())["zero_stage"] == 3
    assert job.samples("zero3") == job.samples("zero2")
    np.testing.assert_allclose(job.losses("zero3"), job.losses("zero2"), rtol=TOLERANCE)
    assert_same_weights(job.run("zero3"), zero2, 2e-4)
    assert_averages_follow_weights(Checkpoints(str(job.run("zero3") / "checkpoints")))
    before = weights(job.run("zero3"))
    forget_after(job.run("zero3"), 3)
    train(job, "zero3", 2, *every)
    for name, tensor in weights(job.run("zero3")).items():
        np.testing.assert_allclose(tensor, before[name], rtol=0, atol=1e-6, err_msg=name)


def assert_averages_follow_weights(checkpoints: Checkpoints) -> None:
    """The sharded averages against the recursion on whole weights in one process, in float64, at every step."""
    assert checkpoints.steps() == [1, 2, 3, 4, 5, 6]
    reference: dict[str, np.ndarray] = {}
    distance = 0.0
    for step in checkpoints.steps():
        with opened(checkpoints.read(step), World()) as tensors:
            decay = min(TrainConfig().ema, step / (9 + step))  # a young average forgets quickly
            for name in tensors.names("weight"):
                weight, average = (tensors.get(kind, name).double().numpy() for kind in ("weight", "ema"))
                reference[name] = decay * reference[name] + (1 - decay) * weight if step > 1 else average
                np.testing.assert_allclose(average, reference[name], rtol=1e-5, atol=1e-7, err_msg=name)
                distance = max(distance, np.abs(average - weight).max())
    assert distance > 1e-4  # the average is not simply the weights


def test_zero2_resumed_equals_uninterrupted(job: Job, zero2: Path) -> None:
    shutil.copytree(zero2, job.run("resumed"))
    forget_after(job.run("resumed"), 3)
    shutil.rmtree(job.run("resumed") / "detector")
    train(job, "resumed", 2)
    assert job.losses("resumed") == job.losses("zero2")  # not a bit differs
    assert_same_weights(job.run("resumed"), zero2, 0.0)
    assert job.samples("resumed") == job.samples("zero2")


def test_killed_while_saving_then_resumed_on_one_process(job: Job, zero2: Path) -> None:
    """SIGKILL in the middle of the fourth checkpoint: what is left is complete, and one process goes on from it. The
    newest is then truncated, which is said, and the one before it is taken."""
    run = job.run("killed")
    checkpoints = Checkpoints(str(run / "checkpoints"))
    command = ["train", "--config", str(job.config()), "--processes", "1", "name=killed"]
    command += ["train.checkpoint_every=1", "train.micro_batch=4"]
    kill_when(command, run / "checkpoints" / "step-00000004")
    found = checkpoints.steps()
    assert found in ([2, 3], [3, 4])
    for step in found:
        with opened(checkpoints.read(step), World()) as tensors:
            assert set(tensors.names("ema")) == set(tensors.names("weight")) == set(tensors.names("exp_avg"))
    victim = max(checkpoints.folder(found[1]).path(name) for name in checkpoints.read(found[1]).files)
    os.truncate(victim, 1000)
    done = fmad(*command)
    assert f"checkpoint of step {found[1]} cannot be used: {victim}: missing or truncated. Taking" in done.stderr
    assert f"resumed killed at step {found[0]}" in done.stdout
    assert job.samples("killed") == job.samples("zero2")  # the same sequence on 1 process as on 2
    np.testing.assert_allclose(job.losses("killed"), job.losses("zero2"), rtol=TOLERANCE)
    assert_same_weights(run, zero2, 2e-4)
    assert checkpoints.steps() == [5, 6]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]


def test_checkpoint_of_another_architecture_is_refused(job: Job, zero2: Path) -> None:
    done = fmad("train", "--config", str(job.config()), "name=zero2", "model.use_labels=true", check=False)
    assert done.returncode == 2
    assert "another architecture (num_classes 0; the configuration says num_classes 3)" in done.stderr
    assert "Traceback" not in done.stderr


def test_worst_transport_resumes_and_compares(job: Job, zero2: Path) -> None:
    """A reversed model with a coupling: its strength survives a resume, and a comparison has the same bits on 1 and 2
    processes; a scorer that does not fit is refused with the reason."""
    objective = ("objective.path=reversed", "objective.coupling=wt_group", "objective.window=16")
    options = (*objective, "model.network=unet", "model.width=32", "model.levels=[1,2]", "scorer.name=residual")
    train(job, "worst", 2, *options)
    run = job.run("worst")
    before, losses = json.loads((run / "detector" / "detector.json").read_text()), job.losses("worst")
    assert 0.3 < before["coupling_strength"] < 1.0
    forget_after(run, 3)
    shutil.rmtree(run / "detector")
    train(job, "worst", 2, *options)
    after = json.loads((run / "detector" / "detector.json").read_text())
    assert after["coupling_strength"] == pytest.approx(before["coupling_strength"], rel=2e-3)  # the ranks' sums merged
    np.testing.assert_allclose(job.losses("worst"), losses, rtol=1e-5)
    rows = compared_on_1_and_2(job, run, "--scorers", "inversion,residual,fusion,density:probes=1:steps=2")
    assert rows == ["inversion", "residual", "fusion", "density steps=2 probes=1"]
    config = ["--config", str(run / "config.yaml"), "--out", str(job.root / "none")]
    done = fmad("compare", *config, "--scorers", "mismatch", check=False)
    assert done.returncode == 2
    assert "mismatch does not fit this model: it draws noise independently of the image" in done.stderr
    assert "Traceback" not in done.stderr


def test_random_draws_and_peers_compare(job: Job, zero2: Path) -> None:
    """Scores with random draws, and methods of others on the same features, are the same on 1 and 2 processes."""
    scorers = "mismatch:noises=2:times=2,reconstruction:noises=2,fusion:parts=[{name: endpoint},{name: reconstruction}]"
    peers = "cflow:steps=3,bank,bank_pooled:share=0.5:draw=300:neighbours=2"
    rows = compared_on_1_and_2(job, zero2, "--scorers", scorers, "--peers", peers)
    assert rows[0].startswith("mismatch")
    assert rows[2:4] == ["fusion parts=[endpoint + reconstruction]", "cflow (peer) steps=3"]
    assert rows[4:] == ["bank (peer)", "bank_pooled (peer) share=0.5 draw=300 neighbours=2"]
    assert (
        "bank, one memory bank per class, is told the class"
        in (job.root / "compared-zero2-1" / "comparison.md").read_text()
    )
    found = json.loads((job.root / "compared-zero2-2" / "comparison.json").read_text())["scorers"]["bank (peer)"]
    assert found["evaluations"] == 0
    assert found["mean"]["image_auroc"] > 0.9  # a bright spot is nowhere in the bank


def compared_on_1_and_2(job: Job, run: Path, *options: str) -> list[str]:
    """Compare on one process and on two, assert the same results, return the titles of the rows."""
    found = []
    for processes in ("1", "2"):
        out = job.root / f"compared-{run.name}-{processes}"
        fmad("compare", "--config", str(run / "config.yaml"), "--out", str(out), *options, "--processes", processes)
        body = json.loads((out / "comparison.json").read_text())
        found.append({name: (row["mean"], row["classes"]) for name, row in body["scorers"].items()})
        assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"
        assert "## Per class" in (out / "comparison.md").read_text()
    assert found[0] == found[1]
    return list(found[0])


def forget_after(run: Path, step: int) -> None:
    """Make the run look as if it had been stopped after `step`."""
    checkpoints = Checkpoints(str(run / "checkpoints"))
    for one in checkpoints.steps():
        if one > step:
            checkpoints.remove(one)


def kill_when(arguments: list[str], appeared: Path) -> None:
    """Start fmad and SIGKILL the whole process group as soon as the path exists."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fmad_dist.cli", *arguments],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not appeared.exists():
        assert process.poll() is None, "the job ended before it wrote the checkpoint"
        time.sleep(0.001)
    kill_tree(process.pid)
    process.wait()


def kill_tree(pid: int) -> None:
    import psutil

    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        os.kill(process.pid, signal.SIGKILL)
