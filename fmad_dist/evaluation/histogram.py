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

from fmad_dist.errors import UserError
from fmad_dist.evaluation.regions import REGION_UNIT, Regions, SingleDefects, label_regions, saturated_regions

KEY_BITS = 32
PENDING_PIXELS = 2**20  # counted in one go; 4 MB
DENSE_SPAN = 2**22  # a narrower range of keys is counted in an array of that range, a wider one by sorting
MAX_REGIONS = 2**62 // REGION_UNIT
NORMAL, ANOMALOUS, WEIGHT = range(3)  # rows of counts


def ordered_keys(scores: np.ndarray) -> np.ndarray:
    """Map finite float32 scores to uint32 keys in the same order; -0.0 and 0.0 share one key."""
    bits = (np.asarray(scores, dtype=np.float32) + np.float32(0.0)).view(np.uint32)
    negative = (bits >> np.uint32(31)).astype(bool)
    return np.where(negative, ~bits, bits | np.uint32(0x80000000))


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
        return sum(getattr(self, field.name).nbytes for field in fields(self))


class PixelHistogram:
    """The pixels of a set of images, counted in bins with keys `ordered_keys(score) >> shift`."""

    def __init__(self, max_bins: int) -> None:
        self.max_bins = max_bins
        self.shift = 0
        self.num_regions = 0
        self._bins = Bins.pack(np.zeros(0, dtype=np.uint32), np.zeros((3, 0), dtype=np.int64))
        self._pending_normal: list[np.ndarray] = []
        self._pending_anomalous: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_pending = 0

    @classmethod
    def restore(cls, max_bins: int, shift: int, num_regions: int, bins: Bins) -> "PixelHistogram":
        """The histogram that had these values."""
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

    def add(self, scores: np.ndarray, mask: np.ndarray, connectivity: int) -> None:
        """Count one finite float32 map [H, W] against its bool mask [H, W]."""
        self._add(scores, mask, label_regions(mask, connectivity) if mask.any() else None)

    def add_channels(self, scores: np.ndarray, defects: SingleDefects) -> None:
        """Count one finite float32 map [H, W] against single defects, which are its regions, of the same size."""
        mask = defects.union()
        self._add(scores, mask, saturated_regions(scores, mask, defects.channels) if defects.channels else None)

    def _add(self, scores: np.ndarray, mask: np.ndarray, regions: Regions | None) -> None:
        keys = ordered_keys(scores)
        if regions is not None:
            self._count_regions(regions.num_regions)
            self._pending_anomalous.append((keys[mask], regions.weights))
            keys = keys[~mask]
        self._pending_normal.append(keys.ravel())
        self._num_pending += mask.size
        if self._num_pending >= PENDING_PIXELS:
            self.settle()

    def merge(self, other: "PixelHistogram") -> None:
        """Add the counts of `other`, which keeps its own."""
        theirs = other.bins
        self.settle()
        self._count_regions(other.num_regions)
        self._absorb(other.shift, theirs.keys, theirs.counts)

    def settle(self) -> None:
        """Count the pixels that were added but wait in memory; reading or merging does it too."""
        if not self._num_pending:
            return
        shift = np.uint32(self.shift)
        parts = [_tally(np.concatenate(self._pending_normal) >> shift)]
        if self._pending_anomalous:
            keys = np.concatenate([keys for keys, _ in self._pending_anomalous]) >> shift
            parts.append(_tally(keys, np.concatenate([weights for _, weights in self._pending_anomalous])))
        self._pending_normal, self._pending_anomalous, self._num_pending = [], [], 0
        keys, counts = np.concatenate([keys for keys, _ in parts]), np.concatenate([c for _, c in parts], axis=1)
        self._absorb(self.shift, keys, counts)

    def _absorb(self, shift: int, keys: np.ndarray, counts: np.ndarray) -> None:
        """Add counts int64 [3, n] of keys at `shift`, then drop bits until the bins fit."""
        common = max(shift, self.shift)
        keys = np.concatenate([self._bins.keys >> np.uint32(common - self.shift), keys >> np.uint32(common - shift)])
        order = np.argsort(keys, kind="stable")  # sorted runs: a linear merge
        keys, counts = keys[order], np.concatenate([self._bins.counts, counts], axis=1)[:, order]
        drop = 0
        while _num_distinct(keys >> np.uint32(drop)) > self.max_bins:
            drop += 1
        self._bins = Bins.pack(*_join_equal(keys >> np.uint32(drop), counts))
        self.shift = common + drop

    def _count_regions(self, num_regions: int) -> None:
        self.num_regions += num_regions
        if self.num_regions > MAX_REGIONS:
            raise UserError(f"masks: more than {MAX_REGIONS} defect regions in one class; check the mask files.")


def _tally(keys: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct keys and counts int64 [3, n] of pixels: normal ones without weights, anomalous ones with their
    region weights int64 [pixels].
    """
    if weights is None and keys.size and keys.max() - keys.min() < DENSE_SPAN:
        return _tally_dense(keys)
    if weights is None:
        keys = np.sort(keys)
    else:
        order = np.argsort(keys, kind="stable")
        keys, weights = keys[order], weights[order]
    starts = _starts(keys)
    counts = np.zeros((3, starts.size), dtype=np.int64)
    counts[NORMAL if weights is None else ANOMALOUS] = np.diff(starts, append=keys.size)
    if weights is not None:
        counts[WEIGHT] = np.add.reduceat(weights, starts)
    return keys[starts], counts


def _tally_dense(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low = keys.min()
    pixels = np.bincount(keys - low)
    occupied = np.flatnonzero(pixels)
    counts = np.zeros((3, occupied.size), dtype=np.int64)
    counts[NORMAL] = pixels[occupied]
    return occupied.astype(np.uint32) + low, counts


def _join_equal(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = _starts(keys)
    if starts.size == keys.size:
        return keys, counts
    return keys[starts], np.add.reduceat(counts, starts, axis=1)


def _starts(keys: np.ndarray) -> np.ndarray:
    """Positions in sorted keys where a new value begins."""
    return np.flatnonzero(np.concatenate([np.ones(min(keys.size, 1), dtype=bool), keys[1:] != keys[:-1]]))


def _num_distinct(keys: np.ndarray) -> int:
    return int(np.count_nonzero(keys[1:] != keys[:-1])) + min(keys.size, 1)


def _narrow(values: np.ndarray) -> np.ndarray:
    """Non-negative integers in the smallest unsigned type, chosen by the largest value."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
