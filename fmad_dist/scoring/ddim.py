"""DDIM inversion score of a noise-predicting diffusion model [InvAD]."""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.flow.paths import PATHS, AffinePath
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.interface import Trained, VectorMethod, VectorScorer


class DDIMConfig(VectorMethod):
    name: Literal["ddim"] = "ddim"
    steps: int = Field(3, ge=1, description="deterministic diffusion steps from the image to noise")

    def build(self, trained: Trained) -> "DDIMInversion":
        return DDIMInversion(self.steps, PATHS[trained.objective.path])

    def refusal(self, objective: ObjectiveConfig) -> str | None:
        if objective.path != "vp":
            return f"it needs a network that predicts noise (objective.path vp), this one is {objective.path}"
        return None


@dataclass(frozen=True)
class DDIMInversion(VectorScorer):
    """Walk from the image (t = 0) to noise (t = 1) in deterministic steps; the score is the latent's |z|^2.

    A step reads the noise, solves x_t = alpha x + sigma e for x, and puts both on the path at the next time.
    """

    steps: int
    path: AffinePath

    @property
    def evaluations(self) -> int:
        return self.steps

    def vectors(self, predicted_noise: Velocity, x: Tensor) -> Tensor:
        """The latents z [B, C, H, W]."""
        times = torch.linspace(0.0, 1.0, self.steps + 1, dtype=torch.float64)
        alphas, sigmas = (part.tolist() for part in self.path.coefficients(times))
        levels = itertools.pairwise(zip(alphas, sigmas, strict=True))
        for now, ((alpha, sigma), (next_alpha, next_sigma)) in zip(times.tolist(), levels, strict=False):
            noise = predicted_noise(x, torch.full((x.shape[0],), now, device=x.device))
            x = next_alpha * (x - sigma * noise) / alpha + next_sigma * noise
        return x
