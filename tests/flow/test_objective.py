import math

import pytest
import torch
from test_solvers import GaussianField
from torch import Tensor, nn

from fmad_dist.config import ObjectiveConfig
from fmad_dist.flow.noise import keyed_noise, keyed_times
from fmad_dist.flow.objective import FlowMatching
from fmad_dist.flow.paths import ForwardPath

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """Answers a constant and remembers what it was asked."""

    def __init__(self, answer: float) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.x, self.t, self.labels = x, t, labels
        return torch.full_like(x, self.answer)


def test_the_path_by_hand() -> None:
    x, noise = torch.full((3, 1, 1, 1), 4.0), torch.full((3, 1, 1, 1), -2.0)
    sample = ForwardPath().sample(x, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert sample.x_t.flatten().tolist() == [-2.0, -0.5, 4.0]
    assert sample.target.flatten().tolist() == [6.0] * 3
    assert sample.t.tolist() == [0.0, 0.25, 1.0]


def test_the_targets_integral_leads_from_noise_to_data() -> None:
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    path = ForwardPath()
    early, late = path.sample(x, noise, torch.tensor([0.2, 0.5])), path.sample(x, noise, torch.tensor([0.9, 0.6]))
    gap = (late.t - early.t).view(2, 1, 1, 1)
    torch.testing.assert_close(early.x_t + gap * early.target, late.x_t)


def test_the_loss_by_hand() -> None:
    x = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).view(2, 3, 2, 2) / 10
    positions, labels = [7, 1000], torch.tensor([1, 0])
    network = Recorder(0.25)
    loss = FlowMatching(ObjectiveConfig(), seed=5).loss(network, x, positions, labels, torch.float32)
    noise, t = keyed_noise(5, positions, (3, 2, 2), CPU), keyed_times(5, positions)
    expected = sum((0.25 - (a - e)) ** 2 for a, e in zip(x.flatten().tolist(), noise.flatten().tolist(), strict=True))
    assert loss.item() == pytest.approx(expected / 24, rel=1e-5)
    assert torch.equal(network.t, t)
    assert network.labels is labels
    torch.testing.assert_close(network.x, t.view(2, 1, 1, 1) * x + (1 - t.view(2, 1, 1, 1)) * noise)


def test_the_network_gets_its_precision_and_the_loss_keeps_full_precision() -> None:
    network = Recorder(0.0)
    loss = FlowMatching(ObjectiveConfig(), 0).loss(network, torch.zeros(1, 1, 2, 2), [3], None, torch.bfloat16)
    assert network.x.dtype == torch.bfloat16
    assert network.t.dtype == torch.float32  # bfloat16 has 8 bits: not enough for a time
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(keyed_noise(0, [3], (1, 2, 2), CPU).square().mean().item(), rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    """So accumulation rounds and ranks may divide a step in any way."""
    x = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    network = Recorder(0.1)
    objective = FlowMatching(ObjectiveConfig(), 1)
    whole = objective.loss(network, x, range(10, 16), None, torch.float32)
    parts = [objective.loss(network, x[i : i + 2], range(10 + i, 12 + i), None, torch.float32) for i in (0, 2, 4)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


class Scaled(GaussianField, nn.Module):
    """A multiple of the closed-form velocity."""

    def __init__(self, scale: float, factor: float = 1.0) -> None:
        nn.Module.__init__(self)
        GaussianField.__init__(self, scale)
        self.factor = factor

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.factor * GaussianField.__call__(self, x, t)

    __call__ = nn.Module.__call__


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_closed_form_velocity_is_the_minimum_of_the_loss(scale: float) -> None:
    """Its loss is the integral of s^2 / ((1 - t)^2 + t^2 s^2) = pi s / 2, and any other field's is higher."""
    count = 3000
    x = scale * torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    objective = FlowMatching(ObjectiveConfig(), 0)
    losses = {
        factor: objective.loss(Scaled(scale, factor), x, range(count), None, torch.float32).item()
        for factor in (0.8, 1.0, 1.2)
    }
    assert losses[1.0] == pytest.approx(math.pi * scale / 2, rel=0.04)
    assert losses[1.0] < min(losses[0.8], losses[1.2])


def test_the_gradient_of_the_loss_vanishes_at_the_closed_form_velocity() -> None:
    """No function of (x_t, t) is correlated with the residual, the definition of a conditional mean."""
    count, scale = 3000, 0.5
    x = scale * torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    times = keyed_times(0, range(count))
    sample = ForwardPath().sample(x, keyed_noise(0, range(count), x.shape[1:], CPU), times)
    residual = GaussianField(scale)(sample.x_t, times) - sample.target
    t = times.view(-1, 1, 1, 1)
    for direction in (sample.x_t, t * sample.x_t, sample.x_t.sign(), t.expand_as(x)):
        correlation = (residual * direction).mean() / (residual.std() * direction.std())
        assert correlation.abs() < 5 / x.numel() ** 0.5
