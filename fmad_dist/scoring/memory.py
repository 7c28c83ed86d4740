"""Vectors of normal images that are kept, and how far others are from the nearest of them [ours, after PatchCore].

Few points cover many: greedy k-centre in a random projection [PatchCore, after Sener and Savarese].
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fmad_dist.flow.noise import keyed_generator

Advance = Callable[[int], object]  # told how many more are chosen

PROJECTED = 128  # dimensions in which points are compared while choosing, as PatchCore's own code does
CHUNK = 4096  # vectors that are compared with a memory at a time


def coreset(vectors: Tensor, size: int, seed: int, advance: Advance | None = None) -> Tensor:
    """`size` of the vectors [N, C] that cover all of them, [size, C]; the first one is drawn with the seed."""
    if size >= len(vectors):
        if advance:
            advance(size)
        return vectors
    first = int(torch.randint(len(vectors), (1,), generator=keyed_generator(torch.device("cpu"), seed)))
    return vectors[farthest_points(project(vectors, seed), size, first, advance)]


def project(points: Tensor, seed: int) -> Tensor:
    """Points [N, C] in at most `PROJECTED` dimensions by a Gaussian matrix, which keeps distances in expectation."""
    channels = points.shape[1]
    if channels <= PROJECTED:
        return points
    generator = keyed_generator(torch.device("cpu"), seed, channels)
    matrix = torch.randn(channels, PROJECTED, generator=generator) / PROJECTED**0.5
    return points @ matrix.to(points.device)


def farthest_points(points: Tensor, size: int, first: int, advance: Advance | None = None) -> Tensor:
    """Positions of `size` different points, int64 [size]: `first`, then always the one farthest from all before it.

    No choice of so many centres has a radius below half of this one's [Gonzalez]. A step reads the points [N, D] once,
    as one matrix-vector product, and makes nothing larger than [N].
    """
    norms = points.square().sum(dim=1)
    nearest = torch.full_like(norms, torch.inf)  # squared distance to the chosen; below 0 = chosen
    distance = torch.empty_like(norms)
    centre = torch.tensor([first], device=points.device)
    chosen = []
    for _ in range(size):
        chosen.append(centre)
        torch.addmv(norms, points, points.index_select(0, centre)[0], alpha=-2, out=distance)
        distance.add_(norms.index_select(0, centre)).clamp_(min=0)
        torch.minimum(nearest, distance, out=nearest)
        nearest.index_fill_(0, centre, -1.0)
        centre = nearest.argmax().view(1)  # stays on the device, so that a GPU is never waited for
        if advance:
            advance(1)
    return torch.cat(chosen)


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
    indices = (squares - 2 * vectors @ known.mT).argmin(dim=-1)
    found = known.gather(-2, indices[..., None].expand(*indices.shape, known.shape[-1]))
    return (vectors - found).square().mean(dim=-1)


def _filled(vectors: Tensor, count: int, advance: Advance | None) -> Tensor:
    """`count` of the vectors [N, C] that cover all, float16 [count, C]; the first one again where there are fewer."""
    chosen = coreset(vectors, min(count, len(vectors)), seed=0, advance=advance).half()
    return torch.cat([chosen, chosen[:1].expand(count - len(chosen), -1)])
