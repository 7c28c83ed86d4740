"""Local ranks: a single one is this process, and others have the settings that users of `accelerate launch` have."""

from pathlib import Path

import pytest
import yaml

from fmad_dist.base.world import World
from fmad_dist.launch import processes
from fmad_dist.launch.processes import ACCELERATE_CONFIG, run_job

ROOT = Path(__file__).parents[2]


def test_the_configuration_is_that_of_one_node() -> None:
    ours, users = (
        yaml.safe_load(path.read_text()) for path in (ACCELERATE_CONFIG, ROOT / "launcher/accelerate/one_node.yaml")
    )
    assert ours | {"num_processes": users["num_processes"]} == users
    assert ACCELERATE_CONFIG.is_relative_to(ROOT / "fmad_dist")  # the wheel has no launcher/


def test_a_single_rank_is_this_process_unless_it_needs_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(
        processes, "launch", lambda job, options, count, restarts, asked: done.append((count, restarts))
    )

    def job(options: str, world: World) -> None:
        done.append((options, world))

    assert run_job(job, "given", 1, check=done.append)
    assert run_job(job, "given", 1, max_restarts=2, needs_launcher=True)
    assert run_job(job, "given", 3, check=done.append)
    assert done == [1, ("given", World()), (1, 2), 3, (3, 0)]
