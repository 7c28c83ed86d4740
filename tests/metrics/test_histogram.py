"""The histogram of pixels: keys in the order of the scores, counts that no order or split changes, bounded memory."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.histogram import MapPixels, PixelHistogram, bin_middles, ordered_keys
from tests.support.pixel_maps import smooth_maps


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
        whole.add(MapPixels.of(score[None], mask[None], 8))
    parts = []
    for rows in np.split(rng.permutation(len(scores)), sorted(min(cut, len(scores)) for cut in cuts)):
        part = PixelHistogram(max_bins)
        for row in rows:
            part.add(MapPixels.of(scores[row][None], masks[row][None], 8))
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


def test_48_full_classes_take_less_than_100_megabytes() -> None:
    rng = np.random.default_rng(0)
    histogram = PixelHistogram(Protocol().histogram_bins)
    mask = np.zeros((256, 256), dtype=bool)
    mask[100:120, 100:140] = True
    for _ in range(40):
        histogram.add(MapPixels.of(rng.normal(size=mask.shape).astype(np.float32), mask, 8))
    assert histogram.bins.keys.size > histogram.max_bins / 2
    assert 48 * histogram.bins.num_bytes < 100 * 2**20


def histogram_of(maps: np.ndarray, masks: np.ndarray, max_bins: int) -> PixelHistogram:
    histogram = PixelHistogram(max_bins)
    for anomaly_map, mask in zip(maps.astype(np.float32), masks, strict=True):
        histogram.add(MapPixels.of(anomaly_map, mask, 8))
    return histogram


def test_middles_of_bins_are_the_scores_where_every_score_has_its_bin() -> None:
    scores = np.array([[-3e38, -1.5, -1e-40, 0.0], [1e-40, 1.5, 2.5, 3e38]], dtype=np.float32)
    exact = histogram_of(scores[None], np.zeros((1, 2, 4), dtype=bool), 1024)
    np.testing.assert_array_equal(bin_middles(exact), np.sort(scores.ravel()).astype(float))
    maps, masks = smooth_maps(num_maps=1, size=96, seed=1)
    coarse = histogram_of(maps + 100, masks, 1024)
    assert coarse.bits < 32
    assert np.abs(bin_middles(coarse)[[0, -1]] / (100 + maps[0].min(), 100 + maps[0].max()) - 1).max() < 1e-3
