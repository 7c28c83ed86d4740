"""Predictions in this process, and the rows they wrote."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fmad_dist.base.world import World
from fmad_dist.detector.detector import Detector
from fmad_dist.prediction.predict import PredictionOptions, run_prediction
from fmad_dist.prediction.results import PredictionSummary, read_parquet
from fmad_dist.storage import Store

SIDE = 64


def save(path: Path, seed: int, shape: tuple[int, ...] = (SIDE, SIDE, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def predict(detector: Detector, source: Path | str, out: Path | str, **options: Any) -> PredictionSummary:
    summary = run_prediction(PredictionOptions("", (str(source),), str(out), **options), World(), detector)
    assert summary is not None
    return summary


def rows_of(out: Path | str) -> list[dict[str, Any]]:
    return read_parquet(Store(out).read("scores.parquet")).to_pylist()


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
