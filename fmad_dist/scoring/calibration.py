"""Decision thresholds from held-out normal images; test images never take part [ours].

An image's class is not asked for: it is inferred as the class whose mean feature vector is nearest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.scoring.interface import PartStatistics

ThresholdName = Literal["class", "global"]


def threshold_name(text: str) -> ThresholdName:
    """The name of a threshold, checked.

    Raises:
        UserError: there is no threshold of that name.
    """
    for name in get_args(ThresholdName):
        if text == name:
            return name
    raise UserError(f"threshold {text!r}: choose class or global.")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Per class of the detector's class list, and over the held-out normals of all classes."""

    thresholds: tuple[float, ...]  # an image is anomalous when its score is above its class's threshold
    margins: tuple[float, ...]  # > 0, how far the mean score of the class's normals is below its threshold
    num_images: tuple[int, ...]  # held-out normals behind each threshold
    global_threshold: float  # the one for all classes
    global_margin: float
    false_alarm_rate: float
    parts: tuple[PartStatistics, ...] | None = None  # `Scorer.statistics`: those of a fusion's parts
    given: Annotated[dict[str, str] | None, Field(exclude_if=lambda given: given is None)] = None
    # What the user fitted them to again: a digest by dataset or folder. None, and then not in files: held-out normals.

    def limits(self, name: ThresholdName) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Threshold and margin of every class; for "global" the same for all."""
        if name == "class":
            return self.thresholds, self.margins
        num_classes = len(self.thresholds)
        return (self.global_threshold,) * num_classes, (self.global_margin,) * num_classes


def fit_thresholds(scores: np.ndarray, classes: np.ndarray, num_classes: int, false_alarm_rate: float) -> Calibration:
    """Thresholds at a false-alarm rate from scores [n] of held-out normals and their class numbers [n].

    With few images the empirical quantile cannot reach the tail, so the threshold is the larger of the quantile at
    1 - rate and mean + t(1 - rate) * std * sqrt(1 + 1 / n), the normal prediction bound (Student t, n - 1 degrees).
    """
    own = [scores[classes == number].astype(np.float64) for number in range(num_classes)]
    thresholds = [_threshold(part, false_alarm_rate) if len(part) else math.inf for part in own]
    margins = [limit - float(part.mean()) if len(part) else 0.0 for part, limit in zip(own, thresholds, strict=True)]
    whole = scores.astype(np.float64)
    overall = _threshold(whole, false_alarm_rate)
    global_margin = _positive(overall - float(whole.mean()), [], overall)
    return Calibration(
        tuple(thresholds),
        tuple(_positive(margin, margins, overall) for margin in margins),
        tuple(len(part) for part in own),
        overall,
        global_margin,
        false_alarm_rate,
    )


def _threshold(scores: np.ndarray, rate: float) -> float:
    quantile = float(np.quantile(scores, 1.0 - rate, method="higher"))
    if len(scores) < 2:
        return quantile
    from scipy.special import stdtrit  # scipy.stats has the same, and takes seconds to import

    spread = float(scores.std(ddof=1)) * math.sqrt(1.0 + 1.0 / len(scores))
    return max(quantile, float(scores.mean()) + float(stdtrit(len(scores) - 1, 1.0 - rate)) * spread)


def _positive(margin: float, others: Sequence[float], threshold: float) -> float:
    """The margin; where a single image or equal scores leave none, the median of the other classes, and where none has
    one, the threshold's own size."""
    smallest = 1e-6 * abs(threshold)  # below it is rounding
    if margin > smallest:
        return margin
    known = [other for other in others if other > smallest]
    return float(np.median(known)) if known else abs(threshold) or 1.0


def normalise(scores: Tensor, thresholds: Tensor, margins: Tensor) -> Tensor:
    """Scores on one scale for all classes: in [0, 1], monotone, exactly 0.5 at the threshold.

    With z = (score - threshold) / margin it is 0.5 / (1 - z) below the threshold and 1 - 0.5 / (1 + z) above it: 0.25
    for the mean of the held-out normals, 0.75 as far above the threshold as they are below. Tails fall with 1 / z and
    not exponentially, so strong defects stay apart. NaN where there is no threshold. The shapes broadcast.
    """
    z = (scores - thresholds) / margins
    tail = 0.5 / (1.0 + z.abs())
    return torch.where(thresholds.isinf(), torch.nan, torch.where(z > 0, 1.0 - tail, tail))


def decision_thresholds(thresholds: Tensor, margins: Tensor, sensitivity: float) -> Tensor:
    """The scores that `normalise` takes to 1 - sensitivity: above them an image is anomalous.

    0.5 leaves the thresholds as they are, 0.75 puts them at the mean of the held-out normals, 0.25 as far above. 0 lets
    nothing be anomalous, 1 everything.

    Raises:
        UserError: the sensitivity is not in [0, 1].
    """
    if not 0.0 <= sensitivity <= 1.0:
        raise UserError(f"sensitivity {sensitivity:g}: not in 0 to 1, where 0.5 is as calibrated.")
    if sensitivity == 0.5:
        return thresholds
    above = 0.5 - sensitivity  # of the normalised level above 0.5
    nearer = 0.5 - abs(above)
    z = math.copysign(abs(above) / nearer if nearer > 0.0 else math.inf, above)
    return torch.where(thresholds.isinf(), thresholds, thresholds + z * margins)


def nearest_class(pooled: Tensor, class_means: Tensor) -> Tensor:
    """Class numbers int64 [B] of pooled features [B, C] by Euclidean distance to the class means [K, C]."""
    difference = pooled[:, None] - class_means[None]
    return difference.square().sum(-1).argmin(dim=1)
