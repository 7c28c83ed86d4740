"""A prediction to look at: real scores and pictures of a few images, and as many rows as a day of production."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmad_dist.base.world import World
from fmad_dist.detector.detector import Detector
from fmad_dist.prediction.predict import PredictionOptions, run_prediction
from fmad_dist.prediction.results import Pictures, parquet_bytes, read_parquet, table_of
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp, write_stamp

NUM_ROWS = 10_000


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four kinds of files: wide JPEGs, a PNG, a 16-bit TIFF, and a PNG that is none."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 8, 3), dtype=np.uint8))
        coarse.resize((160, 100), Image.Resampling.BICUBIC).save(folder / f"wide-{number}.jpg")
    Image.fromarray(rng.integers(0, 256, (80, 60, 3), dtype=np.uint8)).save(folder / "high.png")
    Image.fromarray(rng.integers(0, 65536, (50, 50), dtype=np.uint16)).save(folder / "deep.tif")
    (folder / "cut.png").write_bytes(b"none")
    return folder


@pytest.fixture(scope="session")
def predicted(
    photographs: Path, make_detector: Callable[..., Detector], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The prediction of these, of two classes and of both decisions, with all pictures. Read only."""
    out = tmp_path_factory.mktemp("predicted")
    trial = PredictionOptions("", (str(photographs),), str(out / "trial"), pictures=Pictures.NONE)
    run_prediction(trial, World(), make_detector((1.0, 1.0)))
    scores = [s for s in read_parquet((out / "trial" / "scores.parquet").read_bytes())["score"].to_pylist() if s]
    middle = float(np.median(scores))
    options = PredictionOptions("", (str(photographs),), str(out / "real"), name="models:/toy/1")
    run_prediction(options, World(), make_detector((middle, middle)))
    return out / "real"


@pytest.fixture(scope="session")
def many(predicted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The anomalous and unreadable rows of the prediction with their pictures, and thousands of normal ones."""
    out = tmp_path_factory.mktemp("many")
    rows = read_parquet((predicted / "scores.parquet").read_bytes()).to_pylist()
    normal = next(row for row in rows if row["decision"] == "normal")
    rng = np.random.default_rng(1)
    kept = [row for row in rows if row["decision"] != "normal"]
    for number in range(NUM_ROWS - len(kept)):
        level = float(rng.uniform(0.05, 0.49))
        changed = {"score": level, "normalised": level, "class": f"toy/{number % 2}"}
        kept.append(normal | {"image": f"line-3/{number:06d}.jpg"} | changed)
    (out / "scores.parquet").write_bytes(parquet_bytes(table_of(kept)))
    stamp = read_stamp(Store(predicted))
    assert stamp is not None
    write_stamp(Store(out), stamp.key, stamp.facts | {"pictures": "anomalous"}, ())
    (out / "maps").symlink_to(predicted / "maps")
    return out
