"""The training loss: mean squared error to the path's target, plain and unweighted [FlowAD, WT-Flow, InvAD]."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fmad_dist.config import ObjectiveConfig
from fmad_dist.flow.couplings import CouplingStrength, couple
from fmad_dist.flow.noise import keyed_noise, keyed_times
from fmad_dist.flow.paths import PATHS


class FlowMatching:
    """Noise and times are keyed by (seed, stream position), so the number of processes does not change them.

    A coupling pairs noise inside the micro batch, without a collective, so it alone depends on the layout.
    """

    def __init__(self, config: ObjectiveConfig, seed: int) -> None:
        self.config = config
        self.path = PATHS[config.path]
        self.seed = seed
        self.strength = CouplingStrength()

    def loss(
        self, network: nn.Module, x: Tensor, positions: Sequence[int], labels: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Mean over the batch of |network(x_t, t) - target|^2 per element; x is whitened float32 [B, C, H, W]."""
        noise = couple(x, keyed_noise(self.seed, positions, x.shape[1:], x.device), self.config)
        self.strength.update(x, noise)
        sample = self.path.sample(x, noise, self.times(positions).to(x.device))
        predicted = network(sample.x_t.to(dtype), sample.t, labels)
        return (predicted.float() - sample.target).square().mean()

    def times(self, positions: Sequence[int]) -> Tensor:
        """Training times float32 [len(positions)] in [0, 1] on the CPU: uniform, or sigmoid(mean + std * normal)."""
        uniform = keyed_times(self.seed, positions)
        if self.config.times == "uniform":
            return uniform
        from scipy.special import expit, ndtri

        logits = self.config.time_mean + self.config.time_std * ndtri(uniform.double().numpy())
        return torch.from_numpy(expit(logits).astype(np.float32))
