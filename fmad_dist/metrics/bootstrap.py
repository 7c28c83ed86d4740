"""Confidence intervals of metrics by bootstrap over the images of each class [ours].

Normal and anomalous images are drawn apart, so that every draw has both. A draw takes whole images: image and pixel
metrics see the same ones, and the pixels of an image never count as independent. The draws of a class depend on its
name and its sample ids alone, so intervals do not depend on ranks, order or other classes. Classes of very many images
have a bootstrap of bounded memory (many_images.py).

Pixel metrics of a draw come from few bins per image, which are a function of its map alone; merging states only
collects them, and the images of a class are brought to common bins when metrics are computed. As in the histogram of
the class, a bin is a range of float32 bit patterns, and the finest resolution that fits is kept. What is kept of a draw
is its deviation from the value of all images in the same bins: binning shifts both equally, so intervals lie around the
reported values.
"""

import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from fmad_dist.metrics.curves import RankedCounts, average_precisions, rate_curve, roc_curve
from fmad_dist.metrics.histogram import ANOMALOUS, NORMAL, WEIGHT, Bins, MapPixels, fitting_keys
from fmad_dist.metrics.regions import REGION_UNIT
from fmad_dist.metrics.results import Metrics, ScoreRow

DRAWS = 1000
BLOCK = 250  # draws that are computed together: bounds memory and fits caches
PERCENTILES = (2.5, 97.5)
IMAGE_BINS = 256  # about 1.5 KB per image
CLASS_BINS = 512
RANGE_BITS = 14  # resolution to begin with: 2^14 equal ranges of keys between an image's lowest and highest score
UNIT_BITS = 20
IMAGE_REGION_UNIT = 2**UNIT_BITS  # weight of one region: sums of many images stay exact in float64
Draws = dict[str, np.ndarray]  # metric -> float64 [DRAWS], deviations from the value of all images
Intervals = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class ImagePixels:
    """At most IMAGE_BINS bins of one image with keys `ordered_keys(score) >> shift`, regions in IMAGE_REGION_UNIT."""

    shift: int
    bins: Bins


def image_pixels(pixels: MapPixels) -> ImagePixels:
    """Count one map in a few bins."""
    parts = [keys for keys in (pixels.normal, pixels.anomalous) if keys.size]
    low, high = min(int(keys.min()) for keys in parts), max(int(keys.max()) for keys in parts)
    shift = max(0, (high - low).bit_length() - RANGE_BITS)
    first = low >> shift
    span = (high >> shift) - first + 1

    def tally(keys: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        slots = (keys >> np.uint32(shift)) - np.uint32(first)
        return np.bincount(slots, weights, minlength=span).astype(np.int64)

    counts = np.zeros((3, span), dtype=np.int64)
    counts[NORMAL] = tally(pixels.normal)
    if pixels.anomalous.size:
        counts[ANOMALOUS] = tally(pixels.anomalous)
        counts[WEIGHT] = tally(pixels.anomalous, pixels.weights * (IMAGE_REGION_UNIT / REGION_UNIT))
    occupied = np.flatnonzero(counts[NORMAL] + counts[ANOMALOUS])
    found = occupied.astype(np.uint32) + np.uint32(first)
    drop, keys = fitting_keys(found, IMAGE_BINS)
    starts = np.searchsorted(found >> np.uint32(drop), keys)
    return ImagePixels(shift + drop, Bins.pack(keys, np.add.reduceat(counts[:, occupied], starts, axis=1)))


def class_draws(
    rows: Sequence[ScoreRow], pixels: Mapping[str, ImagePixels], fpr_limit: float, without: Set[str] = frozenset()
) -> tuple[Draws, dict[str, Draws]]:
    """Draws of one class, and of each of its types of defect with all normal images.

    Undefined metrics and those in `without` are left out. `pixels` are those of the rows by sample id; if it is empty
    there are no pixel metrics.
    """
    images = _Images.of(rows, pixels)
    kinds = images.kinds()
    parts = {"": slice(images.num_normal, len(rows))} | (kinds if len(kinds) > 1 else {})
    normal = slice(0, images.num_normal)
    streams = {name: stream_of(rows[0].class_name, "anomalous", name) for name in parts}
    normal_stream = stream_of(rows[0].class_name, "normal")
    once = images.counted(normal)
    values = {name: counted_metrics(once, images.counted(part), fpr_limit) for name, part in parts.items()}
    blocks: dict[str, list[Draws]] = {name: [] for name in parts}
    for _ in range(DRAWS // BLOCK):
        drawn = images.counted(normal, normal_stream)
        for name, part in parts.items():
            blocks[name].append(counted_metrics(drawn, images.counted(part, streams[name]), fpr_limit))
    draws = {}
    for name, own in values.items():
        every = {metric: np.concatenate([block[metric] for block in blocks[name]]) for metric in own}
        draws[name] = deviations(own, every, without)
    return draws[""], {name: draws.get(name, draws[""]) for name in kinds}


def deviations(once: Draws, drawn: Draws, without: Set[str]) -> Draws:
    """How far drawn metrics are from those of all images, `once`; undefined metrics and those in `without` left out."""
    wanted = {metric: value for metric, value in once.items() if metric not in without and not np.isnan(value)}
    return {metric: drawn[metric] - value for metric, value in wanted.items()}


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
        """BLOCK samples of the images of `part`, all normal or all anomalous; without a stream each image once."""
        size, label = part.stop - part.start, int(part.start >= self.num_normal)
        repeats = np.ones((1, size)) if stream is None else _repeats(stream, size)
        images = np.zeros((2, len(repeats), len(self.rows)))
        images[label][:, self.ranks[part]] = repeats
        pixels = np.zeros((3, len(repeats), self.table.shape[-1]))
        for row in (NORMAL, ANOMALOUS, WEIGHT)[: 1 + 2 * label]:
            pixels[row] = repeats @ self.table[row, part]
        return np.add.reduceat(images, self.starts, axis=2), pixels


def pixel_table(images: Sequence[ImagePixels]) -> np.ndarray:
    """Counts float64 [3, images, bins] (rows NORMAL, ANOMALOUS, WEIGHT) in common bins of descending scores: as coarse
    as the coarsest image's, and at most CLASS_BINS.
    """
    shift = max(image.shift for image in images)
    keys = [image.bins.keys >> np.uint32(shift - image.shift) for image in images]
    drop, common = fitting_keys(np.unique(np.concatenate(keys)), CLASS_BINS)
    return filled_table(images, shift + drop, common)


def filled_table(images: Sequence[ImagePixels], shift: int, common: np.ndarray) -> np.ndarray:
    """Counts float64 [3, images, bins] in the bins `common`, ascending keys at `shift` that hold all pixels."""
    table = np.zeros((3, len(images), common.size))
    for row, image in zip(table.swapaxes(0, 1), images, strict=True):
        columns = common.size - 1 - np.searchsorted(common, image.bins.keys >> np.uint32(shift - image.shift))
        bins = image.bins
        for counts, at, values in (
            (row[NORMAL], columns, bins.normal),
            (row[ANOMALOUS], columns[bins.hit], bins.anomalous),
            (row[WEIGHT], columns[bins.hit], bins.weight),
        ):
            counts += np.bincount(at, values, minlength=common.size)
    return table


def counted_metrics(normal: Counted, anomalous: Counted, fpr_limit: float) -> Draws:
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


def stream_of(*names: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()) for name in names])
