"""Fitting gives another detector, and the one it is called with stays as it was.

Thresholds fitted again are those of the scores of the given images; all else stays as it was.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.files import parse_config
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.fit import GivenNormals, calibrate, fit_scorer, recalibrate
from fmad_dist.features.prepare import TrainingImages
from fmad_dist.flow.noise import content_keys
from fmad_dist.scoring.calibration import Calibration, fit_thresholds
from fmad_dist.scoring.deviation import DeviationConfig
from fmad_dist.scoring.endpoint import EndpointConfig
from fmad_dist.scoring.fusion import Fusion, FusionConfig
from fmad_dist.scoring.interface import ScoringMethod
from fmad_dist.scoring.inversion import InversionConfig
from fmad_dist.stream.image_source import SampleSource
from fmad_dist.stream.reader import BadSample
from fmad_dist.training.data import open_data
from tests.support.small_parts import MakeDetector

SCORERS = [
    DeviationConfig(part=EndpointConfig(), memory=16, images=9),
    DeviationConfig(memory=0, locations=False),
    FusionConfig(parts=(EndpointConfig(), InversionConfig(steps=1))),
    InversionConfig(steps=1),
]
NUMBERS = np.array([0] * 7 + [1] * 4 + [2] * 9)
ORIGIN = {"photos": "digest"}


@pytest.fixture(scope="module")
def data(tiny_url: str) -> TrainingImages:
    tree = {"data": {"manifests": [tiny_url], "holdout": 0.3}, "features": {"image_size": 64}}
    return open_data(parse_config(tree, "test"))


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.title)
def test_fitting_changes_a_copy(
    make_detector: MakeDetector, data: TrainingImages, batch: torch.Tensor, scorer: ScoringMethod
) -> None:
    detector = make_detector((1.0,) * 3, scorer=scorer, calibration=None)
    tensors = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    fitted = fit_scorer(detector, data, World())
    once = fitted(batch)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in detector.state_dict().items())
    if scorer.needs_normals:
        with pytest.raises(UserError, match="never"):
            detector(batch)
    again = fit_scorer(fitted, data, World())  # as `fmad compare` fits the scorer of a trained model once more
    assert torch.equal(again(batch).maps, once.maps)
    assert torch.equal(fitted(batch).maps, once.maps)


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.title)
def test_a_calibrated_detector_keeps_what_was_fitted(
    make_detector: MakeDetector, data: TrainingImages, batch: torch.Tensor, scorer: ScoringMethod
) -> None:
    detector = make_detector((1.0,) * 3, scorer=scorer, calibration=None)
    calibrated = calibrate(detector, data, World(), lambda bad: None, 0.05)
    assert detector.spec.calibration is None
    assert detector.thresholds.isinf().all()
    assert calibrated.thresholds.isfinite().all()
    assert calibrated.spec.calibration is not None
    assert calibrated.spec.calibration.parts == calibrated.scorer.statistics
    for other in (
        calibrated.with_protocol(calibrated.spec.protocol.model_copy(update={"top_percent": 50.0})),
        calibrated.with_calibration(None),
        calibrated.with_scorer(scorer),
        calibrated.with_sensitivity(0.75),
    ):
        assert torch.equal(other(batch).maps, calibrated(batch).maps)
    thresholds = Detector(calibrated.spec).thresholds  # from the specification alone, before any tensor
    assert torch.equal(thresholds, calibrated.thresholds)


class Kept(SampleSource):
    """Images in memory."""

    def __init__(self, images: Sequence[Tensor | BadSample]) -> None:
        self.images = images

    def fetch(self, rows: Sequence[int]) -> list[Tensor | BadSample]:
        return [self.images[row] for row in rows]

    def decode(self, fetched: list[Tensor | BadSample]) -> list[Tensor | BadSample]:
        return fetched


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (len(NUMBERS), 3, 64, 64), dtype=torch.uint8, generator=generator)


def again(
    detector: Detector, images: Sequence[Tensor | BadSample], numbers: np.ndarray, rate: float = 0.05
) -> Detector:
    return recalibrate(detector, GivenNormals(Kept(list(images)), numbers, ORIGIN), lambda bad: None, rate)


def of(detector: Detector) -> Calibration:
    assert detector.spec.calibration is not None
    return detector.spec.calibration


def test_thresholds_are_those_of_the_scores(make_detector: MakeDetector, images: Tensor) -> None:
    detector = make_detector((1.0, 2.0, 3.0))
    scores = detector(images).scores.numpy()
    for rate in (0.05, 0.3):
        found = again(detector, list(images), NUMBERS, rate)
        wanted = fit_thresholds(scores, NUMBERS, 3, rate)
        assert of(found) == replace(wanted, given=ORIGIN)
        assert of(found).num_images == (7, 4, 9)
        classes = detector(images).classes.numpy()
        assert found(images).anomalous.tolist() == (scores > np.float32(wanted.thresholds)[classes]).tolist()
    assert of(detector).thresholds == (1.0, 2.0, 3.0)
    assert detector.thresholds.tolist() == [1.0, 2.0, 3.0]


def test_a_class_without_images_keeps_what_it_had(make_detector: MakeDetector, images: Tensor) -> None:
    detector = make_detector((1.0, 2.0, 3.0))
    own = NUMBERS != 1
    found, scores = of(again(detector, list(images[own]), NUMBERS[own])), detector(images).scores.numpy()
    wanted, before = fit_thresholds(scores[own], NUMBERS[own], 3, 0.05), of(detector)
    assert found.thresholds == (wanted.thresholds[0], 2.0, wanted.thresholds[2])
    assert found.margins == (wanted.margins[0], before.margins[1], wanted.margins[2])
    assert found.num_images == (7, 4, 9)
    assert (found.global_threshold, found.global_margin) == (before.global_threshold, before.global_margin)
    new = of(again(make_detector((1.0,) * 3, calibration=None), list(images[own]), NUMBERS[own]))
    assert new == replace(wanted, given=ORIGIN)
    assert new.thresholds[1] == math.inf


def test_the_held_out_normals_give_what_training_gave(make_detector: MakeDetector, tiny_url: str) -> None:
    tree = {"data": {"manifests": [tiny_url], "holdout": 0.3}, "features": {"image_size": 64}}
    data = open_data(parse_config(tree, "test"))
    parts = (EndpointConfig(), InversionConfig(steps=1))
    for scorer in (InversionConfig(steps=1), FusionConfig(parts=parts), DeviationConfig(memory=8)):
        trained = calibrate(make_detector((1.0,) * 3, scorer=scorer), data, World(), lambda bad: None, 0.05)
        rows = data.split.held_out
        held_out = [data.images.read(row) for row in rows.tolist()]
        found = again(trained, held_out, data.mixture.class_numbers[rows])
        assert of(found) == replace(of(trained), given=ORIGIN)
        assert all(torch.equal(one, found.state_dict()[name]) for name, one in trained.state_dict().items())


def test_a_fusion_is_fitted_to_the_images_if_every_class_has_some(make_detector: MakeDetector, images: Tensor) -> None:
    parts = (EndpointConfig(), InversionConfig(steps=1))
    uncalibrated = make_detector((1.0,) * 3, scorer=FusionConfig(parts=parts))
    before = replace(of(uncalibrated), parts=again_statistics(uncalibrated, images[:5]))
    detector = uncalibrated.with_calibration(before)
    found = again(detector, list(images), NUMBERS)
    for known, wanted in zip(of(found).parts or (), again_statistics(detector, images), strict=True):
        assert (known.mean, known.std) == (pytest.approx(wanted.mean), pytest.approx(wanted.std))
    scores = found(images).scores.numpy()
    assert of(found).thresholds == fit_thresholds(scores, NUMBERS, 3, 0.05).thresholds
    own = NUMBERS != 1
    partial = again(detector, list(images[own]), NUMBERS[own])
    assert of(partial).parts == before.parts
    assert torch.equal(partial(images).scores, detector(images).scores)


def again_statistics(detector: Detector, images: Tensor) -> tuple:
    """Mean and deviation of each part's scores over all images and locations, by numpy."""
    from fmad_dist.scoring.interface import PartStatistics

    assert isinstance(detector.scorer, Fusion)
    x, found = detector.features(images), []
    for part in detector.scorer.parts:
        with torch.inference_mode():
            scores = part(detector.field, x, content_keys(images)).double().numpy()
        found.append(PartStatistics(float(scores.mean()), float(scores.std())))
    return tuple(found)


def test_the_files_say_what_the_thresholds_were_fitted_to(
    make_detector: MakeDetector, images: Tensor, tmp_path: Path
) -> None:
    detector = make_detector((1.0, 2.0, 3.0))
    detector.save(tmp_path / "before")
    again(detector, list(images), NUMBERS).save(tmp_path / "after")
    assert of(Detector.load(tmp_path / "after")).given == ORIGIN
    before, after = (json.loads((tmp_path / name / "detector.json").read_text()) for name in ("before", "after"))
    assert "given" not in before["calibration"]  # as in all files that were written before
    assert after["calibration"]["given"] == ORIGIN
    assert before["weights_sha256"] == after["weights_sha256"]
    assert of(again(Detector.load(tmp_path / "after"), list(images), NUMBERS)) == of(Detector.load(tmp_path / "after"))


def test_damaged_images_are_left_out_and_told(make_detector: MakeDetector, images: Tensor) -> None:
    detector, told = make_detector((1.0, 2.0, 3.0)), list[BadSample]()
    bad = BadSample("a", "photos/a.png", "is cut")
    given: list[Tensor | BadSample] = list(images)
    given[3] = bad
    found = recalibrate(detector, GivenNormals(Kept(given), NUMBERS, ORIGIN), told.extend, 0.05)
    assert told == [bad]
    assert of(found).num_images == (6, 4, 9)
    others = np.arange(len(NUMBERS)) != 3
    assert of(found) == of(again(detector, list(images[others]), NUMBERS[others]))
    with pytest.raises(UserError, match=r"class toy/1: none of its normal images could be read"):
        again(detector, [*images[:7], *[bad] * 4, *images[11:]], NUMBERS)
    with pytest.raises(UserError, match="no normal images found; check --data, --split and --source"):
        again(detector, [], NUMBERS[:0])
