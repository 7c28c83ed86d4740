"""Reconstruction score: what the flow makes of a half-noised image [FlowAD, eq. 3]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fmad_dist.flow.noise import keyed_noise
from fmad_dist.flow.solvers import EVALUATIONS_PER_STEP, SolverName, Velocity, integrate
from fmad_dist.scoring.interface import Scorer, ScoringMethod, Trained


class ReconstructionConfig(ScoringMethod):
    name: Literal["reconstruction"] = "reconstruction"
    tau: float = Field(0.5, gt=0.0, lt=1.0, description="start time, 0 = all noise, 1 = all data")
    noises: int = Field(1, ge=1, description="noise draws averaged per image")
    steps: int = Field(3, ge=1, description="solver steps from tau to the image")
    solver: SolverName = Field("euler", description="solver of the flow's equation")
    start: Literal["noise", "invert"] = Field(
        "noise", description="noise = eq. 3; invert = walk back from the image instead, an ablation: pure solver error"
    )

    def build(self, trained: Trained) -> "Reconstruction":
        return Reconstruction(self.tau, self.noises, self.steps, self.solver, seed=trained.seed, start=self.start)

    @property
    def draws_noise(self) -> bool:
        return self.start == "noise"


@dataclass(frozen=True)
class Reconstruction(Scorer):
    """Start at X_tau = tau x + (1 - tau) e, integrate to t = 1 and take |x - x_hat|^2, averaged over channels.

    `noises` draws of e are averaged; draw k of an image is keyed by (seed, image key, k). `start` "invert" walks back
    from the image to tau instead of drawing noise. That error is the solver's alone and vanishes with more steps; it
    exists to compare with published code that does so.
    """

    tau: float
    noises: int
    steps: int
    solver: SolverName = "euler"
    seed: int = 0
    start: Literal["noise", "invert"] = "noise"

    @property
    def evaluations(self) -> int:
        walks = 2 if self.start == "invert" else self.noises
        return walks * self.steps * EVALUATIONS_PER_STEP[self.solver]

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] and one key per image -> scores [B, H, W] >= 0."""
        if self.start == "invert":
            return self._error(velocity, x, integrate(velocity, x, 1.0, self.tau, self.steps, self.solver))
        total = torch.zeros_like(x[:, 0])
        for draw in range(self.noises):
            noise = self._noise(x, keys, draw)
            total += self._error(velocity, x, self.tau * x + (1.0 - self.tau) * noise)
        return total / self.noises

    def _error(self, velocity: Velocity, x: Tensor, start: Tensor) -> Tensor:
        rebuilt = integrate(velocity, start, self.tau, 1.0, self.steps, self.solver)
        return (x - rebuilt).square().mean(dim=1)

    def _noise(self, x: Tensor, keys: Sequence[int], draw: int) -> Tensor:
        return keyed_noise(self.seed, keys, x.shape[1:], x.device, draw)
