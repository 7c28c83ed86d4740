"""A rank does what it is given, and its end tells the parent how that went."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World

PROGRAM = """
import sys
from pathlib import Path
from fmad_dist.launch.rank import run_rank
from tests.launch.test_rank import job
run_rank(job, sys.argv[1], Path(sys.argv[2]))
print("returned", flush=True)
"""


def job(options: str, world: World) -> None:
    """What the rank was given, or the refusal or the fault that it was asked for."""
    if options == "refuse":
        raise UserError("--limit: give a positive number.")
    print(Path("/proc/self/comm").read_text().strip(), world.rank, 1 / int(options))


def rank(options: str, message: Path) -> subprocess.CompletedProcess[str]:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a launcher's
    agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, options, str(message)],
        env={**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", **agent},
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
    )


def test_success_is_a_return(tmp_path: Path) -> None:
    ended = rank("4", tmp_path / "error")
    assert (ended.returncode, ended.stdout) == (0, "fmad rank 1 1 0.25\nreturned\n"), ended.stderr


def test_a_fault_is_shown(tmp_path: Path) -> None:
    ended = rank("0", tmp_path / "error")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("listens", [True, False])
def test_a_refusal_is_one_sentence_for_the_parent(tmp_path: Path, listens: bool) -> None:
    message = tmp_path / "error" if listens else tmp_path / "gone" / "error"
    ended = rank("refuse", message)
    assert (ended.returncode, ended.stdout) == (2, "")
    sentence = "--limit: give a positive number."
    if listens:
        assert json.loads(message.read_text()) == {"text": sentence, "code": 2}
    assert ended.stderr == ("" if listens else f"error: {sentence}\n")
