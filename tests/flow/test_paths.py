import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.config import ObjectiveConfig
from fmad_dist.flow.fields import Field
from fmad_dist.flow.objective import FlowMatching
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


def test_both_directions_are_one_field() -> None:
    """v_rev(x, t) = -v_fwd(x, 1 - t): a reversed network that knows the forward field gives it back."""

    class Reversed(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return -(x * (1 - t).view(-1, 1, 1, 1) + 3.0)

    x, t = torch.randn(3, 2, 2, 2), torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(Field(Reversed(), PATHS["reversed"])(x, t), x * t.view(-1, 1, 1, 1) + 3.0)


def test_logit_normal_times() -> None:
    config = ObjectiveConfig(times="logit_normal", time_mean=0.5, time_std=0.7)
    times = FlowMatching(config, 3).times(range(4000))
    logits = torch.logit(times)
    assert times.min() > 0
    assert times.max() < 1
    assert logits.mean().item() == pytest.approx(0.5, abs=0.04)
    assert logits.std().item() == pytest.approx(0.7, abs=0.04)
    assert torch.equal(times[7:9], FlowMatching(config, 3).times([7, 8]))
