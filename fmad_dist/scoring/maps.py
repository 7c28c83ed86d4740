"""From scores on the token grid to maps in pixels and one score per image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.scoring.config import EndpointConfig, MismatchConfig, ScorerConfig


def finish(scores: Tensor, protocol: Protocol, scorer: ScorerConfig) -> tuple[Tensor, Tensor]:
    """Image scores [B] and maps [B, S, S] from scores on the grid [B, h, w], as the protocol or the paper has it."""
    if isinstance(scorer, EndpointConfig) and scorer.postprocess == "paper":
        likelihood = (-upsample(scores, protocol.map_size, align_corners=True)).exp()
        maps = likelihood.amax(dim=(1, 2), keepdim=True) - likelihood
        return top_mean(maps, 3.0), maps
    maps = blur(upsample(scores, protocol.map_size), protocol.blur_sigma)
    if isinstance(scorer, MismatchConfig) and scorer.postprocess == "paper":
        return maps.amax(dim=(1, 2)) + top_mean(maps, 1.0), maps
    return top_mean(maps, protocol.top_percent), maps


def upsample(scores: Tensor, size: int, align_corners: bool = False) -> Tensor:
    """Bilinear: [B, h, w] -> [B, size, size]."""
    return F.interpolate(scores[:, None], size=(size, size), mode="bilinear", align_corners=align_corners)[:, 0]


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of maps [B, S, S] with `sigma` in pixels, cut at 4 sigma; 0 does nothing.

    Edges are mirrored with the edge pixel repeated, as scipy's `gaussian_filter` does, so the mean is preserved.
    """
    if sigma <= 0:
        return maps
    size, radius = maps.shape[-1], int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    around = torch.arange(-radius, size + radius, device=maps.device) % (2 * size)
    mirrored = torch.minimum(around, 2 * size - 1 - around)
    padded = maps[:, None, mirrored][..., mirrored]
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def top_mean(maps: Tensor, percent: float) -> Tensor:
    """Image score: the mean of the highest `percent` % of the pixels (at least one): [B, S, S] -> [B]."""
    flat = maps.flatten(1)
    count = max(1, round(flat.shape[1] * percent / 100.0))
    return flat.topk(count, dim=1, sorted=False).values.sort(dim=1).values.mean(dim=1)
