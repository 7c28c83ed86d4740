"""Threshold metrics from counts per distinct score: exact for image scores, exact up to the bins for pixels.

A pixel or image is called anomalous when its score is at or above a threshold; one threshold per bin, so what shares a
bin is tied. With a bin for every distinct score the results are those of scikit-learn. Thresholds are the last axis;
axes before it are independent data sets, the draws of a bootstrap for example.
"""

from dataclasses import dataclass

import numpy as np

from fmad_dist.metrics.histogram import ANOMALOUS, KEY_BITS, NORMAL, WEIGHT, PixelHistogram

PLATEAU_SHARE = 2**-10  # a bin with more of all items is taken for tied scores, a clipped floor for example


@dataclass(frozen=True, slots=True)
class RankedCounts:
    """Cumulative counts [..., n] of normal and anomalous items at or above a threshold, thresholds descending.

    `exact` says that every distinct score has its own threshold.
    """

    normal: np.ndarray
    anomalous: np.ndarray
    exact: bool = True

    @property
    def num_normal(self) -> int:
        """Normal items of one data set."""
        return int(self.normal[-1]) if self.normal.size else 0

    @property
    def num_anomalous(self) -> int:
        """Anomalous items of one data set."""
        return int(self.anomalous[-1]) if self.anomalous.size else 0


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve over the false positive rate: fpr and height float64 [..., n + 1] in [0, 1], ascending from (0, 0)."""

    fpr: np.ndarray
    height: np.ndarray

    def until(self, limit: float) -> "Curve":
        """The part of one curve with fpr <= limit, ended by the linear interpolation at the limit."""
        if self.fpr[-1] <= limit:
            return self
        stop = int(np.searchsorted(self.fpr, limit, side="right"))
        (x0, x1), (y0, y1) = self.fpr[stop - 1 : stop + 1], self.height[stop - 1 : stop + 1]
        at_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        return Curve(np.append(self.fpr[:stop], limit), np.append(self.height[:stop], at_limit))

    def areas(self, limit: float = 1.0) -> np.ndarray:
        """Trapezoid areas [...] over [0, limit], linear inside the step that crosses it, divided by it."""
        start, rise, width = self.height[..., :-1], np.diff(self.height), np.diff(self.fpr)
        inside = np.clip(limit - self.fpr[..., :-1], 0.0, width)
        share = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
        return np.sum(inside * (start + rise * share / 2), axis=-1) / limit

    def area(self, limit: float = 1.0) -> float:
        """The area of one curve."""
        return float(self.areas(limit))

    def largest_tie(self, limit: float = 1.0) -> float:
        """How far `area(limit)` can be from the area with every tie resolved: half the sum of the steps' rectangles."""
        part = self.until(limit)
        return float(np.sum(np.diff(part.fpr) * np.diff(part.height)) / 2 / limit)


def rank_scores(scores: np.ndarray, labels: np.ndarray) -> RankedCounts:
    """Counts of finite float64 scores [n] with labels [n] in {0, 1}; equal scores are one threshold."""
    distinct, inverse = np.unique(scores, return_inverse=True)
    anomalous = np.bincount(inverse, weights=labels, minlength=distinct.size).astype(np.int64)
    everything = np.bincount(inverse, minlength=distinct.size).astype(np.int64)
    return RankedCounts(_from_the_top(everything - anomalous), _from_the_top(anomalous))


def rank_pixels(histogram: PixelHistogram) -> RankedCounts:
    """Counts of the pixels of a histogram; one threshold per occupied bin."""
    counts = histogram.bins.counts
    exact = histogram.bits == KEY_BITS
    return RankedCounts(_from_the_top(counts[NORMAL]), _from_the_top(counts[ANOMALOUS]), exact)


def roc_curve(ranked: RankedCounts) -> Curve:
    """True over false positive rate. Needs at least one normal and one anomalous item."""
    return rate_curve(ranked.normal, ranked.anomalous)


def pro_curve(histogram: PixelHistogram) -> Curve:
    """Per-region overlap over the false positive rate of all normal pixels, good images included (Bergmann 2021).

    Where the regions are single defects with a saturation area, this is the saturated overlap, the mean over channels,
    over the rate of the pixels outside all channels (Bergmann et al., MVTec LOCO AD, 2022, official evaluation 2.0).
    Needs at least one region and one normal pixel.
    """
    counts = histogram.bins.counts
    return rate_curve(_from_the_top(counts[NORMAL]), _from_the_top(counts[WEIGHT]))


def average_precisions(ranked: RankedCounts, plateau: float = PLATEAU_SHARE) -> np.ndarray:
    """Sums [...] of precision times the step in recall over descending thresholds. Need an anomalous item each.

    In a bin of several distinct scores the precision is averaged over the bin, as if its items were evenly mixed;
    taking it at the bin's end would bias the sum by half a bin (ours). A bin with a share of all items of `plateau` or
    more is taken for tied scores instead.
    """
    hits, called = ranked.anomalous, ranked.anomalous + ranked.normal
    steps = np.diff(hits, prepend=0)
    precision = hits / np.maximum(called, 1)
    if not ranked.exact:
        sizes = np.diff(called, prepend=0)
        mixed = (sizes > 1) & (sizes < plateau * called[..., -1:]) & (steps > 0)
        precision[mixed] = _mean_precision(steps[mixed], sizes[mixed], (hits - steps)[mixed], (called - sizes)[mixed])
    return np.sum(steps * precision, axis=-1) / hits[..., -1]


def average_precision(ranked: RankedCounts) -> float:
    """The average precision of one data set."""
    return float(average_precisions(ranked))


def _mean_precision(hits: np.ndarray, size: np.ndarray, hits_above: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Mean precision at the hits of a bin: integral over t in [0, 1] of (1 + hits_above + (hits - 1) t) / (1 + above +
    (size - 1) t), which goes from the bin's first item to its last, for hits > 0 and size > 1.
    """
    log_growth = np.log1p((size - 1) / (above + 1)) / (size - 1)
    return (hits_above + 1) * log_growth + (hits - 1) / (size - 1) * (1 - (above + 1) * log_growth)


def best_f1(ranked: RankedCounts) -> tuple[float, int]:
    """The highest F1 over all thresholds and its position, the highest threshold among equals."""
    f1 = 2 * ranked.anomalous / (ranked.anomalous + ranked.normal + ranked.num_anomalous)
    best = int(np.argmax(f1))
    return float(f1[best]), best


def rate_curve(normal: np.ndarray, height: np.ndarray) -> Curve:
    """The curve of cumulative amounts [..., n], each as a share of its last."""
    fpr, shares = np.zeros((2, *normal.shape[:-1], normal.shape[-1] + 1))
    np.divide(normal, normal[..., -1:], out=fpr[..., 1:])
    np.divide(height, height[..., -1:], out=shares[..., 1:])
    return Curve(fpr, shares)


def _from_the_top(ascending: np.ndarray) -> np.ndarray:
    return np.cumsum(ascending[::-1])
