import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.flow.paths import PATHS, AffinePath


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_data_and_noise_are_the_ends(path: AffinePath) -> None:
    x, noise = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    data, other = torch.full((2,), path.data_time), torch.full((2,), 1.0 - path.data_time)
    assert torch.equal(path.interpolate(x, noise, data), x)
    torch.testing.assert_close(path.interpolate(x, noise, other), noise, atol=0.03, rtol=0)  # vp leaves .7 %


@pytest.mark.parametrize("name", ["forward", "reversed"])
def test_a_velocity_target_is_the_derivative_of_the_path(name: str) -> None:
    path = PATHS[name]  # type: ignore[index]
    x, noise, t = torch.randn(4, 3, 2, 2).double(), torch.randn(4, 3, 2, 2).double(), torch.rand(4).double() * 0.9
    moved = (path.interpolate(x, noise, t + 0.05) - path.interpolate(x, noise, t)) / 0.05
    torch.testing.assert_close(moved, path.target(x, noise))


@given(st.floats(0.0, 1.0))
def test_the_diffusion_keeps_the_variance(t: float) -> None:
    alpha, sigma = PATHS["vp"].coefficients(torch.tensor([t], dtype=torch.float64))
    assert (alpha**2 + sigma**2).item() == pytest.approx(1.0)


def test_the_diffusion_is_the_limit_of_the_usual_thousand_betas() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    for step in (100, 500, 1000):
        alpha = PATHS["vp"].coefficients(torch.tensor([step / 1000], dtype=torch.float64))[0].item()
        assert alpha == pytest.approx(np.sqrt(np.prod(1 - betas[:step])), rel=0.06)


def test_the_path_by_hand() -> None:
    x, noise = torch.full((3, 1, 1, 1), 4.0), torch.full((3, 1, 1, 1), -2.0)
    sample = PATHS["forward"].sample(x, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert sample.x_t.flatten().tolist() == [-2.0, -0.5, 4.0]
    assert sample.target.flatten().tolist() == [6.0] * 3
    assert sample.t.tolist() == [0.0, 0.25, 1.0]


def test_the_targets_integral_leads_from_noise_to_data() -> None:
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    path = PATHS["forward"]
    early, late = path.sample(x, noise, torch.tensor([0.2, 0.5])), path.sample(x, noise, torch.tensor([0.9, 0.6]))
    gap = (late.t - early.t).view(2, 1, 1, 1)
    torch.testing.assert_close(early.x_t + gap * early.target, late.x_t)
