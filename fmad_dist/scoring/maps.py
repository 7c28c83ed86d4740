"""From scores on the token grid to maps in pixels, and from maps to one score per image."""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(scores: Tensor, size: int, align_corners: bool = False) -> Tensor:
    """Bilinear: [B, h, w] -> [B, size, size]."""
    return F.interpolate(scores[:, None], size=(size, size), mode="bilinear", align_corners=align_corners)[:, 0]


def blur(maps: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Gaussian blur of maps [B, S, S] with `sigma` in pixels, cut at 4 sigma; 0 does nothing.

    Edges are mirrored with the edge pixel repeated, as scipy's `gaussian_filter` does, so the mean is preserved. A
    kernel that is cut at `radius` instead has zeros around the map, as convolution layers have.
    """
    if sigma <= 0:
        return maps
    reach = int(4 * sigma + 0.5) if radius is None else radius
    offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = _mirrored(maps, reach) if radius is None else F.pad(maps, (reach,) * 4)
    return F.conv2d(F.conv2d(padded[:, None], kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def _mirrored(maps: Tensor, reach: int) -> Tensor:
    size = maps.shape[-1]
    around = torch.arange(-reach, size + reach, device=maps.device) % (2 * size)
    inside = torch.minimum(around, 2 * size - 1 - around)
    return maps[:, inside][..., inside]


def top_mean(maps: Tensor, percent: float) -> Tensor:
    """Image score: the mean of the highest `percent` % of the pixels (at least one): [B, S, S] -> [B]."""
    flat = maps.flatten(1)
    count = max(1, round(flat.shape[1] * percent / 100.0))
    return flat.topk(count, dim=1, sorted=False).values.sort(dim=1).values.mean(dim=1)
