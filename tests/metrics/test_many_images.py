"""The bootstrap of very many images: the intervals of the plain one, whatever the order, without a row per image."""

import numpy as np
import pytest

from fmad_dist.metrics.bootstrap import ImagePixels, class_draws, intervals
from fmad_dist.metrics.many_images import poisson_draws
from fmad_dist.metrics.results import ScoreRow
from tests.metrics.test_bootstrap import METRICS, pixels_of, rows_of

Scored = tuple[list[ScoreRow], dict[str, ImagePixels]]


@pytest.fixture
def scored() -> Scored:
    """Three hundred small maps, a third of them with a defect."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3 // 2
    masks = np.zeros((300, 8, 8), dtype=bool)
    masks[labels == 1, 2:5, 3:6] = True
    maps = rng.normal(size=(300, 8, 8)) + masks
    rows = rows_of(rng.normal(size=300) + 2 * labels, labels)
    return rows, pixels_of(rows, maps, masks)


def test_intervals_are_those_of_the_plain_bootstrap(scored: Scored) -> None:
    plain, many = (intervals(METRICS, draws(*scored, 0.3)[0]) for draws in (class_draws, poisson_draws))
    assert plain.keys() == many.keys()
    for name, (low, high) in plain.items():
        assert many[name] == pytest.approx((low, high), abs=0.25 * (high - low)), name


def test_the_order_changes_nothing(scored: Scored) -> None:
    rows, pixels = scored
    found = poisson_draws(rows, pixels, 0.3)
    again = poisson_draws(rows[::-1], pixels, 0.3)
    assert intervals(METRICS, found[0]) == intervals(METRICS, again[0])
    assert found[1].keys() == {"good"}
    np.testing.assert_array_equal(found[1]["good"]["aupro"], found[0]["aupro"])


def test_without_defects_or_maps_there_are_no_such_draws(scored: Scored) -> None:
    rows, pixels = scored
    normal = [row for row in rows if not row.label]
    assert poisson_draws(normal, pixels, 0.3) == ({}, {})
    assert poisson_draws(rows, {}, 0.3)[0].keys() == {"image_auroc", "image_ap"}
    assert poisson_draws(rows, pixels, 0.3, {"aupro"})[0].keys() == class_draws(rows, pixels, 0.3, {"aupro"})[0].keys()
