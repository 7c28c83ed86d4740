"""A rank that ends early ends the others within seconds, with its sentence; real processes over gloo."""

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.distributed import HashStore, TCPStore

from fmad_dist.base.companions import Notes
from fmad_dist.base.errors import UserError

RANK = """
import sys, time
from datetime import timedelta
from fmad_dist.base import companions
from fmad_dist.base.errors import UserError
from fmad_dist.base.process import as_rank
from fmad_dist.base.stopping import serve_stop_signal
from fmad_dist.base.world import World
companions.GRACE_S = 1.0
serve_stop_signal()
with as_rank():
    world = World.from_environment()
    with companions.ending_together(world):
        if world.rank == 0:
            print("here", flush=True)
            {first}
        world.join(timeout=timedelta(hours=1))
"""


def end_of_both(first: str, number: int = 0) -> list[tuple[int, str]]:
    """Exit code and errors of two ranks, of which the first does something else than to join, or gets a signal."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a launcher holds it, not a rank
    agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = []
    for rank in range(2):
        names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **agent}
        words = [sys.executable, "-c", RANK.format(first=first)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks.append(subprocess.Popen(words, env={**os.environ, **names}, **pipes))  # type: ignore[call-overload]
    if number:
        ranks[0].stdout.readline()
        ranks[0].send_signal(number)
    found = []
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        found.append((rank.returncode, errors))
    return found


@pytest.mark.slow
def test_what_ends_one_in_setup_ends_the_other() -> None:
    start = time.monotonic()
    for code, errors in end_of_both("raise UserError('manifest.json: cannot be read here.')"):
        assert (code, errors) == (2, "error: manifest.json: cannot be read here.\n")
    (first, second) = end_of_both("1 / 0")
    assert (first[0], second[0]) == (1, 1)
    assert "Traceback" in first[1]
    assert second[1] == "error: rank 0 died: division by zero\n"
    for code, errors in end_of_both("time.sleep(600)", signal.SIGUSR1):
        assert (code, errors.partition(" asked")[0]) == (0, "stopped:")  # 0, or a launcher would start it again
    assert time.monotonic() - start < 200


def test_bad_input_is_not_tried_again() -> None:
    store, refused, died = HashStore(), UserError("no such file"), UserError("rank 3 died")
    died.exit_code = 1
    Notes(store, 0).leave(died)
    Notes(store, 0).leave(refused)  # the first one stays
    Notes(store, 1).refuse_again()
    Notes(store, 1).leave(refused)
    with pytest.raises(UserError, match="no such file"):
        Notes(store, 2).refuse_again()
    assert str(Notes(store, 1).found()) == "no such file"
