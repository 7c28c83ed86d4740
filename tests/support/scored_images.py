"""Small scored images, as fixtures of the tests of metrics, evaluation and reports."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics import bootstrap
from fmad_dist.metrics.state import EvaluationState, ScoredImage

MakeScored = Callable[..., ScoredImage]
PROTOCOL = Protocol(map_size=8, histogram_bins=1024)


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    """Bootstraps in these tests are small, because many tests compute results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "DRAWS", 250)
        yield


@pytest.fixture
def make_scored() -> MakeScored:
    """Builds a `ScoredImage` of map size 8 whose map is noise of the given seed."""

    def make(name: str, label: int = 0, seed: int = 0, class_name: str = "toy/disc", **changes: object) -> ScoredImage:
        rng = np.random.default_rng(seed)
        mask = np.zeros((8, 8), dtype=bool)
        mask[2:5, 3:6] = label == 1
        values: dict[str, object] = {
            "sample_id": name,
            "class_name": class_name,
            "label": label,
            "defect_type": "scratch" if label else "good",
            "image_score": float(rng.normal() + label),
            "anomaly_map": (rng.normal(size=(8, 8)) + mask).astype(np.float32),
            "mask": mask,
            "image": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),
        }
        return ScoredImage(**(values | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def images(make_scored: MakeScored) -> list[ScoredImage]:
    """Two classes of toy, 32 images of which 12 are anomalous: more pixels than bins, and tied image scores."""
    names = [f"toy/{kind}/test/{i:02d}" for kind in ("disc", "ring") for i in range(16)]
    made = [make_scored(n, int(i % 8 > 4), i, class_name=n.rsplit("/", 2)[0]) for i, n in enumerate(names)]
    return [*made[:-1], make_scored(names[-1], 1, 31, class_name="toy/ring", image_score=made[-2].image_score)]


@pytest.fixture
def images_of_two_datasets(make_scored: MakeScored) -> list[ScoredImage]:
    """Two classes of toy and one of other, 8 images each."""
    names = [f"{kind}/test/{i:02d}" for kind in ("toy/disc", "toy/ring", "other/rod") for i in range(8)]
    return [make_scored(name, int(i % 3 == 0), i, name.rsplit("/", 2)[0]) for i, name in enumerate(names)]


def state_of(images: list[ScoredImage], protocol: Protocol = PROTOCOL) -> EvaluationState:
    state = EvaluationState(protocol)
    for image in images:
        state.update(image)
    return state
