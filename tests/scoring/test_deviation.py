"""Known answers of the deviation scorer, and that neither ranks nor files nor batches change it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.files import parse_config
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.fit import fit_scorer
from fmad_dist.features.prepare import TrainingImages
from fmad_dist.scoring.deviation import (
    FLOOR,
    SHRINK,
    Deviation,
    DeviationConfig,
    Normality,
    common_limit,
    gaussian,
    location_moments,
)
from fmad_dist.scoring.endpoint import EndpointConfig
from fmad_dist.scoring.interface import Trained, build_scorer
from fmad_dist.scoring.inversion import Inversion
from fmad_dist.training.data import open_data
from tests.support.fake_world import FakeWorld


def still(x: Tensor, t: Tensor) -> Tensor:
    """A field without motion: the vectors of an inversion are the features themselves."""
    return torch.zeros_like(x)


def correlated(count: int, seed: int = 0) -> Tensor:
    """Vectors [n, 2, 6, 6] of mean (3, -1) and covariance ((4, 3), (3, 9))."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, 6, 6, generator=generator)
    mixing = torch.linalg.cholesky(torch.tensor([[4.0, 3.0], [3.0, 9.0]]))
    return torch.einsum("cd,ndhw->nchw", mixing, z) + torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)


def test_vectors_get_about_unit_covariance() -> None:
    mean, root = gaussian(correlated(4000))
    torch.testing.assert_close(mean, torch.tensor([3.0, -1.0]), atol=0.05, rtol=0)
    shrunk = torch.tensor([[4.0, 3.0], [3.0, 9.0]]) + SHRINK * 6.5 * torch.eye(2)
    torch.testing.assert_close(root @ shrunk @ root.T, torch.eye(2), atol=0.03, rtol=0)


def test_places_by_hand() -> None:
    scores = torch.zeros(2, 4, 5)
    scores[0, 2, 3], scores[1, 2, 3] = 9.0, 27.0
    mean, deviation = location_moments(scores)
    assert mean[0, 0] == 0.0
    torch.testing.assert_close(mean[2, 3], torch.tensor(36.0 / 18))
    torch.testing.assert_close(mean[3, 4], torch.tensor(36.0 / 18))  # a neighbour, and the edge repeats other places
    spread = (((9.0**2 + 27.0**2) / 18) - 2.0**2) ** 0.5
    floor = FLOOR * spread * int((mean > 0).sum()) / mean.numel()
    torch.testing.assert_close(deviation[2, 3], torch.tensor(spread + floor))
    torch.testing.assert_close(deviation[0, 0], torch.tensor(floor))


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize("locations", [False, True])
@pytest.mark.parametrize("memory", [0, 100, 5000])
def test_scores_by_formula(covariance: bool, locations: bool, memory: int) -> None:
    """Two classes far apart, each measured by its own normals; the batch does not change a bit."""
    scorer = Deviation(Inversion(1), 2, (2, 6, 6), covariance, locations, memory)
    normals = [correlated(50), 2 * correlated(40, seed=1) + 50]
    class_means = torch.stack([one.mean(dim=(0, 2, 3)) for one in normals])
    found = [scorer.normality(one) for one in normals]
    with pytest.raises(UserError, match="never fitted"):
        scorer(still, normals[0], ())
    scorer = scorer.with_normality(class_means, found)
    x = torch.cat([correlated(2, seed=2), 2 * correlated(1, seed=3) + 50])
    scores = scorer(still, x, ())
    for image, own, score in zip(x, (found[0], found[0], found[1]), scores, strict=True):
        torch.testing.assert_close(score, expected(image, own, covariance, locations), rtol=1e-4, atol=2e-4)
    for row in range(3):
        assert torch.equal(scorer(still, x[row : row + 1], ())[0], scores[row])


def expected(image: Tensor, own: Normality, covariance: bool, locations: bool) -> Tensor:
    """[6, 6], or with locations [2, 6, 6] for the image and for the map."""
    wanted = torch.empty(2, 6, 6)
    level, scale = own.location_mean.mean(), own.location_std.mean()
    for row in range(6):
        for column in range(6):
            vector = image[:, row, column]
            vector = own.root @ (vector - own.mean) if covariance else vector
            if len(own.memory):
                value = (own.memory.float() - vector).square().mean(dim=1).min()
            else:
                value = vector.square().mean()
            wanted[0, row, column] = (value - own.location_mean[row, column]) / own.location_std[row, column]
            wanted[1, row, column] = (value - level) / scale if locations else value
    return wanted if locations else wanted[1]


@pytest.mark.parametrize("memory", [0, 1000])
def test_normal_images_score_about_zero_at_every_place(memory: int) -> None:
    """Places whose normals score high are no more suspicious than others."""
    normals = correlated(200)
    normals[:, :, 2:4] *= 5
    scorer = Deviation(Inversion(1), 1, (2, 6, 6), True, True, memory)
    scorer = scorer.with_normality(normals.mean(dim=(0, 2, 3))[None], [scorer.normality(normals)])
    scores = scorer(still, correlated(200, seed=5) * torch.where(torch.arange(6) // 2 == 1, 5.0, 1.0)[:, None], ())
    judging, shown = scores.mean(dim=0)
    assert judging.abs().max() < 0.6
    if memory:
        return  # it knows these vectors, wherever they are
    assert shown[2:4].mean() > shown[:2].mean() + 1  # the map keeps the difference
    plain = scorer.part(still, correlated(200, seed=5) * torch.where(torch.arange(6) // 2 == 1, 5.0, 1.0)[:, None], ())
    assert plain.mean(dim=0)[2:4].mean() > 10 * plain.mean(dim=0)[:2].mean()


@pytest.fixture(scope="module")
def data(tiny_url: str) -> TrainingImages:
    return open_data(
        parse_config({"data": {"manifests": [tiny_url], "holdout": 0.3}, "features": {"image_size": 64}}, "test")
    )


def fitted(make_detector: object, data: TrainingImages, world: World) -> Detector:
    config = DeviationConfig(part=EndpointConfig(), images=9, memory=64)
    detector = make_detector((1.0, 1.0, 1.0), scorer=config)  # type: ignore[operator]
    return fit_scorer(detector, data, world)


def test_one_rank_or_two_and_through_files(make_detector: object, data: TrainingImages, tmp_path: Path) -> None:
    alone = fitted(make_detector, data, World())
    shares: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for rank, own in shares.items():  # what each rank fills
        fitted(
            make_detector, data, FakeWorld(rank, size=2, filled=lambda values, own=own: own.append(values) or values)
        )
    together = iter(
        [ours.view(np.uint8) + theirs.view(np.uint8) for ours, theirs in zip(*shares.values(), strict=True)]
    )
    both = fitted(make_detector, data, FakeWorld(size=2, filled=lambda values: next(together).view(values.dtype)))
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(alone(images).maps, both(images).maps)
    grids = alone.scorer(alone.field, alone.features(images), ())
    for plane, name in enumerate(("scores", "maps")):  # the first judge, the second are shown
        wanted = alone.scorer.finish(grids[:, plane], alone.spec.protocol)[plane]
        assert torch.equal(getattr(alone(images), name), wanted)
    alone.save(tmp_path / "detector")
    again = Detector.load(tmp_path / "detector")
    assert torch.equal(again(images).maps, alone(images).maps)
    assert again.with_scorer(EndpointConfig()).scorer is not again.scorer
    assert isinstance(again.scorer, Deviation)  # another detector leaves it alone
    assert torch.equal(again(images).maps, alone(images).maps)


def test_images_are_shared_by_classes_that_have_them() -> None:
    assert common_limit([5, 100, 100], 105) == 50
    assert common_limit([5, 100, 100], 9) == 3
    assert common_limit([5, 100, 100], 1000) == 100


@pytest.mark.parametrize(("channels", "side"), [(1024, 1024), (1025, 0)])
def test_covariances_that_are_too_large_are_left_out(channels: int, side: int) -> None:
    trained = Trained(ObjectiveConfig(), 0.0, (channels, 1, 1), num_classes=1, seed=0)
    scorer = build_scorer(DeviationConfig(), trained)
    assert isinstance(scorer, Deviation)
    assert scorer.root.shape == (1, side, side)


def test_all_classes_together_stay_in_a_budget_and_files_of_another_one_are_read() -> None:
    def scorer(num_classes: int, channels: int = 192) -> Deviation:
        trained = Trained(ObjectiveConfig(), 0.0, (channels, 16, 16), num_classes=num_classes, seed=0)
        with torch.device("meta"):
            found = build_scorer(DeviationConfig(), trained)
        assert isinstance(found, Deviation)
        return found

    assert scorer(680).memory.shape == (680, 4096, 192)
    many = scorer(5000)
    assert many.memory.shape == (5000, 559, 192)
    assert sum(one.nbytes for one in many.buffers()) < 2e9
    assert scorer(5000, 1024).root.numel() == 0
    small = Deviation(Inversion(1), 2, (2, 6, 6), covariance=False, locations=True, memory=3)
    large = Deviation(Inversion(1), 2, (2, 6, 6), covariance=True, locations=True, memory=7)
    small.load_state_dict(large.state_dict())
    assert small.memory.shape == (2, 7, 2)
    assert small.covariance
