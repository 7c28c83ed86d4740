"""Ranks do what the parent has checked: the job and its options travel as they are."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from fmad_dist.base.errors import UserError
from fmad_dist.base.process import ERROR_FILE
from fmad_dist.base.world import World
from fmad_dist.config.run import RunConfig
from fmad_dist.launch.rank import read_job, write_job


@dataclass(frozen=True)
class Options:
    config: RunConfig
    out: Path
    data: tuple[str, ...]
    limit: float


def job(options: Options, world: World) -> None:
    """What the rank was given, or the refusal that it was asked for."""
    if options.limit < 0:
        raise UserError("--limit: give a positive number.")
    (options.out / f"rank-{world.rank}").write_text(repr(options))


def options_in(folder: Path, limit: float = float("inf")) -> Options:
    config = RunConfig.model_validate({"train": {"steps": 7}, "scorer": {"name": "inversion", "steps": 3}})
    return Options(config, folder, ("a", "b"), limit)


def rank(file: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a launcher's
    agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return subprocess.run(
        [sys.executable, "-m", "fmad_dist.launch.rank", str(file)],
        env={**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", **agent, **environment},
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
    )


def test_options_travel_as_they_are(tmp_path: Path) -> None:
    options = options_in(tmp_path)
    write_job(tmp_path / "job.json", job, options)
    assert read_job(tmp_path / "job.json") == (job, options)
    assert rank(tmp_path / "job.json").returncode == 0
    assert (tmp_path / "rank-1").read_text() == repr(options)


@pytest.mark.parametrize("listens", [True, False])
def test_a_refusal_is_one_sentence_for_the_parent(tmp_path: Path, listens: bool) -> None:
    write_job(tmp_path / "job.json", job, options_in(tmp_path, limit=-1.0))
    left = tmp_path / "error"
    ended = rank(tmp_path / "job.json", **({ERROR_FILE: str(left)} if listens else {}))
    assert ended.returncode == 2
    sentence = "--limit: give a positive number."
    if listens:
        assert json.loads(left.with_name("error.0.json").read_text()) == {"text": sentence, "code": 2}
    assert ended.stderr == ("" if listens else f"error: {sentence}\n")
