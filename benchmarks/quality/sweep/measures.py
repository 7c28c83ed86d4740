"""Image AUROC, pixel AUROC and AUPRO of maps on a GPU; exact but for AUPRO, which takes 300 thresholds.

`fmad_dist.evaluation` is exact and counts on the CPU; hundreds of ways of scoring would wait for it.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

THRESHOLDS = 300
LIMIT = 0.3


@dataclass(frozen=True)
class Truth:
    """Of a category: `rows` in the split, `anomalous` [n], `masks` [n, S, S], `regions` [n, S, S] int64, 0 outside."""

    rows: Tensor
    anomalous: Tensor
    masks: Tensor
    regions: Tensor
    num_regions: int


def truths(masks: Tensor, classes: Tensor, device: torch.device) -> list[Truth]:
    found = []
    for number in range(int(classes.max()) + 1):
        rows = (classes == number).nonzero()[:, 0]
        own = masks[rows]
        regions, total = np.zeros(own.shape, np.int64), 0
        for place, mask in enumerate(own.numpy()):
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            regions[place] = np.where(labels > 0, labels + total, 0)
            total += count
        anomalous = own.flatten(1).any(1)
        found.append(
            Truth(rows.to(device), anomalous.to(device), own.to(device), torch.from_numpy(regions).to(device), total)
        )
    return found


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Scores are taken to be distinct."""
    hits = positive.flatten()[scores.flatten().argsort()]
    below = (~hits).cumsum(0)[hits]
    return float(below.double().sum() / (len(below) * (len(hits) - len(below))))


def aupro(maps: Tensor, truth: Truth) -> float:
    normal = maps[~truth.masks].sort().values
    rates = torch.linspace(0, LIMIT, THRESHOLDS, device=maps.device, dtype=torch.float64)
    places = ((1 - rates) * (len(normal) - 1)).round().long()
    limits = normal[places]  # descending
    inside = truth.masks
    region = truth.regions[inside] - 1
    sizes = torch.bincount(region, minlength=truth.num_regions).double()
    reached = THRESHOLDS - torch.searchsorted(
        limits.flip(0).contiguous(), maps[inside].contiguous()
    )  # first limit below
    table = torch.zeros(truth.num_regions, THRESHOLDS + 1, device=maps.device, dtype=torch.float64)
    table.view(-1).index_add_(0, region * (THRESHOLDS + 1) + reached, torch.ones_like(region, dtype=torch.float64))
    overlap = (table.cumsum(1)[:, :THRESHOLDS] / sizes[:, None]).mean(0)
    return float(torch.trapezoid(overlap, rates) / LIMIT)


def smoothed(grids: Tensor, side: int, sigma: float) -> Tensor:
    """[N, g, g] -> [N, side, side], bilinear, then a Gaussian of `sigma` pixels."""
    maps = F.interpolate(grids[:, None], size=(side, side), mode="bilinear", align_corners=False)
    if sigma > 0:
        reach = int(3 * sigma + 0.5)
        offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = kernel / kernel.sum()
        maps = F.pad(maps, (reach,) * 4, mode="reflect")
        maps = F.conv2d(F.conv2d(maps, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return maps[:, 0]


def top(maps: Tensor, percent: float) -> Tensor:
    flat = maps.flatten(1)
    return flat.topk(max(1, round(flat.shape[1] * percent / 100)), dim=1).values.mean(1)


def measure(grids: Tensor, truths: list[Truth], side: int, sigma: float, percents: tuple[float, ...]) -> dict:
    """By category: pixel AUROC, AUPRO, and image AUROC for each share of the highest pixels."""
    rows: dict[str, list[float]] = {"pixel": [], "aupro": [], **{f"image@{p:g}": [] for p in percents}}
    for truth in truths:
        maps = smoothed(grids[truth.rows].float(), side, sigma)
        rows["pixel"].append(auroc(maps, truth.masks))
        rows["aupro"].append(aupro(maps, truth))
        for percent in percents:
            rows[f"image@{percent:g}"].append(auroc(top(maps, percent), truth.anomalous))
    return rows
