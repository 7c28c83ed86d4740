"""Fixed per-channel standardisation of features, so that data and N(0, I) noise live on one scale [ours]."""

import numpy as np
import torch
from torch import Tensor, nn


class Whitening(nn.Module):
    """x -> (x - mean) / std per channel, float32 [B, C, G, G] -> float32 [B, C, G, G]; statistics are saved buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("std", torch.ones(num_channels))

    def forward(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean[:, None, None]) / self.std[:, None, None]

    def set_moments(self, moments: np.ndarray, tokens_per_image: int) -> None:
        """Take mean and std from per-image sums, float64 [N, 2, C] (sum and sum of squares over the tokens).

        The sum runs over images in their given order in float64, so it does not depend on who computed the rows.
        A channel that hardly varies on normal images gets at least 1/1000 of the median deviation: a test image in
        which it does vary must stand out, but not by a factor of a million.
        """
        total = moments.sum(axis=0) / (len(moments) * tokens_per_image)
        std = np.sqrt(np.maximum(total[1] - total[0] ** 2, 1e-12))
        self.mean.copy_(torch.from_numpy(total[0]))
        self.std.copy_(torch.from_numpy(np.maximum(std, 1e-3 * np.median(std))))

    def cpu_copy(self) -> "Whitening":
        copy = Whitening(len(self.mean))
        copy.load_state_dict({name: tensor.cpu() for name, tensor in self.state_dict().items()})
        return copy


def image_moments(features: Tensor) -> np.ndarray:
    """Sum and sum of squares over the tokens of each image: features [B, C, G, G] -> float64 [B, 2, C]."""
    tokens = features.double().flatten(2)
    return torch.stack([tokens.sum(2), tokens.square().sum(2)], dim=1).cpu().numpy()
