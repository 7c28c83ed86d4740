"""Residual score: what the field says beyond its linear well, v_rev(x, 0) = -(1 + a) x for every data law [ours]."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.interface import Trained, VectorMethod, VectorScorer


class ResidualConfig(VectorMethod):
    name: Literal["residual"] = "residual"

    def build(self, trained: Trained) -> "Residual":
        return Residual(trained.coupling_strength)


@dataclass(frozen=True)
class Residual(VectorScorer):
    """|v_rev(x, 0) + (1 + a) x|^2 / (1 + a)^2 averaged over channels, with the coupling strength a of the training.

    For independent noise (a = 0) it is twice the one-step endpoint score; towards a = 1 the endpoint goes blind, this
    does not.
    """

    evaluations: ClassVar[int] = 1
    coupling_strength: float

    def vectors(self, velocity: Velocity, x: Tensor) -> Tensor:
        """The difference to the linear well, in its units [B, C, H, W]."""
        v_reversed = -velocity(x, torch.ones(x.shape[0], device=x.device))
        return v_reversed / (1.0 + self.coupling_strength) + x
