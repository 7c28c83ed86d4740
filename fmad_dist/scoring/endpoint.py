"""Endpoint and residual scores: one look at the field where the data are."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fmad_dist.flow.solvers import Velocity, integrate


class Endpoint:
    """0.5 |z|^2 averaged over channels, z = where `steps` Euler steps from the image to noise end [WT-Flow].

    With one step z = x + v_rev(x, 0) = x - v_fwd(x, 1), a density proxy for one network evaluation.
    """

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return self.steps

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] -> scores [B, H, W] >= 0; nothing is random."""
        return self.vectors(velocity, x).square().mean(dim=1)

    def vectors(self, velocity: Velocity, x: Tensor) -> Tensor:
        """z / sqrt(2) [B, C, H, W]."""
        return integrate(velocity, x, 1.0, 0.0, self.steps) / math.sqrt(2.0)


class Residual:
    """What the field says beyond the linear well that theory gives to every data law, v_rev(x, 0) = -(1 + a) x [ours].

    |v_rev(x, 0) + (1 + a) x|^2 / (1 + a)^2 averaged over channels, with the coupling strength a of the training. For
    independent noise (a = 0) it is twice the one-step endpoint score; towards a = 1 the endpoint goes blind, this does
    not.
    """

    evaluations = 1

    def __init__(self, coupling_strength: float) -> None:
        self.scale = 1.0 + coupling_strength

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] -> scores [B, H, W] >= 0; nothing is random."""
        return self.vectors(velocity, x).square().mean(dim=1)

    def vectors(self, velocity: Velocity, x: Tensor) -> Tensor:
        """The difference to the linear well, in its units [B, C, H, W]."""
        v_reversed = -velocity(x, torch.ones(x.shape[0], device=x.device))
        return v_reversed / self.scale + x
