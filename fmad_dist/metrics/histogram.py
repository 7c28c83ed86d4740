"""Pixel scores as a mergeable histogram on the float32 bit pattern: integer counts, bounded memory, one exact result.

The bit pattern of a float32, with the sign handled, is an integer in the order of the floats. A histogram starts with
one bin per float32 value, which is exact, and drops the lowest bit of all its keys whenever it occupies more than
`max_bins` bins. Coarser keys never occupy more bins and more data never fewer, so the bits that remain are a function
of all pixels together: the finest resolution that fits. No order, split or merge of the data can change a single count
(ours).

Against a fixed number of bits this keeps its resolution where the scores lie: a likelihood of 1000 +- 1 has as many
bins as a squared norm that spans ten decades. What it cannot resolve are scores crowded below a bound that is not zero,
probabilities at 0.9999 for example, beside scores near zero; the error bounds in the results show when that matters.
"""

from dataclasses import dataclass, fields

import numpy as np

from fmad_dist.base.errors import UserError
from fmad_dist.metrics.regions import REGION_UNIT, Regions, SingleDefects, label_regions, saturated_regions

KEY_BITS = 32
PENDING_PIXELS = 2**22  # counted in one go; 16 MB
MAX_REGIONS = 2**62 // REGION_UNIT
NORMAL, ANOMALOUS, WEIGHT = range(3)  # rows of counts
NO_REGIONS = Regions(np.zeros(0, dtype=np.int64), 0)


def ordered_keys(scores: np.ndarray) -> np.ndarray:
    """Map finite float32 scores to uint32 keys in the same order; -0.0 and 0.0 share one key."""
    bits = np.asarray(scores, dtype=np.float32) + np.float32(0.0)
    flips = (bits.view(np.int32) >> 31).view(np.uint32)  # all bits of a negative number flip, else the sign alone
    flips |= np.uint32(0x80000000)
    flips ^= bits.view(np.uint32)
    return flips


@dataclass(frozen=True, slots=True)
class MapPixels:
    """One map ready to be counted: the keys of its normal pixels uint32 [n] and of its anomalous ones uint32 [m], the
    latter with their region weights int64 [m]."""

    normal: np.ndarray
    anomalous: np.ndarray
    weights: np.ndarray
    num_regions: int

    @classmethod
    def of(cls, scores: np.ndarray, mask: np.ndarray, connectivity: int) -> "MapPixels":
        """From a finite float32 map [H, W] and its bool mask [H, W], whose connected pixels are the regions."""
        return cls._split(scores, mask, label_regions(mask, connectivity) if mask.any() else NO_REGIONS)

    @classmethod
    def of_defects(cls, scores: np.ndarray, defects: SingleDefects) -> "MapPixels":
        """From a finite float32 map [H, W] and single defects of the same size, which are its regions."""
        mask = defects.union()
        regions = saturated_regions(scores, mask, defects.channels) if defects.channels else NO_REGIONS
        return cls._split(scores, mask, regions)

    @classmethod
    def _split(cls, scores: np.ndarray, mask: np.ndarray, regions: Regions) -> "MapPixels":
        keys = ordered_keys(scores)
        if not regions.num_regions:
            return cls(keys.ravel(), np.zeros(0, dtype=np.uint32), regions.weights, 0)
        return cls(keys[~mask], keys[mask], regions.weights, regions.num_regions)


@dataclass(frozen=True, slots=True)
class Bins:
    """Occupied bins, compact: `keys` uint32 [n] ascending and `normal` pixels [n]; for the bins at positions `hit` [m]
    the `anomalous` pixels [m] and their summed region weights `weight` [m]. Counts have the smallest type that fits.
    """

    keys: np.ndarray
    normal: np.ndarray
    hit: np.ndarray
    anomalous: np.ndarray
    weight: np.ndarray

    @classmethod
    def pack(cls, keys: np.ndarray, counts: np.ndarray) -> "Bins":
        """From keys and counts int64 [3, n] (rows NORMAL, ANOMALOUS, WEIGHT)."""
        hit = np.flatnonzero(counts[ANOMALOUS])
        hits = (_narrow(row) for row in counts[ANOMALOUS:, hit])
        return cls(keys, _narrow(counts[NORMAL]), _narrow(hit), *hits)

    @property
    def counts(self) -> np.ndarray:
        """Counts int64 [3, n] of normal pixels, anomalous pixels and region weights."""
        counts = np.zeros((3, self.keys.size), dtype=np.int64)
        counts[NORMAL] = self.normal
        counts[ANOMALOUS, self.hit] = self.anomalous
        counts[WEIGHT, self.hit] = self.weight
        return counts

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))


def bin_middles(histogram: "PixelHistogram") -> np.ndarray:
    """The scores float64 [n] in the middle of the occupied bins, ascending; the scores themselves where it is exact."""
    shift = KEY_BITS - histogram.bits
    keys = (histogram.bins.keys << np.uint32(shift)) + np.uint32((1 << shift) // 2)
    negative = keys < np.uint32(0x80000000)
    return np.where(negative, ~keys, keys ^ np.uint32(0x80000000)).view(np.float32).astype(np.float64)


Amounts = tuple[np.ndarray, dict[int, np.ndarray | None]]  # sorted keys [n], and per row of counts what each adds, or 1


class PixelHistogram:
    """The pixels of a set of images, counted in bins with keys `ordered_keys(score) >> shift`."""

    def __init__(self, max_bins: int) -> None:
        self.max_bins = max_bins
        self.shift = 0
        self.num_regions = 0
        self._bins = Bins.pack(np.zeros(0, dtype=np.uint32), np.zeros((3, 0), dtype=np.int64))
        self._pending: list[MapPixels] = []
        self._num_pending = 0

    @classmethod
    def restore(cls, max_bins: int, shift: int, num_regions: int, bins: Bins) -> "PixelHistogram":
        """A histogram with these values, as they were stored."""
        histogram = cls(max_bins)
        histogram.shift, histogram.num_regions, histogram._bins = shift, num_regions, bins
        return histogram

    @property
    def bins(self) -> Bins:
        """The bins of everything added so far."""
        self.settle()
        return self._bins

    @property
    def bits(self) -> int:
        """Bits of the float32 pattern that are kept, 32 = every distinct score has its bin."""
        self.settle()
        return KEY_BITS - self.shift

    def add(self, pixels: MapPixels) -> None:
        """Count the pixels of one map."""
        self._count_regions(pixels.num_regions)
        self._pending.append(pixels)
        self._num_pending += pixels.normal.size + pixels.anomalous.size
        if self._num_pending >= PENDING_PIXELS:
            self.settle()

    def merge(self, other: "PixelHistogram") -> None:
        """Add the counts of `other`, which keeps its own."""
        theirs = other.bins
        self.settle()
        self._count_regions(other.num_regions)
        if not self._bins.keys.size and self.max_bins == other.max_bins:
            self.shift, self._bins = other.shift, theirs
        else:
            self._absorb(other.shift, _amounts(theirs))

    def settle(self) -> None:
        """Count the pixels that were added and are still held in memory; reading or merging does so too."""
        if not self._pending:
            return
        shift, pending = np.uint32(self.shift), self._pending
        self._pending, self._num_pending = [], 0
        normal = np.sort(np.concatenate([pixels.normal for pixels in pending]) >> shift)
        anomalous = np.concatenate([pixels.anomalous for pixels in pending]) >> shift
        order = np.argsort(anomalous)
        weights = np.concatenate([pixels.weights for pixels in pending])[order]
        self._absorb(self.shift, [(normal, {NORMAL: None}), (anomalous[order], {ANOMALOUS: None, WEIGHT: weights})])

    def _absorb(self, shift: int, parts: list[Amounts]) -> None:
        """Add what has sorted keys at `shift`, then drop bits until the bins fit."""
        common = max(shift, self.shift)
        parts = [(keys >> np.uint32(common - shift), rows) for keys, rows in parts]
        parts += [(keys >> np.uint32(common - self.shift), rows) for keys, rows in _amounts(self._bins)]
        drop, keys = fitting_keys(distinct(np.sort(np.concatenate([distinct(own) for own, _ in parts]))), self.max_bins)
        counts = np.zeros((3, keys.size), dtype=np.int64)
        for own, rows in parts:
            starts = np.flatnonzero(_begins(own >> np.uint32(drop)))
            bins = np.searchsorted(keys, own[starts] >> np.uint32(drop))
            for row, values in rows.items():
                counts[row, bins] += np.diff(starts, append=own.size) if values is None else _sums(values, starts)
        self.shift, self._bins = common + drop, Bins.pack(keys, counts)

    def _count_regions(self, num_regions: int) -> None:
        self.num_regions += num_regions
        if self.num_regions > MAX_REGIONS:
            raise UserError(f"masks: more than {MAX_REGIONS} defect regions in one class; check the mask files.")


def fitting_keys(keys: np.ndarray, max_bins: int) -> tuple[int, np.ndarray]:
    """How many low bits of sorted distinct keys must go for at most `max_bins` to remain, and what remains."""
    drop = 0
    while keys.size > max_bins:
        at_least = (-(-keys.size // max_bins) - 1).bit_length()  # a bit less at most halves the number of keys
        keys, drop = distinct(keys >> np.uint32(at_least)), drop + at_least
    return drop, keys


def distinct(keys: np.ndarray) -> np.ndarray:
    """The distinct values of sorted keys."""
    return keys[_begins(keys)]


def _amounts(bins: Bins) -> list[Amounts]:
    return [
        (bins.keys, {NORMAL: bins.normal}),
        (bins.keys[bins.hit], {ANOMALOUS: bins.anomalous, WEIGHT: bins.weight}),
    ]


def _begins(keys: np.ndarray) -> np.ndarray:
    """Whether a new value begins, at each of sorted keys."""
    begins = np.ones(keys.size, dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=begins[1:])
    return begins


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums int64 of the values from each start to the next."""
    return np.add.reduceat(values, starts, dtype=np.int64) if starts.size < values.size else values.astype(np.int64)


def _narrow(values: np.ndarray) -> np.ndarray:
    """Non-negative integers in the smallest unsigned type, chosen by the largest value."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
