"""Small converted datasets, a small backbone and a small detector that many tests share. They must not be changed."""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from fmad_dist.base.process import spare_collector
from fmad_dist.stream.mixture import Mixture
from tests.support.absent_gpu import absent_gpu  # noqa: F401  # a fixture for all tests
from tests.support.browsers import chromium  # noqa: F401  # a fixture for all tests
from tests.support.small_parts import SIDE, MakeDetector, build_dataset, build_detector
from tests.support.storage_servers import bucket, database, moto_bucket, moto_server, radosgw  # noqa: F401  # fixtures for all tests

if TYPE_CHECKING:
    from fmad_dist.detector.detector import Detector
    from fmad_dist.features.backbones import Backbone

settings.register_profile("shared-machine", deadline=None, max_examples=50)  # a busy machine is not a failure
settings.load_profile("shared-machine")
spare_collector()  # an eighth of the time of tests in one process


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors on a busy machine: threads that wait for each other cost more than they save."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three classes with 5, 7 and 12 training images of 64 px and two test images each. Read only."""
    return build_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_copy(tiny_url: str, tmp_path: Path) -> Path:
    """A copy of the tiny dataset that a test may damage."""
    return Path(shutil.copytree(tiny_url, tmp_path / "own"))


@pytest.fixture(scope="session")
def alpha_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another dataset, whose name sorts before the first: two classes with 2 and 3 training images. Read only."""
    return build_dataset(tmp_path_factory.mktemp("alpha"), "alpha", {"rod": 2, "cap": 3}, side=16)


@pytest.fixture(scope="session")
def other_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset to stand beside the tiny one: two classes with 3 and 4 training images of 64 px. Read only."""
    return build_dataset(tmp_path_factory.mktemp("other"), "other", {"rod": 3, "cap": 4})


@pytest.fixture(scope="session")
def tiny_mixture(tiny_url: str) -> Mixture:
    return Mixture.load([tiny_url])


@pytest.fixture(scope="session")
def backbone() -> "Backbone":
    """EfficientNet-Lite0 with its bundled weights on 64 px images and a 4 x 4 grid. Read only."""
    from fmad_dist.features.backbones import FeatureSpec, load_backbone

    return load_backbone(FeatureSpec("tf_efficientnet_lite0", (1, 2), 4, SIDE))


@pytest.fixture(scope="session")
def make_detector(backbone: "Backbone") -> MakeDetector:
    """Builds detectors with random flow weights: `make_detector(thresholds, scorer=..., ...)`."""

    def make(thresholds: Sequence[float], **changes: object) -> "Detector":
        return build_detector(backbone, thresholds, **changes)

    return make


@pytest.fixture(scope="session")
def _shared_detector(make_detector: MakeDetector) -> "Detector":
    return make_detector((1.0, 2.0))


@pytest.fixture
def tiny_detector(_shared_detector: "Detector") -> "Detector":
    """A calibrated detector of two classes; every test has its own."""
    return copy.deepcopy(_shared_detector)
