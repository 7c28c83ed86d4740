"""Standardisation of features to the scale of N(0, I) noise."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["channel", "layer"]


class Whitening(nn.Module):
    """float32 [B, C, G, G] -> float32 [B, C, G, G].

    `channel`: (x - mean) / std per channel with fixed statistics of the training normals, saved as buffers [ours].
    `layer`: layer norm of each image over (C, G, G) without parameters [WT-Flow]; the buffers are not used.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_channels: int, norm: NormName = "channel") -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("std", torch.ones(num_channels))

    def forward(self, features: Tensor) -> Tensor:
        if self.norm == "layer":
            return F.layer_norm(features.float(), features.shape[1:])
        return (features.float() - self.mean[:, None, None]) / self.std[:, None, None]

    def set_moments(self, sums: np.ndarray, num_tokens: int) -> None:
        """Take mean and std from the sums and sums of squares over so many tokens, float64 [2, C].

        A channel that hardly varies on normal images gets at least 1/1000 of the median deviation, so that a test image
        in which it does vary is not scaled by a factor of a million.
        """
        total = sums / num_tokens
        std = np.sqrt(np.maximum(total[1] - total[0] ** 2, 1e-12))
        self.mean.copy_(torch.from_numpy(total[0]))
        self.std.copy_(torch.from_numpy(np.maximum(std, 1e-3 * np.median(std))))

    def pooled(self, moments: np.ndarray, tokens_per_image: int) -> Tensor:
        """Mean over the tokens of each image's normalised features, float32 [N, C], from its sums [N, 2, C].

        For `channel`, and nothing else, the mean of some images is that of the mean of their sums.
        """
        means, squares = moments[:, 0] / tokens_per_image, moments[:, 1] / tokens_per_image
        if self.norm == "layer":
            centre = means.mean(axis=1, keepdims=True)
            variance = squares.mean(axis=1, keepdims=True) - centre**2
            return torch.from_numpy((means - centre) / np.sqrt(variance + 1e-5)).float()
        normalised = (means - self.mean.cpu().double().numpy()) / self.std.cpu().double().numpy()
        return torch.from_numpy(normalised).float()


def image_moments(features: Tensor) -> np.ndarray:
    """Sum and sum of squares over the tokens of each image: features [B, C, G, G] -> float64 [B, 2, C]."""
    tokens = features.double().flatten(2)
    return torch.stack([tokens.sum(2), tokens.square().sum(2)], dim=1).cpu().numpy()
