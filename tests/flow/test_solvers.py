import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fmad_dist.flow.paths import PATHS
from fmad_dist.flow.solvers import EVALUATIONS_PER_STEP, Field, SolverName, integrate

SOLVERS: list[SolverName] = ["euler", "midpoint", "heun"]
SECOND_ORDER: list[SolverName] = ["midpoint", "heun"]


def scaled(t: Tensor, x: Tensor) -> Tensor:
    return t.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


class Counted:
    """dx/dt = -x, counting evaluations and remembering the times."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        self.times.append(float(t[0]))
        return -x


def error(solver: SolverName, steps: int, start: float = 0.0, stop: float = 1.0) -> float:
    found = integrate(lambda x, t: -x, torch.ones(1, 1, dtype=torch.float64), start, stop, steps, solver)
    return abs(found.item() - math.exp(start - stop))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.9)])
def test_order_of_convergence(solver: SolverName, order: int, start: float, stop: float) -> None:
    coarse, fine = error(solver, 64, start, stop), error(solver, 128, start, stop)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.05)


def test_one_euler_step_by_hand() -> None:
    x = torch.tensor([[2.0], [4.0]])
    found = integrate(lambda x, t: x * scaled(t, x), x, 0.5, 1.0, 1)
    assert found.tolist() == [[2.5], [5.0]]  # x + 0.5 * (0.5 x)


def test_two_midpoint_steps_by_hand() -> None:
    """dx/dt = x, h = 1: every step multiplies by 1 + h + h^2 / 2."""
    for solver in SECOND_ORDER:
        found = integrate(lambda x, t: x, torch.ones(1, 1), 0.0, 2.0, 2, solver)
        assert found.item() == pytest.approx(2.5**2)


@given(st.floats(-3, 3), st.floats(0, 1), st.floats(0, 1), st.integers(1, 9), st.sampled_from(SOLVERS))
def test_constant_fields_are_exact(speed: float, start: float, stop: float, steps: int, solver: SolverName) -> None:
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    found = integrate(lambda x, t: torch.full_like(x, speed), x, start, stop, steps, solver)
    torch.testing.assert_close(found, x + (stop - start) * speed)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 9), st.sampled_from(SECOND_ORDER))
def test_second_order_is_exact_where_the_field_is_linear_in_time(
    start: float, stop: float, steps: int, solver: SolverName
) -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    found = integrate(lambda x, t: 2.0 * scaled(t, x).expand_as(x), x, start, stop, steps, solver)
    torch.testing.assert_close(found, torch.full_like(x, stop**2 - start**2), atol=1e-6, rtol=0)


def test_euler_on_a_field_linear_in_time_is_wrong_by_half_a_step() -> None:
    found = integrate(lambda x, t: 2.0 * scaled(t, x), torch.zeros(1, 1), 0.0, 1.0, 10)
    assert found.item() == pytest.approx(1.0 - 1 / 10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_are_counted_as_stated(solver: SolverName) -> None:
    field = Counted()
    integrate(field, torch.ones(3, 2), 1.0, 0.0, 5, solver)
    assert len(field.times) == 5 * EVALUATIONS_PER_STEP[solver]
    assert max(field.times) == 1.0
    assert min(field.times) >= 0.0


def test_euler_visits_equal_steps_backwards() -> None:
    field = Counted()
    integrate(field, torch.ones(1, 1), 1.0, 0.0, 4)
    assert field.times == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_start_is_not_changed(solver: SolverName) -> None:
    x = torch.ones(2, 2)
    integrate(lambda x, t: -x, x, 0.0, 1.0, 3, solver)
    assert torch.equal(x, torch.ones(2, 2))


class GaussianField:
    """The velocity of the forward path for data N(0, s^2) and independent noise [methods, B]."""

    def __init__(self, scale: float) -> None:
        self.variance = scale**2

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        t = scaled(t, x)
        return (t * self.variance - (1 - t)) / ((1 - t) ** 2 + t**2 * self.variance) * x


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("solver", SECOND_ORDER)
def test_the_gaussian_field_carries_noise_to_data_and_back(scale: float, solver: SolverName) -> None:
    field = GaussianField(scale)
    noise = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = integrate(field, noise, 0.0, 1.0, 400, solver)
    torch.testing.assert_close(data, scale * noise, rtol=1e-3, atol=0)
    torch.testing.assert_close(integrate(field, data, 1.0, 0.0, 400, solver), noise, rtol=1e-3, atol=0)


def test_both_directions_are_one_field() -> None:
    """v_rev(x, t) = -v_fwd(x, 1 - t): a reversed network that knows the forward field gives it back."""

    class Reversed(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return -(x * (1 - t).view(-1, 1, 1, 1) + 3.0)

    x, t = torch.randn(3, 2, 2, 2), torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(Field(Reversed(), PATHS["reversed"])(x, t), x * t.view(-1, 1, 1, 1) + 3.0)
