"""What all scorers have in common."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from fmad_dist.flow.solvers import Velocity


class Scorer(Protocol):
    """Turns whitened features into anomaly scores on their grid."""

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""

    def __call__(self, field: Velocity, x: Tensor, keys: Sequence[int], /) -> Tensor:
        """Field, features [B, C, H, W] and one key per image for random draws -> scores [B, H, W]; or [B, 2, H, W],
        of which the first judge the image and the second make its map."""


@runtime_checkable
class VectorScorer(Scorer, Protocol):
    """A scorer without random draws whose scores are mean squares over the channels of vectors."""

    def vectors(self, field: Velocity, x: Tensor) -> Tensor:
        """Field, features [B, C, H, W] -> vectors [B, C, H, W]; the scores are their `square().mean(1)`."""
