from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fmad_dist.flow.solvers import SolverName
from fmad_dist.scoring.interface import build_scorer
from fmad_dist.scoring.reconstruction import Reconstruction, ReconstructionConfig
from tests.support.toy_fields import (
    TRAINED,
    GaussianField,
    Network,
    Oracle,
    check_batches,
    check_evaluations,
    features,
)


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

    @dataclass(frozen=True)
    class OneDraw(Reconstruction):
        the_draw: int = 0

        def _noise(self, x: Tensor, keys: Sequence[int], draw: int) -> Tensor:
            return super()._noise(x, keys, self.the_draw)

    single = [OneDraw(0.5, 1, 3, seed=9, the_draw=draw)(network, x, range(4)) for draw in range(3)]
    assert not torch.allclose(single[0], single[1])
    together = Reconstruction(0.5, 3, 3, seed=9)(network, x, range(4))
    torch.testing.assert_close(together, torch.stack(single).mean(dim=0))


def test_noise_belongs_to_the_image_and_the_seed() -> None:
    x, network = features(1), Network()
    score = Reconstruction(0.5, 1, 2, seed=1)
    assert torch.equal(score(network, x, [5]), score(network, x, [5]))
    assert not torch.allclose(score(network, x, [5]), score(network, x, [6]))
    assert not torch.allclose(score(network, x, [5]), Reconstruction(0.5, 1, 2, seed=2)(network, x, [5]))


def test_scores_do_not_depend_on_the_batch() -> None:
    check_batches(Reconstruction(0.4, 2, 2, "heun", seed=4))


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_stated_evaluations_are_made(solver: SolverName) -> None:
    check_evaluations(ReconstructionConfig(steps=3, solver=solver))


def test_every_option_arrives() -> None:
    config = ReconstructionConfig(steps=4, solver="heun", tau=0.3, noises=5)
    found = build_scorer(config, replace(TRAINED, seed=8))
    assert isinstance(found, Reconstruction)
    assert (found.steps, found.solver, found.tau, found.noises, found.seed) == (4, "heun", 0.3, 5, 8)
