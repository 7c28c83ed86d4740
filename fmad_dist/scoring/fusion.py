"""A scorer made of others: the mean of their z-scores, calibrated on held-out normals alone [ours]."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.config.scorers import ScorerChoice
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.endpoint import EndpointConfig
from fmad_dist.scoring.interface import NormalImages, PartStatistics, Scorer, ScoringMethod, Trained
from fmad_dist.scoring.inversion import InversionConfig

Part = Annotated[SerializeAsAny[ScoringMethod], ScorerChoice(usable=lambda kind: not kind.needs_normals)]


class FusionConfig(ScoringMethod):
    name: Literal["fusion"] = "fusion"
    parts: tuple[Part, ...] = Field(
        (InversionConfig(), EndpointConfig()),
        min_length=2,
        description="scorers whose z-scores, calibrated on held-out normals, are averaged",
    )
    needs_normals: ClassVar[bool] = True

    def build(self, trained: Trained) -> "Fusion":
        return Fusion([part.build(trained) for part in self.parts])

    def refusal(self, objective: ObjectiveConfig) -> str | None:
        return next(filter(None, (part.refusal_as_part(objective) for part in self.parts)), None)

    def export_refusal(self) -> str | None:
        return next((f"has {part.name}, which {why}" for part in self.parts if (why := part.export_refusal())), None)

    def changed_options(self) -> dict[str, object]:
        shown = {"parts": f"[{' + '.join(part.title for part in self.parts)}]"}
        return {key: shown.get(key, value) for key, value in super().changed_options().items()}


@dataclass(frozen=True)
class Fusion(Scorer):
    """The mean of its parts' z-scores, so that every part weighs the same. No label is used."""

    parts: Sequence[Scorer]
    statistics: tuple[PartStatistics, ...] | None = None

    @property
    def evaluations(self) -> int:
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

    def fit(self, normals: NormalImages) -> "Fusion":
        """The fusion with the statistics of its parts on all held-out normals; every rank scores its share.

        Raises:
            UserError: no held-out image can be read.
        """
        sums: list[list[list[float]]] = []
        with torch.inference_mode():
            for x, keys in normals.held_out():
                sums += self.sums(normals.field, x, keys).tolist()
        gathered = [image for part in normals.world.gather(sums) for image in part]
        if not gathered:
            raise UserError("scorer fusion: no held-out image could be read; restore the shards of the training data.")
        return self.with_statistics(fit_statistics(gathered, normals.num_locations))

    def with_statistics(self, statistics: tuple[PartStatistics, ...] | None) -> "Fusion":
        return replace(self, statistics=statistics)

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
