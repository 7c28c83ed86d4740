"""Pixel metrics as others estimate them, with thresholds of equal width between the lowest and the highest score.

They depend on the scale of the scores and are biased; protocols that ask for them say so. Lowest and highest score are
those of the histogram's occupied bins, so that the estimates merge exactly like everything else; a bin counts as its
middle, which is its score where the histogram is exact, and off by 1 in 2^13 of it where it kept 21 bits.
"""

from typing import Literal

import numpy as np

from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.curves import Curve
from fmad_dist.metrics.histogram import ANOMALOUS, NORMAL, WEIGHT, PixelHistogram, bin_middles
from fmad_dist.metrics.results import NAN

Side = Literal["left", "right"]  # a score that equals the threshold is called, or is not


def strip_metrics(histogram: PixelHistogram, protocol: Protocol) -> dict[str, float]:
    """The pixel metrics that the protocol does not take exactly; NaN where its thresholds leave no curve.

    The histogram has normal and anomalous pixels.
    """
    strips, limit = Strips(histogram), protocol.fpr_limit
    stretched = protocol.aupro_stretched and strips.stretched_aupro(protocol.aupro_stretched, limit)
    found = {
        "pixel_auroc": protocol.auroc_strips and strips.auroc(protocol.auroc_strips),
        "pixel_ap": protocol.ap_strips and strips.ap(protocol.ap_strips),
        "pixel_f1max": protocol.f1_levels and strips.f1max(protocol.f1_levels),
        "aupro": strips.aupro(protocol.aupro_strips, limit) if protocol.aupro_strips else stretched,
    }
    return {name: value for name, value in found.items() if value is not None}


class Strips:
    """Counts at thresholds of equal width, from the highest threshold to the lowest."""

    def __init__(self, histogram: PixelHistogram) -> None:
        self.scores = bin_middles(histogram)  # float64 [bins], ascending
        counts = histogram.bins.counts[[NORMAL, ANOMALOUS, WEIGHT]].astype(np.float64)
        self.from_here_up = np.pad(np.cumsum(counts[:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
        self.low, self.high = self.scores[0], self.scores[-1]

    def auroc(self, number: int) -> float:
        """Trapezoids between the edges of `number` strips, a score at an edge being called (adeval)."""
        normal, anomalous, _ = self._rates(self._edges(number), "left")
        return Curve(normal, anomalous).area()

    def ap(self, number: int) -> float:
        """Trapezoids of precision over recall between the edges of `number` strips (adeval)."""
        normal, anomalous, _ = self._counts(self._edges(number), "left")
        called = normal + anomalous
        precision = np.divide(anomalous, called, out=np.ones_like(called), where=called > 0)
        return Curve(anomalous / self.from_here_up[ANOMALOUS, 0], precision).area()

    def aupro(self, number: int, limit: float) -> float:
        """Trapezoids between the edges of `number` strips up to the limit (adeval)."""
        normal, _, weight = self._rates(self._edges(number), "left")
        return Curve(normal, weight).area(limit) if normal[0] < limit else NAN

    def stretched_aupro(self, number: int, limit: float) -> float:
        """Trapezoids over `number` thresholds whose false positive rate is below the limit, the rates divided by the
        highest of them (the code that CFLOW-AD began, as in ADer and Dinomaly)."""
        if self.low == self.high:
            return NAN
        thresholds = np.arange(self.low, self.high, (self.high - self.low) / number)[::-1]
        normal, _, weight = self._rates(thresholds, "right")
        below = normal < limit
        if below.sum() < 2 or not normal[below].max():
            return NAN
        return Curve(normal[below] / normal[below].max(), weight[below]).area()

    def f1max(self, number: int) -> float:
        """The highest F1 of `number` levels from the lowest to the highest score."""
        normal, anomalous, _ = self._counts(self._edges(number - 1), "right")
        return float(np.max(2 * anomalous / (anomalous + normal + self.from_here_up[ANOMALOUS, 0])))

    def _edges(self, number: int) -> np.ndarray:
        return np.linspace(self.high, self.low, number + 1)

    def _counts(self, thresholds: np.ndarray, side: Side) -> np.ndarray:
        return self.from_here_up[:, np.searchsorted(self.scores, thresholds, side)]

    def _rates(self, thresholds: np.ndarray, side: Side) -> np.ndarray:
        return self._counts(thresholds, side) / self.from_here_up[:, :1]
