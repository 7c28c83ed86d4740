"""Grids of scores from a trained flow, several ways to read each, and references without any training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fmad_dist.flow.solvers import integrate
from fmad_dist.networks.dit import DiT
from fmad_dist.scoring.deviation import gaussian, location_moments

BATCH = 64
WAYS = ("endpoint", "inversion3", "residual0.7", "residual0.85")


def vectors(network: DiT, x: Tensor, ways: Sequence[str] = WAYS, seed: int = 0) -> dict[str, Tensor]:
    """What each way of scoring looks at, float16 [N, C, G, G]: its squares are the score of the literature."""
    found: dict[str, list[Tensor]] = {way: [] for way in ways}
    generator = torch.Generator(x.device).manual_seed(seed)
    for part in x.split(BATCH):
        for way in ways:
            found[way].append(_vectors(network, part.float(), way, generator).half())
    return {way: torch.cat(parts) for way, parts in found.items()}


@torch.inference_mode()
def _vectors(network: DiT, x: Tensor, way: str, generator: torch.Generator) -> Tensor:
    def field(point: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(point.device.type, torch.bfloat16, enabled=point.device.type == "cuda"):
            return network(point, t).float()

    def at(time: float) -> Tensor:
        return torch.full((len(x),), time, device=x.device)

    if way == "endpoint":
        return x - field(x, at(1.0))
    if way == "inversion3":
        return integrate(field, x, 1.0, 0.0, 3)
    tau = float(way.removeprefix("residual"))
    total = torch.zeros_like(x)
    for _ in range(4):
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        mixed = tau * x + (1 - tau) * noise
        total += x - (mixed + (1 - tau) * field(mixed, at(tau)))  # against the expected image
    return total / 4


def squares(v: Tensor) -> Tensor:
    return v.float().square().mean(1)


class Gaussians:
    """Of the vectors of training normals, by category, as the scorer `deviation` fits them."""

    def __init__(self, vectors: Tensor, classes: Tensor) -> None:
        self.known = [gaussian(vectors[classes == number]) for number in range(int(classes.max()) + 1)]

    def distance(self, vectors: Tensor, classes: Tensor) -> Tensor:
        out = torch.zeros(len(vectors), *vectors.shape[2:], device=vectors.device)
        for number, (mean, root) in enumerate(self.known):
            rows = (classes == number).nonzero()[:, 0]
            for part in rows.split(BATCH):
                v = vectors[part].float() - mean[:, None, None]
                out[part] = torch.einsum("cd,ndhw->nchw", root, v).square().mean(1)
        return out


class Locations:
    """Mean and deviation of a score at each place on a category's training normals, as `deviation` fits them."""

    def __init__(self, grids: Tensor, classes: Tensor) -> None:
        known = [location_moments(grids[classes == number].float()) for number in range(int(classes.max()) + 1)]
        self.means, self.stds = (torch.stack(parts) for parts in zip(*known, strict=True))

    def standardised(self, grids: Tensor, classes: Tensor) -> Tensor:
        return (grids.float() - self.means[classes]) / self.stds[classes]


class Categories:
    """Mean and deviation of a score over all locations of the training normals of a category."""

    def __init__(self, grids: Tensor, classes: Tensor) -> None:
        rows = [grids[classes == number].float() for number in range(int(classes.max()) + 1)]
        self.means, self.stds = torch.stack([r.mean() for r in rows]), torch.stack([r.std() for r in rows])

    def standardised(self, grids: Tensor, classes: Tensor) -> Tensor:
        return (grids.float() - self.means[classes, None, None]) / self.stds[classes, None, None]


def nearest(x: Tensor, bank: Tensor, chunk: int = 4096) -> Tensor:
    """Distance of every vector of x [N, C, G, G] to the nearest row of the bank [M, C]: [N, G, G]."""
    rows = x.permute(0, 2, 3, 1)
    flat = rows.reshape(-1, rows.shape[-1]).float()
    found = [torch.cdist(part, bank).amin(1) for part in flat.split(chunk)]
    return torch.cat(found).view(rows.shape[:3])
