"""Endpoint score: one look at the field where the data are [WT-Flow]."""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from fmad_dist.config.protocol import Protocol
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.flow.solvers import Velocity, integrate
from fmad_dist.scoring.interface import ScoringMethod, Trained, VectorMethod, VectorScorer
from fmad_dist.scoring.maps import top_mean, upsample


class EndpointConfig(VectorMethod):
    name: Literal["endpoint"] = "endpoint"
    steps: int = Field(1, ge=1, description="Euler steps from the image to noise")
    postprocess: Literal["protocol", "paper"] = Field(
        "protocol", description="paper: max exp(logp) - exp(logp) per image, image score = mean of the top 3 %"
    )

    def build(self, trained: Trained) -> "Endpoint":
        return Endpoint(self.steps, self.postprocess == "paper")

    def refusal_as_part(self, objective: ObjectiveConfig) -> str | None:
        if self.postprocess == "paper":
            return f"its part {self.name} has postprocess paper, which rescales every image by itself"
        return super().refusal_as_part(objective)

    @classmethod
    def compared(cls) -> tuple[ScoringMethod, ...]:
        return cls(), cls(postprocess="paper")


@dataclass(frozen=True)
class Endpoint(VectorScorer):
    """0.5 |z|^2 averaged over channels, z = where `steps` Euler steps from the image to noise end [WT-Flow].

    With one step z = x + v_rev(x, 0) = x - v_fwd(x, 1), a density proxy for one network evaluation. `paper` finishes
    maps as WT-Flow does, which rescales every image by itself.
    """

    steps: int = 1
    paper: bool = False

    @property
    def evaluations(self) -> int:
        return self.steps

    def vectors(self, velocity: Velocity, x: Tensor) -> Tensor:
        """z / sqrt(2) [B, C, H, W]."""
        return integrate(velocity, x, 1.0, 0.0, self.steps) / math.sqrt(2.0)

    def to_pixels(self, scores: Tensor, protocol: Protocol) -> Tensor:
        if not self.paper:
            return super().to_pixels(scores, protocol)
        likelihood = (-upsample(scores, protocol.map_size, align_corners=True)).exp()
        return likelihood.amax(dim=(1, 2), keepdim=True) - likelihood

    def image_scores(self, maps: Tensor, protocol: Protocol) -> Tensor:
        return top_mean(maps, 3.0) if self.paper else super().image_scores(maps, protocol)
