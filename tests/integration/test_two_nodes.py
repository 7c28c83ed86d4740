"""Two nodes: two network namespaces joined by a cable, each with one to the machine, where a real S3 server runs."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from jobs import LAUNCH_SECONDS, Job, fmad
from radosgw import Radosgw
from test_training_jobs import TOLERANCE, assert_same_weights

from fmad_dist.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FIRST = "10.77.0.1"


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """The names of two namespaces: .1 and .2 of 10.77.0.0 between them, 10.78 and 10.79 to the machine."""
    names = ("fmad-node-0", "fmad-node-1")
    if os.geteuid() != 0 or any(ip("netns", "add", name).returncode for name in names):
        assert not os.environ.get("CI"), "network namespaces need root and iproute2"
        pytest.skip("network namespaces need root and iproute2")
    try:
        commands = ["link add cable0 netns fmad-node-0 type veth peer name cable1 netns fmad-node-1"]
        for n, name in enumerate(names):
            commands.append(f"link add fmad-up{n} type veth peer name up{n} netns {name}")
            commands.append(f"addr add 10.{78 + n}.0.254/24 dev fmad-up{n}")
            commands.append(f"link set fmad-up{n} up")
            for device, address in ((f"cable{n}", f"10.77.0.{1 + n}"), (f"up{n}", f"10.{78 + n}.0.1")):
                commands += [f"-n {name} addr add {address}/24 dev {device}", f"-n {name} link set {device} up"]
            commands.append(f"-n {name} link set lo up")
        for command in commands:
            assert ip(*command.split()).returncode == 0, command
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def ip(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *words], check=False)


def on_both(nodes: Sequence[str], server: Radosgw, script: str, *words: str) -> list[tuple[int, str, str]]:
    """`accelerate launch` of a script with one process per node; (exit code, output, errors) of each node."""
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
        environment = {**os.environ, **reached, "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
        wrapped = ["ip", "netns", "exec", name, *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        running.append(subprocess.Popen(wrapped, **pipes))  # type: ignore[call-overload]
    found = []
    for process in running:
        output, errors = process.communicate(timeout=LAUNCH_SECONDS)
        found.append((process.returncode, output, errors))
    return found


def test_zero3_on_two_nodes_saves_to_s3_and_resumes_on_one(
    nodes: tuple[str, str], radosgw: Radosgw, bucket: str, job: Job, zero2: Path
) -> None:
    url = f"train.checkpoint_url={bucket}/checkpoints"
    words = ("--config", str(job.config()), "name=nodes", "train.zero_stage=3", url)
    examined = on_both(nodes, radosgw, "doctor.py", *words)
    assert [code for code, _, _ in examined] == [0, 0], examined
    report = examined[0][1]
    assert "ok    processes: 2 on 2 nodes have met" in report
    assert f"ok    write, read and delete {bucket}/checkpoints/nodes: by 2 processes" in report
    assert "FAIL" not in report

    trained = on_both(nodes, radosgw, "train.py", *words)
    assert [code for code, _, _ in trained] == [0, 0], trained
    np.testing.assert_allclose(job.losses("nodes"), job.losses("zero2"), rtol=TOLERANCE)
    assert job.samples("nodes") == job.samples("zero2")
    assert_same_weights(job.run("nodes"), zero2, 2e-4)
    checkpoints = Checkpoints(f"{bucket}/checkpoints/nodes")
    assert checkpoints.steps() == [3, 6]
    assert {name.split("-")[1] for name in checkpoints.read(6).files} == {"00000", "00001"}  # both nodes wrote

    checkpoints.remove(6)
    config = ("--config", str(job.config()), "name=nodes", url, "--processes", "1")
    again = fmad("train", *config)
    assert f"resumed nodes at step 3 from {bucket}/checkpoints/nodes" in again.stdout
    np.testing.assert_allclose(job.losses("nodes"), job.losses("zero2"), rtol=TOLERANCE)

    exported = fmad("export", "--run", f"{bucket}/checkpoints/nodes", "--out", str(job.root / "exported"))
    assert "detector of step 6" in exported.stdout
    trained_here = (job.run("nodes") / "detector" / "weights.safetensors").read_bytes()
    assert (job.root / "exported" / "weights.safetensors").read_bytes() == trained_here
    fmad("evaluate", "--model", str(job.root / "exported"), "--manifest", job.manifest, "--out", str(job.root / "e"))
