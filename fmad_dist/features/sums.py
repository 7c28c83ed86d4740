"""What whitening and class means need of the training normals: sums of each class, of bounded size on every rank.

The images of a class are added up in parts of PART_IMAGES, each by one rank, and the parts in their order. So sums have
the same bits for any number of ranks, and no rank holds or sends anything of single images.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fmad_dist.base.world import World
from fmad_dist.features.whitening import Whitening

PART_IMAGES = 2048

Moments = Callable[[np.ndarray], Iterable[np.ndarray]]  # channel sums [n, 2, C] of the images at rows, some at a time


@dataclass(frozen=True, slots=True)
class FeatureSums:
    """Sums over the readable images of each class: of their channel sums, and, for the norm `layer`, of their pooled
    features, which do not follow from those."""

    counts: np.ndarray  # int64 [K]
    moments: np.ndarray  # float64 [K, 2, C]
    pooled: np.ndarray  # float64 [K, C]; zero for the norm `channel`

    def set(self, norm: Whitening, tokens: int) -> None:
        """Take the whitening's mean and deviation from all images."""
        norm.set_moments(self.moments.sum(axis=0), int(self.counts.sum()) * tokens)

    def class_means(self, norm: Whitening, tokens: int) -> torch.Tensor:
        """Mean whitened feature vector of each class, float32 [K, C]."""
        if norm.norm == "layer":
            return torch.from_numpy(self.pooled / self.counts[:, None]).float()
        return norm.pooled(self.moments / self.counts[:, None, None], tokens)


def summed(
    rows: np.ndarray,
    classes: np.ndarray,
    num_classes: int,
    moments: Moments,
    norm: Whitening,
    tokens: int,
    world: World,
) -> FeatureSums:
    """Sums over the images at `rows`, int64 [n], of these `classes`; damaged images have moments of NaN and are left
    out. `tokens` are those of one image. Every rank calls and reads its share.
    """
    order = np.argsort(classes, kind="stable")
    sizes = np.bincount(classes, minlength=num_classes)
    starts = [(number, start) for number, size in enumerate(sizes) for start in range(0, size, PART_IMAGES)]
    parts = [(number, min(PART_IMAGES, sizes[number] - start)) for number, start in starts]
    ends = np.cumsum([0, *(size for _, size in parts)])
    share, channels = world.share(len(parts)), len(norm.mean)
    found = np.zeros((len(parts), 1 + 3 * channels))
    own = rows[order[ends[share.start] : ends[share.stop]]]
    for place, values in zip(share, _regrouped(moments(own), [parts[n][1] for n in share]), strict=True):
        values = values[~np.isnan(values).any(axis=(1, 2))]
        pooled = norm.pooled(values, tokens).double().sum(dim=0).numpy() if norm.norm == "layer" else np.zeros(channels)
        found[place] = np.concatenate([[len(values)], values.sum(axis=0).ravel(), pooled])
    sums = np.zeros((num_classes, found.shape[1]))
    for (number, _), one in zip(parts, world.combined(found), strict=True):
        sums[number] += one
    return FeatureSums(sums[:, 0].astype(np.int64), sums[:, 1:-channels].reshape(-1, 2, channels), sums[:, -channels:])


def _regrouped(arrays: Iterable[np.ndarray], sizes: Iterable[int]) -> Iterator[np.ndarray]:
    """The elements of consecutive arrays [n, ...] in arrays of these sizes."""
    waiting = iter(arrays)
    held: list[np.ndarray] = []
    for size in sizes:
        while sum(len(one) for one in held) < size:
            held.append(next(waiting))
        everything = np.concatenate(held)
        yield everything[:size]
        held = [everything[size:]]
