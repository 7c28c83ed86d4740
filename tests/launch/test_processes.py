"""Local ranks: a single one is this process, others are copies of one process that has imported what they need."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.run import RunConfig
from fmad_dist.launch import processes
from fmad_dist.launch.processes import run_job

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys
from pathlib import Path
from fmad_dist.launch.processes import run_job
from tests.launch.test_processes import note_rank, options_in
before = dict(os.environ)
run_job(note_rank, options_in(Path(sys.argv[1])), 2, max_restarts=1, libraries="fmad_dist.training.libraries")
assert os.environ == before, "another launch is of another number of ranks"
"""


@dataclass(frozen=True)
class Options:
    config: RunConfig
    out: Path
    limit: float


def options_in(folder: Path) -> Options:
    config = RunConfig.model_validate({"train": {"steps": 7}, "scorer": {"name": "inversion", "steps": 3}})
    return Options(config, folder, float("inf"))


def note_rank(options: Options, world: World) -> None:
    """What each rank was given and found; the first start of the second one dies."""
    import torch

    if world.rank == 1 and not (options.out / "died").exists():
        (options.out / "died").write_text("")
        os._exit(9)
    world.join()
    template = psutil.Process().parent()
    assert template is not None
    assert torch.get_num_threads() == max(1, (os.cpu_count() or 1) // 2)
    assert float((torch.ones(300, 300) @ torch.ones(300, 300)).sum()) == 300.0**3  # threads work in a copy
    threads = {Path(f"/proc/{template.pid}/task/{one.id}/comm").read_text().strip() for one in template.threads()}
    told = {"pid": template.pid, "threads": sorted(threads), "deepspeed": "deepspeed" in sys.modules}
    (options.out / str(world.rank)).write_text(repr((told, options, world.gather(world.rank))))
    world.leave()


@pytest.mark.slow
def test_ranks_are_copies_also_after_a_restart(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "died"]
    first, second = ((tmp_path / str(number)).read_text() for number in range(2))
    assert first == second  # copies of one process
    # other threads are not copied; the one of the allocator inside pyarrow, if it is there, knows of forks
    assert re.search(r"'threads': \['fmad template'(, 'jemalloc_bg_thd')?\], 'deepspeed': True", first), first
    assert first.endswith(f"{options_in(tmp_path)!r}, [0, 1])")


def refuse(options: Options, world: World) -> None:
    """Note the start, and refuse."""
    with open(options.out / f"starts-{world.rank}", "a") as file:
        file.write("x")
    raise UserError("manifest.json: not there.")


@pytest.mark.slow
def test_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    program = PROGRAM.replace("note_rank", "refuse").replace("max_restarts=1", "max_restarts=3")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert "UserError: manifest.json: not there." in done.stderr
    assert {path.read_text() for path in tmp_path.iterdir()} == {"x"}


def test_a_single_rank_is_this_process_unless_it_needs_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(
        processes, "launch", lambda job, options, count, restarts, asked, libraries: done.append((count, restarts))
    )

    def job(options: str, world: World) -> None:
        done.append((options, world))

    assert run_job(job, "given", 1, check=done.append)
    assert run_job(job, "given", 1, max_restarts=2, needs_launcher=True)
    assert run_job(job, "given", 3, check=done.append)
    assert done == [1, ("given", World()), (1, 2), 3, (3, 0)]
