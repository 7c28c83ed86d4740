"""The training loss: mean squared error to the path's velocity, plain and unweighted [FlowAD, t ~ U(0, 1)]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fmad_dist.flow.noise import keyed_noise, keyed_times
from fmad_dist.flow.paths import ForwardPath


class FlowMatching:
    """Forward flow matching with the independent coupling. Noise and times are keyed by (seed, stream position)."""

    def __init__(self, seed: int) -> None:
        self.path = ForwardPath()
        self.seed = seed

    def loss(
        self, velocity: nn.Module, x: Tensor, positions: Sequence[int], labels: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Mean over the batch of |v(x_t, t) - (x - e)|^2 per element; x is whitened float32 [B, C, H, W]."""
        noise = keyed_noise(self.seed, positions, x.shape[1:], x.device)
        times = keyed_times(self.seed, positions).to(x.device)
        sample = self.path.sample(x, noise, times)
        predicted = velocity(sample.x_t.to(dtype), sample.t, labels)
        return (predicted.float() - sample.target).square().mean()
