"""Small scored images."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fmad_dist.evaluation import bootstrap
from fmad_dist.evaluation.state import ScoredImage

MakeScored = Callable[..., ScoredImage]


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    """Bootstraps in these tests are small, because many tests compute results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "DRAWS", 300)
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
