from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fmad_dist.config import ObjectiveConfig
from fmad_dist.flow.solvers import SolverName
from fmad_dist.scoring.build import Trained, build_scorer
from fmad_dist.scoring.config import InversionConfig, ReconstructionConfig
from fmad_dist.scoring.inversion import Inversion
from fmad_dist.scoring.reconstruction import Reconstruction

TRAINED = Trained(ObjectiveConfig(), 0.0, (5, 3, 3), 1, seed=0)
CONFIGS = {"inversion": InversionConfig, "reconstruction": ReconstructionConfig}


def features(batch: int = 4, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(batch, 5, 3, 3, generator=torch.Generator().manual_seed(0))


class GaussianField:
    """The closed-form velocity of the forward path for data N(0, s^2)."""

    def __init__(self, scale: float) -> None:
        self.variance = scale**2

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        return (t * self.variance - (1 - t)) / ((1 - t) ** 2 + t**2 * self.variance) * x


class Oracle:
    """Knows the image: from everywhere on the path it points straight at it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return (self.x - x) / (1 - t.view(-1, 1, 1, 1))


class Network:
    """A velocity that mixes channels and locations but not images."""

    def __init__(self) -> None:
        self.weight = torch.randn(5, 5, 3, 3, generator=torch.Generator().manual_seed(3)) / 7
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.tanh(torch.nn.functional.conv2d(x, self.weight, padding=1)) * (1 + t.view(-1, 1, 1, 1))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_inversion_of_gaussian_data_is_the_squared_noise(scale: float) -> None:
    x = features(scale=scale)
    expected = (x / scale).square().mean(dim=1)
    errors = [
        (Inversion(steps, "heun")(GaussianField(scale), x, range(4)) - expected).abs().max() for steps in (5, 10, 200)
    ]
    assert errors[2] < errors[1] < errors[0]
    torch.testing.assert_close(Inversion(200, "heun")(GaussianField(scale), x, range(4)), expected, rtol=2e-3, atol=0)


def test_one_inversion_step_by_hand() -> None:
    """x_0 = x - v(x, 1); the field of standard normal data is 2t - 1 over 2t^2 - 2t + 1 times x, so 1 at t = 1."""
    x = features()
    torch.testing.assert_close(Inversion(1)(GaussianField(1.0), x, range(4)), torch.zeros(4, 3, 3))
    found = Inversion(1)(lambda x, t: torch.full_like(x, 2.0), torch.ones(1, 5, 3, 3), [0])
    torch.testing.assert_close(found, torch.ones(1, 3, 3))


def test_unlikely_features_score_higher() -> None:
    scores = Inversion(20)(GaussianField(1.0), torch.cat([features(), 3 * features()]), range(8))
    assert (scores[4:] > scores[:4]).all()


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_oracle_reconstructs_everything(tau: float, steps: int) -> None:
    x = features()
    scores = Reconstruction(tau, noises=2, steps=steps)(Oracle(x), x, range(4))
    torch.testing.assert_close(scores, torch.zeros(4, 3, 3), atol=1e-10, rtol=0)


def test_little_noise_is_little_to_repair() -> None:
    """With a field that stands still the error is the noise that was put in: (1 - tau)^2 |x - e|^2."""
    x = features()
    still = {tau: Reconstruction(tau, 1, 1)(lambda x, t: 0 * x, x, range(4)) for tau in (0.2, 0.6, 0.999)}
    torch.testing.assert_close(still[0.2] / (0.8**2), still[0.6] / (0.4**2))
    assert still[0.999].max() < 1e-4


def test_a_model_of_normal_data_cannot_rebuild_what_is_far_from_it() -> None:
    x = torch.cat([features(scale=0.3), features() + 4.0])
    scores = Reconstruction(0.5, 2, 10, "heun")(GaussianField(0.3), x, range(8)).mean(dim=(1, 2))
    assert scores[4:].min() > 10 * scores[:4].max()


def test_noises_are_averaged() -> None:
    x, network = features(), Network()

    class OneDraw(Reconstruction):
        def __init__(self, draw: int) -> None:
            super().__init__(0.5, 1, 3, seed=9)
            self.draw = draw

        def _noise(self, x: Tensor, keys: Sequence[int], draw: int) -> Tensor:
            return super()._noise(x, keys, self.draw)

    single = [OneDraw(draw)(network, x, range(4)) for draw in range(3)]
    assert not torch.allclose(single[0], single[1])
    together = Reconstruction(0.5, 3, 3, seed=9)(network, x, range(4))
    torch.testing.assert_close(together, torch.stack(single).mean(dim=0))


def test_noise_belongs_to_the_image_and_the_seed() -> None:
    x, network = features(1), Network()
    score = Reconstruction(0.5, 1, 2, seed=1)
    assert torch.equal(score(network, x, [5]), score(network, x, [5]))
    assert not torch.allclose(score(network, x, [5]), score(network, x, [6]))
    assert not torch.allclose(score(network, x, [5]), Reconstruction(0.5, 1, 2, seed=2)(network, x, [5]))


@pytest.mark.parametrize("scorer", [Inversion(3), Inversion(2, "midpoint"), Reconstruction(0.4, 2, 2, "heun", seed=4)])
def test_scores_do_not_depend_on_the_batch(scorer: Inversion | Reconstruction) -> None:
    x, keys, network = features(6), [11, 5, 2**61, 0, 8, 3], Network()
    whole = scorer(network, x, keys)
    order = [3, 0, 5, 2, 4, 1]
    torch.testing.assert_close(scorer(network, x[order], [keys[i] for i in order]), whole[order])
    alone = torch.cat([scorer(network, x[i : i + 1], keys[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, whole)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("name", ["inversion", "reconstruction"])
def test_stated_evaluations_are_made(name: str, solver: SolverName) -> None:
    config = CONFIGS[name](steps=3, solver=solver)
    scorer, network = build_scorer(config, TRAINED), Network()
    scores = scorer(network, features(), range(4))
    assert scores.shape == (4, 3, 3)
    assert (scores >= 0).all()
    assert len(network.batches) == scorer.evaluations


def test_every_scorer_option_arrives() -> None:
    inversion = build_scorer(InversionConfig(steps=7, solver="midpoint"), replace(TRAINED, seed=1))
    assert isinstance(inversion, Inversion)
    assert (inversion.steps, inversion.solver) == (7, "midpoint")
    config = ReconstructionConfig(steps=4, solver="heun", tau=0.3, noises=5)
    found = build_scorer(config, replace(TRAINED, seed=8))
    assert isinstance(found, Reconstruction)
    assert (found.steps, found.solver, found.tau, found.noises, found.seed) == (4, "heun", 0.3, 5, 8)
