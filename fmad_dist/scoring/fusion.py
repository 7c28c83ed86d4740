"""A scorer made of others: the mean of their z-scores, calibrated on held-out normals alone [ours]."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmad_dist.errors import UserError
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.interface import Scorer


@dataclass(frozen=True, slots=True)
class PartStatistics:
    """Mean and standard deviation of one part's scores over all locations of the held-out normals."""

    mean: float
    std: float


class Fusion:
    """Every part weighs the same once its scores are z-scores of normal images. No label has a say."""

    def __init__(self, parts: Sequence[Scorer], statistics: Sequence[PartStatistics] | None = None) -> None:
        self.parts = tuple(parts)
        self.statistics: Sequence[PartStatistics] | None = statistics

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return sum(part.evaluations for part in self.parts)

    def __call__(self, field: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] and one key per image -> mean z-scores [B, H, W].

        Raises:
            UserError: the parts were not calibrated.
        """
        if self.statistics is None:
            raise UserError("scorer fusion: its parts were never calibrated on held-out normals; train with it.")
        total = torch.zeros_like(x[:, 0])
        for part, known in zip(self.parts, self.statistics, strict=True):
            total += (part(field, x, keys) - known.mean) / known.std
        return total / len(self.parts)

    def sums(self, field: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Sum and sum of squares of every part's scores over the locations, float64 [B, P, 2]."""
        scores = torch.stack([part(field, x, keys) for part in self.parts], dim=1).double().flatten(2)
        return torch.stack([scores.sum(2), scores.square().sum(2)], dim=2)


def fit_statistics(sums: Sequence[Sequence[Sequence[float]]], locations: int) -> tuple[PartStatistics, ...]:
    """From the `sums` of all held-out normals [n][P][2]; exact summation, so the order of images does not matter."""
    found = []
    for part in range(len(sums[0])):
        count = len(sums) * locations
        mean = math.fsum(image[part][0] for image in sums) / count
        variance = math.fsum(image[part][1] for image in sums) / count - mean**2
        found.append(PartStatistics(mean, math.sqrt(max(variance, 1e-24))))
    return tuple(found)
