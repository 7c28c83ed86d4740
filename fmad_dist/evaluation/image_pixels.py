"""The pixels of single images in a few bins, for metrics of many samples of the images of a class [ours].

An image is always counted whole, so its bins are a function of its map alone; merging states only collects them. The
images of a class are brought to common bins when metrics are computed. As in the class's own histogram a bin is a
range of float32 bit patterns, and the finest resolution that fits is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmad_dist.evaluation.histogram import ANOMALOUS, NORMAL, WEIGHT, Bins, MapPixels, fitting_bins
from fmad_dist.evaluation.regions import REGION_UNIT

IMAGE_BINS = 512  # about 3 KB per image
CLASS_BINS = 1024
RANGE_BITS = 14  # resolution to begin with: 2^14 equal ranges of keys between an image's lowest and highest score
UNIT_BITS = 20
IMAGE_REGION_UNIT = 2**UNIT_BITS  # weight of one region: sums of many images stay exact in float64


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
    drop, bins = fitting_bins(occupied.astype(np.uint32) + np.uint32(first), counts[:, occupied], IMAGE_BINS)
    return ImagePixels(shift + drop, bins)


def pixel_table(images: Sequence[ImagePixels]) -> np.ndarray:
    """Counts float64 [3, images, bins] (rows NORMAL, ANOMALOUS, WEIGHT) in common bins of descending scores: as coarse
    as the coarsest image's, and at most CLASS_BINS.
    """
    shift = max(image.shift for image in images)
    keys = [image.bins.keys >> np.uint32(shift - image.shift) for image in images]
    distinct = np.unique(np.concatenate(keys))
    drop = 0
    while distinct.size > CLASS_BINS:
        distinct, drop = np.unique(distinct >> np.uint32(1)), drop + 1
    table = np.zeros((3, len(images), distinct.size))
    for row, own, image in zip(table.swapaxes(0, 1), keys, images, strict=True):
        places = distinct.size - 1 - np.searchsorted(distinct, own >> np.uint32(drop))
        bins = image.bins
        for counts, at, values in (
            (row[NORMAL], places, bins.normal),
            (row[ANOMALOUS], places[bins.hit], bins.anomalous),
            (row[WEIGHT], places[bins.hit], bins.weight),
        ):
            counts += np.bincount(at, values, minlength=distinct.size)
    return table
