"""Pixel metrics against exact references, worked examples, and their invariances."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from fmad_dist.evaluation.curves import average_precision, best_f1, pro_curve, rank_pixels, roc_curve
from fmad_dist.evaluation.histogram import PixelHistogram, ordered_keys
from fmad_dist.evaluation.regions import REGION_UNIT, label_regions

TOLERANCE = 1e-4
Transform = Callable[[np.ndarray], np.ndarray]

TRANSFORMS: dict[str, Transform] = {
    "smooth": lambda x: x,
    "negative": lambda x: x - 100.0,
    "exponential": lambda x: np.exp(1.3 * x),
    "likelihood": lambda x: 4096.0 + 5 * x,
    "huge range": lambda x: np.sinh(6 * x),
    "squared norm": lambda x: (x + 8.0) ** 4,
    "tiny": lambda x: 1e-30 * np.exp(x),
    "tied": lambda x: np.round(x * 4) / 4,
    "clipped": lambda x: np.maximum(x, 0.7),
    "binary": lambda x: (x > 1.5).astype(float),
    "constant": lambda x: np.full_like(x, 3.0),
}


def smooth_maps(num_maps: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise maps float64 [n, size, size] with raised rectangles, and their masks; every third image is normal."""
    rng = np.random.default_rng(seed)
    maps = np.stack([ndimage.gaussian_filter(rng.normal(size=(size, size)), 2) * 6 for _ in range(num_maps)])
    masks = np.zeros(maps.shape, dtype=bool)
    for i in range(num_maps):
        for _ in range(int(rng.integers(1, 4)) if i % 3 else 0):
            (y, x), (height, width) = rng.integers(0, size - 8, 2), rng.integers(1, 12, 2)
            masks[i, y : y + height, x : x + width] = True
        maps[i] += 2.5 * ndimage.gaussian_filter(masks[i].astype(float), 1.5)
    return maps, masks


def pixel_metrics(maps: np.ndarray, masks: np.ndarray, max_bins: int = 2**17, connectivity: int = 8) -> np.ndarray:
    """AUROC, AP, F1max and AUPRO at 0.3 by the histogram."""
    histogram = PixelHistogram(max_bins)
    for anomaly_map, mask in zip(maps.astype(np.float32), masks, strict=True):
        histogram.add(anomaly_map, mask, connectivity)
    ranked = rank_pixels(histogram)
    pro = pro_curve(histogram).area(0.3)
    return np.array([roc_curve(ranked).area(), average_precision(ranked), best_f1(ranked)[0], pro])


def exact_metrics(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    scores, labels = maps.astype(np.float32).ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    total = np.maximum(precision + recall, 1e-12)
    auroc, ap = roc_auc_score(labels, scores), average_precision_score(labels, scores)
    return np.array(
        [auroc, ap, np.max(2 * precision * recall / total), exact_aupro(maps.astype(np.float32), masks, 0.3)]
    )


def exact_aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Every distinct score as a threshold: the mean overlap of the regions over the share of normal pixels called."""
    regions = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [np.sort(anomaly_map[labels == k]) for k in range(1, count + 1)]
    normal = np.sort(maps[~masks])
    thresholds = np.unique(maps)[::-1]
    fpr = np.concatenate([[0.0], 1 - np.searchsorted(normal, thresholds) / normal.size])
    overlap = np.mean([1 - np.searchsorted(scores, thresholds) / scores.size for scores in regions], axis=0)
    pro = np.concatenate([[0.0], overlap])
    below = np.flatnonzero(fpr <= limit)
    x, y = fpr[below], pro[below]
    if below[-1] + 1 < fpr.size:
        after = below[-1] + 1
        slope = (pro[after] - pro[after - 1]) / (fpr[after] - fpr[after - 1])
        x, y = np.append(x, limit), np.append(y, pro[after - 1] + slope * (limit - fpr[after - 1]))
    return float(np.trapezoid(y, x) / limit)


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
        histogram.add(anomaly_map, mask, 8)
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


def test_regions_weigh_the_same_whatever_their_size() -> None:
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]], dtype=bool)
    eight, four = label_regions(mask, 8), label_regions(mask, 4)
    third = REGION_UNIT // 3
    assert (eight.num_regions, eight.weights.tolist()) == (2, [REGION_UNIT // 2, REGION_UNIT // 2, third, third, third])
    assert (four.num_regions, four.weights.tolist()) == (3, [REGION_UNIT, REGION_UNIT, third, third, third])


def test_keys_order_like_the_floats() -> None:
    values = np.array(
        [-np.finfo(np.float32).max, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1.0, np.nextafter(1, 2), 3e38], np.float32
    )
    keys = ordered_keys(values).astype(np.int64)
    assert keys[3] == keys[4]
    np.testing.assert_array_equal(np.sign(np.diff(keys)), np.sign(np.diff(values)))


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=120),
    max_bins=st.integers(2, 40),
    cuts=st.lists(st.integers(0, 120), max_size=4),
    flush=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_counts_do_not_depend_on_order_splits_or_merges(
    values: list[float], max_bins: int, cuts: list[int], flush: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = np.array(values, dtype=np.float32)[:, None]
    masks = rng.random(scores.shape) < 0.3
    whole = PixelHistogram(max_bins)
    for score, mask in zip(scores, masks, strict=True):
        whole.add(score[None], mask[None], 8)
    parts = []
    for rows in np.split(rng.permutation(len(scores)), sorted(min(cut, len(scores)) for cut in cuts)):
        part = PixelHistogram(max_bins)
        for row in rows:
            part.add(scores[row][None], masks[row][None], 8)
            if flush:
                assert part.bits > 0  # reading brings pending pixels in
        parts.append(part)
    while len(parts) > 1:
        part = parts.pop(int(rng.integers(len(parts))))
        parts[int(rng.integers(len(parts)))].merge(part)
    got, expected = parts[0].bins, whole.bins
    assert expected.keys.size <= max_bins
    assert (parts[0].shift, parts[0].num_regions) == (whole.shift, whole.num_regions)
    for name in ("keys", "normal", "hit", "anomalous", "weight"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), strict=True)
