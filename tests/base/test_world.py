import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.base.world import World

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK")


def test_a_plain_start_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert World.from_environment() == World(rank=0, size=1, local_rank=0, node=0)
    assert World.from_environment().is_main


def test_the_launchers_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("11", "16", "3", "1"), strict=True):
        monkeypatch.setenv(name, value)
    world = World.from_environment()
    assert world == World(rank=11, size=16, local_rank=3, node=1)
    assert not world.is_main


@given(st.integers(0, 500), st.integers(1, 70))
def test_shares_are_contiguous_complete_and_even(num_items: int, size: int) -> None:
    shares = [World(rank, size).share(num_items) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(num_items))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_shares_by_hand() -> None:
    assert [World(rank, 3).share(7) for rank in range(3)] == [range(3), range(3, 5), range(5, 7)]
    assert [len(World(rank, 4).share(2)) for rank in range(4)] == [1, 1, 0, 0]


def test_progress_of_a_share_says_so() -> None:
    assert World().own("predict") == "predict"
    assert World(rank=1, size=4).own("predict") == "predict (this process of 4)"


FILL = """
import sys
import numpy as np
from fmad_dist.base.world import World

world = World.from_environment()
world.join()
values = np.zeros((2, 3), dtype=np.float16)
values[world.rank] = [-0.0, np.nan, 6e-8] if world.rank else [1.5, -np.inf, 2.0]
np.save(sys.argv[1] + f"/{world.rank}.npy", world.combined(values))
world.leave()
"""


def test_what_two_processes_fill_is_put_together_bit_by_bit(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    started = [subprocess.Popen(command, env={**common, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    wanted = np.array([[1.5, -np.inf, 2.0], [-0.0, np.nan, 6e-8]], dtype=np.float16)
    for rank in range(2):
        assert np.load(tmp_path / f"{rank}.npy").tobytes() == wanted.tobytes()
