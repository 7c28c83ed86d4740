import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.flow.noise import keyed_noise, keyed_times
from fmad_dist.flow.objective import CouplingStrength, FlowMatching, couple, merged_strength, strength_of, windows
from fmad_dist.flow.paths import PATHS
from tests.flow.test_solvers import GaussianField

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """Answers a constant and remembers what it was asked."""

    def __init__(self, answer: float) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.x, self.t, self.labels = x, t, labels
        return torch.full_like(x, self.answer)


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
    sample = PATHS["forward"].sample(x, keyed_noise(0, range(count), x.shape[1:], CPU), times)
    residual = GaussianField(scale)(sample.x_t, times) - sample.target
    t = times.view(-1, 1, 1, 1)
    for direction in (sample.x_t, t * sample.x_t, sample.x_t.sign(), t.expand_as(x)):
        correlation = (residual * direction).mean() / (residual.std() * direction.std())
        assert correlation.abs() < 5 / x.numel() ** 0.5


def test_logit_normal_times() -> None:
    config = ObjectiveConfig(times="logit_normal", time_mean=0.5, time_std=0.7)
    times = FlowMatching(config, 3).times(range(4000))
    logits = torch.logit(times)
    assert times.min() > 0
    assert times.max() < 1
    assert logits.mean().item() == pytest.approx(0.5, abs=0.04)
    assert logits.std().item() == pytest.approx(0.7, abs=0.04)
    assert torch.equal(times[7:9], FlowMatching(config, 3).times([7, 8]))


PERMUTING = ["ot", "wt_sample", "wt_token", "wt_group"]


def pair(name: str, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x, noise = (torch.randn(4, 12, 4, 4, generator=generator) for _ in range(2))
    return x, noise, couple(x, noise, ObjectiveConfig(path="reversed", coupling=name, **options))  # type: ignore[arg-type]


def cost(x: Tensor, noise: Tensor) -> float:
    return (x - noise).square().sum().item()


def test_worst_transport_costs_more_and_optimal_less_than_independent() -> None:
    x, noise, _ = pair("independent")
    independent = cost(x, noise)
    assert cost(x, pair("ot")[2]) < independent
    costs = [cost(x, pair(name, **options)[2]) for name, options in STRONGER]
    assert independent < costs[0]
    assert costs == sorted(costs)


STRONGER: list[tuple[str, dict[str, object]]] = [
    ("wt_sample", {}),
    ("wt_token", {}),
    ("wt_group", {"group": 4}),
    ("wt_group", {"group": 2}),
    ("wt_group", {"group": 1}),
]


@pytest.mark.parametrize("name", PERMUTING)
def test_a_permutation_keeps_every_noise_value(name: str) -> None:
    _, noise, coupled = pair(name, group=5, window=30)
    assert torch.equal(noise.flatten().sort().values, coupled.flatten().sort().values)
    if name == "wt_group":  # channels stay together in their groups
        assert torch.equal(noise[:, :5].flatten().sort().values, coupled[:, :5].flatten().sort().values)


def test_samples_are_paired_as_brute_force_does() -> None:
    x, noise, worst = pair("wt_sample")
    best = pair("ot")[2]
    costs = [cost(x, noise[list(order)]) for order in itertools.permutations(range(4))]
    assert cost(x, worst) == pytest.approx(max(costs), rel=1e-6)
    assert cost(x, best) == pytest.approx(min(costs), rel=1e-6)


def test_sorting_solves_the_group_of_one_channel() -> None:
    x, _, sorted_noise = pair("wt_group", group=1)
    for channel in range(12):
        order = x[:, channel].flatten().argsort()
        assert (sorted_noise[:, channel].flatten()[order].diff() <= 0).all()


@given(st.floats(0.0, 1.0))
def test_soft_coupling_has_its_cosine_and_keeps_lengths(strength: float) -> None:
    x, noise, coupled = pair("wt_soft", strength=strength)
    cosine = torch.nn.functional.cosine_similarity(coupled, x, dim=1)
    torch.testing.assert_close(cosine, torch.full_like(cosine, -strength), atol=1e-5, rtol=0)
    torch.testing.assert_close(coupled.norm(dim=1), noise.norm(dim=1))


@given(st.integers(1, 3000), st.integers(2, 512))
def test_windows_cover_everything_evenly(count: int, size: int) -> None:
    found = list(windows(count, size))
    lengths = [part.stop - part.start for part in found]
    assert [part.start for part in found[1:]] == [part.stop for part in found[:-1]]
    assert (found[0].start, found[-1].stop) == (0, count)
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_strength_is_measured_and_survives_a_restart() -> None:
    x, noise, mirrored = pair("wt_soft", strength=1.0)
    strength = CouplingStrength()
    strength.update(x, mirrored)
    expected = (mirrored.norm(dim=1) * x.norm(dim=1)).sum() / x.square().sum()
    assert strength_of(strength.state()) == pytest.approx(expected.item(), rel=1e-5)
    other = CouplingStrength()
    other.load(strength.state())
    for one in (strength, other):
        one.update(x, noise)
    assert other.state() == strength.state()
    assert merged_strength([(1.0, 4.0), (3.0, 8.0)]) == (2.0, 6.0)
    assert strength_of((0.0, 0.0)) == 0.0


def test_wt_token_is_as_strong_as_theory_measured() -> None:
    """C = 1024, windows of 512 tokens: a about .09, and .8 in groups of eight channels (methods, measured)."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(2, 1024, 16, 16, generator=generator) for _ in range(2))
    for options, expected in (({"coupling": "wt_token"}, 0.09), ({"coupling": "wt_group", "group": 8}, 0.80)):
        part = slice(None) if options["coupling"] == "wt_token" else slice(0, 16)
        coupled = couple(x[:, part], noise[:, part], ObjectiveConfig(path="reversed", **options))  # type: ignore[arg-type]
        strength = CouplingStrength()
        strength.update(x[:, part], coupled)
        assert strength_of(strength.state()) == pytest.approx(expected, abs=0.02)
