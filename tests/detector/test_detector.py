import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol, named_protocol
from fmad_dist.config.scorers import ScorerConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import WEIGHTS_NAME
from fmad_dist.scoring.calibration import Calibration
from fmad_dist.scoring.deviation import DeviationConfig
from fmad_dist.scoring.interface import Scorer
from fmad_dist.scoring.inversion import Inversion, InversionConfig
from fmad_dist.scoring.reconstruction import ReconstructionConfig
from tests.detector.detections import INFINITE, assert_equal, images
from tests.support.small_parts import SIDE, MakeDetector


def test_detections_have_the_stated_form(tiny_detector: Detector) -> None:
    found = tiny_detector(images())
    assert found.scores.shape == found.classes.shape == found.thresholds.shape == found.anomalous.shape == (3,)
    assert found.maps.shape == (3, 32, 32)
    assert found.scores.dtype == found.maps.dtype == torch.float32
    assert found.scores.isfinite().all()
    assert found.maps.std() > 1e-3  # the weights are random, the maps must not be flat
    assert ((found.maps.amin((1, 2)) <= found.scores) & (found.scores <= found.maps.amax((1, 2)))).all()


@pytest.mark.parametrize("scorer", [InversionConfig(steps=2), ReconstructionConfig(noises=2, steps=2)])
def test_neither_batch_nor_place_nor_order_changes_a_score(make_detector: MakeDetector, scorer: ScorerConfig) -> None:
    detector = make_detector((1.0, 2.0), scorer=scorer)
    batch = images(9)
    whole = detector(batch)
    alone = [detector(image[None]) for image in batch]
    torch.testing.assert_close(torch.cat([found.scores for found in alone]), whole.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([found.maps for found in alone]), whole.maps, rtol=1e-4, atol=1e-5)
    assert torch.cat([found.classes for found in alone]).tolist() == whole.classes.tolist()
    order = torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])
    torch.testing.assert_close(detector(batch[order]).scores, whole.scores[order], rtol=1e-5, atol=1e-6)
    assert_equal(detector(batch), whole)


def test_decisions_follow_the_thresholds(make_detector: MakeDetector) -> None:
    scores = make_detector((1.0,))(images(6)).scores.sort()
    limit = scores.values[3].item()
    detector = make_detector((limit,))
    found = detector(images(6))
    assert found.thresholds.tolist() == [limit] * 6
    assert found.anomalous.sum() == 2  # a score at its threshold is not above it
    assert sorted(found.anomalous.nonzero().flatten().tolist()) == sorted(scores.indices[4:].tolist())


def test_the_threshold_is_that_of_the_inferred_class(make_detector: MakeDetector) -> None:
    detector = make_detector((1.0, 2.0, 3.0))
    x = detector.whitening(detector.backbone(images(3))).mean(dim=(2, 3))
    detector.class_means.copy_(x[[2, 0, 1]])
    found = detector(images(3))
    assert found.classes.tolist() == [1, 2, 0]
    assert found.thresholds.tolist() == [2.0, 3.0, 1.0]


def test_without_calibration_nothing_is_anomalous(make_detector: MakeDetector) -> None:
    found = make_detector((1.0, 2.0), calibration=None)(images())
    assert found.thresholds.tolist() == [INFINITE] * 3
    assert not found.anomalous.any()
    assert found.normalised.isnan().all()
    assert found.relative_maps.isnan().all()


def test_scores_and_maps_share_a_scale(make_detector: MakeDetector) -> None:
    """Half at the threshold: of an image whose own score is the threshold, and of every pixel of a map."""
    plain = make_detector((1.0,))(images(6))
    limit = plain.scores.sort().values[3].item()
    found = make_detector((limit,))(images(6))
    assert found.normalised[found.scores == limit].tolist() == [0.5]
    assert (found.anomalous == (found.normalised > 0.5)).all()
    assert torch.equal(found.scores.argsort(), found.normalised.argsort())
    assert found.relative_maps.shape == found.maps.shape
    assert torch.equal(found.relative_maps > 0.5, found.maps > limit)
    assert 0.0 <= found.relative_maps.min() < found.relative_maps.max() <= 1.0


def test_sensitivity_moves_decisions_alone(make_detector: MakeDetector) -> None:
    detector = make_detector((1.0,))
    detector = make_detector((detector(images(6)).scores.median().item(),))
    usual = detector(images(6))
    counts = []
    for sensitivity in (0.0, 0.4, 0.5, 0.6, 1.0):
        found = detector.with_sensitivity(sensitivity)(images(6))
        assert torch.equal(found.normalised, usual.normalised)
        assert torch.equal(found.relative_maps, usual.relative_maps)
        assert torch.equal(found.anomalous, found.scores > found.thresholds)
        assert torch.equal(found.anomalous, found.normalised > 1.0 - sensitivity)
        counts.append(int(found.anomalous.sum()))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 6)
    assert_equal(detector(images(6)), usual)  # it was another detector
    with pytest.raises(UserError, match="sensitivity 2"):
        detector.with_sensitivity(2.0)


def test_one_threshold_for_all_classes(tiny_detector: Detector) -> None:
    found = tiny_detector.with_threshold("global").with_sensitivity(0.25)(images())
    assert found.midpoints.tolist() == [1.5] * 3
    assert found.thresholds.tolist() == [2.0] * 3
    assert set(tiny_detector(images()).thresholds.tolist()) <= {1.0, 2.0}


def test_calibration_arrives(tiny_detector: Detector, tmp_path: Path) -> None:
    calibration = Calibration((0.25, math.inf), (0.1, 0.2), (3, 0), 0.5, 0.3, 0.02)
    tiny_detector.with_calibration(calibration).save(tmp_path)
    loaded = Detector.load(tmp_path)
    assert loaded.spec.calibration == calibration
    assert loaded.thresholds.tolist() == [0.25, INFINITE]


def test_another_scorer_forgets_the_thresholds(tiny_detector: Detector) -> None:
    before = tiny_detector(images())
    assert_equal(tiny_detector.with_scorer(tiny_detector.spec.scorer)(images()), before)
    other = tiny_detector.with_scorer(InversionConfig(steps=5))
    after = other(images())
    assert not torch.allclose(after.scores, before.scores)
    assert after.thresholds.tolist() == [INFINITE] * 3
    assert other.spec.calibration is None


def test_the_protocol_shapes_the_maps(make_detector: MakeDetector) -> None:
    plain = make_detector((1.0,), protocol=Protocol(map_size=32, top_percent=100.0))(images())
    torch.testing.assert_close(plain.scores, plain.maps.mean(dim=(1, 2)))
    blurred = make_detector((1.0,), protocol=Protocol(map_size=32, blur_sigma=4.0, top_percent=100.0))
    found = blurred(images())
    assert found.maps.std() < plain.maps.std()
    torch.testing.assert_close(found.scores, plain.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(1, 3, SIDE, SIDE),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8),
        torch.zeros(3, SIDE, SIDE, dtype=torch.uint8),
    ],
    ids=["floats", "small", "channels last", "no batch"],
)
def test_other_images_are_refused(tiny_detector: Detector, batch: Tensor) -> None:
    with pytest.raises(UserError, match=r"takes uint8 RGB of shape \[B, 3, 64, 64\]"):
        tiny_detector(batch)


def test_a_detector_in_bfloat16(make_detector: MakeDetector, tmp_path: Path) -> None:
    """Its network and file are half as large, its scores nearly the same, and files keep the bits."""
    plain, half = make_detector((1.0, 1.0)), make_detector((1.0, 1.0), precision="bf16")
    half.network.load_state_dict(plain.network.state_dict())
    half.whitening.load_state_dict(plain.whitening.state_dict())
    assert half.network.embed.weight.dtype == torch.bfloat16
    found, exact = half(images()), plain(images())
    assert found.scores.dtype == torch.float32
    torch.testing.assert_close(found.scores, exact.scores, rtol=0.02, atol=0)
    assert not torch.equal(found.scores, exact.scores)
    for name, detector in (("plain", plain), ("half", half)):
        detector.save(tmp_path / name)
    assert torch.equal(Detector.load(tmp_path / "half")(images()).scores, found.scores)
    sizes = [
        sum(t.nbytes for k, t in load_file(tmp_path / name / WEIGHTS_NAME).items() if k.startswith("network."))
        for name in ("plain", "half")
    ]
    assert sizes[0] == 2 * sizes[1]


def test_another_protocol_ends_a_detectors_thresholds(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector((0.5, 1.0, 2.0))
    assert detector.with_protocol(detector.spec.protocol).thresholds.tolist() == [0.5, 1.0, 2.0]
    detector = detector.with_protocol(named_protocol("ader"))
    assert detector.thresholds.tolist() == [float("inf")] * 3
    assert detector.spec.calibration is None
    found = detector(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert found.maps.shape == (1, 256, 256)
    assert torch.equal(found.scores, found.maps.amax((1, 2)))


WAYS: dict[str, Callable[[Detector], Detector]] = {
    "with_scorer": lambda detector: detector.with_scorer(InversionConfig(steps=5)),
    "with_scorer of tensors": lambda detector: detector.with_scorer(DeviationConfig(memory=8)),
    "scored_by": lambda detector: detector.scored_by(Inversion(1)),
    "with_protocol": lambda detector: detector.with_protocol(Protocol(map_size=16)),
    "with_calibration": lambda detector: detector.with_calibration(
        Calibration((9.0,) * 2, (1.0,) * 2, (1, 1), 9, 1, 0.1)
    ),
    "without calibration": lambda detector: detector.with_calibration(None),
    "with_sensitivity": lambda detector: detector.with_sensitivity(0.9),
    "with_threshold": lambda detector: detector.with_threshold("global"),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_detector_shares_the_tensors_and_changes_nothing(tiny_detector: Detector, way: str) -> None:
    spec, before = tiny_detector.spec, tiny_detector(images())
    tensors = {name: tensor.clone() for name, tensor in tiny_detector.state_dict().items()}
    limits = tiny_detector.thresholds.clone(), tiny_detector.margins.clone()
    other = WAYS[way](tiny_detector)
    assert other is not tiny_detector
    assert other.network is tiny_detector.network
    assert other.class_means is tiny_detector.class_means
    if way != "with_scorer of tensors":  # which is not fitted
        found = other(images())
        assert not all(torch.equal(getattr(found, name), getattr(before, name)) for name in ("maps", "thresholds"))
    assert tiny_detector.spec is spec
    assert (tiny_detector.sensitivity, tiny_detector.threshold) == (0.5, "class")
    assert tiny_detector.state_dict().keys() == tensors.keys()
    for name, tensor in tiny_detector.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    assert torch.equal(tiny_detector.thresholds, limits[0])
    assert torch.equal(tiny_detector.margins, limits[1])
    assert_equal(tiny_detector(images()), before)


def test_ways_can_be_combined_in_any_order(tiny_detector: Detector) -> None:
    calibration = Calibration((0.25, 0.5), (0.1, 0.2), (3, 2), 0.75, 0.5, 0.02)
    one = tiny_detector.with_threshold("global").with_sensitivity(0.75).with_calibration(calibration)
    other = tiny_detector.with_calibration(calibration).with_sensitivity(0.75).with_threshold("global")
    assert_equal(one(images()), other(images()))
    assert one(images()).thresholds.tolist() == [0.25] * 3  # the margin of 0.5 below the threshold for all


def test_a_map_is_finished_once(make_detector: MakeDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two planes each is upsampled once, and only the judging one gives a score."""
    calls: list[str] = []
    for name in ("to_pixels", "image_scores"):
        usual = getattr(Scorer, name)
        noted = lambda self, *given, name=name, usual=usual: calls.append(name) or usual(self, *given)  # noqa: E731
        monkeypatch.setattr(Scorer, name, noted)
    detector = make_detector((1.0,), protocol=Protocol(map_size=32, blur_sigma=1.0))
    grid = torch.rand(2, 2, 4, 4)
    x = torch.zeros(2, detector.backbone.num_channels, 4, 4)
    both = detector.judge(x, grid)
    assert calls == ["to_pixels", "to_pixels", "image_scores"]
    assert torch.equal(both.scores, detector.judge(x, grid[:, 0]).scores)
    assert torch.equal(both.maps, detector.judge(x, grid[:, 1]).maps)
    assert not torch.equal(both.scores, detector.judge(x, grid[:, 1]).scores)
