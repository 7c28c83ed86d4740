"""Fields whose answers are known, and features to score with them."""

import torch
from torch import Tensor

from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.scoring.interface import Scorer, ScoringMethod, Trained, build_scorer

TRAINED = Trained(ObjectiveConfig(), 0.0, (5, 3, 3), 1, seed=0)


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


def check_batches(scorer: Scorer) -> None:
    """Scores are the same in any order and alone."""
    x, keys, network = features(6), [11, 5, 2**61, 0, 8, 3], Network()
    whole = scorer(network, x, keys)
    order = [3, 0, 5, 2, 4, 1]
    torch.testing.assert_close(scorer(network, x[order], [keys[i] for i in order]), whole[order])
    alone = torch.cat([scorer(network, x[i : i + 1], keys[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, whole)


def check_evaluations(config: ScoringMethod) -> None:
    """The network is evaluated as often as the scorer says."""
    scorer, network = build_scorer(config, TRAINED), Network()
    scores = scorer(network, features(), range(4))
    assert scores.shape == (4, 3, 3)
    assert (scores >= 0).all()
    assert len(network.batches) == scorer.evaluations
