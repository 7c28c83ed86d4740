"""A scorer by its configuration. All scorers share one interface: (velocity, x, keys) -> scores [B, h, w]."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fmad_dist.config import ScorerConfig
from fmad_dist.flow.solvers import Velocity
from fmad_dist.scoring.inversion import Inversion
from fmad_dist.scoring.reconstruction import Reconstruction


class Scorer(Protocol):
    """Turns whitened features into anomaly scores on the token grid."""

    @property
    def evaluations(self) -> int: ...

    def __call__(self, velocity: Velocity, x: Tensor, keys: Sequence[int]) -> Tensor: ...


def build_scorer(config: ScorerConfig, seed: int) -> Scorer:
    if config.name == "inversion":
        return Inversion(config.steps, config.solver)
    return Reconstruction(config.tau, config.noises, config.steps, config.solver, seed)
