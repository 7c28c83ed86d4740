from dataclasses import replace

import pytest
import torch

from fmad_dist.flow.solvers import SolverName
from fmad_dist.scoring.interface import build_scorer
from fmad_dist.scoring.inversion import Inversion, InversionConfig
from tests.support.toy_fields import TRAINED, GaussianField, check_batches, check_evaluations, features


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


@pytest.mark.parametrize("scorer", [Inversion(3), Inversion(2, "midpoint")])
def test_scores_do_not_depend_on_the_batch(scorer: Inversion) -> None:
    check_batches(scorer)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_stated_evaluations_are_made(solver: SolverName) -> None:
    check_evaluations(InversionConfig(steps=3, solver=solver))


def test_every_option_arrives() -> None:
    inversion = build_scorer(InversionConfig(steps=7, solver="midpoint"), replace(TRAINED, seed=1))
    assert isinstance(inversion, Inversion)
    assert (inversion.steps, inversion.solver) == (7, "midpoint")
