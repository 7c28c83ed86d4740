"""A run directory whose training has just begun."""

from pathlib import Path

import pytest

from fmad_dist.config import RunConfig, TrainConfig
from fmad_dist.config_files import dump_config
from fmad_dist.training.checkpoint import Checkpoints


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run of 30 steps."""
    config = RunConfig(name="run", output=str(tmp_path), train=TrainConfig(steps=30))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    return tmp_path / "run"


@pytest.fixture
def checkpoints(run: Path) -> Checkpoints:
    return Checkpoints(str(run / "checkpoints"))
