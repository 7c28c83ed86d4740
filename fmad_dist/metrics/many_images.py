"""The bootstrap of a class of very many images: one pass over them, in memory that does not grow with their number.

A draw counts each image as often as a Poisson variable of mean 1 says, instead of drawing as many as there are, and is
then weighted to that number; for many images the intervals are the same (Chamandy et al., Estimating uncertainty for
massive data streams, 2012). So images can be weighted a few at a
time. Image scores are counted in SCORE_BINS bins of about equally many images, as pixels are in bins of all images, and
a draw's deviation is from the value of all images in the same bins.
"""

from collections.abc import Mapping, Sequence, Set

import numpy as np

from fmad_dist.metrics import bootstrap
from fmad_dist.metrics.bootstrap import (
    CLASS_BINS,
    Counted,
    Draws,
    ImagePixels,
    counted_metrics,
    deviations,
    filled_table,
    stream_of,
)
from fmad_dist.metrics.histogram import ANOMALOUS, NORMAL, WEIGHT, distinct, fitting_keys
from fmad_dist.metrics.results import ScoreRow

MANY = 20_000  # images of a class, from which on this bootstrap is taken; the other needs 35 kB for each
SCORE_BINS = 1024
TOGETHER = 1024  # images


def poisson_draws(
    rows: Sequence[ScoreRow], pixels: Mapping[str, ImagePixels], fpr_limit: float, without: Set[str] = frozenset()
) -> tuple[Draws, dict[str, Draws]]:
    """What `class_draws` returns, of many images."""
    scores = np.array([row.score for row in rows])
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, SCORE_BINS + 1)[1:-1]))
    common = _common_bins([pixels[row.sample_id] for row in rows] if pixels else [])
    members: dict[str, list[ScoreRow]] = {}
    for row in sorted(rows):
        members.setdefault(f"anomalous {row.defect_type}" if row.label else "normal", []).append(row)
    found = {kind: _counted(kind, own, pixels, edges, common) for kind, own in members.items()}
    nothing = (np.zeros((2, 1 + bootstrap.DRAWS, edges.size + 1)), np.zeros((3, 1 + bootstrap.DRAWS, common[1].size)))
    normal = found.pop("normal", nothing)
    every = (nothing[0] + sum(own[0] for own in found.values()), nothing[1] + sum(own[1] for own in found.values()))

    def draws(anomalous: Counted) -> Draws:
        metrics = counted_metrics(_of_equal_size(normal), _of_equal_size(anomalous), fpr_limit)
        once, drawn = ({name: own[part] for name, own in metrics.items()} for part in (slice(1), slice(1, None)))
        return deviations(once, drawn, without)

    return draws(every), {kind.removeprefix("anomalous "): draws(own) for kind, own in found.items()}


def _of_equal_size(counted: Counted) -> Counted:
    """Every draw weighted to have as many images as there are: precisions depend on the share of defects."""
    images, pixels = counted
    totals = images.sum(axis=(0, 2))
    share = np.divide(totals[0], totals, out=np.ones_like(totals), where=totals > 0)[:, None]
    return images * share, pixels * share


def _counted(
    kind: str,
    rows: Sequence[ScoreRow],
    pixels: Mapping[str, ImagePixels],
    edges: np.ndarray,
    common: tuple[int, np.ndarray],
) -> Counted:
    """The images of one kind in bins of descending scores: first each image once, then in every draw."""
    label, stream = rows[0].label, stream_of(rows[0].class_name, "many", kind)
    images = np.zeros((2, 1 + bootstrap.DRAWS, edges.size + 1))
    counts = np.zeros((3, 1 + bootstrap.DRAWS, common[1].size))
    for start in range(0, len(rows), TOGETHER):
        own = rows[start : start + TOGETHER]
        weights = np.ones((1 + bootstrap.DRAWS, len(own)))
        weights[1:] = stream.poisson(1.0, (bootstrap.DRAWS, len(own)))
        bins = edges.size - np.searchsorted(edges, [row.score for row in own], side="right")
        order = np.argsort(bins, kind="stable")
        values, starts = np.unique(bins[order], return_index=True)
        images[label][:, values] += np.add.reduceat(weights[:, order], starts, axis=1)
        if pixels:
            table = filled_table([pixels[row.sample_id] for row in own], *common)
            for count in (NORMAL, ANOMALOUS, WEIGHT)[: 1 + 2 * label]:
                counts[count] += weights @ table[count]
    return images, counts


def _common_bins(images: Sequence[ImagePixels]) -> tuple[int, np.ndarray]:
    """The shift and the ascending keys of the bins, at most CLASS_BINS, that hold the pixels of all images."""
    shift, keys = max((image.shift for image in images), default=0), np.zeros(0, dtype=np.uint32)
    for start in range(0, len(images), TOGETHER):
        own = [image.bins.keys >> np.uint32(shift - image.shift) for image in images[start : start + TOGETHER]]
        drop, keys = fitting_keys(distinct(np.sort(np.concatenate([keys, *own]))), CLASS_BINS)
        shift += drop
    return shift, keys
