"""Affine paths between data and noise, x_t = alpha(t) x + sigma(t) e, and what a network learns on them.

Two opposite directions of time are in use: `forward` has noise at t = 0 and data at t = 1 [FlowAD; Flow Mismatching],
`reversed` has data at t = 0 [WT-Flow]. With the independent coupling the fields agree: v_rev(x, t) = -v_fwd(x, 1 - t).
`vp` is the variance-preserving diffusion with data at t = 0, whose network predicts the noise [InvAD].
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PathName = Literal["forward", "reversed", "vp"]


@dataclass(frozen=True, slots=True)
class PathSample:
    """Points on the path and what a network should answer there."""

    x_t: Tensor  # [B, C, H, W]
    t: Tensor  # [B] in [0, 1]
    target: Tensor  # [B, C, H, W]


class AffinePath(ABC):
    """x_t = alpha(t) x + sigma(t) e for t in [0, 1]."""

    name: PathName
    data_time: float  # where alpha = 1 and sigma = 0
    predicts: Literal["velocity", "noise"] = "velocity"

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times t [B] in [0, 1], each [B]."""

    @abstractmethod
    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        """What the network learns to answer, [B, C, H, W]."""

    def sample(self, x: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """x and noise [B, C, H, W], t [B] in [0, 1]."""
        return PathSample(self.interpolate(x, noise, t), t, self.target(x, noise))

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (part.view(-1, *[1] * (x.dim() - 1)) for part in self.coefficients(t.to(x.dtype)))
        return sigma * noise + alpha * x


class ForwardPath(AffinePath):
    """x_t = (1 - t) e + t x with velocity x - e."""

    name = "forward"
    data_time = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, 1 - t

    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        return x - noise


class ReversedPath(AffinePath):
    """x_t = (1 - t) x + t e with velocity e - x."""

    name = "reversed"
    data_time = 0.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        return noise - x


class VariancePreservingPath(AffinePath):
    """alpha(t) = exp(-t^2 (b1 - b0) / 4 - t b0 / 2), sigma^2 = 1 - alpha^2; the network predicts the noise e.

    b0 = 0.1 and b1 = 20 are the continuous limit of the usual 1,000 betas from 1e-4 to 0.02 (Song et al., 2021).
    """

    name = "vp"
    data_time = 0.0
    predicts = "noise"
    beta_first, beta_last = 0.1, 20.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        exponent = -(t**2) * (self.beta_last - self.beta_first) / 4 - t * self.beta_first / 2
        return exponent.exp(), (-torch.expm1(2 * exponent)).sqrt()

    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        return noise


PATHS: dict[PathName, AffinePath] = {
    path.name: path for path in (ForwardPath(), ReversedPath(), VariancePreservingPath())
}
