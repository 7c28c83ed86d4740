"""Pixel metrics against exact references, worked examples, and their invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from fmad_dist.metrics.curves import average_precision, best_f1, pro_curve, rank_pixels, rank_scores, roc_curve
from fmad_dist.metrics.histogram import MapPixels, PixelHistogram
from tests.support.pixel_maps import TRANSFORMS, exact_metrics, smooth_maps

TOLERANCE = 1e-4


def pixel_metrics(maps: np.ndarray, masks: np.ndarray, max_bins: int = 2**17, connectivity: int = 8) -> np.ndarray:
    """AUROC, AP, F1max and AUPRO at 0.3 by the histogram."""
    histogram = PixelHistogram(max_bins)
    for anomaly_map, mask in zip(maps.astype(np.float32), masks, strict=True):
        histogram.add(MapPixels.of(anomaly_map, mask, connectivity))
    ranked = rank_pixels(histogram)
    pro = pro_curve(histogram).area(0.3)
    return np.array([roc_curve(ranked).area(), average_precision(ranked), best_f1(ranked)[0], pro])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_matches_exact_references_on_every_kind_of_scores(name: str) -> None:
    maps, masks = smooth_maps(num_maps=24, size=96, seed=3)
    maps = TRANSFORMS[name](maps)
    np.testing.assert_allclose(pixel_metrics(maps, masks), exact_metrics(maps, masks), atol=TOLERANCE, rtol=0)


def test_is_exact_when_every_distinct_score_has_a_bin() -> None:
    maps, masks = smooth_maps(num_maps=6, size=48, seed=5)
    np.testing.assert_allclose(pixel_metrics(maps, masks), exact_metrics(maps, masks), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["negative", "exponential", "squared norm", "likelihood", "huge range", "tiny"])
def test_strictly_monotone_transforms_change_nothing(name: str) -> None:
    maps, masks = smooth_maps(num_maps=24, size=96, seed=7)
    grid = np.round(maps * 2**12) / 2**12  # so that float32 keeps every order after the transform
    moved = pixel_metrics(TRANSFORMS[name](grid), masks)
    np.testing.assert_allclose(moved, pixel_metrics(grid, masks), atol=TOLERANCE, rtol=0)


def test_error_bounds_hold_and_expose_a_histogram_that_is_too_coarse() -> None:
    maps, masks = smooth_maps(num_maps=12, size=64, seed=9)
    histogram = PixelHistogram(max_bins=64)
    for anomaly_map, mask in zip(maps.astype(np.float32), masks, strict=True):
        histogram.add(MapPixels.of(anomaly_map, mask, 8))
    roc, pro = roc_curve(rank_pixels(histogram)), pro_curve(histogram)
    exact = exact_metrics(maps, masks)
    assert histogram.bins.keys.size <= 64
    assert TOLERANCE < roc.largest_tie() < 0.05
    assert abs(roc.area() - exact[0]) <= roc.largest_tie()
    assert abs(pro.area(0.3) - exact[3]) <= pro.largest_tie(0.3)


def six_pixels(scores: list[float], mask: list[int]) -> np.ndarray:
    shape = (1, 2, 3)
    return pixel_metrics(np.array(scores).reshape(shape), np.array(mask, dtype=bool).reshape(shape))


def test_six_pixels_perfectly_ranked() -> None:
    np.testing.assert_allclose(six_pixels([6, 5, 1, 2, 3, 4], [1, 1, 0, 0, 0, 0]), [1, 1, 1, 1])


def test_six_pixels_by_hand() -> None:
    # descending: A .9, N .8, A .7, N .6 .5 .4 -> of the 8 pairs 7 are in order; AP = (1 + 2/3) / 2; F1 at .7 = 4/5.
    # AUPRO: one region, PRO .5 until FPR 1/4, then 1: (.5 * .25 + 1 * .05) / .3.
    got = six_pixels([0.9, 0.7, 0.8, 0.6, 0.5, 0.4], [1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(got, [7 / 8, 5 / 6, 4 / 5, 0.175 / 0.3])


def test_six_pixels_with_a_tie_across_the_limit() -> None:
    # A .9, then {A, N, N} tied at .5, then two N: AUROC = (4 + 2 + 2 * .5) / 8; AP = (1 + 2/4) / 2; F1 = 2/3 at both.
    # PRO rises from .5 at FPR 0 to 1 at FPR .5; at .3 it is .8: mean height .65.
    got = six_pixels([0.9, 0.5, 0.5, 0.5, 0.1, 0.1], [1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(got, [7 / 8, 3 / 4, 2 / 3, 0.65])


def ours(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    ranked = rank_scores(scores, labels)
    return [roc_curve(ranked).area(), average_precision(ranked), best_f1(ranked)[0]]


def reference(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return [roc_auc_score(labels, scores), average_precision_score(labels, scores), float(f1.max())]


@settings(max_examples=80, deadline=None)
@given(
    items=st.lists(st.tuples(st.one_of(st.integers(-3, 3), st.floats(-1e30, 1e30)), st.integers(0, 1)), max_size=60),
    exponent=st.sampled_from([-200, 0, 200]),
)
def test_matches_scikit_learn(items: list[tuple[float, int]], exponent: int) -> None:
    scores = np.array([0.0, 0.0, *(score for score, _ in items)]) * 10.0**exponent
    labels = np.array([0, 1, *(label for _, label in items)])
    np.testing.assert_allclose(ours(scores, labels), reference(scores, labels), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], [3 / 4, (1 + 2 / 3) / 2, 4 / 5]),
        ([1.0, 1.0, 1.0, 1.0], [0, 1, 0, 1], [1 / 2, 1 / 2, 2 / 3]),
        ([2.0, 1.0], [0, 1], [0, 1 / 2, 2 / 3]),
    ],
)
def test_worked_examples(scores: list[float], labels: list[int], expected: list[float]) -> None:
    np.testing.assert_allclose(ours(np.array(scores), np.array(labels)), expected, atol=1e-15)
