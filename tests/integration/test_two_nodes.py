"""Two nodes: two network namespaces joined by a cable, each with one to the machine, where the real servers run: S3,
and MLflow with users, its runs in PostgreSQL and its artifacts in S3."""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from s3fs import S3FileSystem

from fmad_dist.training.checkpoint import Checkpoints
from tests.integration.jobs import LAUNCH_SECONDS, Job, fmad
from tests.integration.test_training_jobs import TOLERANCE, assert_same_weights
from tests.support.mlflow_server import MlflowServer
from tests.support.radosgw import Radosgw

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FIRST = "10.77.0.1"
MACHINE = "10.78.0.254"  # as the first node sees it


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """The names of two namespaces: .1 and .2 of 10.77.0.0 between them, 10.78 and 10.79 to the machine."""
    names = ("fmad-node-0", "fmad-node-1")
    with one_at_a_time():
        remove(names)  # of a run that was killed
        if os.geteuid() != 0 or any(ip("netns", "add", name).returncode for name in names):
            assert not os.environ.get("CI"), "network namespaces need root and iproute2"
            pytest.skip("network namespaces need root and iproute2")
        yield from joined(names)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Another run on this machine has the same addresses: it is waited for. A killed one holds nothing."""
    with (Path(tempfile.gettempdir()) / "fmad-two-nodes.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def joined(names: tuple[str, str]) -> Iterator[tuple[str, str]]:
    try:
        commands = [f"link add cable0 netns {names[0]} type veth peer name cable1 netns {names[1]}"]
        for n, name in enumerate(names):
            commands.append(f"link add fmad-up{n} type veth peer name up{n} netns {name}")
            commands.append(f"addr add 10.{78 + n}.0.254/24 dev fmad-up{n}")
            commands.append(f"link set fmad-up{n} up")
            for device, address in ((f"cable{n}", f"10.77.0.{1 + n}"), (f"up{n}", f"10.{78 + n}.0.1")):
                commands += [f"-n {name} addr add {address}/24 dev {device}", f"-n {name} link set {device} up"]
            commands.append(f"-n {name} link set lo up")
        for command in commands:
            done = ip(*command.split())
            assert done.returncode == 0, (command, done.stderr)
        yield names
    finally:
        remove(names)


def remove(names: Sequence[str]) -> None:
    for n, name in enumerate(names):
        ip("netns", "del", name)
        ip("link", "del", f"fmad-up{n}")  # is there as long as a process lives in the namespace


def ip(*words: str) -> subprocess.CompletedProcess[bytes]:
    if not shutil.which("ip"):
        return subprocess.CompletedProcess(words, 127, b"", b"there is no iproute2")
    return subprocess.run(["ip", *words], check=False, capture_output=True)


@pytest.fixture
def mlflow_environment(nodes: tuple[str, str], bucket: str, database: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a client of the server needs, on the first node and on the machine."""
    password = secrets.token_hex(16)
    server = MlflowServer(tmp_path / "mlflow", database, f"{bucket}/mlflow", ("inspector", password), host="0.0.0.0")
    server.start()
    user = {"MLFLOW_TRACKING_USERNAME": "inspector", "MLFLOW_TRACKING_PASSWORD": password}
    yield {"MLFLOW_TRACKING_URI": f"http://{MACHINE}:{server.port}", **user}
    server.kill()


def start_on_both(
    nodes: Sequence[str], server: Radosgw, mlflow: dict[str, str], script: str, *words: str
) -> list[subprocess.Popen[str]]:
    """`accelerate launch` of a script with one process per node."""
    running = []
    for rank, name in enumerate(nodes):
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(ROOT / "launcher/accelerate/multi_node.yaml"), "--num_machines", "2"]
        command += ["--num_processes", "2", "--machine_rank", str(rank), "--main_process_ip", FIRST]
        command += [str(ROOT / "launcher" / script), *words]
        reached = {
            "AWS_ENDPOINT_URL": f"http://10.{78 + rank}.0.254:{server.port}",
            "GLOO_SOCKET_IFNAME": f"cable{rank}",
        }
        environment = {**os.environ, **reached, **mlflow, "OMP_NUM_THREADS": "1"}
        wrapped = ["ip", "netns", "exec", name, *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        running.append(subprocess.Popen(wrapped, **pipes))  # type: ignore[call-overload]
    return running


def ends_of(running: Sequence[subprocess.Popen[str]], seconds: float = LAUNCH_SECONDS) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of each node."""
    found = []
    for process in running:
        output, errors = process.communicate(timeout=seconds)
        found.append((process.returncode, output, errors))
    return found


def on_both(*arguments: Any) -> list[tuple[int, str, str]]:
    """Start on both nodes and wait."""
    return ends_of(start_on_both(*arguments))


def test_zero3_on_two_nodes_saves_to_s3_and_resumes_on_one(
    nodes: tuple[str, str],
    radosgw: Radosgw,
    bucket: str,
    mlflow_environment: dict[str, str],
    job: Job,
    zero2: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"train.checkpoint_url={bucket}/checkpoints"
    words = ("--config", str(job.config()), "name=nodes", "train.zero_stage=3", url, "tracking.mlflow=true")
    examined = on_both(nodes, radosgw, mlflow_environment, "doctor.py", *words)
    assert [code for code, _, _ in examined] == [0, 0], examined
    report = examined[0][1]
    assert "ok    processes: 2 on 2 nodes have met" in report
    assert f"ok    write, read and delete {bucket}/checkpoints/nodes: by 2 processes" in report
    assert "FAIL" not in report

    trained = on_both(nodes, radosgw, mlflow_environment, "train.py", *words)
    assert [code for code, _, _ in trained] == [0, 0], trained
    np.testing.assert_allclose(job.losses("nodes"), job.losses("zero2"), rtol=TOLERANCE)
    assert job.samples("nodes") == job.samples("zero2")
    assert_same_weights(job.run("nodes"), zero2, 2e-4)
    checkpoints = Checkpoints(f"{bucket}/checkpoints/nodes")
    assert checkpoints.steps() == [3, 6]
    assert {name.split("-")[1] for name in checkpoints.read(6).files} == {"00000", "00001"}  # both nodes wrote

    run_id = the_only_run(mlflow_environment, monkeypatch)

    checkpoints.remove(6)
    config = ("--config", str(job.config()), "name=nodes", url, "tracking.mlflow=true", "--processes", "1")
    again = fmad("train", *config, **mlflow_environment)
    assert f"resumed nodes at step 3 from {bucket}/checkpoints/nodes" in again.stdout
    np.testing.assert_allclose(job.losses("nodes"), job.losses("zero2"), rtol=TOLERANCE)

    assert the_only_run(mlflow_environment, monkeypatch) == run_id
    shown = fmad("registry", "show", "models:/fmad@candidate", **mlflow_environment).stdout
    assert f"MLflow run {run_id}" in shown
    stored = S3FileSystem(use_listings_cache=False).find(f"{bucket}/mlflow")
    assert [name for name in stored if name.endswith("weights.safetensors")]
    wrong = mlflow_environment | {"MLFLOW_TRACKING_PASSWORD": "guessed"}
    refused = fmad("registry", "list", check=False, **wrong)
    assert refused.returncode == 2
    assert "refuses this user; check MLFLOW_TRACKING_USERNAME" in refused.stderr

    exported = fmad("export", "--run", f"{bucket}/checkpoints/nodes", "--out", str(job.root / "exported"))
    assert "detector of step 6" in exported.stdout
    trained_here = (job.run("nodes") / "detector" / "weights.safetensors").read_bytes()
    assert (job.root / "exported" / "weights.safetensors").read_bytes() == trained_here
    fmad("evaluate", "--model", str(job.root / "exported"), "--data", job.manifest, "--out", str(job.root / "e"))


def the_only_run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of the one MLflow run that there is: finished, with the loss of every step exactly once."""
    from mlflow import MlflowClient

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client: Any = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    experiments = [found.experiment_id for found in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in history) == [1, 2, 3, 4, 5, 6]
    return str(run.info.run_id)


def processes_on(node: str) -> list[psutil.Process]:
    return [psutil.Process(int(pid)) for pid in ip("netns", "pids", node).stdout.split()]


def rank_on(node: str) -> psutil.Process:
    """The training process of a node: the child of its launcher."""
    (rank,) = (one for one in processes_on(node) if one.cmdline()[1:2] == ["-u"])
    return rank


def test_a_node_of_two_dies_is_preempted_and_hangs(
    nodes: tuple[str, str], radosgw: Radosgw, bucket: str, job: Job
) -> None:
    """The other node ends within seconds, whatever it waits for, and the same command goes on: no sample is lost."""
    words = ("--config", str(job.config()), "name=lost", f"train.checkpoint_url={bucket}/checkpoints")
    words += ("train.checkpoint_every=2", "train.steps=40", "train.hang_s=10")
    metrics, checkpoints = job.run("lost") / "metrics.jsonl", Checkpoints(f"{bucket}/checkpoints/lost")

    @contextmanager
    def training(step: int) -> Iterator[list[subprocess.Popen[str]]]:
        """Both nodes at work, `step` done."""
        running = start_on_both(nodes, radosgw, {}, "train.py", *words)
        try:
            while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
                assert running[0].poll() is None, running[0].communicate()
                time.sleep(0.02)
            yield running
        finally:
            for node in nodes:
                for one in processes_on(node):
                    one.kill()

    with training(5) as running:
        for one in processes_on(nodes[1]):
            one.kill()
        code, _, errors = ends_of(running[:1], 60)[0]
    assert code == 1
    assert "rank 0 died" in errors or "Connection" in errors, errors
    saved = checkpoints.steps()[-1]
    assert saved >= 2  # step 4 may still be on its way when the node dies

    with training(saved + 5) as running:
        rank_on(nodes[1]).send_signal(signal.SIGUSR1)
        ended = ends_of(running, 60)
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert f"resumed lost at step {saved} from {bucket}/checkpoints/lost" in ended[0][1]
    assert "stopped: lost was asked to stop and saved step" in ended[0][2]
    saved = checkpoints.steps()[-1]
    assert len(metrics.read_text().splitlines()) == saved

    with training(saved + 3) as running:
        stopped = rank_on(nodes[1])
        stopped.suspend()
        code, _, errors = ends_of(running[:1], 90)[0]
        stopped.resume()  # the node is back, and alone
        ends_of(running[1:], 60)
    assert code == 1
    assert "rank 0: no training step for 10 s after step" in errors

    fmad("train", *words, "--processes", "1")
    assert len(job.losses("lost")) == 40
    assert sorted(job.samples("lost")) == list(range(40 * 8))
