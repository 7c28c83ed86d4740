"""A run directory whose training has just begun, and the data of a training."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fmad_dist.config.files import dump_config
from fmad_dist.config.run import RunConfig, TrainConfig
from fmad_dist.stream.image_source import ImageSource
from fmad_dist.stream.mixture import Mixture, split_normals
from fmad_dist.training.checkpoint import Checkpoints
from tests.support.scored_images import few_draws, make_scored  # noqa: F401  # fixtures


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


@pytest.fixture(scope="module")
def data(tiny_mixture: Mixture) -> SimpleNamespace:
    split = split_normals(tiny_mixture, 0.4)
    return SimpleNamespace(mixture=tiny_mixture, split=split, images=ImageSource(tiny_mixture, 64))
