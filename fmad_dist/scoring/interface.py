"""What all scorers have in common."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fmad_dist.flow.solvers import Velocity


class Scorer(Protocol):
    """Turns whitened features into anomaly scores on their grid."""

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""

    def __call__(self, field: Velocity, x: Tensor, keys: Sequence[int], /) -> Tensor:
        """Field, features [B, C, H, W] and one key per image for random draws -> scores [B, H, W]."""
