"""Vectors of normal images that are kept, and how far others are from the nearest of them [ours, after PatchCore]."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fmad_dist.scoring.coreset import Advance, coreset

CHUNK = 4096  # vectors that are compared with a memory at a time


def remember(vectors: Sequence[Tensor], size: int, advance: Advance | None = None) -> tuple[Tensor, Tensor]:
    """From the vectors [C, T] of each normal image of a class: `size` >= 2 of them that cover all, float16 [size, C],
    and the scores [n, T] that these images have among each other.

    One half of the memory is of every second image and the other half of the rest, and an image is measured by the half
    that it is not in: by the other it would look more normal than any new image can. (The only image of a class is
    halved by locations.) Where there are fewer vectors than are to be kept, some are kept repeatedly.
    """
    points = torch.stack([one.T for one in vectors])  # [n, T, C]
    alone = len(points) == 1
    points = points.transpose(0, 1) if alone else points
    halves = [points[start::2].flatten(0, 1) for start in (0, 1)]
    counts = (size - size // 2, size // 2)
    kept = [_filled(half, count, advance) for half, count in zip(halves, counts, strict=True)]
    scores = points.new_empty(points.shape[:2])
    for start, half in enumerate(halves):
        found = torch.cat([nearest(part, kept[1 - start]) for part in half.split(CHUNK)])
        scores[start::2] = found.view(-1, scores.shape[1])
    return torch.cat(kept), scores.T if alone else scores


def nearest(vectors: Tensor, memory: Tensor) -> Tensor:
    """Mean squared difference of each vector [..., T, C] from the nearest of a memory [..., M, C]: [..., T].

    Products find the nearest, but are too coarse for small differences, which are therefore computed as such.
    """
    known = memory.float()
    squares = known.square().sum(dim=-1)[..., None, :]
    places = (squares - 2 * vectors @ known.mT).argmin(dim=-1)
    found = known.gather(-2, places[..., None].expand(*places.shape, known.shape[-1]))
    return (vectors - found).square().mean(dim=-1)


def _filled(vectors: Tensor, count: int, advance: Advance | None) -> Tensor:
    """`count` of the vectors [N, C] that cover all, float16 [count, C]; the first one again where there are fewer."""
    chosen = coreset(vectors, min(count, len(vectors)), seed=0, advance=advance).half()
    return torch.cat([chosen, chosen[:1].expand(count - len(chosen), -1)])
