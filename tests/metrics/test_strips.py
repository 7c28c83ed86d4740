"""The estimates of others: by brute force, and the bias they are known for."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from fmad_dist.config.protocol import Protocol, named_protocol
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.strips import strip_metrics
from tests.metrics.test_histogram import histogram_of
from tests.support.pixel_maps import TRANSFORMS, exact_metrics, smooth_maps
from tests.support.scored_images import MakeScored, state_of

OTHERS = ["ader", "dinomaly", "flowad"]


class BruteForce:
    """Every threshold applied to every pixel of all maps."""

    def __init__(self, maps: np.ndarray, masks: np.ndarray) -> None:
        self.maps, self.masks = maps.astype(np.float32).astype(float), masks
        self.low, self.high = self.maps.min(), self.maps.max()
        self.regions = []
        for anomaly_map, mask in zip(self.maps, masks, strict=True):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            self.regions += [anomaly_map[labels == k] for k in range(1, count + 1)]

    def rates(self, called: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
        overlap = float(np.mean([called(region).mean() for region in self.regions]))
        return called(self.maps[~self.masks]).mean(), called(self.maps[self.masks]).mean(), overlap

    def edges(self, number: int) -> list[float]:
        return [self.high - (self.high - self.low) * k / number for k in range(number + 1)]

    def strips(self, number: int) -> tuple[float, float, float]:
        """AUROC, AP and AUPRO by trapezoids between the edges, as adeval has them."""
        fpr, tpr, pro = np.array([self.rates(lambda x, t=t: x >= t) for t in self.edges(number)]).T
        normal, anomalous = (~self.masks).sum(), self.masks.sum()
        precision = tpr * anomalous / (tpr * anomalous + fpr * normal)
        inside = fpr <= 0.3
        x, y = fpr[inside], pro[inside]
        if not inside.all():
            step = np.flatnonzero(~inside)[0]
            share = (0.3 - fpr[step - 1]) / (fpr[step] - fpr[step - 1])
            x, y = np.append(x, 0.3), np.append(y, pro[step - 1] + share * (pro[step] - pro[step - 1]))
        return np.trapezoid(tpr, fpr), np.trapezoid(precision, tpr), np.trapezoid(y, x) / 0.3

    def stretched(self, number: int) -> float:
        thresholds = np.arange(self.low, self.high, (self.high - self.low) / number)
        fpr, _, pro = np.array([self.rates(lambda x, t=t: x > t) for t in thresholds[::-1]]).T
        fpr, pro = fpr[fpr < 0.3], pro[fpr < 0.3]
        return float(np.trapezoid(pro, fpr / fpr.max()))

    def f1max(self, levels: int) -> float:
        found = []
        for threshold in self.edges(levels - 1):
            called = self.maps > threshold
            found.append(2 * (called & self.masks).sum() / (called.sum() + self.masks.sum()))
        return max(found)


@pytest.mark.parametrize("transform", ["smooth", "exponential", "clipped", "negative"])
@pytest.mark.parametrize(("max_bins", "tolerance"), [(2**20, 1e-6), (2**12, 5e-3)])
def test_estimators_are_those_of_the_public_codes(transform: str, max_bins: int, tolerance: float) -> None:
    """To rounding where every score has its bin, and closely where bins are merged."""
    maps, masks = smooth_maps(num_maps=9, size=64, seed=3)
    maps = TRANSFORMS[transform](maps)
    histogram, brute = histogram_of(maps, masks, max_bins), BruteForce(maps, masks)
    assert (histogram.bits == 32) == (max_bins == 2**20)
    found = {name: strip_metrics(histogram, named_protocol(name)) for name in OTHERS}
    auroc, ap, aupro = brute.strips(50)
    expected = {
        "ader": {"pixel_auroc": auroc, "pixel_ap": ap, "aupro": aupro, "pixel_f1max": brute.f1max(21)},
        "dinomaly": {"aupro": brute.stretched(200)},
        "flowad": {
            "pixel_auroc": brute.strips(1000)[0],
            "aupro": brute.strips(1000)[2],
            "pixel_f1max": brute.f1max(1001),
        },
    }
    for name in OTHERS:
        assert found[name] == pytest.approx(expected[name], abs=tolerance), name


def test_a_monotone_transform_changes_the_estimates_of_others_and_not_ours() -> None:
    maps, masks = smooth_maps(num_maps=24, size=96, seed=3)
    before, after = maps, np.exp(1.3 * maps)
    np.testing.assert_allclose(exact_metrics(after, masks), exact_metrics(before, masks), atol=1e-5)
    aupro = exact_metrics(before, masks)[3]
    plain, moved = (histogram_of(one, masks, 2**17) for one in (before, after))

    def change(name: str, metric: str) -> float:
        protocol = named_protocol(name)
        return strip_metrics(moved, protocol)[metric] - strip_metrics(plain, protocol)[metric]

    assert change("ader", "aupro") < -0.2
    assert change("ader", "pixel_auroc") < -0.2
    assert change("ader", "pixel_f1max") < -0.015
    assert change("dinomaly", "aupro") < -0.1
    assert -0.02 < change("flowad", "aupro") < -5e-4  # 1000 strips are better, and still not invariant
    assert strip_metrics(moved, named_protocol("dinomaly"))["aupro"] < 0.8 * aupro


@pytest.mark.parametrize("name", OTHERS)
def test_too_few_thresholds_leave_a_metric_undefined(name: str, make_scored: MakeScored) -> None:
    flat = np.ones((8, 8), dtype=np.float32)
    protocol = Protocol(name=name, map_size=8)
    state = state_of([make_scored("a", 0, anomaly_map=flat), make_scored("b", 1, anomaly_map=flat)], protocol)
    result = compute_results(state).classes["toy/disc"]
    assert np.isnan(result.metrics.aupro)
    assert result.undefined["aupro"] == "too few thresholds of equal width"
