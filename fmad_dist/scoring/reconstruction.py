"""Reconstruction score: what the flow makes of a half-noised image [FlowAD, eq. 3]."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fmad_dist.flow.noise import keyed_noise
from fmad_dist.flow.solvers import EVALUATIONS_PER_STEP, SolverName, Velocity, integrate


class Reconstruction:
    """Start at X_tau = tau x + (1 - tau) e, integrate to t = 1 and take |x - x_hat|^2, averaged over channels.

    `noises` draws of e are averaged; draw k of an image is keyed by (seed, image key, k). `start` "invert" walks back
    from the image to tau instead of drawing noise. That error is the solver's alone and vanishes with more steps; it
    exists to compare with published code that does so.
    """

    def __init__(
        self,
        tau: float,
        noises: int,
        steps: int,
        solver: SolverName = "euler",
        seed: int = 0,
        start: Literal["noise", "invert"] = "noise",
    ) -> None:
        self.tau = tau
        self.noises = noises
        self.steps = steps
        self.solver = solver
        self.seed = seed
        self.start = start

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
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
