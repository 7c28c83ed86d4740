"""Affine paths between data and noise, x_t = alpha(t) x + sigma(t) e, and what a network learns on them.

Two opposite directions of time are in use: `forward` has noise at t = 0 and data at t = 1 [FlowAD; Flow Mismatching],
`reversed` has data at t = 0 [WT-Flow]. With the independent coupling the fields agree: v_rev(x, t) = -v_fwd(x, 1 - t).
`vp` is the variance-preserving diffusion with data at t = 0, whose network predicts the noise [InvAD].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PathName = Literal["forward", "reversed", "vp"]
BETA_FIRST, BETA_LAST = 0.1, 20.0  # of vp: the continuous limit of the usual 1,000 betas from 1e-4 to 0.02


@dataclass(frozen=True, slots=True)
class PathSample:
    """Points on the path and what a network should predict there."""

    x_t: Tensor  # [B, C, H, W]
    t: Tensor  # [B] in [0, 1]
    target: Tensor  # [B, C, H, W]


@dataclass(frozen=True, slots=True)
class AffinePath:
    """x_t = alpha(t) x + sigma(t) e for t in [0, 1]; x and noise e are [B, C, H, W]."""

    name: PathName
    data_time: float  # where alpha = 1 and sigma = 0
    coefficients: Callable[[Tensor], tuple[Tensor, Tensor]]  # alpha and sigma, each [B], at times t [B]
    target: Callable[[Tensor, Tensor], Tensor]  # of x and e: what the network learns, a velocity or the noise

    def sample(self, x: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """The points and targets at times t [B]."""
        return PathSample(self.interpolate(x, noise, t), t, self.target(x, noise))

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The points x_t at times t [B]."""
        alpha, sigma = (part.view(-1, *[1] * (x.dim() - 1)) for part in self.coefficients(t.to(x.dtype)))
        return sigma * noise + alpha * x


def _variance_preserving(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha(t) = exp(-t^2 (b1 - b0) / 4 - t b0 / 2), sigma^2 = 1 - alpha^2 (Song et al., 2021)."""
    exponent = -(t**2) * (BETA_LAST - BETA_FIRST) / 4 - t * BETA_FIRST / 2
    return exponent.exp(), (-torch.expm1(2 * exponent)).sqrt()


PATHS: dict[PathName, AffinePath] = {
    "forward": AffinePath("forward", 1.0, lambda t: (t, 1 - t), lambda x, noise: x - noise),
    "reversed": AffinePath("reversed", 0.0, lambda t: (1 - t, t), lambda x, noise: noise - x),
    "vp": AffinePath("vp", 0.0, _variance_preserving, lambda x, noise: noise),
}
