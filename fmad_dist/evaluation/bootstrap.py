"""How far metrics could be by chance: bootstrap over the images of each class [ours].

Normal and anomalous images are drawn apart, so that every draw has both. A draw takes whole images: image and pixel
metrics see the same ones, and the pixels of an image never count as independent. The draws of a class depend on its
name and its sample ids alone, so intervals do not depend on ranks, order or other classes.

Pixel metrics of a draw come from few bins per image (`image_pixels`). What is kept of a draw is its deviation from the
value of all images in the same bins: coarseness moves both alike, and intervals lie around the reported values.
"""

import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from fmad_dist.evaluation.curves import RankedCounts, average_precisions, rate_curve, roc_curve
from fmad_dist.evaluation.histogram import ANOMALOUS, NORMAL, WEIGHT
from fmad_dist.evaluation.image_pixels import ImagePixels, pixel_table
from fmad_dist.evaluation.results import Metrics, ScoreRow

DRAWS = 1000
BLOCK = 250  # draws that are computed together: bounds memory and fits caches
PERCENTILES = (2.5, 97.5)
Draws = dict[str, np.ndarray]  # metric -> float64 [DRAWS], deviations from the value of all images
Intervals = dict[str, tuple[float, float]]


def class_draws(
    rows: Sequence[ScoreRow],
    pixels: Mapping[str, ImagePixels],
    fpr_limit: float,
    without: Set[str] = frozenset(),
) -> tuple[Draws, dict[str, Draws]]:
    """Draws of one class, and of each of its types of defect with all normal images; without what is undefined and the
    metrics `without`.

    `pixels` are those of the rows by sample id; without any there are no pixel metrics.
    """
    images = _Images.of(rows, pixels)
    kinds = images.kinds()
    parts = {"": slice(images.num_normal, len(rows))} | (kinds if len(kinds) > 1 else {})
    normal = slice(0, images.num_normal)
    streams = {name: _stream(rows[0].class_name, "anomalous", name) for name in parts}
    normal_stream = _stream(rows[0].class_name, "normal")
    once = images.counted(normal)
    values = {name: _metrics(once, images.counted(part), fpr_limit) for name, part in parts.items()}
    blocks: dict[str, list[Draws]] = {name: [] for name in parts}
    for _ in range(DRAWS // BLOCK):
        drawn = images.counted(normal, normal_stream)
        for name, part in parts.items():
            blocks[name].append(_metrics(drawn, images.counted(part, streams[name]), fpr_limit))
    draws = {}
    for name, own in values.items():
        wanted = {metric: value for metric, value in own.items() if metric not in without and not np.isnan(value)}
        draws[name] = {m: np.concatenate([block[m] for block in blocks[name]]) - v for m, v in wanted.items()}
    return draws[""], {name: draws.get(name, draws[""]) for name in kinds}


def mean_draws(classes: Sequence[Draws]) -> Draws:
    """The mean over the classes that define a metric, draw by draw."""
    means = {}
    for name in sorted({name for draws in classes for name in draws}):
        every = np.array([draws[name] for draws in classes if name in draws])
        with np.errstate(invalid="ignore"):
            means[name] = np.nansum(every, axis=0) / np.sum(~np.isnan(every), axis=0)
    return means


def intervals(metrics: Metrics, draws: Draws) -> Intervals:
    """95 % percentile intervals in [0, 1] around the values of `metrics`."""
    found = {}
    for name, deviations in draws.items():
        low, high = np.clip(getattr(metrics, name) + np.nanpercentile(deviations, PERCENTILES), 0.0, 1.0)
        found[name] = (float(low), float(high))
    return found


Counted = tuple[np.ndarray, np.ndarray]  # images float64 [2, draws, scores] by label, pixels float64 [3, draws, bins]


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of one class in the order normal, then by type of defect, then by sample id."""

    rows: Sequence[ScoreRow]
    num_normal: int
    ranks: np.ndarray  # int64 [images], position of each image among all by descending score
    starts: np.ndarray  # int64, positions where a distinct score begins
    table: np.ndarray  # float64 [3, images, bins]

    @classmethod
    def of(cls, rows: Sequence[ScoreRow], pixels: Mapping[str, ImagePixels]) -> "_Images":
        rows = sorted(rows, key=lambda row: (row.label, row.defect_type if row.label else "", row.sample_id))
        scores = np.array([row.score for row in rows])
        order = np.argsort(-scores, kind="stable")
        starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
        table = pixel_table([pixels[row.sample_id] for row in rows]) if pixels else np.zeros((3, len(rows), 0))
        return cls(rows, sum(row.label == 0 for row in rows), np.argsort(order), starts, table)

    def kinds(self) -> dict[str, slice]:
        """The anomalous images of every type of defect."""
        types = [row.defect_type for row in self.rows[self.num_normal :]]
        starts = {name: self.num_normal + types.index(name) for name in dict.fromkeys(types)}
        return {name: slice(start, start + types.count(name)) for name, start in starts.items()}

    def counted(self, part: slice, stream: np.random.Generator | None = None) -> Counted:
        """BLOCK samples of images that are all normal or all anomalous; without a stream one, of each image once."""
        size, label = part.stop - part.start, int(part.start >= self.num_normal)
        repeats = np.ones((1, size)) if stream is None else _repeats(stream, size)
        images = np.zeros((2, len(repeats), len(self.rows)))
        images[label][:, self.ranks[part]] = repeats
        pixels = np.zeros((3, len(repeats), self.table.shape[-1]))
        for row in (NORMAL, ANOMALOUS, WEIGHT)[: 1 + 2 * label]:
            pixels[row] = repeats @ self.table[row, part]
        return np.add.reduceat(images, self.starts, axis=2), pixels


def _metrics(normal: Counted, anomalous: Counted, fpr_limit: float) -> Draws:
    """The metrics [draws] of samples that have these normal and these anomalous images; NaN where undefined."""
    images, pixels = (np.cumsum(ours + theirs, axis=-1) for ours, theirs in zip(normal, anomalous, strict=True))
    found = _ranked_metrics("image", RankedCounts(images[NORMAL], images[ANOMALOUS]))
    if pixels.shape[-1]:
        found |= _ranked_metrics("pixel", RankedCounts(pixels[NORMAL], pixels[ANOMALOUS], exact=False))
        with np.errstate(invalid="ignore"):
            found["aupro"] = rate_curve(pixels[NORMAL], pixels[WEIGHT]).areas(fpr_limit)
    return found


def _ranked_metrics(kind: str, ranked: RankedCounts) -> Draws:
    defined = (ranked.normal[..., -1] > 0) & (ranked.anomalous[..., -1] > 0)
    with np.errstate(invalid="ignore"):
        areas, precisions = roc_curve(ranked).areas(), average_precisions(ranked, plateau=1.0)
    return {f"{kind}_auroc": areas, f"{kind}_ap": np.where(defined, precisions, np.nan)}


def _repeats(stream: np.random.Generator, size: int) -> np.ndarray:
    """How often each of `size` images is in each of BLOCK samples of that many: float64 [BLOCK, size]."""
    if not size:
        return np.zeros((BLOCK, 0))
    drawn = stream.integers(0, size, (BLOCK, size)) + size * np.arange(BLOCK)[:, None]
    return np.bincount(drawn.ravel(), minlength=BLOCK * size).reshape(BLOCK, size).astype(np.float64)


def _stream(*names: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()) for name in names])
