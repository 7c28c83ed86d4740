"""The exported graph beside torch, in a real ONNX Runtime."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.cli import main
from fmad_dist.config.protocol import Protocol
from fmad_dist.config.run import FeatureConfig, ObjectiveConfig
from fmad_dist.config.scorers import ScorerConfig
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.onnx import check_images, check_replaced, export_onnx
from fmad_dist.features.backbones import Backbone, FeatureSpec
from fmad_dist.networks.dit import DiTSpec
from fmad_dist.scoring.density import DensityConfig
from fmad_dist.scoring.deviation import Deviation, DeviationConfig
from fmad_dist.scoring.endpoint import EndpointConfig
from fmad_dist.scoring.fusion import FusionConfig
from fmad_dist.scoring.interface import PartStatistics
from fmad_dist.scoring.inversion import InversionConfig
from fmad_dist.scoring.mismatch import MismatchConfig
from fmad_dist.scoring.reconstruction import ReconstructionConfig
from fmad_dist.scoring.residual import ResidualConfig
from tests.support.small_parts import build_detector, calibration_of

EXPORTABLE = "ddim, deviation, endpoint, fusion, inversion, residual."


@pytest.fixture(scope="module")
def small() -> Backbone:
    """timm's smallest EfficientNet, with drawn weights: the exporter's time goes with the number of layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone(FeatureSpec("test_efficientnet", (1, 2), 4, 64))


@pytest.fixture(scope="module")
def saved(small: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that finds three of the seven check images anomalous."""
    plain = whitened(small, (1.0, 1.0, 1.0))
    middle = plain(check_images(plain, None, 7)).scores.sort().values
    limit = float(middle[3] + middle[4]) / 2
    folder = tmp_path_factory.mktemp("onnx") / "detector"
    whitened(small, (limit,) * 3).save(folder)
    return folder


def whitened(backbone: Backbone, thresholds: tuple[float, ...]) -> Detector:
    detector = build_detector(backbone, thresholds)
    features = backbone(check_images(detector, None, 7)).float()
    detector.whitening.mean.copy_(features.mean(dim=(0, 2, 3)))
    detector.whitening.std.copy_(features.std(dim=(0, 2, 3)) + 1e-6)
    return detector


@pytest.fixture(scope="module")
def exported(saved: Path) -> Path:
    """By the command."""
    out = saved.parent / "deep" / "model.onnx"
    with pytest.raises(SystemExit) as caught:
        main(["export-onnx", "--model", str(saved), "--out", str(out), "--check", "7"])
    assert caught.value.code == 0
    return out


def test_the_graph_says_what_the_detector_says(saved: Path, exported: Path) -> None:
    from fmad_dist.detector.onnx import run, runtime

    detector = Detector.load(saved)
    images = check_images(detector, None, 7)
    found = detector(images)
    assert found.anomalous.sum() == 3
    assert found.maps.std() > 1e-3
    session = runtime(exported.read_bytes())
    for count in (1, 3, 7):
        theirs = run(session, images[:count].permute(0, 2, 3, 1).contiguous().numpy())
        np.testing.assert_allclose(theirs["score"], found.scores[:count], rtol=1e-3)
        np.testing.assert_allclose(theirs["normalised"], found.normalised[:count], atol=1e-3)
        np.testing.assert_allclose(theirs["map"], found.maps[:count], rtol=5e-3, atol=1e-3)
        np.testing.assert_allclose(theirs["relative_map"], found.relative_maps[:count], atol=2e-3)
        assert theirs["anomalous"].tolist() == found.anomalous[:count].tolist()
        assert theirs["class_index"].tolist() == found.classes[:count].tolist()


def test_the_file_says_what_it_is(exported: Path) -> None:
    import onnx

    model = onnx.load(exported)
    onnx.checker.check_model(model)
    assert model.opset_import[0].version == 18
    facts = json.loads({prop.key: prop.value for prop in model.metadata_props}["fmad"])
    assert facts["class_names"] == ["toy/0", "toy/1", "toy/2"]
    assert (facts["agreement_with_torch"]["num_images"], facts["agreement_with_torch"]["num_anomalous"]) == (7, 3)


def test_another_model_is_replaced_only_when_asked(saved: Path, exported: Path, tmp_path: Path) -> None:
    """The same export again is no other model; one with another sensitivity is, and so is a file of others."""
    out = tmp_path / "model.onnx"
    out.write_bytes(exported.read_bytes())
    same = Detector.load(saved)
    check_replaced(str(out), same)
    with pytest.raises(UserError, match="holds another model; choose another --out, or give --overwrite"):
        check_replaced(str(out), same.with_sensitivity(0.75))
    out.write_bytes(b"not an ONNX file")
    words = ["export-onnx", "--model", str(saved), "--out", str(out), "--check", "2"]
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert (refused.value.code, out.read_bytes()) == (2, b"not an ONNX file")
    with pytest.raises(SystemExit) as done:
        main([*words, "--overwrite"])
    assert done.value.code == 0
    check_replaced(str(out), same)


def test_a_fusion_on_pixels(tmp_path: Path) -> None:
    """Other scorers, a reversed path, patches, skip connection, blur, one threshold for all and a sensitivity."""
    detector = build_detector(
        Backbone(FeatureSpec("pixels", (0,), 16, 64)),
        (1.0, 2.0),
        features=FeatureConfig(backbone="pixels", taps=(0,), grid=16, image_size=64),
        scorer=FusionConfig(parts=(ResidualConfig(), EndpointConfig())),
        objective=ObjectiveConfig(path="reversed"),
        network=DiTSpec(3, 16, width=32, depth=1, heads=2, num_classes=2, patch=2, skip="gaussian"),
        protocol=Protocol(map_size=32, blur_sigma=2.0, image_score="maximum"),
    )
    statistics = (PartStatistics(1.0, 0.5), PartStatistics(0.5, 0.25))
    detector = detector.with_calibration(replace(calibration_of((1.0, 2.0)), parts=statistics))
    detector = detector.with_threshold("global").with_sensitivity(0.6)
    agreement = export_onnx(detector, str(tmp_path / "fusion.onnx"), check_images(detector, None, 6))
    assert agreement.score < 1e-3
    assert agreement.num_flipped == 0


def test_disagreement_writes_nothing(
    saved: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph of other weights than those it is compared with."""
    import onnx

    from fmad_dist.detector import onnx as own

    other = copy.deepcopy(Detector.load(saved))
    other.whitening.std.mul_(1.01)
    monkeypatch.setattr(own, "build_graph", lambda _: onnx.load(exported))
    with pytest.raises(UserError, match=r"model\.onnx: not written, ONNX Runtime and torch disagree on 3 images"):
        export_onnx(other, str(tmp_path / "model.onnx"), check_images(other, None, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "scorer",
    [
        ReconstructionConfig(steps=2),
        DensityConfig(steps=1),
        MismatchConfig(noises=1, times=2),
        FusionConfig(parts=(InversionConfig(), MismatchConfig())),
    ],
    ids=lambda scorer: scorer.name,
)
def test_scorers_that_draw_are_refused(small: Backbone, tmp_path: Path, scorer: ScorerConfig) -> None:
    detector = build_detector(small, (1.0,), scorer=scorer, calibration=None)
    with pytest.raises(UserError, match=f"cannot; what can be exported: {EXPORTABLE}"):
        export_onnx(detector, str(tmp_path / "model.onnx"), torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_deviation(tmp_path: Path) -> None:
    """What is normal is in the graph, for every class and place."""
    detector = build_detector(
        Backbone(FeatureSpec("pixels", (0,), 16, 64)),
        (1.0, 2.0),
        features=FeatureConfig(backbone="pixels", taps=(0,), grid=16, image_size=64),
        scorer=DeviationConfig(part=EndpointConfig()),
        network=DiTSpec(3, 16, width=32, depth=1, heads=2),
    )
    scorer = detector.scorer
    assert isinstance(scorer, Deviation)
    generator = torch.Generator().manual_seed(4)
    normals = [torch.randn(20, 3, 16, 16, generator=generator) * scale + 0.3 for scale in (0.5, 2.0)]
    found = [scorer.normality(vectors) for vectors in normals]
    detector = detector.scored_by(scorer.with_normality(detector.class_means, found)).with_calibration(
        detector.spec.calibration
    )
    agreement = export_onnx(detector, str(tmp_path / "deviation.onnx"), check_images(detector, None, 6))
    assert agreement.score < 1e-3
    assert agreement.num_flipped == 0


def test_only_float32_becomes_a_graph(small: Backbone, tmp_path: Path) -> None:
    detector = build_detector(small, (1.0,), precision="bf16")
    with pytest.raises(UserError, match="computes in bf16"):
        export_onnx(detector, str(tmp_path / "half.onnx"), check_images(detector, None, 2))
