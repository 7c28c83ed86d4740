"""Which detectors make a run complete."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmad_dist.config.protocol import Protocol
from fmad_dist.config.run import RunConfig
from fmad_dist.config.scorers import default_config
from fmad_dist.detector.completeness import what_lacks
from fmad_dist.detector.detector import Detector
from fmad_dist.detector.files import write_detector

DIGESTS = {"manifest_digests": {"tiny": "a" * 64}, "backbone_digest": "b" * 64}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(name="one", output=str(tmp_path))


def write(config: RunConfig, detector: Detector, **changes: Any) -> None:
    """The detector that the configuration asks for, but for `changes`."""
    assert detector.spec.calibration is not None
    asked = {
        "train_step": config.train.steps,
        "features": config.features,
        "objective": config.objective,
        "scorer": config.scorer,
        "protocol": config.protocol,
        "precision": config.calibration.precision,
        "calibration": replace(detector.spec.calibration, false_alarm_rate=config.calibration.false_alarm_rate),
    }
    spec = detector.spec.model_copy(update=asked | DIGESTS | changes)
    write_detector(config.run_dir / "detector", spec, detector.state_dict())


def test_only_the_detector_that_is_asked_for_completes_a_run(config: RunConfig, tiny_detector: Detector) -> None:
    def lacks() -> str | None:
        return what_lacks(config.run_dir, config, DIGESTS)

    assert lacks() == "there is no detector yet"
    calibration = tiny_detector.spec.calibration
    assert calibration is not None
    others: dict[str, tuple[Any, str]] = {
        "train_step": (500, "the detector is of step 500 instead of 1000"),
        "scorer": (default_config("endpoint"), "the detector is of other scorer"),
        "protocol": (Protocol(map_size=32), "the detector is of other protocol"),
        "precision": ("bf16", "the detector is of other precision"),
        "calibration": (replace(calibration, false_alarm_rate=0.2), "the detector is of other false-alarm rate"),
        "manifest_digests": ({"tiny": "c" * 64}, "the detector is of other manifest_digests"),
        "backbone_digest": ("c" * 64, "the detector is of other backbone_digest"),
    }
    for name, (value, said) in others.items():
        write(config, tiny_detector, **{name: value})
        assert lacks() == said
    write(config, tiny_detector)
    assert lacks() is None
    (config.run_dir / "detector" / "weights.safetensors").write_bytes(b"cut")
    assert "weights.safetensors: changed after it was written" in str(lacks())
