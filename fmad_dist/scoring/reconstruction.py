"""Reconstruction score: what the flow makes of a half-noised image [FlowAD, eq. 3]."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fmad_dist.flow.noise import keyed_generator
from fmad_dist.flow.solvers import EVALUATIONS_PER_STEP, SolverName, Velocity, integrate


class Reconstruction:
    """Start at X_tau = tau x + (1 - tau) e, integrate to t = 1 and take |x - x_hat|^2, averaged over channels.

    `noises` draws of e are averaged; draw k of an image is keyed by (seed, image key, k).
    """

    def __init__(self, tau: float, noises: int, steps: int, solver: SolverName = "euler", seed: int = 0) -> None:
        self.tau = tau
        self.noises = noises
        self.steps = steps
        self.solver = solver
        self.seed = seed

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return self.noises * self.steps * EVALUATIONS_PER_STEP[self.solver]

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] and one key per image -> scores [B, H, W] >= 0."""
        total = torch.zeros_like(x[:, 0])
        for draw in range(self.noises):
            noise = torch.stack([self._noise(x[0], key, draw) for key in keys])
            start = self.tau * x + (1.0 - self.tau) * noise
            total += (x - integrate(velocity, start, self.tau, 1.0, self.steps, self.solver)).square().mean(dim=1)
        return total / self.noises

    def _noise(self, like: Tensor, key: int, draw: int) -> Tensor:
        generator = keyed_generator(like.device, self.seed, key, draw)
        return torch.randn(like.shape, generator=generator, device=like.device)
