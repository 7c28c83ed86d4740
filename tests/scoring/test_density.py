"""The likelihood against closed forms: a Gaussian, a mixture of two, and the estimator against the exact trace."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fmad_dist.flow.solvers import SolverName
from fmad_dist.networks.dit import DiT, DiTSpec
from fmad_dist.scoring.density import Density

Trace = Literal["hutchinson", "exact"]


class Mixture:
    """The forward field of N(+m, s^2 I) and N(-m, s^2 I) in equal parts, m in every component, and its log-density."""

    def __init__(self, mean: float, scale: float) -> None:
        self.mean, self.variance = mean, scale**2

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x.dtype).view(-1, 1, 1, 1)
        variance = (1 - t) ** 2 + t**2 * self.variance
        centre = t * self.mean
        weight = torch.sigmoid(2 * centre * x.sum(dim=(1, 2, 3), keepdim=True) / variance)
        slope = (t * self.variance - (1 - t)) / variance
        sides = [sign * self.mean + slope * (x - sign * centre) for sign in (1.0, -1.0)]
        return weight * sides[0] + (1 - weight) * sides[1]

    def log_density(self, x: Tensor) -> Tensor:
        x, size = x.flatten(1), x[0].numel()
        sides = [-((x - sign * self.mean) ** 2).sum(1) / (2 * self.variance) for sign in (1.0, -1.0)]
        scale = math.log(2 * math.pi * self.variance) * size / 2
        return torch.logsumexp(torch.stack(sides), dim=0) - math.log(2) - scale


def data(batch: int = 3, size: tuple[int, ...] = (2, 2, 2)) -> Tensor:
    return 0.8 * torch.randn(batch, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(steps: int, solver: SolverName = "heun") -> Density:
    return Density(steps, 1, 8, solver, trace="exact")


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
@pytest.mark.parametrize("field", [Mixture(0.0, 0.5), Mixture(0.7, 0.6)], ids=["gaussian", "mixture"])
def test_the_exact_trace_gives_the_log_density_at_the_solvers_order(
    field: Mixture, solver: SolverName, order: int
) -> None:
    x = data()
    errors = []
    for steps in (200, 400):
        found = exact(steps, solver)(field, x, range(3)).sum(dim=(1, 2))
        errors.append((found + field.log_density(x)).abs().max().item())
    assert errors[1] < 0.1
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_locations_of_independent_data_have_their_own_likelihood() -> None:
    x, scale = data(), 0.5
    found = exact(400)(Mixture(0.0, scale), x, range(3))
    expected = x.square().sum(1) / (2 * scale**2) + math.log(2 * math.pi * scale**2)  # two channels
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


class Linear:
    """v = A x with a full matrix: the divergence is its trace, and probes mix locations."""

    def __init__(self, reach: Callable[[Tensor], Tensor] = lambda distance: torch.ones_like(distance)) -> None:
        place = torch.arange(16)
        distance = (place[:, None] % 4 - place[None] % 4).abs() + (place[:, None] // 4 - place[None] // 4).abs()
        generator = torch.Generator().manual_seed(2)
        blocks = torch.randn(2, 16, 2, 16, generator=generator, dtype=torch.float64)
        self.matrix = (blocks * reach(distance.double())[None, :, None, :]).reshape(32, 32)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).view_as(x)


def divergence(density: Density, field: Linear, x: Tensor, number: int) -> Tensor:
    return density._slope(field, x, torch.ones(len(x)), range(len(x)), number)[1].sum(dim=(1, 2))


def test_hutchinson_is_unbiased() -> None:
    """1,000 probes: the mean is within three standard errors of the trace."""
    field, x = Linear(), data(1, (2, 4, 4))
    draws = torch.cat([divergence(Density(1, 1, 32), field, x, number) for number in range(1000)])
    error = draws.std() / 1000**0.5
    assert (draws.mean() - field.matrix.trace()).abs() < 3 * error
    averaged = torch.cat([divergence(Density(1, 16, 32), field, x, number) for number in range(200)])
    assert averaged.std() == pytest.approx((draws.std() / 4).item(), rel=0.25)


def test_masked_probes_have_less_variance_where_locations_mix_nearby() -> None:
    field, x = Linear(lambda distance: (distance <= 1).double()), data(1, (2, 4, 4))
    spread = {}
    for stride in (1, 2):
        density = Density(1, 1, 32, mask_stride=stride)
        draws = torch.cat([divergence(density, field, x, number) for number in range(400)])
        assert (draws.mean() - field.matrix.trace()).abs() < 3.5 * draws.std() / 20
        spread[stride] = draws.std().item()
    assert spread[2] < 0.8 * spread[1]


def test_a_network_of_frozen_weights_in_inference_mode() -> None:
    """As the detector runs it: many probes come near the exact trace, chunks change nothing."""
    network: nn.Module = DiT(DiTSpec(channels=2, grid=4, width=32, depth=1, heads=2)).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    x = data(3, (2, 4, 4)).float()
    with torch.inference_mode():
        reference = Density(3, 1, 32, trace="exact")(network, x, [5, 6, 7])
        found = Density(3, 300, 32)(network, x, [5, 6, 7])
        parts = Density(3, 300, 32, chunk=1)(network, x, [5, 6, 7])
    assert (found - reference).abs().max() < 0.35
    torch.testing.assert_close(parts, found, rtol=1e-4, atol=1e-4)
