"""The scripts of launcher/slurm, with stand-ins for the commands that no test can have: signal, requeue, resume."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fmad_dist.training.checkpoint import Checkpoints
from tests.integration.jobs import LAUNCH_SECONDS, Job

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCONTROL = """#!/bin/sh
case $1 in show) echo localhost ;; *) echo "$@" >> "$SHIM_LOG" ;; esac
"""
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


FMAD = """#!/bin/sh
echo "$@" >> "$SHIM_LOG"
trap 'exit 75' USR1
[ -e "$SHIM_LOG.again" ] && exit 76
touch "$SHIM_LOG.again"
while true; do sleep 0.1; done
"""


def stand_in(folder: Path, **scripts: str) -> tuple[Path, dict[str, str]]:
    """Commands in place of SLURM's and others; the file they write to, and the environment that finds them."""
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    log = folder / "log"
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return log, {**os.environ, "PATH": path, "SHIM_LOG": str(log), "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7"}


def test_a_benchmark_run_goes_back_into_the_queue(tmp_path: Path) -> None:
    log, environment = stand_in(tmp_path, scontrol=SCONTROL, fmad=FMAD)
    command = ["bash", "launcher/slurm/bench.sbatch", "mode=one_model"]
    environment["CONFIG"] = "five.yaml"
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while not log.with_name("log.again").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=60)
    assert "stopped on request (code 75), back into the queue" in output
    started = "bench run --config five.yaml --max-restarts 3 mode=one_model\n"
    assert log.read_text() == f"{started}requeue 7\n"
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=60).returncode == 76
    assert log.read_text() == f"{started}requeue 7\n{started}"


def test_a_signalled_job_goes_back_into_the_queue_and_goes_on(job: Job, tmp_path: Path) -> None:
    options = ("train.steps=30", "train.checkpoint_every=100")
    log, environment = stand_in(tmp_path, scontrol=SCONTROL, srun=SRUN)
    slurm = {"JOB_NUM_NODES": "1", "JOB_NODELIST": "n", "NODEID": "0", "GPUS_ON_NODE": "2"}
    environment |= {"CONFIG": str(job.config()), **{f"SLURM_{key}": value for key, value in slurm.items()}}
    command = ["bash", "launcher/slurm/train.sbatch", "name=slurm", *options]
    # a training of another job on the same node
    other = [sys.executable, "-c", "import time; time.sleep(600)", "launcher/train.py"]

    with (
        subprocess.Popen(other, env={**environment, "SLURM_JOB_ID": "77"}) as bystander,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process,
    ):
        metrics = job.run("slurm") / "metrics.jsonl"
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=LAUNCH_SECONDS)
        assert bystander.poll() is None
        bystander.kill()
    assert "back into the queue" in output
    assert log.read_text() == "requeue 7\n"
    checkpoints = Checkpoints(str(job.run("slurm") / "checkpoints"))
    assert 4 <= checkpoints.steps()[-1] < 30

    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=LAUNCH_SECONDS)
    assert log.read_text() == "requeue 7\n"
    assert checkpoints.steps()[-1] == 30
    assert len(job.losses("slurm")) == 30  # each step once


def test_a_pod_is_done_when_the_detector_is_there(tmp_path: Path) -> None:
    """Stopped ranks end with 0, so the launcher does, and the pod must not."""
    (manifest,) = yaml.safe_load_all((ROOT / "launcher/kubernetes/train.yaml").read_text())
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    script = pod["containers"][0]["args"][0]
    for launcher, check, wanted in ((0, 0, 0), (0, 75, 75), (1, 0, 1)):
        line = '#!/bin/sh\necho "$0" "$@" >> "$SHIM_LOG"\nexit'
        log, environment = stand_in(tmp_path, accelerate=f"{line} {launcher}", fmad=f"{line} {check}")
        log.unlink(missing_ok=True)
        environment["JOB_COMPLETION_INDEX"] = "3"
        assert subprocess.run(["bash", "-c", script], env=environment, check=False).returncode == wanted
        launched, *asked = log.read_text().splitlines()
        options = launched.partition("launcher/train.py ")[2]
        assert options.startswith("--config configs/demo.yaml name=big")
        assert asked == ([f"{tmp_path}/fmad train {options} --is-complete"] if launcher == 0 else [])


def test_manifests_are_valid_yaml() -> None:
    names = sorted(path.stem for path in (ROOT / "launcher/accelerate").glob("*.yaml"))
    assert names == ["cpu", "multi_node", "one_gpu", "one_node"]
    for name in names:
        tree = yaml.safe_load((ROOT / f"launcher/accelerate/{name}.yaml").read_text())
        assert (tree["distributed_type"], tree["use_cpu"]) == ("DEEPSPEED", False)
