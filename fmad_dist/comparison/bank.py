"""A memory bank: how far is a patch from every normal patch that was kept [PatchCore].

[paper]: features averaged over the neighbourhood of a patch, greedy k-centre coreset, distance to the nearest. [ours]:
the features are the whitened ones that all scorers see, on their grid, and maps and image scores follow the protocol,
so the paper's re-weighting of the image score is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.interface import Scorer

SEARCH_CHUNK = 2**16  # vectors that an image is compared with at a time


@dataclass(frozen=True)
class Patches:
    """Features [B, C, G, G] -> one vector per location, [B, G * G, D]: the mean over `side` x `side` locations (at the
    border over those that exist) of the channels in `channels` (None = all)."""

    side: int = 1
    channels: Tensor | None = None  # int64 [D]

    def __call__(self, x: Tensor) -> Tensor:
        if self.channels is not None:
            x = x[:, self.channels]
        x = functional.avg_pool2d(x, self.side, stride=1, padding=self.side // 2, count_include_pad=False)
        return x.flatten(2).transpose(1, 2).contiguous()


class MemoryBank:
    """Kept vectors float32 [M, D], held around their mean, where the products of the search cancel least."""

    def __init__(self, vectors: Tensor) -> None:
        self.centre = vectors.mean(dim=0)
        self.vectors = vectors - self.centre
        self.norms = self.vectors.square().sum(dim=1)

    def distances(self, patches: Tensor, neighbours: int = 1) -> Tensor:
        """Mean Euclidean distance of each patch [T, D] to its nearest vectors, [T]; 0 for a patch that is in the bank.

        Products find the nearest, but are too coarse for small distances, which therefore come from differences.
        """
        patches = patches - self.centre
        difference = patches[:, None] - self.vectors[self._nearest(patches, min(neighbours, len(self.vectors)))]
        return difference.square().sum(dim=-1).sqrt().mean(dim=-1)

    def _nearest(self, patches: Tensor, count: int) -> Tensor:
        """Positions of the nearest vectors, int64 [T, count]."""
        best: list[Tensor] = []
        positions: list[Tensor] = []
        for start in range(0, len(self.vectors), SEARCH_CHUNK):
            part = slice(start, start + SEARCH_CHUNK)
            ranked = torch.addmm(self.norms[part], patches, self.vectors[part].T, alpha=-2)
            found = ranked.topk(min(count, ranked.shape[1]), dim=1, largest=False)
            best.append(found.values)
            positions.append(found.indices + start)
        order = torch.cat(best, dim=1).topk(count, dim=1, largest=False).indices
        return torch.cat(positions, dim=1).gather(1, order)


@dataclass(frozen=True)
class BankScorer(Scorer):
    """A scorer by the distance to memory banks; it needs no network. One bank for all images, or one per class, and
    then `for_classes` has to say which image is of which class."""

    evaluations: ClassVar[int] = 0
    banks: Sequence[MemoryBank]
    patches: Patches
    neighbours: int = 1
    per_class: bool = False
    classes: Sequence[int] | None = None

    def for_classes(self, classes: Sequence[int]) -> "BankScorer":
        """The scorer for images of these classes; itself if it has one bank for all."""
        return replace(self, classes=classes) if self.per_class else self

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, G, G] -> scores [B, G, G]; field and keys are not used.

        Image by image, so that products have one shape and a score does not depend on the batch in a single bit.
        """
        assert self.classes is not None or not self.per_class
        classes = self.classes if self.classes is not None else [0] * len(x)
        scores = [
            self.banks[number].distances(patches, self.neighbours)
            for number, patches in zip(classes, self.patches(x), strict=True)
        ]
        return torch.stack(scores).view(len(x), *x.shape[2:])
