"""Few points that cover many: greedy k-centre in a random projection [PatchCore, after Sener and Savarese]."""

from collections.abc import Callable

import torch
from torch import Tensor

from fmad_dist.flow.noise import keyed_generator

Advance = Callable[[int], object]  # told how many more are chosen

PROJECTED = 128  # dimensions in which points are compared while choosing, as PatchCore's own code does


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
