"""Inversion score: how unlikely is the noise that an image comes from [FlowAD, eq. 2]."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from fmad_dist.flow.solvers import EVALUATIONS_PER_STEP, SolverName, Velocity, integrate
from fmad_dist.scoring.interface import Trained, VectorMethod, VectorScorer


class InversionConfig(VectorMethod):
    name: Literal["inversion"] = "inversion"
    steps: int = Field(3, ge=1, description="solver steps from the image to noise")
    solver: SolverName = Field("euler", description="solver of the flow's equation")

    def build(self, trained: Trained) -> "Inversion":
        return Inversion(self.steps, self.solver)


@dataclass(frozen=True)
class Inversion(VectorScorer):
    """Integrate from data (t = 1) to noise (t = 0) and take |x_0|^2 at every location, averaged over channels."""

    steps: int
    solver: SolverName = "euler"

    @property
    def evaluations(self) -> int:
        return self.steps * EVALUATIONS_PER_STEP[self.solver]

    def vectors(self, velocity: Velocity, x: Tensor) -> Tensor:
        """The noise x_0 that the images come from [B, C, H, W]."""
        return integrate(velocity, x, 1.0, 0.0, self.steps, self.solver)
