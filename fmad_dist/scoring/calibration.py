"""Decision thresholds from held-out normal images; test images never take part [ours].

An image's class is not asked for: it is inferred as the class whose mean feature vector is nearest.
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fmad_dist.scoring.fusion import PartStatistics


@dataclass(frozen=True, slots=True)
class Calibration:
    """Per class of the detector's class list."""

    thresholds: tuple[float, ...]  # an image is anomalous when its score is above its class's threshold
    num_images: tuple[int, ...]  # held-out normals behind each threshold
    false_alarm_rate: float
    parts: tuple[PartStatistics, ...] | None = None  # of a fusion's scorers


def fit_thresholds(scores: np.ndarray, classes: np.ndarray, num_classes: int, false_alarm_rate: float) -> Calibration:
    """Thresholds at a false-alarm rate from scores [n] of held-out normals and their class numbers [n].

    With few images the empirical quantile cannot reach the tail, so the threshold is the larger of the quantile at
    1 - rate and mean + t(1 - rate) * std * sqrt(1 + 1 / n), the normal prediction bound (Student t, n - 1 degrees).
    """
    thresholds, counts = [], []
    for number in range(num_classes):
        own = scores[classes == number].astype(np.float64)
        thresholds.append(_threshold(own, false_alarm_rate) if len(own) else math.inf)
        counts.append(len(own))
    return Calibration(tuple(thresholds), tuple(counts), false_alarm_rate)


def _threshold(scores: np.ndarray, rate: float) -> float:
    from scipy.stats import t

    quantile = float(np.quantile(scores, 1.0 - rate, method="higher"))
    if len(scores) < 2:
        return quantile
    spread = float(scores.std(ddof=1)) * math.sqrt(1.0 + 1.0 / len(scores))
    return max(quantile, float(scores.mean()) + float(t.ppf(1.0 - rate, len(scores) - 1)) * spread)


def nearest_class(pooled: Tensor, class_means: Tensor) -> Tensor:
    """Class numbers int64 [B] of pooled features [B, C] by Euclidean distance to the class means [K, C]."""
    difference = pooled[:, None] - class_means[None]
    return difference.square().sum(-1).argmin(dim=1)
