"""Score maps with defects of every distribution, and their exact metrics by the definitions."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

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
