"""The forward flow-matching path: noise at t = 0, data at t = 1 [FlowAD; Flow Mismatching]."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PathSample:
    """Points on the path and the velocity a network should give there."""

    x_t: Tensor  # [B, C, H, W]
    t: Tensor  # [B] in [0, 1]
    target: Tensor  # [B, C, H, W]


class ForwardPath:
    """x_t = (1 - t) e + t x with velocity x - e."""

    def sample(self, x: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """x and noise [B, C, H, W], t [B] in [0, 1]."""
        return PathSample(self.interpolate(x, noise, t), t, x - noise)

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        weight = t.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
        return (1 - weight) * noise + weight * x
