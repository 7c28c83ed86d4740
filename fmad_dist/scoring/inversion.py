"""Inversion score: how unlikely is the noise that an image comes from [FlowAD, eq. 2]."""

from collections.abc import Sequence

from torch import Tensor

from fmad_dist.flow.solvers import EVALUATIONS_PER_STEP, SolverName, Velocity, integrate


class Inversion:
    """Integrate from data (t = 1) to noise (t = 0) and take |x_0|^2 at every location, averaged over channels."""

    def __init__(self, steps: int, solver: SolverName = "euler") -> None:
        self.steps = steps
        self.solver = solver

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return self.steps * EVALUATIONS_PER_STEP[self.solver]

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor:
        """Whitened features [B, C, H, W] -> scores [B, H, W] >= 0; `keys` are not needed, nothing is random."""
        return self.vectors(velocity, x).square().mean(dim=1)

    def vectors(self, velocity: Velocity, x: Tensor) -> Tensor:
        """The noise x_0 that the images come from [B, C, H, W]."""
        return integrate(velocity, x, 1.0, 0.0, self.steps, self.solver)
