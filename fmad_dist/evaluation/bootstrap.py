"""How far metrics of image scores could be by chance: bootstrap over the images of each class [ours].

Normal and anomalous images are drawn apart, so that every draw defines every metric. The draws of a class depend on its
name alone, so intervals do not depend on ranks, order or other classes.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from fmad_dist.evaluation.results import ScoreRow

DRAWS = 1000
PERCENTILES = (2.5, 97.5)
Draws = dict[str, np.ndarray]  # metric -> float64 [DRAWS]
Intervals = dict[str, tuple[float, float]]


def draw_metrics(rows: Sequence[ScoreRow]) -> Draws:
    """Image AUROC and AP of DRAWS samples of one class; empty without both labels."""
    ordered = sorted(rows, key=lambda row: (-row.score, row.sample_id))
    labels = np.array([row.label for row in ordered], dtype=np.int64)
    if not 0 < labels.sum() < labels.size:
        return {}
    rng = np.random.default_rng(zlib.crc32(ordered[0].class_name.encode()))
    scores = np.array([row.score for row in ordered])
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))  # of equal scores
    counts = np.zeros((2, DRAWS, labels.size), dtype=np.int64)
    for label in (0, 1):
        of_label = np.flatnonzero(labels == label)
        shares = np.full(of_label.size, 1 / of_label.size)
        counts[label][:, of_label] = rng.multinomial(of_label.size, shares, size=DRAWS)
    normal, anomalous = np.add.reduceat(counts, starts, axis=2)
    hits, false = np.cumsum(anomalous, axis=1), np.cumsum(normal, axis=1)
    num_normal, num_anomalous = false[:, -1], hits[:, -1]
    auroc = np.sum(normal * (hits - anomalous / 2), axis=1) / (num_normal * num_anomalous)
    precision = hits / np.maximum(hits + false, 1)
    return {"image_auroc": auroc, "image_ap": np.sum(anomalous * precision, axis=1) / num_anomalous}


def mean_draws(classes: Sequence[Draws]) -> Draws:
    """The mean over the classes that define a metric, draw by draw."""
    names = sorted({name for draws in classes for name in draws})
    return {name: np.mean([draws[name] for draws in classes if name in draws], axis=0) for name in names}


def intervals(draws: Draws) -> Intervals:
    """95 % percentile intervals."""
    found = {}
    for name, values in draws.items():
        low, high = np.percentile(values, PERCENTILES)
        found[name] = (float(low), float(high))
    return found
