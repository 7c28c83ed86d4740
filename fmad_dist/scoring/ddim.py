"""DDIM inversion score of a noise-predicting diffusion model [InvAD]."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from fmad_dist.flow.paths import AffinePath
from fmad_dist.flow.solvers import Velocity


class DDIMInversion:
    """Walk from the image (t = 0) to noise (t = 1) in deterministic steps; the score is the latent's |z|^2.

    A step reads the noise, solves x_t = alpha x + sigma e for x, and puts both on the path at the next time.
    """

    def __init__(self, steps: int, path: AffinePath) -> None:
        self.steps = steps
        self.path = path

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return self.steps

    def __call__(self, predicted_noise: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] -> mean over channels of z^2, [B, H, W]; nothing is random."""
        return self.vectors(predicted_noise, x).square().mean(dim=1)

    def vectors(self, predicted_noise: Velocity, x: Tensor) -> Tensor:
        """The latents z [B, C, H, W]."""
        times = torch.linspace(0.0, 1.0, self.steps + 1, dtype=torch.float64)
        alphas, sigmas = (part.tolist() for part in self.path.coefficients(times))
        levels = itertools.pairwise(zip(alphas, sigmas, strict=True))
        for now, ((alpha, sigma), (next_alpha, next_sigma)) in zip(times.tolist(), levels, strict=False):
            noise = predicted_noise(x, torch.full((x.shape[0],), now, device=x.device))
            x = next_alpha * (x - sigma * noise) / alpha + next_sigma * noise
        return x
